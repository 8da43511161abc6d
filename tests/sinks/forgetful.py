"""A sink in memory that keeps nothing of a delivery: it knows the tokens of its inserts, as ClickHouse does. Where its
delivery by cuts is, the log alone tells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from semel.contract import Claim, Contract, DeliveryId, LogIdentity, Row, Window, Windowed
from semel.ports import Done, Outcome, Step
from semel.sinks.clickhouse import CONTRACT, token
from semel.sinks.cuts import Rule
from semel.sinks.sink import encode_deleted, encode_row
from semel.testing.contracts import Subject
from semel.testing.subject import Shown, shown


@dataclass
class Store:
    tokens: set[str] = field(default_factory=set)
    rows: list[bytes | None] = field(default_factory=list)


STORES: dict[str, Store] = {}  # what is at an address: the kit reads it without the sink


class Tokens:
    """A new connection each time; what it writes lies in STORES."""

    kind, key = Windowed, None
    contract: Contract = replace(CONTRACT, window=Window(inserts=1_000_000))
    rule = Rule(100, 1 << 20, 0)

    def __init__(self, address: str, suffix: str = "") -> None:
        self.address, self.suffix = address, suffix
        self.name, self.where = "tokens", f"tokens{suffix} in memory"

    def renamed(self, suffix: str) -> Tokens:
        return Tokens(self.address, self.suffix + suffix)

    def encode_key(self, value: object) -> bytes | None:
        return None

    def encode_deleted(self, key: object) -> bytes:
        return encode_deleted(None, key, self.where)

    def encode_value(self, value: object) -> bytes:
        return encode_row(value)

    def open(self, steps: Any = None) -> TokensConnection:
        return TokensConnection(self, steps)


class TokensConnection:
    keeps_nothing = True

    def __init__(self, sink: Tokens, steps: Any) -> None:
        self._sink, self._steps = sink, steps

    @property
    def _store(self) -> Store:
        return STORES.setdefault(self._sink.address + self._sink.suffix, Store())

    def prepare(self, value_type: object) -> Done:
        return Done()

    def notes(self) -> Sequence[str]:
        return ()

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim:
        return Claim(delivery, 0, 0, -1, "", log)

    def seen(self) -> str:
        return str(len(self._store.tokens))

    def inserts_since(self, seen: str) -> int:
        return len(self._store.tokens) - int(seen)

    def remind(self, until_ms: int | None, seen: str) -> None:
        return

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        self._steps.reached(Step.ROWS_BEFORE)
        who, log = claim.delivery, claim.log
        name = token((who.app, who.sink, log.topic_id, claim.incarnation, who.partition), start, end, run)
        if name not in self._store.tokens:
            self._store.tokens.add(name)
            self._store.rows += [row.value for row in rows]
        return Done()

    def remembered(self, app: str) -> Sequence[Any]:
        return ()

    def move(self, app: str, seen: Any, to: Any) -> Done:
        return Done()

    def drop(self) -> None:
        STORES.pop(self._sink.address + self._sink.suffix, None)

    def close(self) -> None:
        return


def read(address: str, suffix: str) -> Iterable[Shown]:
    return [shown(value) for value in STORES.get(address + suffix, Store()).rows]


def subject() -> Subject:
    return Subject(make=Tokens, address="memory", read=read, poison=())
