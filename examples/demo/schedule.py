"""What goes wrong, and when: the same for all three modes. Pure: a seed in, events out.

Events are placed by input position: the input is fed up to an event's position, the process is armed at a step of its
protocol, and the next piece of input makes it reach that step. A mode without that step (there is no transaction to
decide in the weaker ones) has the process killed as soon as the piece is being worked on.

Invariants: at least 20 kills of workers, 5 of the broker, 3 zombies; while a zombie is stopped, the other worker, which
took over from it, is killed at least once before the zombie is let loose again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from semel.contract import Mode
from semel.ports import Step

T = TypeVar("T")

WORKERS = 2


class Kind(StrEnum):
    WORKER = "kill a worker"
    BROKER = "kill the broker"
    STOP = "stop a worker"  # SIGSTOP: from now on it is a zombie
    RESUME = "resume the zombie"  # SIGCONT, after its successor has committed


@dataclass(frozen=True, slots=True)
class Event:
    at: int  # input records fed before it
    kind: Kind
    slot: int  # of the worker; 0 for the broker
    step: Step | None  # None: at whatever it is doing


# Where a worker dies. The first four are where the three modes differ: between the outputs and the offsets.
WORKER_STEPS = (
    Step.OFFSETS_BEFORE,
    Step.OFFSETS_AFTER,
    Step.OUTPUT_AFTER,
    Step.COMMIT_BEFORE,
    Step.COMMIT_AFTER,
    Step.OUTPUT_BEFORE,
    Step.ROWS_AFTER,
    Step.SINK_BEFORE,
    Step.SINK_AFTER,
    None,
)
BROKER_STEPS = (Step.MARKERS_BEFORE, Step.DECISION_AFTER, Step.SYNC_BEFORE, Step.SYNC_AFTER, None)
# Not inside a transaction of the sink: nobody can take SQLite's lock from a process that stopped with it (FAULTS S14).
ZOMBIE_STEPS = (Step.COMMIT_AFTER, Step.OFFSETS_BEFORE, Step.SINK_AFTER)

# Without a transaction there is nothing to decide, mark or commit.
ONLY_EXACTLY_ONCE = frozenset(
    {
        Step.COMMIT_BEFORE,
        Step.COMMIT_AFTER,
        Step.DECISION_BEFORE,
        Step.DECISION_AFTER,
        Step.MARKERS_BEFORE,
        Step.MARKERS_AFTER,
    }
)

ZOMBIES = 3
WORKER_KILLS = 22
BROKER_KILLS = 5


def schedule(seed: int, records: int) -> list[Event]:
    """The events of one run, by position. Every seed has the same numbers of each kind, at other places."""
    dice = random.Random(seed)
    kinds = _kinds(dice)
    workers, brokers = _deal(dice, WORKER_STEPS), _deal(dice, BROKER_STEPS)
    zombies = _deal(dice, ZOMBIE_STEPS)
    gap = records / (len(kinds) + 1)
    events: list[Event] = []
    slot, zombie = dice.randrange(WORKERS), -1
    for n, kind in enumerate(kinds, start=1):
        at = int(gap * (n + dice.uniform(-0.3, 0.3)))
        if kind is Kind.BROKER:
            events.append(Event(at, kind, 0, next(brokers)))
            continue
        if kind is Kind.RESUME:
            events.append(Event(at, kind, zombie, None))
            zombie = -1
            continue
        # In turns, so that one restarts while the other works; only the zombie is left alone.
        slot = (1 - slot) if zombie < 0 else 1 - zombie
        if kind is Kind.STOP:
            zombie = slot
            events.append(Event(at, kind, slot, next(zombies)))
        else:
            events.append(Event(at, kind, slot, next(workers)))
    return events


def step_in(mode: Mode, event: Event) -> Step | None:
    """The step to arm: the event's, where the mode has it."""
    return None if mode is not Mode.EXACTLY_ONCE and event.step in ONLY_EXACTLY_ONCE else event.step


def _kinds(dice: random.Random) -> list[Kind]:
    """Blocks in random order: a zombie with a kill while it is stopped, and single kills; none at the very start."""
    blocks = [[Kind.STOP, Kind.WORKER, Kind.RESUME]] * ZOMBIES
    blocks += [[Kind.WORKER]] * (WORKER_KILLS - ZOMBIES) + [[Kind.BROKER]] * BROKER_KILLS
    dice.shuffle(blocks)
    return [kind for block in blocks for kind in block]


def _deal(dice: random.Random, cards: tuple[T, ...]) -> Iterator[T]:
    """The cards again and again, shuffled anew each time round: each comes as often as the others."""
    while True:
        yield from dice.sample(cards, len(cards))
