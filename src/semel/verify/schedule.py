"""Which process dies where: a schedule of faults, from a seed. Pure: the dice are an argument.

Each worker slot and the broker has a queue of its own; queues run side by side, so a zombie overlaps the kills of
others. Every step that applies is in the schedule at least once when there are enough crashes; the rest is chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from semel.ports import Random, Step

WORKER_STEPS = (
    Step.OUTPUT_BEFORE,
    Step.OUTPUT_AFTER,
    Step.OFFSETS_BEFORE,
    Step.OFFSETS_AFTER,
    Step.COMMIT_BEFORE,
    Step.COMMIT_AFTER,
)
BROKER_STEPS = (
    Step.DECISION_BEFORE,
    Step.DECISION_AFTER,
    Step.MARKERS_BEFORE,
    Step.MARKERS_AFTER,
    Step.SYNC_BEFORE,
    Step.SYNC_AFTER,
)
SINK_STEPS = (
    Step.CLAIM_AFTER,
    Step.BATCH_BEFORE,
    Step.ROWS_BEFORE,
    Step.ROWS_AFTER,
    Step.POSITION_BEFORE,
    Step.POSITION_AFTER,
    Step.SINK_BEFORE,
    Step.SINK_AFTER,
)
# Of the ingest of a source.
SOURCE_STEPS = (
    Step.INGEST_CLAIM,
    Step.INGEST_READ,
    Step.INGEST_RECORDS,
    Step.INGEST_POSITION,
    Step.INGEST_COMMIT,
)
# Of a delivery by cuts, besides.
CUT_STEPS = (Step.CUT_BEFORE, Step.CUT_AFTER)
# Of one to a sink that prepares, besides; those of a settlement come when a former owner has left something in doubt.
PHASE_STEPS = (
    Step.PREPARE_BEFORE,
    Step.PREPARE_AFTER,
    Step.DECIDE_BEFORE,
    Step.DECIDE_AFTER,
    Step.SETTLE_BEFORE,
    Step.SETTLE_AFTER,
)
DELIVERY_STEPS = SINK_STEPS + CUT_STEPS + PHASE_STEPS
SETTLING = (Step.SETTLE_BEFORE, Step.SETTLE_AFTER)
LEFT_IN_DOUBT = Step.DECIDE_AFTER  # where an owner is killed first, so that there is something to settle
# Inside the sink's own transaction. SQLite has no server that could end a stopped owner's transaction (FAULTS S14).
INSIDE_SINK = (Step.ROWS_BEFORE, Step.ROWS_AFTER, Step.POSITION_BEFORE, Step.POSITION_AFTER, Step.SINK_BEFORE)

# Where a zombie stands so that it is bound to try a write when it goes on, before anybody can tell it that it was
# superseded: a batch read and not written; in the middle of a commit. (Elsewhere it polls first, hears that its
# partitions are gone, and tries nothing.) Once offsets are sent its successor waits for the transaction timeout.
QUICK_STOPS = (Step.INGEST_RECORDS, Step.BATCH_BEFORE, Step.OFFSETS_BEFORE, Step.OUTPUT_AFTER)
SLOW_STOPS = (Step.COMMIT_BEFORE, Step.OFFSETS_AFTER)


class Kind(StrEnum):
    STEP = "killed at a step"
    RANDOM = "killed at random"
    ZOMBIE = "stopped, resumed after its successor's commit"
    LATE = "stopped beyond its session, resumed while its successor waits for its transaction"
    HANDOVER = "killed in a transaction; its successor killed too, its state lost, within the transaction timeout"
    LEAVE = "asked to leave"


# Here another worker has to take over: two of these at once would leave nobody to do it.
TAKEN_OVER = (Kind.ZOMBIE, Kind.LATE, Kind.HANDOVER)

KINDS = {
    "kill": Kind.STEP,
    "zombie": Kind.ZOMBIE,
    "late": Kind.LATE,
    "handover": Kind.HANDOVER,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`nth`: how many commits are let through first. `after`: for random kills, seconds in the same sense."""

    kind: Kind
    step: Step | None = None
    nth: int = 1
    after: float = 0.0

    @property
    def kills(self) -> int:
        """A zombie ends with a kill, a hand-over takes two."""
        return 0 if self.kind is Kind.LEAVE else 1 + (self.kind is Kind.HANDOVER)

    def __str__(self) -> str:
        return f"{self.kind.value}" + (f" ({self.step.value})" if self.step else "")


@dataclass(frozen=True, slots=True)
class Schedule:
    workers: tuple[tuple[Fault, ...], ...]  # one queue per worker
    broker: tuple[Fault, ...]

    @property
    def kills(self) -> int:
        """How many kills this schedule asks for."""
        return sum(fault.kills for queue in [*self.workers, self.broker] for fault in queue)

    @property
    def zombies(self) -> int:
        return sum(fault.kind is Kind.ZOMBIE for queue in self.workers for fault in queue)

    @property
    def steps(self) -> frozenset[Step]:
        return frozenset(f.step for queue in [*self.workers, self.broker] for f in queue if f.step is not None)


def directed_fault(text: str) -> Fault:
    """`step` or `step:kind`, kind one of kill (the default), zombie, late, handover; or `leave`. ValueError when it
    is neither."""
    if text == "leave":
        return Fault(Kind.LEAVE)
    step, _, kind = text.partition(":")
    if kind and kind not in KINDS:
        raise ValueError(f"{text}: {kind!r} is none of {', '.join(KINDS)}")
    return Fault(KINDS[kind or "kill"], Step(step))


def schedule(
    dice: Random,
    crashes: int,
    *,
    workers: int = 2,
    broker: bool = True,
    sinks: bool = True,
    cuts: bool = False,
    sources: bool = False,
    phases: bool = False,
    file_sinks: bool = False,
    directed: Sequence[Fault] = (),
) -> Schedule:
    """`crashes` kills over the workers and the broker, zombies and hand-overs among them.

    `broker`: whether the broker is ours to kill. `sinks`: whether the app writes to an external sink. `cuts`: whether
    one of them is delivered by cuts; `phases`: one that prepares. `sources`: whether a source of the app is read into
    the log. `file_sinks`: one of them is a file that a stopped owner locks for ever. `directed`: only these, again and
    again (to show a known bug).
    """
    if directed:
        return _directed(dice, crashes, workers, directed)
    broker_crashes = max(2, crashes // 6) if broker and crashes >= 4 else 0
    broker_faults = [_at(dice, step) for step in BROKER_STEPS]
    dice.shuffle(broker_faults)
    broker_faults = broker_faults[:broker_crashes]
    while len(broker_faults) < broker_crashes:
        step = dice.choice((None, *BROKER_STEPS))
        broker_faults.append(_at(dice, step) if step else Fault(Kind.RANDOM, after=dice.random()))
    steps = WORKER_STEPS + (SINK_STEPS if sinks else ()) + (CUT_STEPS if cuts else ())
    steps += SOURCE_STEPS if sources else ()
    steps += PHASE_STEPS if phases else ()
    left = crashes - broker_crashes
    zombies = min(max(1, -(-crashes // 10)), left // 3)
    handovers = 1 if left >= 8 else 0
    late = 1 if left >= 16 else 0
    quick = [s for s in QUICK_STOPS if s in steps] + [s for s in INSIDE_SINK if s in steps and not file_sinks]
    places = [dice.choice(SLOW_STOPS), *quick] if crashes >= 20 else quick
    faults = [Fault(Kind.ZOMBIE, places[i] if i < len(places) else dice.choice(quick), dice.randint(1, 3))
              for i in range(zombies)]  # fmt: skip
    inside = (Step.OUTPUT_AFTER, Step.OFFSETS_BEFORE, Step.OFFSETS_AFTER)
    faults += [Fault(Kind.HANDOVER, dice.choice(inside), dice.randint(1, 3)) for _ in range(handovers)]
    faults += [Fault(Kind.LATE, Step.COMMIT_BEFORE, dice.randint(1, 3)) for _ in range(late)]
    left -= zombies + 2 * handovers + late
    named = [_at(dice, step) for step in steps]
    dice.shuffle(named)
    named = named[:left]
    while len(named) < left:
        named.append(Fault(Kind.RANDOM, after=dice.random()) if dice.random() < 0.3 else _at(dice, dice.choice(steps)))
    faults += named
    if left >= 8:
        faults.append(Fault(Kind.LEAVE, after=dice.random()))
    dice.shuffle(faults)
    return _dealt(faults, broker_faults, workers)


def _directed(dice: Random, crashes: int, workers: int, directed: Sequence[Fault]) -> Schedule:
    faults: list[Fault] = []
    while sum(fault.kills for fault in faults) < crashes:
        one = directed[len(faults) % len(directed)]
        faults.append(Fault(one.kind, one.step, dice.randint(1, 3), dice.random()))
        if len(faults) > 10 * crashes:
            break  # only LEAVE
    alone = [f for f in faults if f.kind in TAKEN_OVER]
    others = [f for f in faults if f.kind not in TAKEN_OVER and f.step not in BROKER_STEPS]
    queues = [list(queue) for queue in _dealt(others, [], workers).workers]
    queues[0] += alone
    return Schedule(tuple(map(tuple, queues)), tuple(f for f in faults if f.step in BROKER_STEPS))


def _dealt(faults: list[Fault], broker: list[Fault], workers: int) -> Schedule:
    return Schedule(tuple(tuple(faults[slot::workers]) for slot in range(workers)), tuple(broker))


def _at(dice: Random, step: Step) -> Fault:
    return Fault(Kind.STEP, step, dice.randint(1, 4))
