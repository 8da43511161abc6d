val spark = SparkSession.builder.appName("parquet").getOrCreate()
spark.readStream
  .format("kafka")
  .option("kafka.bootstrap.servers", "kafka:9092")
  .option("subscribe", "samples")
  .option("kafka.isolation.level", "read_committed")
  .load()
  .writeStream
  .format("parquet")
  .option("path", "hdfs:///lake/samples")
  .option("checkpointLocation", "hdfs:///checkpoints/samples")
  .option("maxOffsetsPerTrigger", "100000")
  .start()
