"""aiokafka and kafka-python against the broker: transactions, groups and compression in their own protocol versions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiokafka
import kafka

from tests.support.broker import BrokerProcess

WAIT_S = 30.0


def test_aiokafka(tmp_path: Path) -> None:
    """Its transactional APIs are at version 0: committed is read, aborted is not, offsets are in the transaction."""
    left, right = aiokafka.TopicPartition("a", 0), aiokafka.TopicPartition("a", 1)

    async def talk(address: str) -> None:
        producer: Any = aiokafka.AIOKafkaProducer(bootstrap_servers=address, transactional_id="x")
        await producer.start()
        for ending in ("commit", "abort", "commit"):
            await producer.begin_transaction()
            for number in range(10):
                await producer.send("a", f"{ending} {number}".encode(), partition=0)
            await producer.send_offsets_to_transaction({right: 5 if ending == "commit" else 99}, "offsets")
            await (producer.commit_transaction() if ending == "commit" else producer.abort_transaction())
        await producer.stop()
        plain: Any = aiokafka.AIOKafkaProducer(
            bootstrap_servers=address, enable_idempotence=True, compression_type="gzip"
        )
        await plain.start()
        await plain.send_and_wait("a", b"last", partition=0)
        await plain.stop()
        consumer: Any = aiokafka.AIOKafkaConsumer(
            "a",
            bootstrap_servers=address,
            group_id="g",
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        await consumer.start()
        found = []
        while len(found) < 21:
            found.append((await asyncio.wait_for(consumer.getone(), WAIT_S)).value)
        assert found == [f"commit {n % 10}".encode() for n in range(20)] + [b"last"]
        await consumer.commit()
        assert await consumer.committed(left) == 34  # 31 records, 3 markers
        await consumer.stop()
        other: Any = aiokafka.AIOKafkaConsumer(bootstrap_servers=address, group_id="offsets")
        await other.start()
        assert await other.committed(right) == 5
        await other.stop()

    with BrokerProcess(tmp_path / "data", settings=["num.partitions=2"]) as broker:
        asyncio.run(asyncio.wait_for(talk(broker.address), 4 * WAIT_S))
        assert "WARNING" not in broker.log


def test_kafka_python(tmp_path: Path) -> None:
    """A transaction, an abort, and a group that reads what is committed."""
    with BrokerProcess(tmp_path / "data") as broker:
        producer: Any = kafka.KafkaProducer(bootstrap_servers=broker.address, transactional_id="x", acks="all")
        producer.init_transactions()
        for ending in ("commit", "abort", "commit"):
            producer.begin_transaction()
            for number in range(10):
                producer.send("k", f"{ending} {number}".encode())
            producer.commit_transaction() if ending == "commit" else producer.abort_transaction()
        producer.close()
        consumer: Any = kafka.KafkaConsumer(
            "k",
            bootstrap_servers=broker.address,
            group_id="g",
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            consumer_timeout_ms=WAIT_S * 1000,
        )
        found = []
        for message in consumer:
            found.append(message.value)
            if len(found) == 20:
                break
        assert found == [f"commit {n % 10}".encode() for n in range(20)]
        consumer.close()
        assert "WARNING" not in broker.log
