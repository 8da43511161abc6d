"""What goes wrong in one world: a profile drawn from the seed, and the decisions, counted so that each can be left out.

Invariant: a decision is numbered when the dice say yes, whether or not it is then left out, so a world shrunk by
leaving decisions out is told by the seed and their numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from semel.broker.config import FSYNC, OS
from semel.ports import Random

Dice = Callable[[str], Random]  # a stream of its own for each part of the world, so that one does not shift another


@dataclass(frozen=True, slots=True)
class Profile:
    """Chances are per occasion; times in ms of the simulated clock."""

    name: str
    crashes: int = 12  # of the broker, before the world calms down
    gap: int = 70  # operations of the disk between two of them, at most
    power: float = 0.7  # a crash is a power cut; else only the process ends
    at_steps: float = 0.0  # crash at a named step of a commit
    at_end: float = 0.03  # the power fails while the end of a transaction is being written
    disk_errors: float = 0.0  # an append or a sync fails
    bad_sync: float = 0.0  # a sync of the journal fails: what it should have written may be gone, and still reads well
    full: float = 0.0  # the disk is full for a while, per start
    both: float = 0.15  # clients die with the broker
    cut: float = 0.02  # a connection breaks after a request
    silence: float = 0.01  # a connection falls silent: what is sent arrives late or never, nothing comes back
    hold: float = 0.02  # a request of a transaction is kept back until the next transaction of its sender
    pause: float = 0.06  # a client stands still past its session and comes back
    kill: float = 0.03  # a client dies and is started again
    abort: float = 0.15
    leave_open: float = 0.03  # a transaction is left to its timeout
    checkpoint_bytes: int = 1 << 16
    segment_bytes: int = 1 << 14
    static: bool = False  # members have instance ids
    durability: str = FSYNC  # at os the process is killed, the power stays
    jump_ms: int = 0  # how far the broker's clock may be off after a start, in either direction
    forge: float = 0.03  # other bytes are sent under sequences that were used
    slow_ms: int = 3
    late_ms: int = 200


PROFILES: Final = (
    Profile("crashes", crashes=16, gap=45),
    Profile("power", crashes=16, gap=80, power=1.0, at_end=0.2, both=0.5, checkpoint_bytes=1 << 14),
    Profile("ends", crashes=16, gap=120, power=1.0, at_end=0.4, both=0.6, pause=0.0),
    Profile("steps", crashes=14, gap=90, power=0.3, at_steps=0.03, both=0.5),
    Profile("network", crashes=10, gap=90, cut=0.05, silence=0.02, hold=0.25),
    Profile("late", crashes=5, gap=400, both=0.0, cut=0.0, silence=0.0, hold=0.5, pause=0.0, kill=0.0),
    Profile("zombies", crashes=8, gap=150, pause=0.3, kill=0.05),
    Profile("static", crashes=10, gap=90, pause=0.15, kill=0.10, static=True),
    Profile("checkpoints", crashes=16, gap=60, checkpoint_bytes=2_000, segment_bytes=1_024),
    Profile("disk", crashes=12, gap=80, disk_errors=0.03, full=0.15, checkpoint_bytes=4_000, segment_bytes=2_048),
    Profile("syncs", crashes=16, gap=60, power=1.0, bad_sync=0.15),
    Profile("os", crashes=16, gap=60, power=0.0, durability=OS, checkpoint_bytes=8_000, segment_bytes=2_048),
    Profile("clock", crashes=12, gap=80, jump_ms=250, leave_open=0.1, pause=0.1),
    Profile("aborts", crashes=14, gap=60, abort=0.5, leave_open=0.1, checkpoint_bytes=8_000, segment_bytes=1_024),
)


class Rolls:
    """Decides whether a fault happens. `done` lists those that did, as (number, text)."""

    def __init__(self, dice: Random, left_out: Collection[int] = ()) -> None:
        self.dice = dice
        self.calm = False  # nothing goes wrong any more
        self.done: list[tuple[int, str]] = []
        self._left_out = left_out
        self._next = 0

    def happens(self, chance: float, what: str) -> bool:
        return not self.calm and chance > 0.0 and self.dice.random() < chance and self.takes(what)

    def takes(self, what: str) -> bool:
        """It was decided; False: it is one of those left out."""
        number = self._next
        self._next += 1
        if number in self._left_out:
            return False
        self.done.append((number, what))
        return True
