"""What the author of a sink gives the contract kit, and the stand on which one trial puts it.

A trial has tables of its own, records whose right outcome is known beforehand, and a reader that is not the sink's.
Invariant: a trial ends with what it made removed, and with nothing left behind that `Subject.orphans` can find.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast
from unittest import SkipTest

import msgspec

from semel.contract import Claim, Contract, DeliveryId, LogIdentity, PositionIn, Row, Settlement
from semel.ports import Done, Outcome, Sink, SinkConnection, Step, Steps, TwoPhaseConnection
from semel.testing.deciding import Deciding, Decisions

LOG = LogIdentity("the-kits-topic", 1)
RUN = "0 1 - 00000000"  # what stands beside a position; a real delivery writes its mark there

_numbers = itertools.count()


class Refused(AssertionError):
    """The sink shows less than its contract says."""


class NotTried(SkipTest):
    """A trial that this sink or this subject does not allow. pytest shows it as skipped, with the reason."""


@dataclass(frozen=True)
class Entry:
    """The values that the kit writes."""

    id: str
    n: int


Shown = tuple[str, int]  # (id, n) of one row that is there


class Loses(Protocol):
    """A way to the sink on which the answer to a commit can be lost, before or after its effect."""

    def address(self) -> str:
        """Where a connection must go to be within its reach."""
        ...

    def lose(self, connection: SinkConnection, *, after_effect: bool) -> None:
        """From now on; once."""
        ...

    def lost(self) -> int:
        """How many answers were lost so far."""
        ...


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A sink, and how to get at it from outside.

    `make(address, suffix)` declares the sink for values of type `Entry`, under tables (objects, indices) whose names
    end with `suffix`; with `key="id"`, or without key=. It is a function of a module: processes that are killed
    import it. `read(address, suffix)` gives what a reader of the finished sink sees, as (id, n), by the system's own
    client and not through the sink.
    """

    make: Callable[[str, str], Sink[Any, Any]]
    address: str
    read: Callable[[str, str], Iterable[Shown]]
    # Loses the answer to a commit: over a wire through `WireLoss`, in process by an error at the call.
    loses: Callable[[], AbstractContextManager[Loses]] | None = None
    # What was left behind under this suffix after everything is closed and dropped: prepared transactions, uploads,
    # temporary files, sessions that still hold a lock. Named for people.
    orphans: Callable[[str, str], Sequence[str]] | None = None
    # Ends the system as a power cut or kill -9 would, and returns when it serves again.
    crash: Callable[[], None] | None = None
    # Lets the sink's memory of what it has seen pass: waits, inserts, moves a clock.
    forget: Callable[[str, str], None] | None = None
    # Values that the sink never takes: what semel sees by itself, and what only the system refuses.
    poison: Sequence[bytes] = (b'{"id": "p", "n": "many"}', b'{"id": "p", "n": null}')
    # Of a sink that stores repeats (`Contract.through`): how many rows are there before the view. `read` is behind it.
    stored: Callable[[str, str], int] | None = None
    # How long a stopped owner may keep its successor waiting. None: its lock cannot be taken (say so in `docs`).
    hand_over_s: float | None = None
    large: int = 300  # rows of a batch that takes the sink's path for many rows
    # Of a sink that replaces nothing though it has keys (a log): `read` gives the last value of each key, and besides
    # each value that is there once more. Only what a person delivers again may be.
    shows_repeats: bool = False


@dataclass
class Counting:
    """Steps that count; at `crash_at` the owner ends, as far as a thread can: see `crashes` for processes."""

    crash_at: Step | None = None
    hits: Counter[Step] = field(default_factory=Counter)

    def reached(self, step: Step) -> None:
        self.hits[step] += 1
        if step is self.crash_at:
            raise Crashed(step)


class Crashed(Exception):
    """Stands for the end of a process."""


class Stand:
    """One trial: the sink under a name of its own."""

    def __init__(self, subject: Subject, trial: str) -> None:
        self.subject = subject
        # Short: names of tables have a limit. Of this process: two may try one system at once.
        self.suffix = f"_{os.getpid() % 100_000}_{next(_numbers)}"
        self.trial = trial
        self.sink = subject.make(subject.address, self.suffix)
        self._open: list[SinkConnection] = []
        self._epochs = itertools.count(1)
        self._decisions = Decisions()

    @property
    def contract(self) -> Contract:
        return self.sink.contract

    @property
    def keyed(self) -> bool:
        return self.sink.key is not None

    # --- records ------------------------------------------------------------------------------------------------

    def entries(self, count: int, start: int = 0) -> list[Row]:
        """Records [start, start + count): seven keys in turn, each record with a number of its own."""
        return [self.row(at, f"k{at % 7}", at) for at in range(start, start + count)]

    def row(self, offset: int, id: str, n: int) -> Row:
        value = Entry(id, n)
        key = self.sink.encode_key(value)
        return Row(offset, 1_000, id.encode() if key is None else key, self.sink.encode_value(value))

    def delete(self, offset: int, id: str) -> Row:
        return Row(offset, 1_000, self.sink.encode_deleted(id), None)

    def expected(self, *batches: Sequence[Row]) -> list[Shown]:
        """What is there once all of these, in this order, have had their effect once."""
        rows = [row for batch in batches for row in batch]
        if not self.keyed:
            return sorted(shown(row.value) for row in rows if row.value is not None)
        last = {row.key: row.value for row in rows}
        there = [shown(value) for value in last.values() if value is not None]
        if self.subject.shows_repeats:
            counted = Counter(shown(row.value) for row in rows if row.value is not None)
            there += [value for value, times in counted.items() for _ in range(times - 1)]
        return sorted(there)

    # --- the sink -----------------------------------------------------------------------------------------------

    def connection(self, steps: Steps | None = None, address: str | None = None) -> SinkConnection:
        sink = self.sink if address is None else self.subject.make(address, self.suffix)
        steps = steps or Counting()
        made = cast(SinkConnection, sink.open(steps))
        if self.contract.settlement is Settlement.DECIDED:
            made = Deciding(cast(TwoPhaseConnection, made), steps, self._decisions)
        self._open.append(made)
        self.require(made.prepare(Entry) == Done(), "prepare is not done on a system that serves")
        return made

    def claim(self, connection: SinkConnection, position: int = 0, log: LogIdentity = LOG) -> Claim:
        """A new owner. Where the sink holds no position, it is the one that the log remembers: `position`."""
        claim = connection.claim(DeliveryId("kit", self.sink.name, 0), log)
        if not isinstance(claim, Claim):
            raise Refused(f"{self.trial}: a claim that nobody is in the way of is not done: {claim}")
        if self.contract.position is PositionIn.SINK:
            return claim
        if self.contract.settlement is Settlement.DECIDED:  # its epoch is the sink's
            return replace(claim, position=position)
        return replace(claim, position=position, epoch=max(claim.epoch, next(self._epochs)))

    def write(self, connection: SinkConnection, claim: Claim, rows: Sequence[Row]) -> Outcome:
        return connection.write(claim, rows[0].offset, rows[-1].offset + 1, RUN, rows)

    def written(self, connection: SinkConnection, claim: Claim, rows: Sequence[Row]) -> None:
        outcome = self.write(connection, claim, rows)
        self.require(outcome == Done(), f"a batch that nothing hinders is not done: {outcome}")

    def read(self) -> list[Shown]:
        return sorted(self.subject.read(self.subject.address, self.suffix))

    # --- verdicts -----------------------------------------------------------------------------------------------

    def require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Refused(f"{self.trial}: {otherwise}")

    def holds(self, when: str, *batches: Sequence[Row]) -> None:
        """Each of these records has had its effect once."""
        found, wanted = self.read(), self.expected(*batches)
        if found == wanted:
            return
        more, fewer = Counter(found) - Counter(wanted), Counter(wanted) - Counter(found)
        told = [f"{name} {sorted(rows.elements())[:5]}" for name, rows in (("more", more), ("missing", fewer)) if rows]
        raise Refused(f"{self.trial}: {when}, the sink holds {len(found)} rows of {len(wanted)}: {'; '.join(told)}")

    def close(self) -> None:
        for connection in self._open:
            connection.close()

    def removed(self) -> None:
        """Drops what the trial made; whatever is still there then is an orphan."""
        connection = self.sink.open(Counting())
        try:
            connection.drop()
        finally:
            connection.close()
        if self.subject.orphans is not None:
            left = list(self.subject.orphans(self.subject.address, self.suffix))
            self.require(not left, f"left behind: {', '.join(left)}")


def shown(value: bytes | None) -> Shown:
    fields: Mapping[str, Any] = msgspec.json.decode(value or b"{}")
    return fields["id"], fields["n"]


@contextlib.contextmanager
def standing(subject: Subject, trial: str) -> Iterator[Stand]:
    stand = Stand(subject, trial)
    try:
        yield stand
    except BaseException:
        stand.close()
        with contextlib.suppress(Exception):  # what went wrong first is what is told
            stand.removed()
        raise
    stand.close()
    stand.removed()
