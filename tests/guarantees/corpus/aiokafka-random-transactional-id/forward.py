import uuid

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer


async def main() -> None:
    consumer = AIOKafkaConsumer(
        "events-in", bootstrap_servers="kafka:9092", group_id="forward", enable_auto_commit=False, isolation_level="read_committed"
    )
    producer = AIOKafkaProducer(bootstrap_servers="kafka:9092", transactional_id=f"forward-{uuid.uuid4()}")
    await consumer.start()
    await producer.start()
    async for message in consumer:
        async with producer.transaction():
            await producer.send("events-out", message.value)
            await producer.send_offsets_to_transaction({tp(message): message.offset + 1}, "forward")
