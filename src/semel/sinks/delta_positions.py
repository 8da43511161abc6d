"""A delivery's position as application transactions of a Delta table: numbers, in the same commit as the rows.

A Delta commit holds, beside the files it adds, `txn` actions: an id of the writer's and a 64-bit number, the latest of
each kept in every snapshot and checkpoint for good. Nothing else that a library can write with the rows lasts like
that: the commit's own information goes with the log files, a property is a commit of its own (docs/decisions/0015). So
all of a position is numbers; a text (run, topic id, holder) is its length and its bytes, seven to a number.

Invariant: a claim and a batch both write the ids of their partition. Delta refuses a commit whose ids another commit
wrote after the snapshot that it was prepared on, so what was compared with that snapshot still holds at the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from semel.contract import DeliveryId, LogIdentity, Remembered

Version = Callable[[str], int | None]  # the number under an id, in one snapshot
Numbers = Mapping[str, int]

BYTES = 7  # of text in a number: it stays positive


class At(NamedTuple):
    """What a batch is written under."""

    epoch: int
    position: int


class Lane(NamedTuple):
    """What the table says of one partition of a delivery."""

    epoch: int
    position: int
    run: str
    holder: str


class Facts(NamedTuple):
    """What it says of the whole delivery; incarnation 0: nothing yet."""

    incarnation: int
    topic_id: str
    partitions: int


def delivery_id(app: str, sink: str) -> str:
    return f"semel/{quote(app, safe='')}/{quote(sink, safe='')}"


def lane_id(delivery: DeliveryId) -> str:
    return f"{delivery_id(delivery.app, delivery.sink)}/{delivery.partition}"


def at(version: Version, delivery: DeliveryId) -> At:
    own = lane_id(delivery)
    return At(version(f"{own}:epoch") or 0, version(f"{own}:position") or 0)


def lane(version: Version, delivery: DeliveryId) -> Lane:
    own = lane_id(delivery)
    return Lane(*at(version, delivery), _text(version, f"{own}:run"), _text(version, f"{own}:holder"))


def facts(version: Version, app: str, sink: str) -> Facts:
    own = delivery_id(app, sink)
    return Facts(version(f"{own}:incarnation") or 0, _text(version, f"{own}:topic"), version(f"{own}:partitions") or 0)


def claimed(delivery: DeliveryId, now: Lane, holder: str) -> Numbers:
    """A claim: the next epoch. The position is written, too, as it was: a batch under the former epoch writes it."""
    own = lane_id(delivery)
    return {
        f"{own}:epoch": now.epoch + 1,
        f"{own}:position": now.position,
        **_numbers(f"{own}:run", now.run),
        **_numbers(f"{own}:holder", holder),
    }


def moved(delivery: DeliveryId, epoch: int, position: int, run: str) -> Numbers:
    """A batch."""
    own = lane_id(delivery)
    return {f"{own}:epoch": epoch, f"{own}:position": position, **_numbers(f"{own}:run", run)}


def described(app: str, sink: str, log: LogIdentity, incarnation: int) -> Numbers:
    """The log that the positions are positions in."""
    own = delivery_id(app, sink)
    return {
        f"{own}:incarnation": incarnation,
        f"{own}:partitions": log.partitions,
        **_numbers(f"{own}:topic", log.topic_id),
    }


def remembered(version: Version, app: str, sink: str) -> list[Remembered]:
    """Every partition of the delivery, for a person; none where nothing was delivered yet."""
    said = facts(version, app, sink)
    log = LogIdentity(said.topic_id, said.partitions)
    lanes = [lane(version, DeliveryId(app, sink, partition)) for partition in range(said.partitions)]
    return [
        Remembered(partition, own.epoch, said.incarnation, own.position, own.run, log, own.holder)
        for partition, own in enumerate(lanes)
    ]


def put(version: Version, app: str, sink: str, to: Sequence[Remembered], holder: str) -> Numbers:
    """Positions that a person has said. Each epoch is the next one of what the table says itself, also of a partition
    that a former outbox had: whoever has claimed it is fenced."""
    numbers = dict(described(app, sink, to[0].log, to[0].incarnation))
    for one in to:
        delivery = DeliveryId(app, sink, one.partition)
        numbers |= moved(delivery, lane(version, delivery).epoch + 1, one.position, one.run)
        numbers |= _numbers(f"{lane_id(delivery)}:holder", holder)
    return numbers


def _numbers(name: str, text: str) -> Numbers:
    data = text.encode()
    parts = [data[at : at + BYTES] for at in range(0, len(data), BYTES)]
    return {f"{name}.0": len(data)} | {f"{name}.{n}": int.from_bytes(part) for n, part in enumerate(parts, 1)}


def _text(version: Version, name: str) -> str:
    left = version(f"{name}.0") or 0
    data = b""
    while left > len(data):
        size = min(BYTES, left - len(data))
        data += (version(f"{name}.{len(data) // BYTES + 1}") or 0).to_bytes(size)
    return data.decode()
