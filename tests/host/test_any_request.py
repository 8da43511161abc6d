"""Any request that can be written in Kafka's protocol is answered in it: the server never meets a bug of the core.

Random requests of every API and version served, with plausible names, ids, epochs and batches, go through the wire's
readers, a node, and the wire's writers; the node's folder is opened again in between.
"""

from __future__ import annotations

import dataclasses
import io
import random
from typing import Any
from uuid import UUID

import pytest
from kio.serial import entity_writer

from semel.broker.config import OS, Config
from semel.broker.events import ConnectionClosed, Reply, Request, Tick
from semel.broker.node import Node
from semel.record.batch import encode
from semel.sim.disk import Disk
from semel.wire.incoming import HEADER, read_request
from semel.wire.schema import SchemaField, fields_of, request_class
from semel.wire.versions import API_VERSIONS, SERVED
from semel.wire.writer import write_reply
from tests.wire import kio_objects

NAMES = ["t", "u", "__consumer_offsets", "", "g", "x", "a/b", "é" * 100, "range", "consumer"]
BATCH = bytes(encode([b"v1", b"v2"], [b"k", None], 1_000))
PRODUCER: dict[str, Any] = {"producer_id": 0, "producer_epoch": 0, "base_sequence": 0}
TRANSACTIONAL = bytes(encode([b"v"], [None], 1_000, transactional=True, **PRODUCER))
RECORDS = [b"", bytes(61), BATCH, BATCH, TRANSACTIONAL, BATCH + BATCH, BATCH[:-3]]


def plausible(entity: Any, dice: random.Random, ids: list[UUID]) -> Any:
    """A random request that has a chance to mean something."""
    values = {}
    for field in fields_of(entity):
        if field.nullable and field.kind != "uuid" and field.tag is None and dice.random() < 0.25:
            values[field.name] = None
        elif field.tag is not None and dice.random() < 0.4:
            values[field.name] = field.default
        else:
            many = range(dice.randrange(4)) if field.array else range(1)
            items = tuple(
                plausible(field.entity, dice, ids) if field.entity is not None else scalar(field, dice, ids)
                for _ in many
            )
            values[field.name] = items if field.array else items[0]
    return entity(**values)


def scalar(field: SchemaField, dice: random.Random, ids: list[UUID]) -> Any:
    if field.kind == "string":
        return dice.choice(NAMES)
    if field.kind in kio_objects.INTEGERS and dice.random() < 0.7:
        return dice.choice((0, 0, 1, 2, -1, -2, 3))
    if field.kind == "records":
        return dice.choice(RECORDS)
    if field.kind == "uuid":
        return dice.choice((None, UUID(int=dice.getrandbits(128)), *ids))
    return kio_objects.scalar(field, dice)


@dataclasses.dataclass
class Driven:
    """A node and what its requests were."""

    disk: Disk
    node: Node
    asked: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
    answered: int = 0

    def send(self, message: Any, key: int, version: int, connection: int, now_ms: int) -> None:
        token = len(self.asked)
        self.asked[token] = (key, version)
        self.take(self.node.step(Request(connection, token, message, key, version, connection, "c", "h"), now_ms))
        self.settle(now_ms)

    def settle(self, now_ms: int) -> None:
        while self.node.unsynced:
            self.take(self.node.synced(self.node.write(), now_ms))
        if self.node.wake_at_ms is not None and self.node.wake_at_ms <= now_ms:
            self.take(self.node.step(Tick(), now_ms))

    def take(self, replies: list[Reply]) -> None:
        for reply in replies:
            if reply.message is not None:
                write_reply(*self.asked[reply.token], 1, reply.message)
                self.answered += 1


def opened(disk: Disk, seed: int, now_ms: int) -> Driven:
    return Driven(disk, Node(disk, Config(durability=OS), now_ms=now_ms, random=random.Random(f"{seed} {now_ms}")))


@pytest.mark.parametrize("seed", range(4))
def test_any_request_is_answered_and_leaves_a_folder_that_opens(seed: int) -> None:
    """Five times 300 requests, with a restart after each."""
    now_ms, answered = 1_000, 0
    driven = opened(Disk(random.Random(seed)), seed, now_ms)
    served = [
        (key, version)
        for key, range_ in SERVED.items()
        if key in driven.node.handled and key != API_VERSIONS
        for version in range(range_.first, range_.last + 1)
    ]
    for number in range(1_500):
        dice = random.Random(f"{seed} {number}")
        key, version = dice.choice(served)
        ids = [topic.id for topic in driven.node.broker.state.topics.values()][:5]
        body = io.BytesIO()
        entity = request_class(key, version)
        entity_writer(entity)(body, plausible(entity, dice, ids))
        head = HEADER.pack(key, version, 1, -1) + (b"\0" if entity.__flexible__ else b"")
        now_ms += dice.choice((0, 0, 1, 100, 20_000))
        connection = dice.randrange(1, 4)
        driven.send(read_request(head + body.getvalue()).message, key, version, connection, now_ms)
        if dice.random() < 0.02:
            driven.take(driven.node.step(ConnectionClosed(connection), now_ms))
        if number % 300 == 299:
            answered += driven.answered
            driven.node.close()
            driven = opened(driven.disk, seed, now_ms)
    assert answered > 1_000
