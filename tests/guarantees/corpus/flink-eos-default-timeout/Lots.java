env.enableCheckpointing(60_000);
KafkaSource<String> source = KafkaSource.<String>builder()
    .setBootstrapServers("kafka:9092").setTopics("bids").setGroupId("lots")
    .setProperty("isolation.level", "read_committed")
    .setValueOnlyDeserializer(new SimpleStringSchema()).build();
KafkaSink<String> sink = KafkaSink.<String>builder()
    .setBootstrapServers("kafka:9092")
    .setRecordSerializer(KafkaRecordSerializationSchema.builder().setTopic("lots-sold").setValueSerializationSchema(new SimpleStringSchema()).build())
    .setDeliveryGuarantee(DeliveryGuarantee.EXACTLY_ONCE)
    .setTransactionalIdPrefix("lots")
    .build();
env.fromSource(source, WatermarkStrategy.noWatermarks(), "bids").map(new Sold()).sinkTo(sink);
