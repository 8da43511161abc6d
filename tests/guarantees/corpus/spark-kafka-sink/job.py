from pyspark.sql import SparkSession

spark = SparkSession.builder.appName("cleaner").getOrCreate()
raw = (
    spark.readStream.format("kafka")
    .option("kafka.bootstrap.servers", "kafka:9092")
    .option("subscribe", "dirty")
    .option("kafka.isolation.level", "read_committed")
    .load()
)
(
    raw.selectExpr("key", "upper(CAST(value AS STRING)) AS value")
    .writeStream.format("kafka")
    .option("kafka.bootstrap.servers", "kafka:9092")
    .option("kafka.enable.idempotence", "true")
    .option("topic", "clean")
    .option("checkpointLocation", "s3a://spark/checkpoints/cleaner")
    .start()
)
