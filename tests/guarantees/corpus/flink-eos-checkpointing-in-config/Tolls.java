StreamExecutionEnvironment env = StreamExecutionEnvironment.getExecutionEnvironment();
KafkaSource<Pass> source = KafkaSource.<Pass>builder()
    .setBootstrapServers("kafka:9092").setTopics("passes").setGroupId("tolls")
    .setProperty("isolation.level", "read_committed")
    .setValueOnlyDeserializer(new PassSchema()).build();
KafkaSink<Toll> sink = KafkaSink.<Toll>builder()
    .setBootstrapServers("kafka:9092")
    .setRecordSerializer(new TollSerializer("tolls"))
    .setDeliveryGuarantee(DeliveryGuarantee.EXACTLY_ONCE)
    .setTransactionalIdPrefix("tolls-sink")
    .setProperty("transaction.timeout.ms", "840000")
    .build();
env.fromSource(source, WatermarkStrategy.noWatermarks(), "passes").map(Toll::of).sinkTo(sink);
