from kafka import KafkaConsumer

consumer = KafkaConsumer("jobs", bootstrap_servers="kafka:9092", group_id="worker", enable_auto_commit=False, isolation_level="read_committed")
for message in consumer:
    run(message.value)
    consumer.commit()
