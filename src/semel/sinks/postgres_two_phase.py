"""Postgres as a sink that prepares: `PostgresTwoPhase(dsn, "totals", key="customer")`. Contract: TwoPhase.

Nothing here needs the client library; `postgres_two_phase_connection.py` does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from semel.contract import Contract, TwoPhase
from semel.errors import UsageError
from semel.ports import NoSteps, Steps, TwoPhaseConnection
from semel.sinks.cuts import Rule
from semel.sinks.declared import Declared
from semel.sinks.postgres import Postgres
from semel.sinks.sink import SinkError
from semel.sinks.two_phase import two_phase

CONTRACT = two_phase(
    "Postgres with fsync=on (its default) and max_prepared_transactions above 0; semel sets synchronous_commit=on for "
    "its own session"
)


class PostgresTwoPhase(Declared):
    """A table of a Postgres database (14 or newer, max_prepared_transactions above 0) that takes each cut in a prepared
    transaction, which a record of the log decides.

    A cut is due at `records` records, `bytes` bytes of keys and values, or `seconds` after its first record. `key`,
    `name`, `value` and `hand_over_s` are those of `Postgres`.
    """

    def __init__(
        self,
        dsn: str,
        table: str,
        *,
        key: str | Sequence[str] | None = None,
        name: str | None = None,
        value: Any = None,
        hand_over_s: float = 10.0,
        records: int = 10_000,
        bytes: int = 8 << 20,
        seconds: float = 1.0,
        _suffix: str = "",
    ) -> None:
        self.plain = Postgres(dsn, table, key=key, name=name, value=value, hand_over_s=hand_over_s, _suffix=_suffix)
        self._name, self._key = self.plain.name, self.plain.key
        if ":" in self.plain.name:
            raise SinkError(f"Postgres table {table!r}: name={self.plain.name!r} has a colon. Leave it out.")
        if records < 1 or bytes < 1 or seconds <= 0:
            raise SinkError(f"{self.plain.where}: records, bytes and seconds of a cut are above 0.")
        self.rule = Rule(records, bytes, round(seconds * 1000))
        self._given: dict[str, Any] = {"records": records, "bytes": bytes, "seconds": seconds}

    @property
    def where(self) -> str:
        return self.plain.where

    @property
    def kind(self) -> type[TwoPhase]:
        return TwoPhase

    @property
    def contract(self) -> Contract:
        return CONTRACT

    def renamed(self, suffix: str) -> PostgresTwoPhase:
        plain = self.plain
        return PostgresTwoPhase(
            plain.dsn,
            ".".join(filter(None, (plain.schema, plain.table_name))),
            key=plain.key,
            name=plain.name,
            value=plain.value_type,
            hand_over_s=plain.hand_over_s,
            _suffix=plain.suffix + suffix,
            **self._given,
        )

    def open(self, steps: Steps | None = None) -> TwoPhaseConnection:
        try:
            from semel.sinks.postgres_two_phase_connection import PreparedConnection
        except ModuleNotFoundError as missing:
            if missing.name != "psycopg":
                raise
            raise UsageError(f"{self.where} needs psycopg: pip install 'semel[postgres]'") from None
        return PreparedConnection(self.plain, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, key={self.key}, in two phases>"
