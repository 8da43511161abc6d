def write(batch, batch_id):
    (
        batch.write.format("delta")
        .option("txnAppId", "orders-bronze")
        .option("txnVersion", batch_id)
        .mode("append")
        .save("s3a://lake/orders_bronze")
    )


(
    spark.readStream.format("kafka")
    .option("kafka.bootstrap.servers", "kafka:9092")
    .option("subscribe", "orders")
    .option("kafka.isolation.level", "read_committed")
    .option("failOnDataLoss", "true")
    .load()
    .selectExpr("CAST(value AS STRING) AS body")
    .writeStream.foreachBatch(write)
    .option("checkpointLocation", "s3a://lake/checkpoints/orders_bronze")
    .start()
)
