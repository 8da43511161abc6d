env.enableCheckpointing(120_000);
KafkaSource<String> source = KafkaSource.<String>builder()
    .setBootstrapServers("kafka:9092").setTopics("receipts").setGroupId("archive")
    .setProperty("isolation.level", "read_committed")
    .setValueOnlyDeserializer(new SimpleStringSchema()).build();
FileSink<String> sink = FileSink
    .forRowFormat(new Path("s3://archive-bucket/receipts"), new SimpleStringEncoder<String>("UTF-8"))
    .withRollingPolicy(OnCheckpointRollingPolicy.build())
    .withBucketAssigner(new DateTimeBucketAssigner<>("yyyy-MM-dd"))
    .build();
env.fromSource(source, WatermarkStrategy.noWatermarks(), "receipts").sinkTo(sink);
