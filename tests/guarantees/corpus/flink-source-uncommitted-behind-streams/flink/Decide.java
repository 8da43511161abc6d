env.enableCheckpointing(60_000);
KafkaSource<String> source = KafkaSource.<String>builder()
    .setBootstrapServers("kafka:9092").setTopics("scores").setGroupId("decide")
    .setValueOnlyDeserializer(new SimpleStringSchema()).build();
KafkaSink<String> sink = KafkaSink.<String>builder()
    .setBootstrapServers("kafka:9092")
    .setRecordSerializer(KafkaRecordSerializationSchema.builder().setTopic("decisions").setValueSerializationSchema(new SimpleStringSchema()).build())
    .setDeliveryGuarantee(DeliveryGuarantee.EXACTLY_ONCE)
    .setTransactionalIdPrefix("decide")
    .setProperty("transaction.timeout.ms", "900000")
    .build();
env.fromSource(source, WatermarkStrategy.noWatermarks(), "scores").map(new Decide()).sinkTo(sink);
