"""Records that a sink refuses become dead letters (FAULTS S11): once, and not at the sink, whatever ends or is late."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from semel.ports import Done, NewRecord, Outcome, Step
from semel.sinks import cut_delivery, cuts, delivery, refusals
from semel.sinks.cuts import Refusals
from semel.sinks.sink import Diverged, RowRefused, SinkError
from semel.streams.task import ERRORS
from tests.sinks.refusing import DELIVERY, DLQ, KINDS, OUTBOX, Died, World
from tests.support.outboxlog import OutboxLog, OutboxOwner

STEPS = {
    "table": [
        Step.ROWS_BEFORE,
        Step.CLAIM_AFTER,
        Step.BATCH_BEFORE,
        Step.REFUSE_BEFORE,
        Step.REFUSE_AFTER,
        Step.SINK_BEFORE,
        Step.SINK_AFTER,
    ],
    "prepared": [
        Step.CLAIM_AFTER,
        Step.CUT_BEFORE,
        Step.CUT_AFTER,
        Step.REFUSE_BEFORE,
        Step.REFUSE_AFTER,
        Step.PREPARE_BEFORE,
        Step.PREPARE_AFTER,
        Step.DECIDE_BEFORE,
        Step.DECIDE_AFTER,
        Step.SINK_BEFORE,
        Step.POSITION_BEFORE,
        Step.POSITION_AFTER,
    ],
    "created": [
        Step.CLAIM_AFTER,
        Step.CUT_AFTER,
        Step.REFUSE_BEFORE,
        Step.REFUSE_AFTER,
        Step.SINK_BEFORE,
        Step.SINK_AFTER,
        Step.POSITION_BEFORE,
        Step.POSITION_AFTER,
    ],
}


def die() -> None:
    raise Died


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def test_refused_records_are_dead_letters_and_the_rest_arrives(world: World) -> None:
    """S11: with key, value and time as in the outbox, and headers that say where it was and why."""
    world.put(12)
    world.finish()
    assert world.letters() == [2, 6, 10]
    first = next(r for p in world.log.topics[DLQ].partitions for r in p if r.visible and r.value == b"2")
    assert (first.key, first.timestamp) == (None, 2)
    worker = world.worker()
    assert worker.delivery.refused == 0, "of its own"


def test_the_dead_letter_says_where_and_why(world: World) -> None:
    """KIP-1034's names, and the sink's."""
    sent: list[NewRecord] = []
    together = OutboxOwner.together

    def seen(owner: OutboxOwner, records: Any) -> Outcome:
        sent.extend(records)
        return together(owner, records)

    world.put(4)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(OutboxOwner, "together", seen)
        world.finish()
    letter = next(record for record in sent if record.topic == DLQ)
    headers = dict(letter.headers or ())
    assert headers[ERRORS + "topic"] == OUTBOX.encode()
    assert (headers[ERRORS + "partition"], headers[ERRORS + "offset"]) == (b"0", b"2")
    assert headers[ERRORS + "message"] == b"a system in memory refuses it: 2 does not fit"
    assert (headers[refusals.SINK], headers[refusals.SINK + ".incarnation"]) == (b"orders", b"1")


def test_the_refusal_is_said_and_counted(world: World) -> None:
    world.put(4)
    worker = world.worker()
    worker.turn(12)
    assert worker.delivery.refused == 1
    assert worker.said == [
        f"a system in memory refuses the record of {OUTBOX}-0 at offset 2: 2 does not fit; it is in {DLQ}"
    ]


def test_stop_is_the_default(world: World) -> None:
    """Nothing is a dead letter that nobody has asked for."""
    world.put(4)
    with pytest.raises(SinkError, match=f"{OUTBOX}-0 at offset 2"):
        world.worker("stop").turn(8)
    assert world.letters() == []


def test_a_doubtful_refusal_is_no_dead_letter(world: World) -> None:
    """The sink cannot name the record, or may take it yet."""
    if world.kind == "created":
        return

    def look(rows: Any) -> None:
        raise RowRefused("a constraint", rows[0].offset, "it stands for its batch")

    world.mood.look = look  # type: ignore[method-assign]
    world.put(4)
    with pytest.raises(SinkError, match="does not become a dead letter: it stands for its batch"):
        world.worker().turn(8)
    assert world.letters() == []


# --- ended, overtaken, unheard ----------------------------------------------------------------------------------------


def ended_at_every_step_twice(kind: str) -> None:
    """What is refused changes in between, where a system may change."""
    world, dice = World(kind), random.Random(7)
    for step in STEPS[kind] * 2:
        worker = world.worker()
        worker.steps.at[step] = die
        with pytest.raises(Died):
            for _ in range(40):
                world.put(1)
                worker.turn()
                if dice.random() < 0.5:
                    world.mood.refuses = dice.choice([lambda n: n % 4 == 2, lambda n: n % 8 == 2, lambda n: False])
                    if step in (Step.REFUSE_BEFORE, Step.REFUSE_AFTER):
                        world.mood.refuses = lambda n: n % 4 == 2
    world.mood.refuses = lambda n: False  # what was written off stays written off, though it would be taken now
    world.finish()
    assert world.letters()


@pytest.mark.parametrize("kind", KINDS)
def test_ended_at_every_step_twice(kind: str) -> None:
    """S11 with crashes."""
    ended_at_every_step_twice(kind)


def overtaken_at(kind: str, step: Step, then_taken: bool) -> None:
    """A worker stands at a step; its successor works on; what is refused changes; then the worker goes on."""
    world = World(kind)
    world.put(8)
    zombie, heir = world.worker(), world.worker()

    def overtaken() -> None:
        if then_taken:
            world.mood.refuses = lambda n: False
        world.put(4)
        heir.turn(14)
        if not then_taken:
            world.mood.refuses = lambda n: False

    if not then_taken and step not in (Step.REFUSE_BEFORE, Step.REFUSE_AFTER):
        refuses, world.mood.refuses = world.mood.refuses, lambda n: n % 4 == 2 and n > 3
        zombie.steps.at[step] = lambda: (setattr(world.mood, "refuses", refuses), overtaken())  # type: ignore[func-returns-value]
    else:
        zombie.steps.at[step] = overtaken
    zombie.turn(14)
    assert step not in zombie.steps.at, "never stood there"
    world.finish()


@pytest.mark.parametrize("then_taken", [True, False], ids=["then-taken", "then-refused"])
@pytest.mark.parametrize(("kind", "step"), [(kind, step) for kind in KINDS for step in STEPS[kind]])
def test_a_superseded_owner_neither_writes_off_nor_writes(kind: str, step: Step, then_taken: bool) -> None:
    """S1: it has read less than its successor has written off, or the reverse."""
    overtaken_at(kind, step, then_taken)


def history(kind: str, seed: int) -> None:
    """Three workers in turn, at random: ended or overtaken at any step, appends and writes lost and unheard, and what
    is refused changing at every moment."""
    dice, world = random.Random(seed), World(kind)
    moods: list[Callable[[int], bool]] = [lambda n: n % 4 == 2, lambda n: n % 8 == 2, lambda n: False]
    workers = [world.worker() for _ in range(3)]

    def shaken(depth: int = 0) -> Callable[[], None]:
        def shake() -> None:
            world.mood.refuses = dice.choice(moods)
            if depth < 2:
                other = dice.choice(workers)
                if other is not working[-1]:
                    work(other, depth + 1)
            if dice.random() < 0.3:
                raise Died

        return shake

    working: list[Any] = []

    def work(worker: Any, depth: int = 0) -> None:
        if any(worker is one for one in working):
            return
        for step in dice.sample(STEPS[kind], 2):
            worker.steps.at[step] = shaken(depth)
        if dice.random() < 0.3 and hasattr(world.sink, "then"):
            world.sink.then.append(dice.choice(["lost", "unheard"]))
        working.append(worker)
        try:
            worker.turn(dice.randrange(1, 5))
        except Died:
            workers[next(n for n, one in enumerate(workers) if one is worker)] = world.worker()
        finally:
            working.pop()

    world.log.fate = lambda: dice.choice(["lost", "unheard", "refused", *[""] * 12])
    for _ in range(12):
        world.put(dice.randrange(3))
        world.mood.refuses = dice.choice(moods)
        work(dice.choice(workers))
    world.log.fate = lambda: ""
    if hasattr(world.sink, "then"):
        world.sink.then.clear()
    world.mood.refuses = dice.choice(moods)
    world.finish()


@pytest.mark.parametrize("kind", KINDS)
def test_any_history(kind: str) -> None:
    for seed in range(30):
        history(kind, seed)


# --- read again from before -------------------------------------------------------------------------------------------


def test_what_was_written_off_stays_out_when_the_log_is_read_again() -> None:
    """The sink is put back from a backup, and takes by now what it refused: it is in the dead letters already."""
    world = World("table")
    world.put(12)
    backup: tuple[Any, ...] = (0, "")
    world.finish()
    world.sink.rows.clear()
    world.sink.position, world.sink.run = backup
    world.mood.refuses = lambda n: False
    world.finish()


def test_also_under_the_policy_stop() -> None:
    """The program goes back to on_error='stop' while a refused record is written off and its batch is not written."""
    world = World("table")
    world.put(4)
    worker = world.worker()
    worker.steps.at[Step.REFUSE_AFTER] = die
    with pytest.raises(Died):
        worker.turn(8)
    world.mood.refuses = lambda n: False
    world.worker("stop").turn(8)
    world.holds()


def test_another_record_at_a_refused_offset_stops() -> None:
    """S12: it is not left out for one that was written off."""
    world = World("table")
    world.put(4)
    worker = world.worker()
    worker.steps.at[Step.REFUSE_AFTER] = die
    with pytest.raises(Died):
        worker.turn(8)
    world.log.topics[OUTBOX].partitions[0][2].value = b"3"
    with pytest.raises(Diverged, match="another record is there now"):
        world.worker().turn(8)


def test_an_outbox_made_anew_has_nothing_written_off() -> None:
    log, at = OutboxLog(), delivery.TopicPartition(DELIVERY, 0)
    log.create(DELIVERY, 1)
    here = delivery.LogIdentity("one", 1)
    said = refusals.written(at, here, 1, Refusals((cuts.Refusal(3, 4, 1),), 1), 0)
    log.append(DELIVERY, 0, said.key, said.value)
    session = log.session()
    assert refusals.read(session, at, here).total == 1
    assert refusals.read(session, at, delivery.LogIdentity("another", 1)) == Refusals()


# --- it is the table, not the record ----------------------------------------------------------------------------------


def test_everything_refused_stops(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when each is in a batch of its own: the run of refusals is written down."""
    monkeypatch.setattr(refusals, "IN_A_ROW_MAX", 7)
    mood = world.sink.mood
    mood.refuses = lambda n: n > 3
    worker = world.worker()
    with pytest.raises(SinkError, match="as it did the 7 records before it"):
        for _ in range(60):
            world.put(1)
            worker.turn(3)
    assert world.letters() == list(range(4, 11))
    worker = world.worker()
    with pytest.raises(SinkError, match="at offset 11, as it did"):
        worker.turn(10)


def test_too_many_among_those_that_the_outbox_holds_stop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the outbox holds no more are not counted, and not kept."""
    monkeypatch.setattr(refusals, "KEPT_MAX", 3)
    world.put(12)
    worker = world.worker()
    worker.turn(40)
    assert world.letters() == [2, 6, 10]
    world.log.topics[OUTBOX].starts[0] = 5
    world.put(4)
    worker.turn(20)
    world.holds()
    world.put(4)
    with pytest.raises(SinkError, match="as it did 3 that the outbox holds"):
        worker.turn(20)


# --- planted bugs -----------------------------------------------------------------------------------------------------


def not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dead letter alone."""
    together = OutboxOwner.together

    def alone(owner: OutboxOwner, records: Any) -> Outcome:
        letters = [record for record in records if record.topic == DLQ]
        return together(owner, letters or records)

    monkeypatch.setattr(OutboxOwner, "together", alone)


def outside_the_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dead letter in one of its own, before."""
    together = OutboxOwner.together

    def apart(owner: OutboxOwner, records: Any) -> Outcome:
        for record in records:
            outcome = together(owner, [record])
            if not isinstance(outcome, Done):
                break
        return outcome

    monkeypatch.setattr(OutboxOwner, "together", apart)


def not_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "read", lambda log, at, here: Refusals())
    read = cuts.read_progress

    def without(*given: Any, **more: Any) -> Any:
        found = read(*given, **more)
        return found and msgspec.structs.replace(found, refused=Refusals())

    monkeypatch.setattr(cuts, "read_progress", without)


def not_fenced_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A superseded owner writes off what its successor writes."""

    def send(owner: OutboxOwner, records: Any) -> Outcome:
        owner._sent += records
        return Done()

    def commit(owner: OutboxOwner) -> Outcome:
        for r in owner._sent:
            owner._log.append(r.topic, r.partition, r.key, r.value, at=r.timestamp_ms)
        owner._sent.clear()
        return Done()

    monkeypatch.setattr(OutboxOwner, "send", send)
    monkeypatch.setattr(OutboxOwner, "commit", commit)


def claimed_and_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has claimed the sink last goes on without asking whether the log is still his."""
    monkeypatch.setattr(delivery.Delivery, "_still_owned", lambda *given: True)


def left_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written off, and tried again."""
    monkeypatch.setattr(refusals, "taken", lambda rows, *given: rows)


BUGS = [not_written_down, outside_the_transaction, not_read_back, not_fenced_in_the_log, left_in]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found(kind: str, bug: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same histories that what is shipped survives."""
    bug(monkeypatch)
    with pytest.raises((AssertionError, SinkError)):
        for seed in range(30):
            history(kind, seed)


def claimed_late() -> None:
    world = World("table")
    world.put(4)
    late, other = world.worker(), world.worker()

    def claims_first() -> None:
        # It has the id since, and is about to be refused: not by the claim, which it looks at after the record.
        other.steps.at[Step.BATCH_BEFORE] = returns_late
        other.turn(2)

    def returns_late() -> None:
        world.sink.epoch += 1  # the late one's claim arrives now
        raise RowRefused("2 does not fit", 2)

    late.steps.at[Step.ROWS_BEFORE] = claims_first
    late.turn()
    world.mood.refuses = lambda n: False
    late.turn(4)
    world.finish()


def test_an_owner_who_claims_the_sink_late_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has read what was written off before its successor did, and has claimed the sink after it."""
    claimed_late()
    claimed_and_not_said(monkeypatch)
    with pytest.raises(AssertionError, match="more': \\[2"):
        claimed_late()
    with pytest.raises(AssertionError):
        for seed in range(200):
            history("table", seed)


assert cut_delivery.refusals is refusals
