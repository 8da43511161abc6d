StreamExecutionEnvironment env = StreamExecutionEnvironment.getExecutionEnvironment();
KafkaSource<String> source = KafkaSource.<String>builder()
    .setBootstrapServers("kafka:9092").setTopics("votes").setGroupId("tally")
    .setProperty("isolation.level", "read_committed")
    .setValueOnlyDeserializer(new SimpleStringSchema()).build();
KafkaSink<String> sink = KafkaSink.<String>builder()
    .setBootstrapServers("kafka:9092")
    .setRecordSerializer(KafkaRecordSerializationSchema.builder().setTopic("tallies").setValueSerializationSchema(new SimpleStringSchema()).build())
    .setDeliveryGuarantee(DeliveryGuarantee.EXACTLY_ONCE)
    .setTransactionalIdPrefix("tally")
    .build();
env.fromSource(source, WatermarkStrategy.noWatermarks(), "votes").keyBy(v -> v).map(new Tally()).sinkTo(sink);
env.execute("tally");
