env.enableCheckpointing(10_000, CheckpointingMode.EXACTLY_ONCE);
KafkaSource<String> source = KafkaSource.<String>builder()
    .setBootstrapServers("kafka:9092").setTopics("pulses").setGroupId("relay")
    .setProperty("isolation.level", "read_committed")
    .setValueOnlyDeserializer(new SimpleStringSchema()).build();
KafkaSink<String> sink = KafkaSink.<String>builder()
    .setBootstrapServers("kafka:9092")
    .setRecordSerializer(KafkaRecordSerializationSchema.builder().setTopic("beats").setValueSerializationSchema(new SimpleStringSchema()).build())
    .build();
env.fromSource(source, WatermarkStrategy.noWatermarks(), "pulses").sinkTo(sink);
