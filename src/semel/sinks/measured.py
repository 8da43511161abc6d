"""What a sink's connection has done, counted: for whoever watches a delivery.

A connection is wrapped; the delivery knows nothing of it, and what it decides cannot depend on it. Invariant: a record
is counted when the sink has answered that it holds it, by the process that got the answer. After a crash counters begin
at zero, and what was in doubt then is counted by nobody: figures to watch, not the proof (`semel verify`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from semel.contract import Attempt, Claim, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Sink, SinkConnection, Steps, TopicPartition, TwoPhaseConnection
from semel.sinks.sink import RowRefused

# Upper ends in seconds of what a batch took at the sink; what took longer is in one more.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(slots=True)
class Taken:
    """Of one partition, what the sink has acknowledged."""

    records: int = 0
    bytes: int = 0  # of keys and values
    batches: int = 0
    newest_ms: int = 0  # the time of the last record


@dataclass(slots=True)
class Measures:
    """Of one sink, since the process began. One thread writes; another may read at any time, a number at a time."""

    taken: dict[int, Taken] = field(default_factory=dict)  # by partition
    outcomes: Counter[str] = field(default_factory=Counter)  # of calls: done, not-done, unknown, fenced, refused
    claims: int = 0
    seconds: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))  # how many batches, by SECONDS
    seconds_sum: float = 0.0
    # Where each partition owned here stands: next offset to deliver, end of the outbox. Replaced, never changed.
    stands: Mapping[TopicPartition, tuple[int, int]] = field(default_factory=dict)

    def took(self, seconds: float) -> None:
        self.seconds[bisect_left(SECONDS, seconds)] += 1
        self.seconds_sum += seconds

    def acknowledged(self, partition: int, rows: Sequence[Row]) -> None:
        if partition not in self.taken:
            self.taken = {**self.taken, partition: Taken()}  # a reader iterates over the former one
        taken = self.taken[partition]
        taken.records += len(rows)
        taken.bytes += sum(len(row.key or b"") + len(row.value or b"") for row in rows)
        taken.batches += 1
        if rows:
            taken.newest_ms = rows[-1].timestamp_ms


class MeasuredSink:
    """A declaration whose connections are measured; in all else it is `sink`."""

    def __init__(self, sink: Sink[Any, Any], measures: Measures, now_s: Callable[[], float]) -> None:
        self._sink, self._measures, self._now_s = sink, measures, now_s

    def open(self, steps: Steps) -> MeasuredConnection:
        return MeasuredConnection(self._sink.open(steps), self._measures, self._now_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)


class MeasuredConnection:
    """Of either kind, and with whatever more a connection has."""

    def __init__(
        self, connection: SinkConnection | TwoPhaseConnection, measures: Measures, now_s: Callable[[], float]
    ) -> None:
        self._connection: Any = connection
        self._measures, self._now_s = measures, now_s
        self._prepared: dict[tuple[int, Attempt], Sequence[Row]] = {}

    def claim(self, *given: Any) -> Any:
        return self._claimed(self._connection.claim(*given))

    def take_over(self, *given: Any) -> Any:
        return self._claimed(self._connection.take_over(*given))

    def _claimed(self, found: Any) -> Any:
        if isinstance(found, Claim):
            self._measures.claims += 1
            self._forget(found.delivery.partition)
        else:
            self._count(found)
        return found

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        outcome = self._timed(lambda: self._connection.write(claim, start, end, run, rows))
        if isinstance(outcome, Done):
            self._measures.acknowledged(claim.delivery.partition, rows)
        return outcome

    def prepare_cut(self, claim: Claim, attempt: Attempt, run: str, rows: Sequence[Row]) -> Outcome:
        outcome = self._timed(lambda: self._connection.prepare_cut(claim, attempt, run, rows))
        if isinstance(outcome, Done):
            self._prepared[claim.delivery.partition, attempt] = rows
        return outcome

    def commit_cut(self, claim: Claim, attempt: Attempt) -> Outcome:
        outcome: Outcome = self._connection.commit_cut(claim, attempt)
        rows = self._prepared.get((claim.delivery.partition, attempt))
        if isinstance(outcome, Done) and rows is not None:  # None: another process has prepared it, and counted nothing
            self._measures.acknowledged(claim.delivery.partition, rows)
            self._forget(claim.delivery.partition)
        self._count(outcome)
        return outcome

    def abandon(self, claim: Claim, attempt: Attempt) -> None:
        self._forget(claim.delivery.partition)
        self._connection.abandon(claim, attempt)

    def _forget(self, partition: int) -> None:
        self._prepared = {at: rows for at, rows in self._prepared.items() if at[0] != partition}

    def _timed(self, call: Callable[[], Outcome]) -> Outcome:
        began = self._now_s()
        try:
            outcome = call()
        except RowRefused:
            self._measures.outcomes["refused"] += 1
            raise
        finally:
            self._measures.took(self._now_s() - began)
        self._count(outcome)
        return outcome

    def _count(self, outcome: Outcome) -> None:
        match outcome:
            case Done():
                self._measures.outcomes["done"] += 1
            case NotDone():
                self._measures.outcomes["not-done"] += 1
            case Fenced():
                self._measures.outcomes["fenced"] += 1
            case _:
                self._measures.outcomes["unknown"] += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)
