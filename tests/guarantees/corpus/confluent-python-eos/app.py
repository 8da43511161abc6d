from confluent_kafka import Consumer, Producer

consumer = Consumer({
    "bootstrap.servers": "kafka:9092",
    "group.id": "rate-converter",
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "auto.offset.reset": "earliest",
})
producer = Producer({
    "bootstrap.servers": "kafka:9092",
    "transactional.id": "rate-converter-0",
    "transaction.timeout.ms": 60000,
})
consumer.subscribe(["rates-eur"])
producer.init_transactions()
while True:
    messages = consumer.consume(500, timeout=1.0)
    if not messages:
        continue
    producer.begin_transaction()
    for message in messages:
        producer.produce("rates-usd", key=message.key(), value=convert(message.value()))
    producer.send_offsets_to_transaction(
        consumer.position(consumer.assignment()), consumer.consumer_group_metadata()
    )
    producer.commit_transaction()  # any error ends the process: the next one starts at the committed offsets
