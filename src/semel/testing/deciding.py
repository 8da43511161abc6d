"""A log's part in the contract TwoPhase, for the trials: who owns, what is written down, what is decided.

`Deciding` looks to a trial like a sink that takes a batch in one step, and does what `CutDelivery` does at one that
prepares. Invariant: it decides nothing under an owner that was superseded, and hides nothing of what the sink answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from semel.contract import Attempt, Claim, DeliveryId, LogIdentity, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, TwoPhaseConnection

ANY_END = 1 << 62


@dataclass
class Decisions:
    """What the delivery topic would say, of one partition."""

    owner: int = 0
    position: int = 0
    cut: Attempt | None = None  # under way
    decided: bool = False


class Deciding:
    """See `ports.SinkConnection`."""

    def __init__(self, connection: TwoPhaseConnection, steps: Steps, log: Decisions) -> None:
        self._connection, self._steps, self._log = connection, steps, log
        self._mine = 0
        self._last: Attempt | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)

    def prepare(self, value_type: object) -> Done | NotDone:
        return self._connection.prepare(value_type)

    def notes(self) -> Sequence[str]:
        return self._connection.notes()

    def rows(self) -> Sequence[bytes]:
        return self._connection.rows()

    def canonical(self, value: bytes) -> bytes:
        return self._connection.canonical(value)

    def drop(self) -> None:
        self._connection.drop()

    def close(self) -> None:
        self._connection.close()

    @property
    def phases(self) -> TwoPhaseConnection:
        """The connection itself."""
        return self._connection

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        self._log.owner += 1
        self._mine = self._log.owner
        cut, decided = self._log.cut, self._log.decided
        latest = cut or Attempt(self._log.position, self._mine - 1, ANY_END)
        claim = self._connection.take_over(delivery, log, latest, decided)
        if isinstance(claim, Fenced):
            return NotDone(claim.reason)
        if isinstance(claim, Claim):
            if cut is not None and decided:
                self._log.position = cut.end
            self._log.cut, self._log.decided = None, False
            if claim.position not in (-1, self._log.position):
                raise AssertionError(f"it holds up to {claim.position}, decided is up to {self._log.position}")
            claim = replace(claim, position=self._log.position)
        return claim

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        log, owns = self._log, self._mine == self._log.owner
        if self._last is not None and (self._last.start, self._last.end) == (start, end):
            return self._connection.commit_cut(claim, self._last)  # the same commit again
        if owns and end <= log.position:
            return Done()  # the log says so: the sink is never asked
        attempt = Attempt(start, self._mine, end)
        if owns:
            log.cut = attempt
        outcome = self._connection.prepare_cut(claim, attempt, run, rows)
        if outcome != Done():
            return outcome
        self._steps.reached(Step.DECIDE_BEFORE)
        if self._mine != log.owner:
            self._connection.abandon(claim, attempt)
            return Fenced("another owner has taken over the transactional id")
        log.decided = True
        self._steps.reached(Step.DECIDE_AFTER)
        self._steps.reached(Step.SINK_BEFORE)
        outcome = self._connection.commit_cut(claim, attempt)
        if outcome == Done():
            self._steps.reached(Step.SINK_AFTER)
            log.position, log.cut, log.decided, self._last = end, None, False, attempt
        return outcome
