"""A client's process: its cores on the network, which live, stand still and die together.

Invariant: what a dead process is told is dropped; what a process that stands still is told waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from semel.client.effects import Effect
from semel.ports import Random

from . import history as h
from .cluster import Cluster
from .faults import Profile, Rolls
from .network import Core, Endpoint, Network
from .scheduler import Scheduler

P = TypeVar("P")
REQUEST_TIMEOUT_MS: Final = 60
SESSION_MS: Final = 150
TRANSACTION_TIMEOUT_MS: Final = 400
DELIVERY_TIMEOUT_MS: Final = 2_000


@dataclass(slots=True)
class Counts:
    """What happened in a world, for people who ask whether it was much."""

    transactions: int = 0
    aborts: int = 0
    hand_overs: int = 0
    zombies: int = 0
    fenced: int = 0
    kills: int = 0
    owners: dict[int, str] = field(default_factory=dict)  # partition of the source -> who had it last


@dataclass(slots=True)
class World:
    """What a program needs of the world."""

    scheduler: Scheduler
    history: h.History
    profile: Profile
    rolls: Rolls
    dice: Random
    cluster: Cluster
    network: Network
    counts: Counts

    @property
    def now_ms(self) -> int:
        return self.scheduler.now_ms

    def add(self, event: h.Event) -> None:
        self.history.add(event)

    def note(self, text: str) -> None:
        self.history.add(h.Note(self.scheduler.now_ms, text))


class Process:
    def __init__(self, world: World, name: str, cores: Sequence[Core], told: Callable[[Effect], None]) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.paused = False
        self._told = told
        self._ends = {id(core): Endpoint(core, self._tell, f"{name}.{type(core).__name__.lower()}") for core in cores}

    def _tell(self, effect: Effect) -> None:
        if self.alive:
            self._told(effect)

    def do(self, core: Core, effects: Iterable[Effect]) -> None:
        self.world.network.perform(self._ends[id(core)], effects)

    def kill(self, why: str) -> None:
        if self.alive:
            self.alive = False
            self.world.note(f"{self.name} ends: {why}")
            for end in self._ends.values():
                self.world.network.kill(end)

    def pause(self, for_ms: int, slow: Core | None = None, slow_ms: int = 0) -> None:
        """SIGSTOP, and SIGCONT later; the core that is `slow` takes that much longer to notice."""
        if not self.alive or self.paused:
            return
        self.paused = True
        self.world.note(f"{self.name} stands still for {for_ms} ms")
        for end in self._ends.values():
            end.paused = True
        late = None if slow is None else self._ends[id(slow)]

        def resume() -> None:
            self.paused = False
            if self.alive:
                self.world.note(f"{self.name} goes on")
            for end in self._ends.values():
                if end is not late:
                    self.world.network.resume(end)

        self.world.scheduler.after(for_ms, resume)
        if late is not None:
            self.world.scheduler.after(for_ms + slow_ms, lambda: self.world.network.resume(late))


class Line(Generic[P]):
    """One program after the other under one name: each instance is started when the one before it has ended, or is
    taken for dead. `make` is given the line and the number of the instance."""

    def __init__(self, world: World, name: str, make: Callable[[World, Line[P], int], P]) -> None:
        self.world = world
        self.name = name
        self.stopped = False
        self._make = make
        self.instances = [make(world, self, 0)]

    @property
    def newest(self) -> P:
        return self.instances[-1]

    def succeed(self, of: P) -> None:
        """The next one, unless there is one already, or it is enough."""
        if self.newest is of and not self.stopped:
            self.world.note(f"{self.name}.{len(self.instances)} starts")
            self.instances.append(self._make(self.world, self, len(self.instances)))


def text_of(outcome: object) -> str:
    return type(outcome).__name__
