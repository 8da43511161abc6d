from kafka import KafkaConsumer

consumer = KafkaConsumer("cleared", bootstrap_servers="kafka:9092", group_id="dashboard", enable_auto_commit=False)
for message in consumer:
    draw(message.value)
    consumer.commit()
