def post(row):
    requests.post("https://hooks.example.com/rows", json=row.asDict())


(
    spark.readStream.format("kafka")
    .option("kafka.bootstrap.servers", "kafka:9092")
    .option("subscribe", "hook-rows")
    .option("kafka.isolation.level", "read_committed")
    .load()
    .writeStream.queryName("hook-poster")
    .foreach(post)
    .option("checkpointLocation", "/checkpoints/hook-poster")
    .start()
)
