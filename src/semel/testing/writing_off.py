"""The trial of on_error="dead-letter": a whole delivery at the real sink, over a log in memory, that meets poison.

Invariant: the sink holds every record but the poison, each once, and the dead letters hold the poison, each once;
also when the owner ends around the refusal, and when it comes back to it after its successor.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from semel.contract import PositionIn, Row, cannot_leave_out
from semel.ports import Step
from semel.sinks.cut_delivery import CutDelivery
from semel.sinks.delivery import Delivery
from semel.sinks.refusals import NO_LETTER
from semel.sinks.sink import SinkError
from semel.testing.outbox import OutboxLog
from semel.testing.subject import Crashed, Entry, NotTried, Stand

APP, DLQ = "kit", "kit.dlq"
TURN_MS, TURNS_MAX = 60_000, 40


class _Steps:
    """`at` is called when its step is reached, once."""

    def __init__(self) -> None:
        self.at: dict[Step, Callable[[], None]] = {}

    def reached(self, step: Step) -> None:
        if (then := self.at.pop(step, None)) is not None:
            then()


class _World:
    def __init__(self, stand: Stand) -> None:
        self.stand, self.sink = stand, stand.sink
        self.log = OutboxLog()
        self.outbox = f"{APP}-{self.sink.name}-outbox"
        self.log.create(self.outbox, 1, {"retention.ms": "-1", "cleanup.policy": "delete"})
        self.log.create(DLQ, 2)
        self.good: list[Row] = []
        self.bad: list[bytes] = []
        self.now_ms = int(time.time() * 1000)
        self._count = 0

    def put(self, poison: bytes, alone: bool = False) -> None:
        """Three records, the poison under a key of its own, three more; or the poison alone."""
        for n in (3,) if alone else range(7):
            row = self.stand.row(self._count, f"k{self._count}", self._count)
            offset = self.log.append(self.outbox, 0, row.key, poison if n == 3 else row.value, at=1_000)
            if n == 3:
                self.bad.append(poison)
            else:
                self.good.append(Row(offset, 1_000, row.key, row.value))
            self._count += 1

    def delivery(self) -> tuple[Any, _Steps]:
        session, steps = self.log.session(f"{APP}.{self.sink.name}"), _Steps()
        given: dict[str, Any] = {"app": APP, "outbox": self.outbox, "value_type": Entry, "keep_ms": None}
        given |= {"steps": steps, "owners": self.log.owner, "dead_letters": DLQ}
        by_cuts = self.stand.contract.position is PositionIn.DELIVERY_TOPIC
        made: Any = (CutDelivery if by_cuts else Delivery)(session, self.sink, **given)
        made.join()
        session.assign(self.outbox, 0)
        return made, steps

    def turned(self, delivery: Any) -> None:
        """To the end of the outbox."""
        for _ in range(TURNS_MAX):
            self.now_ms += TURN_MS
            try:
                delivery.step(self.now_ms, 0)
            except SinkError as why:
                if NO_LETTER in str(why):  # it may be another record, or be taken later: to stop is right
                    delivery.close()
                    raise NotTried(f"what this sink refuses is no dead letter: {why}") from None
                raise
            if delivery.partitions and not delivery.waiting(1) and not delivery.lag():
                return
        self.stand.require(False, "a delivery that made its poison dead letters did not come to the end of its outbox")

    def holds(self, when: str) -> None:
        self.stand.holds(when, self.good)
        stored = [one for some in self.log.topics[DLQ].partitions for one in some if one.visible]
        found, wanted = Counter(one.value for one in stored), Counter(self.bad)
        self.stand.require(
            found == wanted, f"{when}, the dead letters are {dict(found)}, and {dict(wanted)} was refused"
        )


def written_off(stand: Stand) -> None:
    """A record that the sink never takes, under on_error="dead-letter" (S11): it is a dead letter once, and the rest
    is there once; the owner ends before and after that is in the log, and comes back before it after its successor."""
    if why := cannot_leave_out(stand.contract):
        raise NotTried(f"on_error='dead-letter' is refused for it: {why}")
    if not stand.subject.poison:
        raise NotTried("there is no value that this sink refuses (poison=)")
    world = _World(stand)
    for poison in stand.subject.poison:
        world.put(poison)
        delivery, _ = world.delivery()
        world.turned(delivery)
        delivery.close()
        world.holds(f"after {poison!r} became a dead letter")
    world.put(stand.subject.poison[0], alone=True)
    delivery, _ = world.delivery()
    world.turned(delivery)
    delivery.close()
    world.holds("after a batch of nothing but poison")
    for step in (Step.REFUSE_BEFORE, Step.REFUSE_AFTER):
        world.put(stand.subject.poison[0])
        delivery, steps = world.delivery()
        steps.at[step] = _end
        try:
            world.turned(delivery)
        except Crashed:
            _let_go(delivery)
        else:
            stand.require(False, f"no owner ended at {step}: the poison was not refused")
        heir, _ = world.delivery()
        world.turned(heir)
        heir.close()
        world.holds(f"after an owner ended at {step}")
    world.put(stand.subject.poison[0])
    late, steps = world.delivery()

    def overtaken() -> None:
        heir, _ = world.delivery()
        world.turned(heir)
        heir.close()
        world.holds("after a successor wrote off what a stopped owner was refused")

    steps.at[Step.REFUSE_BEFORE] = overtaken
    with contextlib.suppress(SinkError):  # to stop is its right, too
        world.turned(late)
    _let_go(late)
    world.holds("after that owner came back")


def _end() -> None:
    raise Crashed(Step.REFUSE_BEFORE)


def _let_go(delivery: Any) -> None:
    """What a dead process leaves open, the system closes."""
    with contextlib.suppress(SinkError):
        delivery.close()
