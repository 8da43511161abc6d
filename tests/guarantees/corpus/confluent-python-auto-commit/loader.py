import psycopg
from confluent_kafka import Consumer

consumer = Consumer({"bootstrap.servers": "kafka:9092", "group.id": "loader"})
consumer.subscribe(["trades"])
with psycopg.connect("dbname=trading") as db:
    while True:
        batch = [m for m in consumer.consume(1000, 1.0) if m.error() is None]
        with db.transaction():
            db.cursor().executemany("INSERT INTO trades_raw (body) VALUES (%s)", [(m.value(),) for m in batch])
