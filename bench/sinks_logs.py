"""Logs as sinks: Apache Kafka and `semel broker`, beside a plain transactional producer of the same client."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.sinks_common import BATCH, ROWS, Made, Order, Peer, decode, values
from semel.ports import NoSteps


@contextlib.contextmanager
def kafka(folder: Path) -> Iterator[dict[str, Made]]:
    """Apache Kafka and `semel broker` as targets, 4 partitions. The peer is given its keys, and commits a transaction
    per batch."""
    import confluent_kafka
    from tests.servers.kafka_subjects import messages, ready
    from tests.support.broker import BrokerProcess
    from tests.support.kafka import KafkaProcess

    from semel.sinks import KafkaTopic

    def made(address: str) -> Made:
        ready(address)
        sink = KafkaTopic(f"kafka://{address}", "ours", key="order_id", partitions=4)
        KafkaTopic(f"kafka://{address}", "theirs", partitions=4).open(NoSteps()).prepare(Order)

        def peer() -> Peer:
            keys = {value: sink.encode_key(decode(value)) for value in values(ROWS)}
            producer = confluent_kafka.Producer(
                {
                    "bootstrap.servers": address,
                    "transactional.id": "theirs",
                    "partitioner": "murmur2_random",
                    "linger.ms": 5,
                    "batch.size": 1_000_000,
                    "queue.buffering.max.messages": 2_000_000,
                    "delivery.report.only.error": True,
                }
            )
            producer.init_transactions(30)

            def write(batch: list[bytes]) -> None:
                producer.begin_transaction()
                for value in batch:
                    producer.produce("theirs", value, keys[value], timestamp=1_000)
                producer.commit_transaction(30)

            return write

        def shown(ours: bool) -> list[Any]:
            return sorted(messages(address, "ours" if ours else "theirs"))

        return Made(sink, peer, shown, BATCH)

    with KafkaProcess(folder / "kafka") as apache, BrokerProcess(folder / "broker") as broker:
        yield {
            "KafkaTopic (Apache Kafka)": made(apache.address),
            "KafkaTopic (semel broker)": made(broker.address),
        }
