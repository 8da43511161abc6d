"""What a traced run writes beside its records, so that a verdict can be reached from the committed log alone.

A run is traced only under `semel verify` (`trace=True`); otherwise nothing of this is in the compiled code.

1. **Origins.** Every record to a user's topic, an outbox or a repartition topic carries the header `semel-origin`:
   `node|topic|partition|offset|index`. `node` is `ID:NAME` (the graph's node id, and the name of the topic, sink or
   repartition); topic (without the run's prefix), partition and offset name the input record that caused it; index
   counts what that input caused at that node, from 0. In a deterministic topology the set of origins in an output is
   a function of the committed input: a missing one is lost, a second one repeated. With `changes(coalesce=True)` the
   origin is the last input that touched the key before the commit: there only "no origin twice" holds.
   Changelog records carry the origin of the last input that touched the key, with node `ID:STATE`, index 0.
   Dead letters have their KIP-1034 headers instead, which name the input too.
2. **Order.** A task that reads several partitions takes their records in some order, and a fold may depend on it. Every
   batch that a task processes is one record in the internal topic `APP-order` (key: `SUBTOPOLOGY|PARTITION` of the
   task, value: `topic|partition|first offset|last offset|records`), written inside the transaction that commits it.
   All of a task's records lie in one partition of that topic, so reading it read_committed, in offset order, gives
   the order in which the task took its committed input: all visible records between the two offsets, inclusive.

Invariant: tracing changes no key, value, time or partition of what is written, and adds no record to a user's topic.
"""

from __future__ import annotations

from typing import NamedTuple

ORIGIN = "semel-origin"


class Origin(NamedTuple):
    """One parsed `semel-origin` header."""

    node: str
    topic: str
    partition: int
    offset: int
    nth: int


def node_name(id: int, name: str) -> bytes:
    return f"{id}:{name}".encode()


def parse_origin(header: bytes) -> Origin:
    """The header's fields; raises ValueError when it is not one of ours."""
    node, topic, partition, offset, index = header.decode().split("|")
    return Origin(node, topic, int(partition), int(offset), int(index))


class Taken(NamedTuple):
    """One batch in the order in which a task took them."""

    task: str
    topic: str
    partition: int
    first_offset: int
    last_offset: int
    records: int


def encode_taken(taken: Taken) -> tuple[bytes, bytes]:
    """Key and value of the record in the order topic."""
    return taken.task.encode(), "|".join(map(str, taken[1:])).encode()


def parse_taken(key: bytes, value: bytes) -> Taken:
    topic, *numbers = value.decode().split("|")
    partition, first, last, count = map(int, numbers)
    return Taken(key.decode(), topic, partition, first, last, count)
