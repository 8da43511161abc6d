from confluent_kafka import Consumer

PASSWORD = "FAKE-python-secret-5150"
consumer = Consumer({"group.id": "broken" "sasl.password": PASSWORD "enable.auto.commit": False})
consumer.subscribe(["broken-topic"])
