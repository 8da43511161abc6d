import os

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition


async def main() -> None:
    consumer = AIOKafkaConsumer(
        "readings", bootstrap_servers="kafka:9092", group_id="calibrate", enable_auto_commit=False, isolation_level="read_committed"
    )
    producer = AIOKafkaProducer(bootstrap_servers="kafka:9092", transactional_id="calibrate-" + os.environ["HOSTNAME"])
    await consumer.start()
    await producer.start()
    while True:
        batches = await consumer.getmany(timeout_ms=1000)
        async with producer.transaction():
            offsets = {}
            for partition, messages in batches.items():
                for message in messages:
                    await producer.send("calibrated", calibrate(message.value))
                    offsets[partition] = message.offset + 1
            await producer.send_offsets_to_transaction(offsets, "calibrate")
