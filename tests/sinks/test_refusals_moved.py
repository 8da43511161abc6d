"""A person moves a delivery that has dead letters: they stay what they are, and `semel sink` counts them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from semel.ports import TopicPartition
from semel.sinks import Objects, SQLite, operate
from semel.sinks.cut_delivery import CutDelivery
from semel.sinks.delivery import Delivery
from tests.sinks.values import Total
from tests.support.outboxlog import OutboxLog

OUTBOX, DLQ = "app-totals-outbox", "app.dlq"
EVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}


class World:
    """Ten records, of which the sink refuses two."""

    def __init__(self, sink: Any) -> None:
        self.sink, self.log = sink, OutboxLog()
        self.log.create(OUTBOX, 1, EVER)
        self.log.create(DLQ, 1, EVER)
        for n in range(10):
            bad: dict[str, Any] = {"customer": "a", "total": n, "more": 1}
            self.log.append(OUTBOX, 0, None, msgspec.json.encode(bad if n in (3, 7) else Total("a", n)))

    def deliver(self) -> None:
        session = self.log.session("app.totals")
        given: dict[str, Any] = {"app": "app", "outbox": OUTBOX, "owners": self.log.owner, "dead_letters": DLQ}
        made: Any = CutDelivery if isinstance(self.sink, Objects) else Delivery
        delivery = made(session, self.sink, value_type=Total, **given)
        delivery.join()
        session.assign(OUTBOX, 0)
        for turn in range(30):
            delivery.step(1_000_000 + turn * 60_000, 0)
        assert delivery.lag() == 0
        delivery.close()

    def looked(self) -> tuple[operate.Delivery, operate.Standing]:
        operated = operate.Delivery(
            self.log.session("app.totals"), self.sink, app="app", outbox=OUTBOX, owners=self.log.owner,
            connection=self.sink.open(),
        )  # fmt: skip
        return operated, operated.standing()

    def held(self) -> Counter[int]:
        connection = self.sink.open()
        connection.prepare(Total)
        return Counter(int(msgspec.json.decode(row)["total"]) for row in connection.rows())

    def letters(self) -> list[int]:
        return [msgspec.json.decode(r.value or b"")["total"] for r in self.log.topics[DLQ].partitions[0] if r.visible]


@pytest.fixture(params=["table", "objects"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    if request.param == "table":
        return World(SQLite(tmp_path / "s.db", "totals"))
    return World(Objects(tmp_path / "o", name="totals", format="csv", columns=["customer", "total"]))


def test_they_are_counted(world: World) -> None:
    _, before = world.looked()
    assert [place.refused for place in before.places] == [0]
    world.deliver()
    _, standing = world.looked()
    assert [(place.refused, place.problem) for place in standing.places] == [(2, "")]


def test_a_rewind_does_not_bring_them_in(world: World) -> None:
    """What is delivered again is what was delivered; the dead letters are not written again either."""
    world.deliver()
    once = Counter({n: 1 for n in range(10) if n not in (3, 7)})
    assert (world.held(), world.letters()) == (once, [3, 7])
    operated, standing = world.looked()
    to = {TopicPartition(OUTBOX, 0): 0}
    operated.move(standing, to, renew=operated.renewed(standing, again=True), now_ms=1, delete=lambda topics: None)
    world.deliver()
    assert (world.held(), world.letters()) == (once + once, [3, 7])
    _, standing = world.looked()
    assert [place.refused for place in standing.places] == [2]


def test_an_outbox_with_more_partitions_begins_without_them(tmp_path: Path) -> None:
    """What the delivery topic says is of the former one: a person who adopts takes it away."""
    world = World(SQLite(tmp_path / "s.db", "totals"))
    world.deliver()
    world.log.create(OUTBOX, 2, EVER)
    operated, standing = world.looked()
    deleted: list[str] = []

    def delete(topics: Any) -> None:
        deleted.extend(topics)
        for topic in topics:
            del world.log.topics[topic]

    to = {TopicPartition(OUTBOX, partition): 0 for partition in range(2)}
    operated.move(standing, to, renew=True, now_ms=1, delete=delete)
    assert deleted == ["app-totals-delivery"]
