import psycopg
from confluent_kafka import Consumer

consumer = Consumer({
    "bootstrap.servers": "kafka:9092",
    "group.id": "ledger-loader",
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "auto.offset.reset": "earliest",
})
consumer.subscribe(["ledger"])
INSERT = """
    INSERT INTO ledger (topic, kafka_partition, kafka_offset, body) VALUES (%s, %s, %s, %s)
    ON CONFLICT (topic, kafka_partition, kafka_offset) DO NOTHING
"""
with psycopg.connect("dbname=books") as db:
    while True:
        message = consumer.poll(1.0)
        if message is None or message.error():
            continue
        db.execute(INSERT, (message.topic(), message.partition(), message.offset(), message.value()))
        db.commit()
        consumer.commit(message, asynchronous=False)
