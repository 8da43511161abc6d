"""An outbox is truncated by its own delivery: never beyond what is durable at the sink, never what is younger than
`keep`. Over a log in memory, for each place where a position can be."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semel.contract import AtLeastOnce
from semel.ports import NotDone, TopicPartition
from semel.sinks import Lines, Objects, SQLite, keep
from semel.sinks.truncation import EACH_MS
from tests.sinks import test_cuts as cutting
from tests.sinks import test_delivery as delivering
from tests.sinks.values import Total
from tests.support.outboxlog import OutboxLog

DAY_MS = 24 * 3_600_000
KEEP_MS = 7 * DAY_MS


class Outbox:
    """One outbox with one partition, its sink and who delivers."""

    def __init__(self, kind: str, folder: Path, keep_ms: int | None = KEEP_MS) -> None:
        self.log: OutboxLog = cutting.outbox() if kind == "cuts" else delivering.outbox()
        self.kind, self.folder, self.keep_ms = kind, folder, keep_ms
        self.at = TopicPartition(cutting.OUTBOX if kind == "cuts" else delivering.OUTBOX, 0)
        self.now_ms = 1_700_000_000_000
        self.written = 0
        self.start()

    def start(self) -> None:
        self.sink: Any
        self.worker: Any
        if self.kind == "cuts":
            self.sink = Objects(self.folder / "orders", records=10, seconds=0.5)
            self.worker = cutting.Worker(self.log, self.sink)
            self.worker.delivery._truncation._keep_ms = self.keep_ms
        else:
            weak = self.kind == "group"
            self.sink = Lines(self.folder / "lines") if weak else SQLite(self.folder / "sink.db", "totals")
            more: dict[str, Any] = {"accept": AtLeastOnce("a test")} if weak else {}
            self.worker = delivering.Worker(self.log, self.sink, keep_ms=self.keep_ms, **more)
        self.worker.now_ms = self.now_ms

    def restart(self) -> None:
        self.now_ms = self.worker.now_ms
        self.worker.close()
        self.start()

    def put(self, count: int) -> None:
        for _ in range(count):
            # Records of ten years ago: their own times decide nothing.
            value = self.sink.encode_value(Total("a", self.written))
            self.log.append(self.at.topic, 0, b"a", value, at=1_300_000_000_000)
            self.written += 1

    def pass_ms(self, ms: int) -> None:
        """Time passes, in a few turns."""
        for _ in range(4):
            self.worker.now_ms += ms // 4
            self.worker.turn(2)

    @property
    def begins(self) -> int:
        return self.worker.session.starts([self.at])[self.at]

    def held(self) -> int:
        connection = self.sink.open(self.worker.steps)
        connection.prepare(Total)
        try:
            return len(connection.rows())
        finally:
            connection.close()


@pytest.fixture(params=["sink", "cuts", "group"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> Outbox:
    return Outbox(request.param, tmp_path)


def test_what_was_delivered_stays_for_keep_and_then_goes(outbox: Outbox) -> None:
    """By the time of its delivery, to a sixteenth of `keep`."""
    outbox.put(10)
    outbox.pass_ms(DAY_MS // 4)
    for _ in range(6):
        outbox.put(1)
        outbox.pass_ms(DAY_MS)
    assert outbox.begins == 0
    for _ in range(4):
        outbox.put(1)
        outbox.pass_ms(DAY_MS)
    assert outbox.begins >= 10
    assert outbox.begins <= len(outbox.log.topics[outbox.at.topic].partitions[0]) - 7
    assert outbox.held() == outbox.written


def test_it_goes_over_restarts_too(outbox: Outbox) -> None:
    """An app that is deployed every day truncates as well: the moments are with the group's offsets."""
    for _ in range(12):
        outbox.put(2)
        outbox.restart()
        outbox.pass_ms(DAY_MS)
    assert outbox.begins >= 4
    assert outbox.held() == outbox.written


def away(outbox: Outbox) -> Callable[[], None]:
    """The sink does not answer until the function is called."""
    connection = outbox.worker.delivery._connection
    write = connection.write
    connection.write = lambda *given: NotDone("the sink is away")

    def back() -> None:
        connection.write = write

    return back


def life(outbox: Outbox) -> None:
    """A sink that is away for longer than `keep`: what it has not taken waits for it, however old it is."""
    outbox.put(10)
    outbox.pass_ms(60_000)
    back = away(outbox)
    outbox.put(25)
    outbox.pass_ms(3 * KEEP_MS)
    assert outbox.begins <= 10
    back()
    outbox.pass_ms(2 * EACH_MS)
    assert outbox.held() == outbox.written == 35


def test_what_is_not_at_the_sink_is_not_truncated(outbox: Outbox) -> None:
    life(outbox)


@pytest.mark.parametrize("beyond", ["the end of the log", "what is read", "one record"])
def test_truncating_beyond_the_position_is_caught(outbox: Outbox, beyond: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: law 7 would be broken silently, because what is gone from the log is gone for good."""

    def planted(moments: object, now_ms: int, position: int, keep_ms: int) -> int:
        if beyond == "one record":
            return min(position + 1, 35)
        return 35 if beyond == "the end of the log" else position + 10

    monkeypatch.setattr(keep, "old", planted)
    with pytest.raises(AssertionError):
        life(outbox)


def test_a_cut_that_is_under_way_keeps_its_records(tmp_path: Path) -> None:
    """They are sent again from the log: the position does not pass them before the sink has them."""
    outbox = Outbox("cuts", tmp_path)
    outbox.put(10)
    outbox.pass_ms(60_000)
    away(outbox)
    outbox.put(10)
    outbox.pass_ms(3 * KEEP_MS)
    outbox.restart()
    assert outbox.begins <= 10
    outbox.pass_ms(60_000)
    assert outbox.held() == 20


def test_for_ever(tmp_path: Path) -> None:
    """`keep=None`: nothing goes."""
    outbox = Outbox("sink", tmp_path, None)
    for _ in range(10):
        outbox.put(2)
        outbox.pass_ms(10 * DAY_MS)
    assert outbox.begins == 0


def test_moved_or_lost_offsets_of_the_group_only_delay(tmp_path: Path) -> None:
    """Any member can move them: records stay longer, and never go sooner than they were delivered."""
    outbox = Outbox("sink", tmp_path)
    outbox.put(10)
    outbox.pass_ms(60_000)
    back = away(outbox)
    outbox.put(10)
    (group,) = {group for group, _ in outbox.log.offsets}
    forged = outbox.log.offsets[group, outbox.at]._replace(offset=20, metadata=" #1:20")
    outbox.restart()
    outbox.log.offsets[group, outbox.at] = forged
    away(outbox)
    outbox.pass_ms(3 * KEEP_MS)
    assert outbox.begins <= 10
    back()
    outbox.restart()
    outbox.pass_ms(60_000)
    assert outbox.held() == 20


def test_a_log_that_refuses_says_so_once(tmp_path: Path) -> None:
    """Rights that are missing: the outbox grows, and the delivery goes on."""
    outbox = Outbox("sink", tmp_path)
    outbox.worker.session.truncate = lambda before: NotDone("TOPIC_AUTHORIZATION_FAILED")
    for _ in range(20):
        outbox.put(1)
        outbox.pass_ms(DAY_MS)
    assert [line for line in outbox.worker.said if "TOPIC_AUTHORIZATION_FAILED" in line] == [
        "what was delivered stays in the outbox, the log did not delete it: TOPIC_AUTHORIZATION_FAILED"
    ]
    assert outbox.held() == 20


def test_moments_by_their_rules() -> None:
    """Over any history: in order, few, none past the position or the clock, and `old` never past either."""
    for seed in range(300):
        dice = random.Random(seed)
        now, position, moments = 1_000_000_000_000, 0, keep.parsed("")
        reached = []
        for _ in range(60):
            now += dice.randint(-DAY_MS // 8, DAY_MS)
            position = max(0, position + dice.randint(-3 if dice.random() < 0.1 else 0, 20))
            reached.append((now, position))
            moments = keep.parsed(keep.text(keep.noted(moments, now, position, KEEP_MS)))
            assert moments == sorted(moments) and len(moments) <= keep.MOMENTS + 2
            assert len(keep.text(moments)) < 1_000
            old = keep.old(moments, now, position, KEEP_MS)
            assert old <= position
            assert not old or any(ms <= now - KEEP_MS and offset >= old for ms, offset in reached), seed
    assert keep.parsed("nonsense,1:,x:2,:,3:4") == [(3, 4)]
