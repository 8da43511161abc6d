"""Systems in memory that refuse records, fickle where their contract allows it: what is refused now is taken later.

Each is as weak as its contract lets it be: `Tables` refuses before it looks at the claim, `Preparing` fences nobody,
`Objects` takes whoever comes first. `World` has the log, the dead letters and a system, and says what holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from semel.contract import (
    Atomicity,
    Attempt,
    Claim,
    Contract,
    DeliveryId,
    Fence,
    Guarantee,
    Identity,
    LogIdentity,
    Once,
    PositionIn,
    Resolution,
    Row,
    Settlement,
)
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks.cut_delivery import CutDelivery
from semel.sinks.cuts import Rule
from semel.sinks.delivery import Delivery
from semel.sinks.positions import transactional
from semel.sinks.sink import RowRefused
from semel.sinks.two_phase import two_phase
from tests.sinks import preparing
from tests.support.outboxlog import OutboxLog, OutboxSession

OUTBOX, DELIVERY, DLQ = "app-orders-outbox", "app-orders-delivery", "app.dlq"
EVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
CREATE_ONLY = Contract(
    name="Keyed",
    guarantee=Guarantee.EXACTLY_ONCE,
    identity=Identity.CUT,
    atomicity=Atomicity.BATCH,
    remembers_position=False,
    fence=Fence.CREATE_ONLY,
    resolution=Resolution.READ_BACK,
    durability="memory",
    position=PositionIn.DELIVERY_TOPIC,
    settlement=Settlement.CUT_REPEATED,
)


class Died(Exception):
    """The process ends here."""


class At:
    """Steps; `at` calls a function when one is reached for the next time."""

    def __init__(self) -> None:
        self.hits: Counter[Step] = Counter()
        self.at: dict[Step, Callable[[], None]] = {}

    def reached(self, step: Step) -> None:
        self.hits[step] += 1
        if (then := self.at.pop(step, None)) is not None:
            then()


class Mood:
    """Which records are refused, now."""

    def __init__(self) -> None:
        self.refuses: Callable[[int], bool] = lambda n: n % 4 == 2

    def look(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if self.refuses(value(row)):
                raise RowRefused(f"{value(row)} does not fit", row.offset)


def value(row: Row) -> int:
    return int(msgspec.json.decode(row.value or b"null"))


class _Sink:
    key = None
    name, where = "orders", "a system in memory"
    kind = Once
    contract: Contract

    def encode_value(self, value: object) -> bytes:
        return msgspec.json.encode(value)


class _Connection:
    def __init__(self, system: Any, steps: Steps) -> None:
        self._system, self._steps = system, steps

    def prepare(self, value_type: object) -> Done | NotDone:
        return Done()

    def notes(self) -> Sequence[str]:
        return ()

    def close(self) -> None: ...


# --- rows and position in one transaction ----------------------------------------------------------------------------


class Tables(_Sink):
    contract = transactional("memory")

    def __init__(self, mood: Mood) -> None:
        self.mood = mood
        self.rows: list[int] = []
        self.epoch = self.position = 0
        self.run = ""
        self.then: list[str] = []  # of the next writes: "lost", "unheard"

    def held(self) -> list[int]:
        return self.rows

    def open(self, steps: Steps) -> TablesConnection:
        return TablesConnection(self, steps)


class TablesConnection(_Connection):
    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim:
        self._steps.reached(Step.ROWS_BEFORE)  # the claim is on its way
        self._system.epoch += 1
        return Claim(delivery, self._system.epoch, 1, self._system.position, self._system.run, log)

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        system = self._system
        system.mood.look(rows)  # by whomever it is asked
        self._steps.reached(Step.SINK_BEFORE)
        if (claim.epoch, start) != (system.epoch, system.position):
            return Fenced(f"epoch {system.epoch} has the claim")
        fate = system.then.pop(0) if system.then else ""
        if fate != "lost":
            system.rows += map(value, rows)
            system.position, system.run = end, run
        self._steps.reached(Step.SINK_AFTER)
        return Unknown("no answer") if fate else Done()


# --- prepared, decided in the log -------------------------------------------------------------------------------------


class Prepared(preparing.Preparing):
    def __init__(self, log: OutboxLog, mood: Mood) -> None:
        super().__init__(preparing.System(log, DELIVERY), Rule(5, 1 << 20, 2_000))
        self.mood = mood

    def held(self) -> list[int]:
        assert not self.system.prepared, "left prepared"
        return self.system.held.get(0, [])

    def open(self, steps: Steps) -> PreparedConnection:
        return PreparedConnection(self.system, steps, self.mood)


class PreparedConnection(preparing.PreparingConnection):
    def __init__(self, system: preparing.System, steps: Steps, mood: Mood) -> None:
        super().__init__(system, steps)
        self._mood = mood

    def prepare_cut(self, claim: Claim, attempt: Attempt, run: str, rows: Sequence[Row]) -> Outcome:
        self._mood.look(rows)
        return super().prepare_cut(claim, attempt, run, rows)


# --- an object per cut, never replaced --------------------------------------------------------------------------------


class Created(_Sink):
    contract = CREATE_ONLY
    rule = Rule(5, 1 << 20, 2_000)

    def __init__(self) -> None:
        self.mood = Mood()  # of its own, and it does not change: what is refused is refused by the form
        self.objects: dict[tuple[int, int], list[int]] = {}
        self.then: list[str] = []

    def held(self) -> list[int]:
        return [n for _, rows in sorted(self.objects.items()) for n in rows]

    def open(self, steps: Steps) -> CreatedConnection:
        return CreatedConnection(self, steps)


class CreatedConnection(_Connection):
    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim:
        return Claim(delivery, 0, 1, -1, "", log)

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        system = self._system
        system.mood.look(rows)
        fate = system.then.pop(0) if system.then else ""
        if fate != "lost":
            there = system.objects.setdefault((start, end), list(map(value, rows)))
            assert there == list(map(value, rows)), f"[{start}, {end}) was written with other rows"
        self._steps.reached(Step.SINK_AFTER)
        return Unknown("no answer") if fate else Done()


assert two_phase("").settlement is Settlement.DECIDED  # what `Prepared` stands for


# --- all of it --------------------------------------------------------------------------------------------------------

KINDS = ("table", "prepared", "created")


class Worker:
    """A delivery, its session and a clock."""

    def __init__(self, world: World, policy: str) -> None:
        self.session: OutboxSession = world.log.session("app.orders")
        self.steps = At()
        self.said: list[str] = []
        self.now_ms = 1_000_000
        given: dict[str, Any] = {"app": "app", "outbox": OUTBOX, "steps": self.steps, "say": self.said.append}
        given |= {"owners": world.log.owner, "dead_letters": DLQ if policy == "dead-letter" else ""}
        table = world.kind == "table"
        self.delivery: Any = (Delivery if table else CutDelivery)(self.session, world.sink, **given)
        self.delivery.join()
        self.session.assign(OUTBOX, 0)

    def turn(self, count: int = 1, ms: int = 1_700) -> None:
        for _ in range(count):
            self.now_ms += ms
            self.delivery.step(self.now_ms, 0)


class World:
    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.log = OutboxLog()
        self.log.create(OUTBOX, 1, EVER)
        self.log.create(DLQ, 2, EVER)
        self.mood = Mood()
        made: dict[str, Callable[[], Any]] = {
            "table": lambda: Tables(self.mood),
            "prepared": lambda: Prepared(self.log, self.mood),
            "created": Created,
        }
        self.sink: Any = made[kind]()
        self.count = 0

    def worker(self, policy: str = "dead-letter") -> Worker:
        return Worker(self, policy)

    def put(self, count: int) -> None:
        for n in range(self.count, self.count + count):
            self.log.append(OUTBOX, 0, None, msgspec.json.encode(n), at=n)
        self.count += count

    def letters(self) -> list[int]:
        found = [r for partition in self.log.topics[DLQ].partitions for r in partition if r.visible]
        return sorted(msgspec.json.decode(record.value or b"null") for record in found)

    def finish(self) -> None:
        """A last owner delivers everything."""
        last = self.worker()
        for _ in range(40 + 3 * self.count):
            last.turn()
            if last.delivery.lag() == 0:
                break
        assert last.delivery.lag() == 0, last.said
        self.holds()

    def holds(self) -> None:
        """Each record is at the sink or in the dead letters, once in one of them; there only what can be refused."""
        held, letters = self.sink.held(), self.letters()
        found = Counter([*held, *letters])
        assert found == Counter(range(self.count)), {
            "more": sorted((found - Counter(range(self.count))).elements()),
            "lost": sorted((Counter(range(self.count)) - found).elements()),
        }
        assert held == sorted(held), "out of order"
        assert all(n % 4 == 2 for n in letters), letters
