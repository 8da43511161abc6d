from aiokafka import AIOKafkaConsumer


async def main() -> None:
    consumer = AIOKafkaConsumer("wallet-moves", bootstrap_servers="kafka:9092", group_id="wallet-view", enable_auto_commit=False)
    await consumer.start()
    async for message in consumer:
        await view.apply(message)
        await consumer.commit()
