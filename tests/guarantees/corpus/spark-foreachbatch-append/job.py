def write(batch, batch_id):
    batch.write.format("jdbc").option("url", "jdbc:postgresql://db/shop").option("dbtable", "order_lines").mode("append").save()


(
    spark.readStream.format("kafka")
    .option("kafka.bootstrap.servers", "kafka:9092")
    .option("subscribe", "lines")
    .option("kafka.isolation.level", "read_committed")
    .load()
    .selectExpr("CAST(value AS STRING) AS body")
    .writeStream.foreachBatch(write)
    .option("checkpointLocation", "s3a://spark/checkpoints/lines")
    .start()
)
