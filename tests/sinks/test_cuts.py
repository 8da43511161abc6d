"""The delivery by cuts over a log in memory, into a folder or a store in memory: what it decides, sends, refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from obstore.store import MemoryStore

from semel.ports import NotDone, Outcome, Step, TopicPartition, Unknown
from semel.sinks import Objects
from semel.sinks.cut_delivery import CutDelivery
from semel.sinks.cuts import Progress
from semel.sinks.objects_connection import key_of
from semel.sinks.objects_store import Store
from semel.sinks.trouble import REPEAT_MS
from tests.support.outboxlog import OutboxLog, OutboxSession

OUTBOX, DELIVERY = "app-orders-outbox", "app-orders-delivery"
EVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}

MakeSink = Callable[..., Objects]


class Counted:
    """Steps that are counted; `at` calls a function when one is reached for the first time after."""

    def __init__(self) -> None:
        self.hits: dict[Step, int] = {}
        self.at: dict[Step, Callable[[], None]] = {}

    def reached(self, step: Step) -> None:
        self.hits[step] = self.hits.get(step, 0) + 1
        if (then := self.at.pop(step, None)) is not None:
            then()


class Died(Exception):
    """The process ends here: nothing after this step happens."""


def die() -> None:
    raise Died


class Worker:
    """A delivery, its session and a clock that moves a second per turn."""

    def __init__(self, log: OutboxLog, sink: Any, *partitions: int, sole_owner: bool = False) -> None:
        """`sole_owner` as on an embedded log, where two logs meet at one sink only by a copy."""
        self.log = log
        self.session: OutboxSession = log.session()
        self.steps = Counted()
        self.said: list[str] = []
        self.now_ms = 1_000_000
        self.delivery = CutDelivery(
            self.session,
            sink,
            owners=log.owner,
            app="app",
            outbox=OUTBOX,
            sole_owner=sole_owner,
            steps=self.steps,
            say=self.said.append,
        )
        self.delivery.join()
        self.session.assign(OUTBOX, *(partitions or range(len(log.topics[OUTBOX].partitions))))

    def turn(self, count: int = 1, ms: int = 1_000) -> int:
        delivered = 0
        for _ in range(count):
            self.now_ms += ms
            delivered += self.delivery.step(self.now_ms, 0)
        return delivered

    def close(self) -> None:
        self.delivery.close()
        self.session.close()


def outbox(partitions: int = 1) -> OutboxLog:
    log = OutboxLog()
    log.create(OUTBOX, partitions, EVER)
    return log


def put(log: OutboxLog, *values: Any, partition: int = 0) -> None:
    for value in values:
        log.append(OUTBOX, partition, None, msgspec.json.encode(value))


@pytest.fixture(params=["folder", "memory"])
def make_sink(request: pytest.FixtureRequest, tmp_path: Path) -> MakeSink:
    """The same promise with a store that compares metadata and versions, and with one that has neither."""
    shared = MemoryStore() if request.param == "memory" else None

    def make(**said: Any) -> Objects:
        return Objects(tmp_path / "orders", **{"records": 10, "seconds": 5.0, "store": shared, **said})

    return make


def store_of(sink: Objects) -> Store:
    return Store(sink.url, sink.where, sink.options, sink.store)


def names(sink: Objects) -> list[str]:
    """The objects that are there, complete or not."""
    return [key.rpartition("/")[2] for key in store_of(sink).keys("") if not key.startswith("_semel")]


def held(sink: Objects) -> list[Any]:
    """Every record of every complete object, in order, partition by partition."""
    return [msgspec.json.decode(line) for line in sink.open().rows()]


def listed(sink: Objects) -> list[Any]:
    """What a reader sees that takes every object that it finds."""
    found: list[Any] = []
    store = store_of(sink)
    for key in store.keys(""):
        if not key.startswith("_semel"):
            found += map(msgspec.json.decode, sink.shape.lines(store.read(key)[0]))  # type: ignore[index]
    return found


def name(start: int, end: int, partition: int = 0, incarnation: int = 1, ending: str = ".jsonl") -> str:
    return key_of(incarnation, partition, start, end).rpartition("/")[2] + ending


# --- when a cut is due ---------------------------------------------------------------------------------------------


def test_each_record_is_in_one_object(make_sink: MakeSink) -> None:
    """Law 7: f(outbox) = sink, over partitions, workers and rebalances; objects follow each other without a gap."""
    log, sink = outbox(3), make_sink()
    for n in range(90):
        put(log, n, partition=n % 3)
    first, second = Worker(log, sink, 0, 1, 2), Worker(log, sink, 2)
    first.turn(2)
    for n in range(90, 180):
        put(log, n, partition=n % 3)
    first.session.assign(OUTBOX, 0)
    second.session.assign(OUTBOX, 1, 2)
    second.turn(3)
    first.turn(3)
    assert sorted(held(sink)) == sorted(listed(sink)) == list(range(180))
    assert names(sink) == [name(n, n + 10, p) for p in range(3) for n in range(0, 60, 10)]
    assert first.delivery.lag() == second.delivery.lag() == 0


def test_a_cut_is_due_by_records_by_bytes_or_by_the_clock(make_sink: MakeSink) -> None:
    """Whichever is first; the clock begins with the first record that waits."""
    log, sink = outbox(), make_sink(records=5, bytes=30, seconds=3.0)
    worker = Worker(log, sink)
    put(log, *range(7))
    assert worker.turn(2) == 5
    assert (worker.turn(2), worker.turn()) == (0, 2)
    put(log, "x" * 28, "y")
    assert worker.turn() == 1, "30 bytes are enough"
    assert worker.turn(4) == 1
    assert names(sink) == [name(0, 5), name(5, 7), name(7, 8), name(8, 9)]


def test_markers_and_aborted_records_lie_within_cuts(make_sink: MakeSink) -> None:
    """No object for what no reader sees, and no gap between objects because of it."""
    log, sink = outbox(), make_sink()
    worker = Worker(log, sink)
    for n in range(3):
        log.append(OUTBOX, 0, None, b"aborted", visible=False)
        put(log, n)
        log.append(OUTBOX, 0, None, None, visible=False)
        worker.turn(8)
    assert held(sink) == [0, 1, 2]
    assert names(sink) == [name(0, 3), name(3, 6), name(6, 9)]
    assert worker.delivery.lag() == 0


def test_the_groups_offsets_only_tell(make_sink: MakeSink) -> None:
    """Any member can move another's: the delivery does not read them."""
    log, sink = outbox(), make_sink()
    put(log, *range(10))
    worker = Worker(log, sink)
    worker.turn(3)
    at = TopicPartition(OUTBOX, 0)
    assert log.offsets["app.sink", at].offset == 10
    worker.close()
    del log.offsets["app.sink", at]
    put(log, *range(10, 20))
    Worker(log, sink).turn(3)
    assert held(sink) == list(range(20))


# --- S3: crashes, and a cut by the clock that another clock would make otherwise --------------------------------------

STEPS = [
    Step.CLAIM_AFTER,
    Step.BATCH_BEFORE,
    Step.CUT_BEFORE,
    Step.CUT_AFTER,
    Step.SINK_BEFORE,
    Step.OBJECT_BEFORE,
    Step.OBJECT_AFTER,
    Step.SINK_AFTER,
    Step.POSITION_BEFORE,
    Step.POSITION_AFTER,
]


def crashed_everywhere(log: OutboxLog, sink: Objects) -> None:
    """Ends a worker at each step, twice; records come in between, so the next one would cut otherwise."""
    number = 0
    for step in STEPS * 2:
        worker = Worker(log, sink)
        worker.steps.at[step] = die
        with pytest.raises(Died):
            for _ in range(20):
                put(log, number)
                number += 1
                worker.turn(ms=1_700)
    Worker(log, sink).turn(8)
    assert number > 20


def test_ended_at_every_step_the_same_objects_come_out(make_sink: MakeSink) -> None:
    """S3: cut by the clock, the process ends before and after each step, twice, and goes on with more records and
    another clock. Each record is in one object, by the manifest and by listing."""
    log, sink = outbox(), make_sink(records=1_000)
    crashed_everywhere(log, sink)
    count = len([r for r in log.topics[OUTBOX].partitions[0] if r.visible])
    assert held(sink) == listed(sink) == list(range(count))


class Forgetful(CutDelivery):
    """A clock-cut writer as they are in the field: the cut is in memory only; the position moves afterwards."""

    def _decide(self, lane: Any, progress: Progress) -> bool:
        written, self._written_down = self._written_down, self._only_remembered  # type: ignore[method-assign]
        try:
            return super()._decide(lane, progress)
        finally:
            self._written_down = written  # type: ignore[method-assign]

    def _only_remembered(self, lane: Any, progress: Progress) -> bool:
        lane.progress = progress
        return True

    def _agreed(self, lane: Any, claim: Any, found: Any, here: Any) -> Progress:
        return found or Progress(claim.incarnation, here.topic_id, here.partitions, 0, "")


def test_a_clock_cut_writer_without_a_written_cut_duplicates(
    make_sink: MakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3: the same faults, the same names, the same create-only puts; only the cut is not written down (and the sink
    is not asked what it holds). A crash between object and position: the next one cuts elsewhere, and both stay."""
    log, sink = outbox(), make_sink(records=1_000)
    monkeypatch.setattr(f"{__name__}.CutDelivery", Forgetful)
    monkeypatch.setattr("semel.sinks.objects_connection.ObjectsConnection._change", lambda self, *of, begins: True)
    crashed_everywhere(log, sink)
    found = listed(sink)
    count = len([r for r in log.topics[OUTBOX].partitions[0] if r.visible])
    assert sorted(set(found)) == list(range(count))
    assert len(found) > count, "records are in two objects"


def test_a_replay_makes_the_same_bytes_whatever_is_new(make_sink: MakeSink) -> None:
    """The decision is read, not made again: another size, another clock, more records."""
    log, sink = outbox(), make_sink(compression="gzip")
    put(log, *range(4))
    worker = Worker(log, sink)
    worker.steps.at[Step.OBJECT_AFTER] = die
    with pytest.raises(Died):
        worker.turn(8)
    (made,) = names(sink)
    before = store_of(sink).read(f"00001-00000/{made}")
    put(log, *range(4, 30))
    heir = Worker(log, make_sink(compression="gzip", records=7, seconds=1.0))
    heir.turn(2)
    assert names(sink)[0] == made == name(0, 4, ending=".jsonl.gz")
    assert names(sink)[1] == name(4, 11, ending=".jsonl.gz")
    assert store_of(sink).read(f"00001-00000/{made}") == before
    assert held(sink) == list(range(30))[: len(held(sink))]


# --- S1: zombies ------------------------------------------------------------------------------------------------------


def test_a_superseded_owner_cannot_decide_a_cut(make_sink: MakeSink) -> None:
    """It stands before its decision; the heir claims and delivers; the zombie's decision is refused and counted."""
    log, sink = outbox(), make_sink()
    put(log, *range(3))
    zombie = Worker(log, sink)
    heir = Worker(log, sink)

    def overtaken() -> None:
        put(log, *range(3, 8))
        assert heir.turn(8) == 8

    zombie.steps.at[Step.CUT_BEFORE] = overtaken
    assert zombie.turn(8) == 0
    assert zombie.steps.hits[Step.SINK_FENCED] == 1
    assert held(sink) == listed(sink) == list(range(8))
    assert names(sink) == [name(0, 8)]


@pytest.mark.parametrize("step", [Step.CUT_AFTER, Step.OBJECT_BEFORE, Step.OBJECT_AFTER, Step.POSITION_BEFORE])
def test_a_superseded_owners_late_put_changes_nothing(make_sink: MakeSink, step: Step) -> None:
    """Its cut was decided; the heir has finished it, and another one. What the zombie still sends is the same bytes
    under the same key; its position is refused."""
    log, sink = outbox(), make_sink()
    put(log, *range(3))
    zombie, heir = Worker(log, sink), Worker(log, sink)

    def overtaken() -> None:
        put(log, *range(3, 20))
        assert heir.turn(10) == 20

    zombie.steps.at[step] = overtaken
    assert zombie.turn(8) == 0
    assert zombie.steps.hits[Step.SINK_FENCED] == 1
    zombie.session.assign(OUTBOX)  # now it hears it
    zombie.turn(3)
    put(log, *range(20, 30))
    heir.turn(6)
    assert held(sink) == listed(sink) == list(range(30))
    assert names(sink)[0] == name(0, 3)


def test_what_the_former_owner_decides_until_it_is_put_out_is_read(make_sink: MakeSink) -> None:
    """The id is initialised first, then the topic is read: a decision in between would be overlooked, and decided
    again, otherwise."""
    log, sink = outbox(), make_sink()
    put(log, *range(3))
    former = Worker(log, sink)
    heir = Worker(log, sink)
    make = log.owner

    def slow(transactional_id: str) -> Any:
        owner = make(transactional_id)
        initialise = owner.initialise

        def initialise_late() -> None:
            owner.initialise = initialise  # type: ignore[method-assign]
            former.steps.at[Step.CUT_AFTER] = die
            with pytest.raises(Died):
                former.turn(8)
            initialise()

        owner.initialise = initialise_late  # type: ignore[method-assign]
        return owner

    heir.delivery._owners = slow
    heir.turn()
    put(log, *range(3, 6))
    heir.turn(8)
    assert names(sink) == [name(0, 3), name(3, 6)]
    assert held(sink) == list(range(6))


# --- S8: lost answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["lost", "unheard", "refused"])
@pytest.mark.parametrize("which", ["cut", "position"])
def test_a_commit_without_an_answer_is_read_back(make_sink: MakeSink, what: str, which: str) -> None:
    """S8: of the decision, of the position; with and without effect. The id is claimed again and the topic is read."""
    log, sink = outbox(), make_sink()
    put(log, *range(3))
    worker = Worker(log, sink)

    def lose() -> None:
        (owner,) = log.owners
        owner.next = what

    worker.steps.at[Step.CUT_BEFORE if which == "cut" else Step.POSITION_BEFORE] = lose
    worker.turn(6)
    put(log, *range(3, 12))
    worker.turn(12)
    assert held(sink) == listed(sink) == list(range(12))
    assert log.owners[0].initialised == 2
    assert worker.said[-1].endswith("delivering again")
    assert worker.delivery.lag() == 0


class Between:
    """A connection whose writes fail on demand, before or after their effect."""

    def __init__(self, real: Any) -> None:
        self._real, self.then, self.calls = real, [], 0  # type: ignore[var-annotated]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def write(self, *given: Any) -> Outcome:
        self.calls += 1
        then = self.then.pop(0) if self.then else "done"
        if then == "before":
            return NotDone("the store is away")
        outcome: Outcome = self._real.write(*given)
        return Unknown("no answer") if then == "after" else outcome


@pytest.mark.parametrize("then", [["before"], ["after"], ["before", "after", "after"]])
def test_a_put_without_an_answer_is_sent_again(make_sink: MakeSink, then: list[str]) -> None:
    """S8: the same cut, under the same claim; nothing is read meanwhile, nothing lost, and it is said once."""
    log, sink = outbox(), make_sink()
    put(log, *range(3))
    worker = Worker(log, sink)
    worker.delivery._connection = between = Between(worker.delivery._connection)  # type: ignore[assignment]
    between.then += then
    worker.turn(8)
    put(log, *range(3, 6))
    worker.turn(12)
    assert held(sink) == listed(sink) == list(range(6))
    assert log.owners[0].initialised == 1
    assert between.calls == len(then) + 2
    assert worker.said[-2].endswith("; nothing is lost, trying again")
    assert worker.said[-1] == f"{sink.where}: delivering again"


def test_a_store_that_is_away_is_waited_for(make_sink: MakeSink) -> None:
    """Bounded pauses, a sentence now and then, what is read meanwhile is bounded."""
    log, sink = outbox(), make_sink()
    put(log, *range(30))
    worker = Worker(log, sink)
    worker.delivery._connection = between = Between(worker.delivery._connection)  # type: ignore[assignment]
    turns = 2 * REPEAT_MS // 1_000
    between.then += ["before"] * turns
    assert worker.turn(turns) == 0
    assert 2 <= len([text for text in worker.said if "trying again" in text]) <= 4
    assert worker.turn(10) == 30
    assert held(sink) == list(range(30))


def test_nothing_here_needs_a_clock_of_its_own() -> None:
    """cut_delivery.py takes the time as an argument (DESIGN, The core decides)."""
    module: Any = sys.modules["semel.sinks.cut_delivery"]
    assert not {"time", "threading", "random", "os"} & set(vars(module))
