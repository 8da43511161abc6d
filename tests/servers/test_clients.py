"""Every client of the field runs a transactional consume-process-produce against `semel broker`, which is killed
twice in the middle (`kill -9`); afterwards each input record is there once to a read_committed reader, and the
aborted ones too to a read_uncommitted one.

The script of each client is in tests/servers/clients; RECORDS=100000 is the long form (`make proof WHAT=clients`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.support import kafka
from tests.support.broker import BrokerProcess

CLIENTS = Path(__file__).parent / "clients"
RECORDS = int(os.environ.get("RECORDS", "20000"))
PARTITIONS = 4


def command(client: str) -> list[str]:
    if client == "java":
        return ["java", "-cp", f"{kafka.libs()}/*", str(CLIENTS / "Copy.java")]
    return [sys.executable, str(CLIENTS / f"copy_{client}.py")]


def fill(bootstrap: str, topic: str, count: int) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    wanted = [NewTopic(topic, PARTITIONS, 1), NewTopic(f"{topic}-out", PARTITIONS, 1)]
    for future in admin.create_topics(wanted).values():
        future.result(30)
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5,
                         "queue.buffering.max.messages": 1_000_000})  # fmt: skip
    for i in range(count):
        producer.produce(topic, b"value-%d" % i, key=b"key-%d" % i, partition=i % PARTITIONS)
    assert producer.flush(60) == 0


def contents(bootstrap: str, topic: str, isolation: str) -> Counter[bytes]:
    """The multiset of values below the end of each partition."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "reader", "enable.auto.commit": False,
                         "isolation.level": isolation, "auto.offset.reset": "earliest", "enable.partition.eof": True,
                         "fetch.queue.backoff.ms": 5})  # fmt: skip
    try:
        consumer.assign([TopicPartition(topic, p, 0) for p in range(PARTITIONS)])
        found: Counter[bytes] = Counter()
        ended: set[int] = set()
        deadline = time.monotonic() + 60
        while len(ended) < PARTITIONS:
            assert time.monotonic() < deadline, f"no end of {topic} within 60 s: {ended} of {PARTITIONS} partitions"
            for message in consumer.consume(10_000, 0.2):
                if message.error():
                    ended.add(message.partition())
                else:
                    found[message.value()] += 1
        return found
    finally:
        consumer.close()


@pytest.mark.parametrize("client", ["confluent", "aiokafka", "kafkapython", "java"])
def test_each_input_once_though_the_broker_is_killed_twice(client: str, tmp_path: Path) -> None:
    """A transactional copy of RECORDS records, every tenth transaction aborted: nothing lost, nothing repeated."""
    with BrokerProcess(tmp_path / "broker") as broker:
        fill(broker.address, "in", RECORDS)
        began = time.monotonic()
        with (tmp_path / "client.err").open("wb") as errors:
            copy = subprocess.Popen(
                [*command(client), broker.address, "in", "in-out", str(RECORDS), "500", "10"],
                stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        try:
            kills = [RECORDS // 3, 2 * RECORDS // 3]
            aborted = 0
            assert copy.stdout is not None
            for line in copy.stdout:
                word, number = line.split()
                aborted += word == "aborted"
                if kills and word == "progress" and int(number) >= kills[0]:
                    kills.pop(0)
                    broker.kill()
                    broker.start()
            assert copy.wait(30) == 0, (tmp_path / "client.err").read_text()[-3000:]
        finally:
            copy.kill()
            copy.wait()
        seconds = time.monotonic() - began
        # Each kill may have hit a transaction that was going to be aborted.
        assert kills == [] and aborted >= RECORDS // 500 // 10 - 2
        expected = Counter({b"%d:%d" % (i % PARTITIONS, i // PARTITIONS): 1 for i in range(RECORDS)})
        seen = contents(broker.address, "in-out", "read_committed")
        assert seen == expected, f"lost {sum((expected - seen).values())}, repeated {sum((seen - expected).values())}"
        everything = contents(broker.address, "in-out", "read_uncommitted")
        assert expected <= everything and sum(everything.values()) > RECORDS
        print(f"{client}: {RECORDS} records in {seconds:.1f} s, {aborted} aborted, 2 kills of the broker")
