env.enableCheckpointing(10_000, CheckpointingMode.EXACTLY_ONCE);
KafkaSource<String> source = KafkaSource.<String>builder()
    .setBootstrapServers("kafka:9092").setTopics("articles").setGroupId("index")
    .setProperty("isolation.level", "read_committed")
    .setValueOnlyDeserializer(new SimpleStringSchema()).build();
env.fromSource(source, WatermarkStrategy.noWatermarks(), "articles").sinkTo(
    new Elasticsearch7SinkBuilder<String>()
        .setHosts(new HttpHost("elastic", 9200, "http"))
        .setEmitter((article, context, indexer) -> indexer.add(Requests.indexRequest().index("articles-index").source(Map.of("text", article))))
        .setDeliveryGuarantee(DeliveryGuarantee.AT_LEAST_ONCE)
        .build());
