"""The oracle and dead letters of sinks: a record that a sink refused is in one, once, and not at the sink."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from semel.app import App
from semel.ports import TopicPartition
from semel.sinks import SQLite
from semel.sinks.refusals import SINK
from semel.streams.builder import Builder
from semel.streams.task import ERRORS
from semel.streams.topic import Topic
from semel.verify.oracle import Committed, Row, reckon, reckon_sink, refused_of

OUTBOX, DLQ = "shop-rows-outbox", "shop.dlq"
orders = Topic("orders", key=str, value=int)


def build(b: Builder) -> None:
    b.read(orders).map_values(lambda n: {"n": n}).write(SQLite("rows.db", "rows", name="rows"), on_error="dead-letter")


class Held:
    """What the sink holds."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers

    def rows(self) -> list[bytes]:
        return [b'{"n":%d}' % n for n in self._numbers]

    def canonical(self, value: bytes) -> bytes:
        return msgspec.json.encode(msgspec.json.decode(value))


def found(held: Sequence[int], letters: Sequence[int]) -> dict[str, Any]:
    """Six records in the outbox, of which the sink holds these and the dead letters those."""
    rows = [Row(n, 0, None, b'{"n":%d}' % n, f"o{n}") for n in range(6)]
    dead = [Row(i, 0, None, b'{"n":%d}' % n, "", ("rows", 0, n)) for i, n in enumerate(letters)]
    at = {TopicPartition(OUTBOX, 0): rows, TopicPartition(DLQ, 0): dead}
    committed = Committed(at, {at_: len(some) for at_, some in at.items()})
    graph = App("shop", build).graph()
    connection: Any = Held(held)
    told = {output.name: output for output in reckon(graph, committed) if output.name.startswith(("dead", DLQ))}
    return told | {"sink": reckon_sink(graph, "rows", committed, connection)}


def test_a_refused_record_is_accounted_for_in_its_dead_letter() -> None:
    outputs = found([0, 1, 2, 4, 5], [3])
    assert list(outputs) == ["dead letters of sink rows", "sink"]
    assert all(output.good for output in outputs.values()), outputs


@pytest.mark.parametrize(
    ("held", "letters", "where", "what"),
    [
        ([0, 1, 2, 4, 5], [], "sink", "lost"),
        ([0, 1, 2, 4, 5], [3, 3], "dead letters of sink rows", "repeated"),
        ([0, 1, 2, 3, 4, 5], [3], "sink", "wrong"),
        ([0, 1, 2, 4, 5], [3, 9], "dead letters of sink rows", "wrong"),
    ],
    ids=["lost", "twice", "in both", "of no record"],
)
def test_what_is_wrong_is_found(held: list[int], letters: list[int], where: str, what: str) -> None:
    outputs = found(held, letters)
    assert [name for name, output in outputs.items() if not output.good] == [where]
    assert getattr(outputs[where], what) == 1


def test_a_letter_is_known_by_its_headers() -> None:
    headers = [(SINK, b"rows"), (ERRORS + "partition", b"2"), (ERRORS + "offset", b"17")]
    assert refused_of(headers) == ("rows", 2, 17)
    assert refused_of([(ERRORS + "offset", b"17")]) is None
