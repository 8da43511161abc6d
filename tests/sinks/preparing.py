"""A system in memory that prepares and commits, as weak as one may be: it fences nobody, and whoever knows a name may
prepare, commit or roll back under it. What holds with it holds by the log's record alone.

It watches what it is asked to do: a commit of an attempt that no record of the delivery topic has decided is the bug
that the contract is there against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from semel.contract import Attempt, Claim, DeliveryId, LogIdentity, Row, TwoPhase
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks.cuts import KEY, Progress
from semel.sinks.sink import Diverged
from semel.sinks.two_phase import settling, two_phase
from tests.support.outboxlog import OutboxLog

CONTRACT = two_phase("memory: nothing crashes but its clients")


class System:
    """What the sink's processes share. `then`: what becomes of the next calls, by their name: "before" has no effect
    and nobody knows, "after" has its effect and nobody knows, "refused"."""

    def __init__(self, log: OutboxLog, topic: str) -> None:
        self._log, self._topic = log, topic
        self.prepared: dict[tuple[int, Attempt], list[Any]] = {}
        self.held: dict[int, list[Any]] = {}
        self.position: dict[int, int] = {}
        self.committed: dict[int, list[Attempt]] = {}
        self.then: dict[str, list[str]] = {}
        self.watching = True
        self.incarnation = 1

    def commit(self, partition: int, attempt: Attempt) -> bool:
        if (partition, attempt) in self.prepared:
            if self.watching:
                assert self.decided(partition, attempt), f"{attempt} is committed, and was never decided"
                assert self.position.get(partition, 0) == attempt.start, (self.position, attempt)
            self.held.setdefault(partition, []).extend(self.prepared.pop((partition, attempt)))
            self.position[partition] = attempt.end
            self.committed.setdefault(partition, []).append(attempt)
        return attempt in self.committed.get(partition, [])

    def decided(self, partition: int, attempt: Attempt) -> bool:
        for record in self._log.topics[self._topic].partitions[partition]:
            if record.visible and record.key == KEY:
                cut = msgspec.json.decode(record.value or b"", type=Progress).cut
                if cut is not None and cut.decided and (cut.start, cut.attempt, cut.end) == (
                    attempt.start, attempt.number, attempt.end
                ):  # fmt: skip
                    return True
        return False


class Preparing:
    """The declared sink."""

    kind = TwoPhase
    contract = CONTRACT
    key = None
    name, where = "orders", "a system in memory"

    def __init__(self, system: System, rule: Any) -> None:
        self.system, self.rule = system, rule

    def encode_value(self, value: object) -> bytes:
        return msgspec.json.encode(value)

    def open(self, steps: Steps) -> PreparingConnection:
        return PreparingConnection(self.system, steps)


class PreparingConnection:
    def __init__(self, system: System, steps: Steps) -> None:
        self._system, self._steps = system, steps

    def prepare(self, value_type: object) -> Done | NotDone:
        return Done()

    def notes(self) -> Sequence[str]:
        return ()

    def _fate(self, call: str) -> str:
        fates = self._system.then.get(call)
        return fates.pop(0) if fates else ""

    def take_over(
        self, delivery: DeliveryId, log: LogIdentity, latest: Attempt, decided: bool
    ) -> Claim | NotDone | Fenced:
        if self._fate("take_over"):
            return NotDone("it is away")
        at, system = delivery.partition, self._system
        plan = settling([one for partition, one in system.prepared if partition == at], latest, decided)
        if plan.later:
            return Fenced(f"{plan.later[0]} is prepared")
        for one in plan.roll_back:
            del system.prepared[at, one]
        for one in plan.commit:
            system.commit(at, one)
        return Claim(delivery, 0, system.incarnation, system.position.get(at, 0), "", log)

    def prepare_cut(self, claim: Claim, attempt: Attempt, run: str, rows: Sequence[Row]) -> Outcome:
        self._steps.reached(Step.ROWS_BEFORE)
        fate = self._fate("prepare_cut")
        self._steps.reached(Step.ROWS_AFTER)
        self._steps.reached(Step.PREPARE_BEFORE)
        if fate == "refused":
            return NotDone("it refuses")
        if fate != "before":
            self._system.prepared[claim.delivery.partition, attempt] = [
                msgspec.json.decode(row.value or b"null") for row in rows
            ]
        self._steps.reached(Step.PREPARE_AFTER)
        return Unknown("no answer") if fate else Done()

    def commit_cut(self, claim: Claim, attempt: Attempt) -> Outcome:
        fate = self._fate("commit_cut")
        if fate == "before":
            return Unknown("no answer")
        if fate == "refused":
            return NotDone("it is away")
        if not self._system.commit(claim.delivery.partition, attempt):
            raise Diverged("it is gone")
        return Unknown("no answer") if fate else Done()

    def abandon(self, claim: Claim, attempt: Attempt) -> None:
        if not self._fate("abandon"):
            self._system.prepared.pop((claim.delivery.partition, attempt), None)

    def in_doubt(self) -> Sequence[str]:
        return [str(one) for one in self._system.prepared]

    def close(self) -> None: ...
