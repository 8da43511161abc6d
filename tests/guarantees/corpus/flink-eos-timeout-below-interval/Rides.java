env.enableCheckpointing(300_000);
KafkaSource<String> source = KafkaSource.<String>builder()
    .setBootstrapServers("kafka:9092").setTopics("rides").setGroupId("rides-job")
    .setProperty("isolation.level", "read_committed")
    .setValueOnlyDeserializer(new SimpleStringSchema()).build();
KafkaSink<String> sink = KafkaSink.<String>builder()
    .setBootstrapServers("kafka:9092")
    .setRecordSerializer(KafkaRecordSerializationSchema.builder().setTopic("fares").setValueSerializationSchema(new SimpleStringSchema()).build())
    .setDeliveryGuarantee(DeliveryGuarantee.EXACTLY_ONCE)
    .setTransactionalIdPrefix("fares")
    .setProperty("transaction.timeout.ms", "60000")
    .build();
env.fromSource(source, WatermarkStrategy.noWatermarks(), "rides").map(new Fare()).sinkTo(sink);
