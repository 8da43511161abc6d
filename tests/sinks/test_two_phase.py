"""The delivery to a sink that prepares, over a log and a system in memory: ended, overtaken, unheard at every step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from semel import App, Builder, Topic
from semel.contract import Attempt, DeliveryId, Guarantee
from semel.guarantees import Circumstances, analyse
from semel.ports import Step
from semel.sinks import Files, MariaDBTwoPhase, MultipartObjects, PostgresTwoPhase, cut_delivery
from semel.sinks.cut_delivery import CutDelivery
from semel.sinks.cuts import Rule
from semel.sinks.sink import Diverged, SinkError
from semel.sinks.two_phase import attempt_in, name_of, prefix, settling
from tests.sinks.preparing import Preparing, System
from tests.sinks.test_cuts import DELIVERY, OUTBOX, Died, Worker, die, outbox, put
from tests.support.outboxlog import OutboxLog

STEPS = [
    Step.CLAIM_AFTER,
    Step.BATCH_BEFORE,
    Step.CUT_BEFORE,
    Step.CUT_AFTER,
    Step.ROWS_BEFORE,
    Step.ROWS_AFTER,
    Step.PREPARE_BEFORE,
    Step.PREPARE_AFTER,
    Step.DECIDE_BEFORE,
    Step.DECIDE_AFTER,
    Step.SINK_BEFORE,
    Step.SINK_AFTER,
    Step.POSITION_BEFORE,
    Step.POSITION_AFTER,
]
SETTLING = [Step.SETTLE_BEFORE, Step.SETTLE_AFTER]


class World:
    def __init__(self, partitions: int = 1) -> None:
        self.log: OutboxLog = outbox(partitions)
        self.log.create(DELIVERY, partitions, {"cleanup.policy": "compact"})
        self.system = System(self.log, DELIVERY)
        self.count = 0

    def worker(self, records: int = 5, *partitions: int, **said: Any) -> Worker:
        return Worker(self.log, Preparing(self.system, Rule(records, 1 << 20, 2_000)), *partitions, **said)

    def put(self, count: int) -> None:
        put(self.log, *range(self.count, self.count + count))
        self.count += count

    def finish(self) -> None:
        """A last owner delivers everything: each record is there once, in order, and nothing is left prepared."""
        last = self.worker()
        for _ in range(60):
            last.turn()
        assert self.system.held.get(0, []) == list(range(self.count))
        assert last.delivery.lag() == 0
        assert not self.system.prepared, "left prepared"
        last.close()


def test_each_record_arrives_once_in_order() -> None:
    """Law 7, over partitions and rebalances."""
    log = outbox(3)
    log.create(DELIVERY, 3, {"cleanup.policy": "compact"})
    system = System(log, DELIVERY)
    sink = Preparing(system, Rule(10, 1 << 20, 2_000))
    first, second = Worker(log, sink, 0, 1, 2), Worker(log, sink, 2)
    for n in range(180):
        put(log, n, partition=n % 3)
    first.turn(2)
    first.session.assign(OUTBOX, 0)
    second.session.assign(OUTBOX, 1, 2)
    second.turn(12)
    first.turn(12)
    assert system.held == {p: list(range(p, 180, 3)) for p in range(3)}
    assert not system.prepared


def test_ended_at_every_step_twice() -> None:
    """S4, S5: each owner ends at a step; records come in between, so the next one would cut otherwise. Those that end
    while they settle what the one before has left are among them."""
    world = World()
    for step in STEPS * 2:
        for ending in (step, *SETTLING):
            worker = world.worker(1_000)
            worker.steps.at[ending] = die
            try:
                for _ in range(20):
                    world.put(1)
                    worker.turn(ms=1_700)
            except Died:
                continue
            assert ending in SETTLING, f"{ending} was never reached"
    world.finish()
    assert world.count > 40


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("further", [0, 1])
def test_a_superseded_owner_decides_nothing(step: Step, further: int) -> None:
    """S1, S17: it stands at a step while its successor settles, delivers and goes on; then it goes on itself. It is
    refused, whatever it prepared it takes back, and it settles nothing of its successor's."""
    world = World()
    world.put(3)
    zombie, heir = world.worker(3), world.worker(4)

    def overtaken() -> None:
        world.put(5 + further)
        assert heir.turn(8) >= 4

    zombie.steps.at[step] = overtaken
    zombie.turn(6)
    if step not in (Step.POSITION_AFTER, Step.CLAIM_AFTER):
        assert zombie.steps.hits.get(Step.SINK_FENCED, 0) >= 1
    zombie.close()
    assert not world.system.prepared, "it has left nothing"
    world.finish()


def test_a_zombie_that_prepares_late_and_dies_leaves_what_the_next_owner_removes() -> None:
    """A system without a fence of its own takes what it prepares; nobody sees it, and it is under its own name."""
    world = World()
    world.put(3)
    zombie, heir = world.worker(3), world.worker(3)

    def overtaken() -> None:
        world.put(3)
        heir.turn(8)

    zombie.steps.at[Step.PREPARE_BEFORE] = overtaken
    zombie.steps.at[Step.DECIDE_BEFORE] = die
    with pytest.raises(Died):
        zombie.turn(6)
    assert [one.number for _, one in world.system.prepared] == [1]
    assert world.system.held[0] == list(range(6))
    world.finish()


@pytest.mark.parametrize("then", ["before", "after", "refused"])
@pytest.mark.parametrize("call", ["take_over", "prepare_cut", "commit_cut"])
def test_an_answer_that_is_lost_is_not_guessed(call: str, then: str) -> None:
    """S8, at the sink: what was prepared unheard is settled and prepared anew under another number; what was decided is
    asked for again, under the same."""
    world = World()
    world.system.then[call] = [then, then]
    world.put(12)
    worker = world.worker(5)
    worker.turn(12)
    assert world.system.held[0] == list(range(12))
    assert not world.system.prepared
    wanted = 3 if call == "prepare_cut" else 1
    assert world.system.committed[0][0] == Attempt(0, wanted, 5)
    world.finish()


@pytest.mark.parametrize("what", ["lost", "unheard", "refused"])
@pytest.mark.parametrize("step", [Step.CUT_BEFORE, Step.DECIDE_BEFORE, Step.POSITION_BEFORE])
def test_a_decision_without_an_answer_is_read_back(what: str, step: Step) -> None:
    """S8, at the log: whether it was decided is what the topic says, and nothing else."""
    world = World()
    world.put(5)
    worker = world.worker(5)

    def lose() -> None:
        (owner,) = world.log.owners
        owner.next = what

    worker.steps.at[step] = lose
    worker.turn(6)
    assert world.system.held[0] == list(range(5))
    # A cut that is there, and not decided, is prepared under the next number.
    wanted = 2 if (step, what == "unheard") in ((Step.CUT_BEFORE, True), (Step.DECIDE_BEFORE, False)) else 1
    assert world.system.committed[0] == [Attempt(0, wanted, 5)]
    world.finish()


# --- any history -----------------------------------------------------------------------------------------------------

Life = tuple[Step, str, int, dict[str, list[str]]]
LIVES = st.lists(
    st.tuples(
        st.sampled_from([*STEPS, *SETTLING]),
        st.sampled_from(["ends", "overtaken", "overtaken and ends", "lost", "unheard", "refused"]),
        st.integers(1, 7),
        st.dictionaries(
            st.sampled_from(["take_over", "prepare_cut", "commit_cut", "abandon"]),
            st.lists(st.sampled_from(["before", "after", "refused"]), min_size=1, max_size=3),
            max_size=2,
        ),
    ),
    min_size=1,
    max_size=7,
)


def _live(world: World, lives: list[Life]) -> None:
    """The first life, with the others as its successors where it is overtaken."""
    if not lives:
        return
    step, what, records, fates = lives[0]
    worker = world.worker(records)

    def struck() -> None:
        world.put(records)
        if "overtaken" in what:
            _live(world, lives[1:])
        if "ends" in what:
            raise Died
        if what in ("lost", "unheard", "refused"):
            for lane in worker.delivery._lanes.values():
                lane.owner.next = what  # type: ignore[union-attr]

    world.system.then.update({call: list(then) for call, then in fates.items()})
    world.put(records + 1)
    worker.steps.at[step] = struck
    try:
        for _ in range(8):
            worker.turn(ms=900)
        worker.close()
    except Died:
        pass
    if "overtaken" not in what:
        _live(world, lives[1:])


# The story: the second owner read the decisions, was overtaken by the third, and then found more at the sink than it
# had read. It took that for a log that went back, and stopped its app for good.
OVERTAKEN_BETWEEN_READING_AND_ASKING: list[Life] = [
    (Step.CLAIM_AFTER, "ends", 1, {"take_over": ["before"], "prepare_cut": ["before"]}),
    (Step.SETTLE_BEFORE, "overtaken", 1, {}),
    (Step.CLAIM_AFTER, "overtaken", 1, {}),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LIVES)
@example(OVERTAKEN_BETWEEN_READING_AND_ASKING)
def test_any_history_of_owners_delivers_once(lives: list[Life]) -> None:
    """Owners end, are overtaken, go on, lose answers of the log and of the sink, one within another. Nothing is
    committed that was not decided (`System.commit` asserts it at every moment), and in the end each record is there
    once, in order, and nothing is left prepared."""
    world = World()
    _live(world, lives)
    world.system.then.clear()
    world.finish()


# --- bugs that these tests are there to find -------------------------------------------------------------------------


def _not_written(self: Any, lane: Any, progress: Any) -> bool:
    lane.progress = progress
    return True


def _history(world: World) -> None:
    losing = world.worker(1)
    losing.steps.at[Step.DECIDE_BEFORE] = lambda: setattr(world.log.owners[-1], "next", "lost")
    world.put(1)
    losing.turn(8)
    for step in STEPS * 2:
        worker = world.worker(1_000)
        worker.steps.at[step] = die
        with pytest.raises(Died):
            for _ in range(20):
                world.put(1)
                worker.turn(ms=1_700)
    world.finish()


class DecisionNotWritten(CutDelivery):
    """It commits what nobody can read the decision of."""

    def _prepare(self, lane: Any, progress: Any, claim: Any, rows: Any) -> bool:
        append, self._append = self._append, lambda lane, progress: cut_delivery.Done()  # type: ignore[method-assign]
        try:
            return super()._prepare(lane, progress, claim, rows)
        finally:
            self._append = append  # type: ignore[method-assign]


class CommitBeforeDecision(CutDelivery):
    def _prepare(self, lane: Any, progress: Any, claim: Any, rows: Any) -> bool:
        append = self._append

        def late(lane: Any, progress: Any) -> Any:
            self._connection.commit_cut(claim, Attempt(progress.cut.start, progress.cut.attempt, progress.cut.end))  # type: ignore[union-attr]
            return append(lane, progress)

        self._append = late  # type: ignore[method-assign]
        try:
            return super()._prepare(lane, progress, claim, rows)
        finally:
            self._append = append  # type: ignore[method-assign]


class SameNumber(CutDelivery):
    """A new owner goes on under the former one's number (S17)."""

    def _claim(self, lane: Any) -> None:
        super()._claim(lane)
        if lane.progress is not None and lane.progress.cut is not None:
            from msgspec.structs import replace

            lane.progress = replace(lane.progress, cut=replace(lane.progress.cut, attempt=1))


@pytest.mark.parametrize("bug", [DecisionNotWritten, CommitBeforeDecision])
def test_a_commit_without_a_decision_is_found(bug: type[CutDelivery], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the system that watches; and, where nobody watches, by what the next owner then finds."""
    monkeypatch.setattr("tests.sinks.test_cuts.CutDelivery", bug)
    with pytest.raises(AssertionError, match="never decided"):
        _history(World())
    blind = World()
    blind.system.watching = False
    with pytest.raises(SinkError):
        _history(blind)


def test_a_number_used_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """S17: the zombie takes back what it thinks its own, and that was its successor's, decided."""
    world = World()
    world.put(3)
    zombie = world.worker(3)
    monkeypatch.setattr("tests.sinks.test_cuts.CutDelivery", SameNumber)
    heir = world.worker(3)
    heir.steps.at[Step.DECIDE_AFTER] = die

    def overtaken() -> None:
        with pytest.raises(Died):
            heir.turn(8)

    zombie.steps.at[Step.DECIDE_BEFORE] = overtaken
    with pytest.raises(Diverged, match="nothing prepared"):
        zombie.turn(6)
        world.finish()


def test_a_sink_that_settles_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """S4: orphans."""
    monkeypatch.setattr(
        "tests.sinks.preparing.settling", lambda prepared, latest, decided: settling([], latest, decided)
    )
    with pytest.raises(AssertionError, match="left prepared"):
        worlds = World()
        worlds.system.watching = False
        worker = worlds.worker(5)
        worker.steps.at[Step.PREPARE_AFTER] = die
        worlds.put(5)
        with pytest.raises(Died):
            worker.turn(4)
        worlds.finish()


# --- what only a person can settle ------------------------------------------------------------------------------------


def test_what_the_log_never_decided_stops_the_delivery() -> None:
    """S12: the log went back behind the sink, together with its delivery topic. What is prepared later than it says is
    left alone, and nothing is reset."""
    world = World()
    world.put(10)
    copied = world.log.copy()
    worker = world.worker(5)
    worker.steps.at[Step.PREPARE_AFTER] = die
    with pytest.raises(Died):
        worker.turn(4)
    (left,) = world.system.prepared
    world.log.put_back(copied)
    with pytest.raises(Diverged, match="asked twice"):
        world.worker(5).turn(6)
    assert list(world.system.prepared) == [left]


def test_a_person_begins_anew_under_the_next_incarnation() -> None:
    """After the log went back, and after the outbox was made anew: from its start, beside what was delivered."""
    for remade in (False, True):
        world = World()
        world.put(10)
        copied = world.log.copy()
        world.worker(5).turn(6)
        if remade:
            world.log.topics[OUTBOX].topic_id = "another"
        else:
            world.log.put_back({name: parts for name, parts in copied.items() if name != DELIVERY})
            world.log.topics[OUTBOX].partitions[0].pop()
        with pytest.raises(Diverged):
            world.worker(5).turn(6)
        assert world.system.held[0] == list(range(10))
        world.system.incarnation, world.system.position[0] = 2, 0
        world.worker(5).turn(6)
        assert world.system.held[0] == [*range(10), *range(10 if remade else 9)]


@pytest.mark.parametrize("decided", [False, True])
def test_a_sink_that_was_put_back_stops_the_delivery(decided: bool) -> None:
    """What was decided is neither prepared nor committed there: rolled back by hand, or lost with a backup."""
    world = World()
    world.put(10)
    worker = world.worker(5)
    worker.steps.at[Step.DECIDE_AFTER if decided else Step.POSITION_AFTER] = die
    with pytest.raises(Died):
        worker.turn(4)
    world.system.prepared.clear()
    world.system.position.clear()
    with pytest.raises(Diverged, match="was put back from a backup"):
        world.worker(5).turn(6)


def test_what_was_decided_and_is_gone_while_we_ask_stops_the_delivery() -> None:
    """The same, seen by the owner that decided it."""
    world = World()
    world.put(5)
    worker = world.worker(5)
    worker.steps.at[Step.SINK_BEFORE] = world.system.prepared.clear
    with pytest.raises(Diverged):
        worker.turn(6)


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_are_read_back_and_are_never_too_long() -> None:
    """semel:APP:SINK:PARTITION:START-END:ATTEMPT, at most 200 bytes with any offsets; no prefix is another's."""
    delivery = DeliveryId("app", "totals", 3)
    name = name_of(delivery, Attempt(120, 2, 240), "here")
    assert name == "semel:app:totals:3:120-240:2"
    assert attempt_in(name, prefix(delivery, "here")) == Attempt(120, 2, 240)
    for other in (DeliveryId("app", "totals", 33), DeliveryId("app", "total", 3)):
        assert attempt_in(name, prefix(other, "here")) is None
    assert attempt_in("semel:app:totals:3:x", prefix(delivery, "here")) is None
    longest = DeliveryId("a" * 60, "s" * 70, 10_000)
    assert len(name_of(longest, Attempt(10**18, 10**9, 10**18 + 1), "here").encode()) <= 200
    with pytest.raises(SinkError, match="shorter name"):
        prefix(DeliveryId("a" * 100, "s" * 70, 1), "here")


def test_what_is_settled_and_what_is_left_alone() -> None:
    """Only the decided attempt is committed; what is later is nobody's to touch."""
    old, now, again, later = Attempt(0, 4, 5), Attempt(5, 1, 9), Attempt(5, 2, 9), Attempt(9, 1, 12)
    plan = settling([old, now, again, later], again, True)
    assert (plan.commit, plan.roll_back, plan.later) == ((again,), (old, now), (later,))
    plan = settling([old, now, again], now, False)
    assert (plan.commit, plan.roll_back, plan.later) == ((), (old, now), (again,))


# --- what is promised -------------------------------------------------------------------------------------------------

SINKS = [
    PostgresTwoPhase("postgresql://h/d", "orders"),
    MariaDBTwoPhase("mysql://h/d", "orders"),
    Files("/data/orders"),
    MultipartObjects("s3://bucket/orders"),
]


@pytest.mark.parametrize("sink", SINKS, ids=lambda sink: type(sink).__name__)
def test_check_says_exactly_once_and_where_the_commit_ends(sink: Any) -> None:
    """`write` takes it without accept=; the label follows from the fields, the boundary is the decision."""

    def graph(b: Builder) -> None:
        b.read(Topic("orders", key=str, value=int)).write(sink)

    (path,) = analyse(App("app", graph).graph(), Circumstances()).paths
    assert path.guarantee is Guarantee.EXACTLY_ONCE
    assert path.boundary == (
        "the log's transaction, then one of the sink that is prepared first and decided by a record of the log"
    )
    assert any("the new owner reads the decision record" in reason for reason in path.reasons)
    assert any("survives its own crash under" in reason for reason in path.reasons)
