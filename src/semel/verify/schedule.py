"""Which process dies where: a schedule of faults, from a seed. Pure: the dice are an argument.

Each process has its own queue; its next incarnation is started with the next fault of its queue armed
(`SEMEL_KILL`, `SEMEL_STOP`) or is killed from outside. Queues run side by side, so a zombie overlaps the kills of
others. Every step that applies is in the schedule at least once when there are enough crashes; the rest is chance.
"""

from __future__ import annotations

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
    Step.ROWS_BEFORE,
    Step.ROWS_AFTER,
    Step.POSITION_BEFORE,
    Step.POSITION_AFTER,
    Step.SINK_BEFORE,
    Step.SINK_AFTER,
)
# Inside the sink's own transaction. SQLite has no server that could end a stopped owner's transaction (FAULTS S14).
INSIDE_SINK = (Step.ROWS_BEFORE, Step.ROWS_AFTER, Step.POSITION_BEFORE, Step.POSITION_AFTER, Step.SINK_BEFORE)


class Kind(StrEnum):
    STEP = "killed at a step"
    RANDOM = "killed at random"
    ZOMBIE = "stopped, resumed after its successor's commit"
    HANDOVER = "killed in a transaction; its successor killed too, within the transaction timeout"
    LEAVE = "asked to leave"


@dataclass(frozen=True, slots=True)
class Fault:
    """`nth`: the how-many-th time the step is reached. `after`: for random kills, the share of the slice of input
    that is let through first."""

    kind: Kind
    step: Step | None = None
    nth: int = 1
    after: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind.value}" + (f" {self.step.value}:{self.nth}" if self.step else "")


@dataclass(frozen=True, slots=True)
class Schedule:
    workers: tuple[tuple[Fault, ...], ...]  # one queue per worker
    broker: tuple[Fault, ...]

    @property
    def kills(self) -> int:
        """How many kills this schedule asks for; a zombie ends with one, a hand-over takes two."""
        queues = [*self.workers, self.broker]
        return sum(1 + (f.kind is Kind.HANDOVER) for queue in queues for f in queue if f.kind is not Kind.LEAVE)

    @property
    def steps(self) -> frozenset[Step]:
        return frozenset(f.step for queue in [*self.workers, self.broker] for f in queue if f.step is not None)


def schedule(
    dice: Random,
    crashes: int,
    *,
    workers: int = 2,
    broker: bool = True,
    sinks: bool = True,
    file_sinks: bool = False,
    directed: tuple[Step, ...] = (),
) -> Schedule:
    """`crashes` kills over the workers and the broker, zombies and hand-overs among them.

    `broker`: whether the broker is ours to kill. `sinks`: whether the app writes to an external sink. `file_sinks`:
    one of them is a file that a stopped owner locks for ever. `directed`: only these steps (to show a known bug).
    """
    if directed:
        kinds = [Fault(Kind.ZOMBIE, s, dice.randint(1, 3)) if i % 3 == 2 else Fault(Kind.STEP, s, dice.randint(1, 3))
                 for i, s in enumerate(directed * (crashes // len(directed) + 1))][:crashes]  # fmt: skip
        return _dealt(
            [f for f in kinds if f.step not in BROKER_STEPS], [f for f in kinds if f.step in BROKER_STEPS], workers
        )
    broker_crashes = max(2, crashes // 6) if broker and crashes >= 4 else 0
    broker_faults = [Fault(Kind.STEP, step, _nth(dice, step)) for step in BROKER_STEPS]
    dice.shuffle(broker_faults)
    broker_faults = broker_faults[:broker_crashes]
    while len(broker_faults) < broker_crashes:
        step = dice.choice((None, *BROKER_STEPS))
        broker_faults.append(
            Fault(Kind.STEP, step, _nth(dice, step)) if step else Fault(Kind.RANDOM, after=dice.random())
        )
    steps = WORKER_STEPS + (SINK_STEPS if sinks else ())
    left = crashes - broker_crashes
    zombies = min(max(1, left // 10), left // 3)
    handovers = 1 if left >= 8 else 0
    stops = [s for s in steps if not (file_sinks and s in INSIDE_SINK)]
    # The first zombies stand where a stopped owner is most dangerous: offsets sent, and just before the sink's commit.
    dangerous = [s for s in (Step.COMMIT_BEFORE, Step.SINK_BEFORE, Step.ROWS_BEFORE, Step.OUTPUT_AFTER) if s in stops]
    faults = [Fault(Kind.ZOMBIE, dangerous[i] if i < len(dangerous) else dice.choice(stops), dice.randint(1, 3))
              for i in range(zombies)]  # fmt: skip
    faults += [Fault(Kind.HANDOVER, Step.OFFSETS_AFTER, dice.randint(1, 3)) for _ in range(handovers)]
    left -= zombies + 2 * handovers
    named = [Fault(Kind.STEP, step, _nth(dice, step)) for step in steps]
    dice.shuffle(named)
    named = named[:left]
    while len(named) < left:
        if dice.random() < 0.3:
            named.append(Fault(Kind.RANDOM, after=dice.random()))
        else:
            step = dice.choice(steps)
            named.append(Fault(Kind.STEP, step, _nth(dice, step)))
    faults += named
    if left >= 8:
        faults.append(Fault(Kind.LEAVE, after=dice.random()))
    dice.shuffle(faults)
    return _dealt(faults, broker_faults, workers)


def _dealt(faults: list[Fault], broker: list[Fault], workers: int) -> Schedule:
    return Schedule(tuple(tuple(faults[slot::workers]) for slot in range(workers)), tuple(broker))


def _nth(dice: Random, step: Step) -> int:
    # The journal is synced for every group of requests, the other steps are reached once per transaction or batch.
    return dice.randint(1, 40) if step in (Step.SYNC_BEFORE, Step.SYNC_AFTER) else dice.randint(1, 4)
