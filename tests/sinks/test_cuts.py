"""The delivery by cuts over a log in memory, into a folder or a store in memory: what it decides, sends, refuses."""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from obstore.store import MemoryStore
from pyarrow import parquet

from semel.contract import Row
from semel.ports import Done, NotDone, Outcome, Step, TopicPartition, Unknown
from semel.sinks import Objects
from semel.sinks.cut_delivery import CutDelivery
from semel.sinks.cuts import Progress, read_progress
from semel.sinks.objects_connection import CONTROL, key_of, manifest_key
from semel.sinks.objects_store import Store, Taken
from semel.sinks.sink import Diverged, SinkError
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


# --- what is there already --------------------------------------------------------------------------------------------


def test_other_bytes_under_the_key_are_an_error(make_sink: MakeSink) -> None:
    """412 is no success: somebody else's object is neither replaced nor taken for ours."""
    log, sink = outbox(), make_sink()
    put(log, *range(3))
    worker = Worker(log, sink)
    worker.turn()
    store_of(sink).create(f"00001-00000/{name(0, 3)}", b"something else\n", "0" * 64)
    with pytest.raises(SinkError, match="is there already, with other bytes") as refused:
        worker.turn(6)
    assert "00001-00000-" in str(refused.value)
    assert listed_body(sink, name(0, 3)) == b"something else\n"
    assert held(sink) == []


def listed_body(sink: Objects, key: str) -> bytes:
    found = store_of(sink).read(f"00001-00000/{key}")
    assert found is not None
    return found[0]


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
def test_the_same_content_is_done_however_it_was_packed(make_sink: MakeSink, compression: str | None) -> None:
    """A replay by another version of the compressor: other bytes, the same records."""
    log, sink = outbox(), make_sink(compression=compression)
    put(log, *range(3))
    worker = Worker(log, sink)
    worker.turn()
    store = store_of(sink)
    content = sink.shape.content([Row(n, 0, None, b"%d" % n) for n in range(3)])
    import gzip

    import cramjam

    from semel.sinks.objects_form import fingerprint

    packed = {"gzip": lambda: gzip.compress(content, 1), "zstd": lambda: bytes(cramjam.zstd.compress(content, 19))}
    body = packed[compression]() if compression else content
    key = f"00001-00000/{name(0, 3, ending=sink.shape.ending)}"
    store.create(key, body, fingerprint(content))
    assert worker.turn(6) == 3
    assert store.read(key) is not None and held(sink) == [0, 1, 2]


def test_two_sinks_under_one_prefix_are_refused(make_sink: MakeSink) -> None:
    """Their objects would mix."""
    log, sink = outbox(), make_sink()
    Worker(log, sink).turn()
    with pytest.raises(SinkError, match=r"these are the objects of sink orders of app app.*a prefix of its own"):
        Worker(log, make_sink(name="others")).turn()


# --- S12, S16: the log is not the one that the objects are of ---------------------------------------------------------


def delivered(make_sink: MakeSink, count: int = 10) -> tuple[OutboxLog, Objects]:
    log, sink = outbox(), make_sink()
    put(log, *range(count))
    worker = Worker(log, sink)
    worker.turn(8)
    worker.close()
    return log, sink


def diverged(log: OutboxLog, sink: Objects) -> str:
    """The message with which a new delivery stops; nothing is delivered."""
    before = names(sink)
    worker = Worker(log, sink)
    with pytest.raises(Diverged) as stopped:
        worker.turn(8)
    worker.close()
    assert names(sink) == before
    return str(stopped.value)


@pytest.mark.parametrize("went_on", [0, 20])
def test_a_log_put_back_stops_the_delivery(make_sink: MakeSink, went_on: int) -> None:
    """S12: the outbox and the delivery topic went back together; the objects did not."""
    log, sink = delivered(make_sink)
    copied = log.copy()
    put(log, *range(10))
    Worker(log, sink).turn(8)
    log.put_back(copied)
    put(log, *range(went_on))
    assert "decided cuts up to 10 only" in diverged(log, sink)


def test_a_log_put_back_to_before_the_first_cut_stops_the_delivery(make_sink: MakeSink) -> None:
    """S12: the delivery topic knows of nothing, the sink does."""
    log, sink = outbox(), make_sink()
    put(log, *range(3))
    worker = Worker(log, sink)
    copied = log.copy()
    worker.turn(8)
    log.put_back(copied)
    assert "knows of no delivery" in diverged(log, sink)


def test_an_outbox_that_lost_its_tail_stops_the_delivery(make_sink: MakeSink) -> None:
    """S12: the delivery topic is on another disk, and did not."""
    log, sink = delivered(make_sink)
    del log.topics[OUTBOX].partitions[0][5:]
    assert "now ends at 5" in diverged(log, sink)
    put(log, *range(100, 120))
    assert "another record is at 9 now" in diverged(log, sink)


def copied(log: OutboxLog) -> OutboxLog:
    """Another log with the same records: a folder that was copied while it was in use."""
    other = OutboxLog()
    other.topics = copy.deepcopy(log.topics)
    other.epoch = log.epoch
    return other


@pytest.mark.parametrize("step", [None, Step.CUT_BEFORE, Step.ROWS_BEFORE])
def test_a_copy_of_the_log_in_use_is_noticed_before_a_second_object_is_put(
    make_sink: MakeSink, step: Step | None
) -> None:
    """S12: two logs that went different ways have two delivery topics, and neither fences the other's owner. The sink
    does: the claim's epoch is in the manifest, and a cut is announced there before its object is put. (Found by
    `semel verify --on embedded`: the one that was resumed put an overlapping object.)"""
    log, sink = outbox(), make_sink()
    put(log, *range(10))
    old = Worker(log, sink, sole_owner=True)
    old.turn(3)
    other = copied(log)
    put(log, *range(10, 13))
    put(other, *range(100, 107))
    new = Worker(other, sink, sole_owner=True)
    if step is None:
        new.turn(8)
    else:

        def overtaken() -> None:
            new.turn(8)

        old.steps.at[step] = overtaken
    with pytest.raises(SinkError, match="is a copy of this folder in use"):
        old.turn(8)
    assert old.steps.hits[Step.SINK_FENCED] == 1
    assert held(sink) == listed(sink) == [*range(10), *range(100, 107)]
    put(other, 107)
    new.turn(8)
    assert held(sink) == listed(sink) == [*range(10), *range(100, 108)]


def test_a_cut_announced_by_another_log_stops_the_delivery(make_sink: MakeSink) -> None:
    """S12: announced and not put: its owner may put it still. Whose log does not know it decides nothing beside it."""
    log, sink = outbox(), make_sink()
    put(log, *range(10))
    Worker(log, sink).turn(3)
    other = copied(log)
    put(log, *range(10, 13))
    stands = Worker(log, sink)
    stands.steps.at[Step.OBJECT_BEFORE] = die
    with pytest.raises(Died):
        stands.turn(8)
    put(other, *range(100, 107))
    assert "it holds what was delivered up to offset 13" in diverged(other, sink)
    Worker(log, sink).turn(8)
    assert held(sink) == listed(sink) == list(range(13))


def test_a_complete_object_that_was_removed_is_not_made_again(make_sink: MakeSink) -> None:
    """Removed between its manifest and its position: nobody knows whether it was read."""
    log, sink = outbox(), make_sink()
    put(log, *range(10))
    worker = Worker(log, sink)
    worker.steps.at[Step.SINK_AFTER] = die
    with pytest.raises(Died):
        worker.turn(8)
    store_of(sink).delete([f"00001-00000/{name(0, 10)}"])
    assert "which is not there" in diverged(log, sink)


@pytest.mark.parametrize("went_on", [False, True])
def test_a_cut_whose_records_are_gone_stops_the_delivery(make_sink: MakeSink, went_on: bool) -> None:
    """S12: decided, not yet sent; the records it was decided of are not there any more."""
    log, sink = delivered(make_sink)
    put(log, *range(10, 15))
    worker = Worker(log, sink)
    worker.steps.at[Step.CUT_AFTER] = die
    with pytest.raises(Died):
        worker.turn(8)
    del log.topics[OUTBOX].partitions[0][12:]
    if went_on:
        put(log, *range(100, 110))
    assert ("holds other ones there now" if went_on else "the log ends before it") in diverged(log, sink)


def test_a_topic_made_anew_stops_the_delivery_until_the_next_incarnation_begins(make_sink: MakeSink) -> None:
    """S16: its offsets mean nothing here. The message says what to write where; then it is delivered from its start,
    beside the former objects."""
    log, sink = delivered(make_sink)
    log.create(OUTBOX, 1, EVER)
    put(log, *range(100, 120))
    said = diverged(log, sink)
    assert "re-created" in said
    anew = said.partition("write {")[2].partition("}")[0]
    store = store_of(sink)
    found = store.document(CONTROL)
    assert found is not None
    store.replace(CONTROL, b"{" + anew.encode() + b"}", found[1])
    Worker(log, sink).turn(8)
    assert held(sink) == [*range(10), *range(100, 120)]
    assert names(sink) == [name(0, 10), name(0, 10, incarnation=2), name(10, 20, incarnation=2)]


def test_another_partition_count_stops_the_delivery(make_sink: MakeSink) -> None:
    """Keys would change partitions: their order is lost."""
    log, sink = delivered(make_sink)
    log.topics[OUTBOX].partitions.append([])
    with pytest.raises(Diverged, match="has 1 partitions, its outbox app-orders-outbox has 2"):
        Worker(log, sink)


def test_a_sink_put_back_stops_the_delivery(make_sink: MakeSink) -> None:
    """Objects and manifest of before: the newer records would be missing for ever."""
    log, sink = delivered(make_sink)
    store = store_of(sink)
    kept = store.document(manifest_key(1, 0))
    assert kept is not None
    put(log, *range(10))
    Worker(log, sink).turn(8)
    now = store.document(manifest_key(1, 0))
    assert now is not None
    store.replace(manifest_key(1, 0), kept[0], now[1])
    store.delete([f"00001-00000/{name(10, 20)}"])
    assert "the sink was put back" in diverged(log, sink)
    store.delete(store.keys(""))
    assert "the sink was put back" in diverged(log, sink)


def test_a_delivery_topic_that_forgets_is_refused(make_sink: MakeSink) -> None:
    """Where the delivery is must not go by age."""
    log = outbox()
    log.create(DELIVERY, 1, {"cleanup.policy": "delete"})
    with pytest.raises(SinkError, match=r"cleanup\.policy=delete"):
        Worker(log, make_sink())


def test_a_delivery_topic_that_is_gone_is_an_error(make_sink: MakeSink) -> None:
    """Deleted while the app is away: nothing tells how far it was but the sink, and that is not asked to repair it."""
    log, sink = delivered(make_sink)
    del log.topics[DELIVERY]
    assert "knows of no delivery" in diverged(log, sink)


def test_restarts_of_the_log_are_no_divergence(make_sink: MakeSink) -> None:
    """New runs on the same log, also in the middle of what waits for a cut."""
    log, sink = delivered(make_sink)
    for n in range(3):
        log.restart()
        put(log, *range(3))
        worker = Worker(log, sink)
        worker.turn(1)
        log.restart()
        put(log, *range(n + 2))
        worker.turn(8)
        worker.close()
    assert len(held(sink)) == len(listed(sink)) == 10 + 9 + 9


# --- poison, forms, manifests -----------------------------------------------------------------------------------------


def test_a_record_that_has_no_place_is_named(make_sink: MakeSink) -> None:
    """S11: topic, partition and offset; nothing of its cut was written, so the sink may be declared otherwise, and the
    delivery goes on with the same cut."""
    log, sink = outbox(), make_sink(format="csv", columns=("a", "b"))
    put(log, {"a": 1}, {"a": 2, "c": [3]}, {"b": 'x,"y"', "a": None})
    with pytest.raises(SinkError, match=rf"{OUTBOX}-0 at offset 1: it has the field 'c'"):
        Worker(log, sink).turn(8)
    assert names(sink) == []
    wider = make_sink(format="csv", columns=("a", "b", "c"))
    for _ in range(2):
        dying = Worker(log, wider)
        dying.steps.at[Step.OBJECT_AFTER] = die
        with pytest.raises(Died):
            dying.turn(8)
    Worker(log, wider).turn(8)
    assert names(wider) == [name(0, 3, ending=".csv")]
    assert listed_body(wider, name(0, 3, ending=".csv")) == b'a,b,c\n1,,\n2,,[3]\n,"x,""y""",\n'
    assert wider.open().canonical(b'{"a": 1}') == b'{"a":"1","b":"","c":""}'


@pytest.mark.parametrize("step", [Step.OBJECT_BEFORE, Step.OBJECT_AFTER])
def test_a_cut_that_has_begun_is_not_finished_in_another_form(make_sink: MakeSink, step: Step) -> None:
    """Its records would be there twice, under two names."""
    log, sink = outbox(), make_sink()
    put(log, *range(3))
    dying = Worker(log, sink)
    dying.steps.at[step] = die
    with pytest.raises(Died):
        dying.turn(8)
    with pytest.raises(SinkError, match=r"was begun as jsonl, the sink is declared as jsonl\.gz now"):
        Worker(log, make_sink(compression="gzip")).turn(8)
    Worker(log, sink).turn(3)
    put(log, *range(3, 6))
    Worker(log, make_sink(compression="gzip")).turn(8)
    assert names(sink) == [name(0, 3), name(3, 6, ending=".jsonl.gz")]


def test_a_manifest_names_what_is_complete_in_order(make_sink: MakeSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """An incremental reader takes what is new in it; beyond its bound the older objects are found by listing."""
    monkeypatch.setattr("semel.sinks.objects_connection.LISTED_MAX", 2)
    log, sink = outbox(2), make_sink()
    for n in range(100):
        put(log, n, partition=n % 2)
    worker = Worker(log, sink)
    worker.steps.at[Step.OBJECT_AFTER] = lambda: None
    worker.turn(4)
    done = sink.complete()
    assert [(one.partition, one.start, one.end) for one in done] == [
        (p, n, n + 10) for p in (0, 1) for n in range(0, 50, 10)
    ]
    assert [one.records for one in done] == [-1, -1, -1, 10, 10] * 2
    put(log, *range(100, 110))
    worker.steps.at[Step.OBJECT_AFTER] = die
    with pytest.raises(Died):
        worker.turn(8)
    assert len(names(sink)) == 11
    assert sink.complete() == done, "there, and not yet named"
    Worker(log, sink).turn(8)
    assert len(sink.complete()) == 11


def test_a_manifest_that_was_removed_is_made_again(make_sink: MakeSink) -> None:
    """The objects are the truth."""
    log, sink = outbox(), make_sink()
    put(log, *range(30))
    Worker(log, sink).turn(3)
    whole, store = sink.complete(), store_of(sink)
    store.delete([key for key in store.keys("_semel") if "delivery" not in key])
    assert sink.complete() == []
    put(log, *range(30, 40))
    Worker(log, sink).turn(3)
    assert list(sink.complete())[:3] == list(whole)
    assert held(sink) == list(range(40))


def test_a_folder_replaces_a_document_only_over_the_version_that_was_read(tmp_path: Path) -> None:
    """A superseded owner that stood between reading and writing, for one version or for many: refused, and what it
    wrote counts for nobody."""
    store = Store(str(tmp_path), "here", {})
    old = store.replace("d/m.json", b"1", None)
    with pytest.raises(Taken):
        store.replace("d/m.json", b"other", None)
    now = old
    for n in range(2, 9):
        now = store.replace("d/m.json", b"%d" % n, now)
        with pytest.raises(Taken):
            store.replace("d/m.json", b"late", old)
    assert store.document("d/m.json") == (b"8", now)
    assert store.documents("d") == ["d/m.json"]
    assert len(store.keys("d")) == 2


@dataclass(frozen=True)
class Event:
    id: int
    at: datetime
    price: Decimal
    tags: list[str]
    note: str | None = None


def events(count: int) -> list[Event]:
    when = datetime(2026, 11, 23, 10, 0, 0, 123456, tzinfo=UTC)
    return [Event(n, when, Decimal("0.10"), ["a", "ü"], None if n % 2 else f"note {n}") for n in range(count)]


def test_parquet_has_the_schema_of_the_values_type(make_sink: MakeSink) -> None:
    """One row group; times are instants, what Arrow would round is text; a replay finds its fingerprint in the file."""
    log, sink = outbox(), make_sink(format="parquet", value=Event, compression="zstd")
    for event in events(4):
        log.append(OUTBOX, 0, None, sink.encode_value(event))
    worker = Worker(log, sink)
    worker.steps.at[Step.OBJECT_AFTER] = die
    with pytest.raises(Died):
        worker.turn(8)
    (made,) = names(sink)
    before = listed_body(sink, made)
    Worker(log, sink).turn(2)
    assert made == name(0, 4, ending=".parquet") and listed_body(sink, made) == before
    content = sink.shape.content([Row(n, 0, None, sink.encode_value(event)) for n, event in enumerate(events(4))])
    assert sink.shape.pack(content) == before, "the bytes are a function of the records"
    table = parquet.read_table(io.BytesIO(before))
    assert {field.name: str(field.type) for field in table.schema} == {
        "id": "int64",
        "at": "timestamp[us, tz=UTC]",
        "price": "string",
        "tags": "string",
        "note": "string",
    }
    assert table.to_pylist()[0] | {"at": None} == {
        "id": 0,
        "at": None,
        "price": "0.10",
        "tags": '["a","ü"]',
        "note": "note 0",
    }
    assert sorted(sink.open().rows()) == sorted(sink.open().canonical(sink.encode_value(event)) for event in events(4))


@pytest.mark.parametrize("field", ['"id": 99999999999999999999', '"at": "yesterday"', '"id": "1"', '"more": 1'])
def test_parquet_refuses_what_its_schema_cannot_hold(make_sink: MakeSink, field: str) -> None:
    """S11: by its offset, before anything is put."""
    log, sink = outbox(), make_sink(format="parquet", value=Event)
    log.append(OUTBOX, 0, None, sink.encode_value(events(1)[0]))
    log.append(OUTBOX, 0, None, b"{%s}" % field.encode())
    with pytest.raises(SinkError, match=rf"{OUTBOX}-0 at offset 1: "):
        Worker(log, sink).turn(8)
    assert names(sink) == []


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    """In `where`, `repr`, names and errors."""
    sink = Objects("s3://user:hunter2@bucket/orders?sig=hunter2", options={"secret_access_key": "hunter2"})
    assert (sink.where, sink.name) == ("objects in s3://bucket/orders", "orders")
    assert "hunter2" not in repr(sink)
    with pytest.raises(SinkError) as refused:
        Objects("s3://b/p", options={"endpoint": "http://x", "nonsense": "hunter2"}).open()
    assert "hunter2" not in str(refused.value) and "nonsense" in str(refused.value)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"format": "xml"}, "wanted is 'jsonl', 'csv' or 'parquet'"),
        ({"format": "parquet"}, "Parquet wants the type of the values"),
        ({"format": "csv"}, "CSV wants its columns"),
        ({"compression": "lzma"}, "wanted is 'gzip', 'zstd' or None"),
        ({"records": 0}, "are above 0"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_declared(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    """With what is wanted."""
    with pytest.raises(SinkError, match=message):
        Objects(tmp_path, **said)
    with pytest.raises(SinkError, match="wanted is a folder's path, or a URL with s3"):
        Objects("ftp://x/y")


def test_nothing_here_needs_a_clock_of_its_own() -> None:
    """cut_delivery.py takes the time as an argument (DESIGN, The core decides)."""
    module: Any = sys.modules["semel.sinks.cut_delivery"]
    assert not {"time", "threading", "random", "os"} & set(vars(module))


def test_the_topic_is_read_as_a_changelog_is(make_sink: MakeSink) -> None:
    """The last decision counts, whatever was compacted away before it."""
    log, sink = delivered(make_sink, 30)
    for _ in range(1_000):
        log.append(DELIVERY, 0, None, None, visible=False)  # what was aborted since
    found = read_progress(log.session(), TopicPartition(DELIVERY, 0))
    assert found is not None and (found.position, found.cut) == (30, None)
    del log.topics[DELIVERY].partitions[0][-1_000:]
    del log.topics[DELIVERY].partitions[0][:-2]
    log.topics[DELIVERY].partitions[0][:0] = [log.topics[OUTBOX].partitions[0][0]]
    found = read_progress(log.session(), TopicPartition(DELIVERY, 0))
    assert found is not None and (found.position, found.cut) == (30, None)
    assert Done() == sink.open().prepare(None)
