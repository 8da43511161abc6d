from kafka import KafkaConsumer

consumer = KafkaConsumer("jobs", bootstrap_servers="kafka:9092", group_id="job-runner")
for message in consumer:
    run_job(message.value)
