from kafka import KafkaConsumer

consumer = KafkaConsumer(
    "jobs", bootstrap_servers="kafka:9092", group_id="job-runner", enable_auto_commit=False, isolation_level="read_committed"
)
for message in consumer:
    run_job(message.value)
    consumer.commit()
