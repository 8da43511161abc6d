"""B1 and B26 for real: one EndTxn or TxnOffsetCommit is held on its way, the client repeats it over another
connection and goes on with its next transaction, and then the held one arrives.

Against `semel broker` every combination comes out right: the broker remembers the newest connection that has served
this producer and this kind of request, and closes an older one that speaks later (docs/decisions). Against Apache
Kafka 4.3.1 the same test shows the tear with a bare client on transaction V1: this proves the test.

ROUNDS (default 10, split over the combinations) is 50 in `make proof WHAT=delayed`.
"""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.support.broker import BrokerProcess
from tests.support.kafka import KafkaProcess
from tests.support.proxy import END_TXN, TXN_OFFSET_COMMIT, Proxy

ROUNDS = int(os.environ.get("ROUNDS", "10"))
COMBINATIONS = [(END_TXN, a, b) for a in (True, False) for b in (True, False)]
COMBINATIONS += [(TXN_OFFSET_COMMIT, a, b) for a in (True, False) for b in (True, False)]


@dataclass(frozen=True)
class Result:
    """What the client was told, and what a read_committed reader and the group see afterwards."""

    told: tuple[bool, bool]
    outputs: list[bytes]
    offset: int

    def right(self) -> bool:
        expected = [value for value, done in zip((b"first", b"second"), self.told) if done]
        offset = 200 if self.told[1] else 100 if self.told[0] else -1001
        return self.outputs == expected and self.offset == offset


def end(producer: Producer, commit: bool) -> None:
    while True:
        try:
            return producer.commit_transaction(30) if commit else producer.abort_transaction(30)
        except KafkaException as e:
            if not e.args[0].retriable():
                raise


def two_transactions(proxy: Proxy, direct: str, name: str, hold: int, first: bool, second: bool) -> Result:
    """Two transactions in the order of consume-process-produce (outputs, then offsets, then the end). The request
    `hold` of the first one is delayed into the second, after its output and before its offsets."""
    topic, source = f"out-{name}", f"in-{name}"
    admin = AdminClient({"bootstrap.servers": direct})
    for future in admin.create_topics([NewTopic(topic, 1, 1), NewTopic(source, 1, 1)]).values():
        future.result(30)
    group = Consumer({"bootstrap.servers": direct, "group.id": f"g-{name}"})
    metadata = group.consumer_group_metadata()
    producer = Producer({"bootstrap.servers": proxy.address, "transactional.id": f"t-{name}", "linger.ms": 0,
                         "log_level": 0, "reconnect.backoff.ms": 10})  # fmt: skip
    producer.init_transactions(30)
    proxy.hold_next(hold, lambda frame: f"t-{name}".encode() in frame)
    producer.begin_transaction()
    producer.produce(topic, b"first")
    producer.flush(30)
    producer.send_offsets_to_transaction([TopicPartition(source, 0, 100)], metadata, 30)
    end(producer, first)
    held = proxy.wait_held()
    producer.begin_transaction()
    producer.produce(topic, b"second")
    producer.flush(30)
    told = [first, second]
    try:
        if hold == END_TXN:
            held.release()
            producer.send_offsets_to_transaction([TopicPartition(source, 0, 200)], metadata, 30)
        else:
            producer.send_offsets_to_transaction([TopicPartition(source, 0, 200)], metadata, 30)
            held.release()
        end(producer, second)
    except KafkaException:
        # Told that it failed: a fatal or abortable error is an honest answer.
        told[1] = False
        Producer({"bootstrap.servers": direct, "transactional.id": f"t-{name}"}).init_transactions(30)
    reader = Consumer({"bootstrap.servers": direct, "group.id": f"r-{name}", "isolation.level": "read_committed",
                       "enable.partition.eof": True, "auto.offset.reset": "earliest"})  # fmt: skip
    reader.assign([TopicPartition(topic, 0, 0)])
    outputs: list[bytes] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        message = reader.poll(1.0)
        if message is None:
            continue
        if message.error():
            break
        outputs.append(message.value())
    reader.close()
    (position,) = Consumer(
        {"bootstrap.servers": direct, "group.id": f"g-{name}", "isolation.level": "read_committed"}
    ).committed([TopicPartition(source, 0)], 30)
    group.close()
    return Result((told[0], told[1]), outputs, position.offset)


def test_semel_broker_closes_the_delayed_one(tmp_path: Path) -> None:
    """Commit or abort, EndTxn or TxnOffsetCommit: what the client was told is what readers see, every time."""
    with Proxy() as proxy, BrokerProcess(tmp_path / "broker", advertise=proxy.address) as broker:
        proxy.target = ("127.0.0.1", broker.port)
        wrong = []
        for i, (hold, first, second) in zip(range(ROUNDS), itertools.cycle(COMBINATIONS)):
            result = two_transactions(proxy, proxy.address, f"{i}", hold, first, second)
            if result.told != (first, second) or not result.right():
                wrong.append((i, hold, first, second, result))
        assert not wrong, f"{len(wrong)} of {ROUNDS} wrong: {wrong}"


def test_apache_kafka_with_a_bare_v1_client_is_torn(tmp_path: Path) -> None:
    """The proof of the test: there every call returns OK, and the result is not what the calls said."""
    with Proxy() as proxy, KafkaProcess(tmp_path / "kafka", advertise=proxy.address) as server:
        proxy.target = ("127.0.0.1", server.port)
        torn = []
        for i, (hold, first, second) in enumerate(COMBINATIONS):
            result = two_transactions(proxy, proxy.address, f"{i}", hold, first, second)
            if result.told == (first, second) and not result.right():
                torn.append((hold, first, second, result))
        assert {hold for hold, *_ in torn} == {END_TXN, TXN_OFFSET_COMMIT}, f"only torn: {torn}"
        print(f"torn {len(torn)} of {len(COMBINATIONS)}")
