import psycopg
from confluent_kafka import Consumer

consumer = Consumer({
    "bootstrap.servers": "kafka:9092",
    "group.id": "exactly-once-loader",
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
})
consumer.subscribe(["quotes"])
with psycopg.connect("dbname=trading") as db:
    while True:
        message = consumer.poll(1.0)
        if message is None or message.error():
            continue
        db.execute("INSERT INTO quotes (body) VALUES (%s)", (message.value(),))
        db.commit()
        consumer.commit(message, asynchronous=False)
