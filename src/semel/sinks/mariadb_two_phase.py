"""MariaDB as a sink that prepares: `MariaDBTwoPhase("mysql://…/db", "totals", key="customer")`. Contract: TwoPhase.

Nothing here needs the client library; `mariadb_two_phase_connection.py` does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from semel.contract import Contract, TwoPhase
from semel.errors import UsageError
from semel.ports import NoSteps, Steps, TwoPhaseConnection
from semel.sinks.cuts import Rule
from semel.sinks.declared import Declared
from semel.sinks.mariadb import MariaDB
from semel.sinks.sink import SinkError
from semel.sinks.two_phase import two_phase

CONTRACT = two_phase(
    "InnoDB with innodb_flush_log_at_trx_commit=1 (its default), without a binary log or with it unharmed"
)


class MariaDBTwoPhase(Declared):
    """An InnoDB table of a MariaDB database (10.7 or newer) that takes each cut in an XA transaction, which a record of
    the log decides.

    A cut is due at `records` records, `bytes` bytes of keys and values, or `seconds` after its first record. `key`,
    `name`, `value` and `hand_over_s` are those of `MariaDB`.
    """

    def __init__(
        self,
        url: str,
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
        self.plain = MariaDB(url, table, key=key, name=name, value=value, hand_over_s=hand_over_s, _suffix=_suffix)
        self._name, self._key = self.plain.name, self.plain.key
        if ":" in self.plain.name:
            raise SinkError(f"MariaDB table {table!r}: name={self.plain.name!r} has a colon. Leave it out.")
        if records < 1 or bytes < 1 or seconds <= 0:
            raise SinkError(f"{self.plain.where}: records, bytes and seconds of a cut are above 0.")
        self.rule = Rule(records, bytes, round(seconds * 1000))
        self._table = table
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

    def renamed(self, suffix: str) -> MariaDBTwoPhase:
        plain = self.plain
        return MariaDBTwoPhase(
            plain.url,
            self._table,
            key=plain.key,
            name=plain.name,
            value=plain.value_type,
            hand_over_s=plain.hand_over_s,
            _suffix=plain.suffix + suffix,
            **self._given,
        )

    def open(self, steps: Steps | None = None) -> TwoPhaseConnection:
        try:
            from semel.sinks.mariadb_two_phase_connection import PreparedConnection
        except ModuleNotFoundError as missing:
            if missing.name != "pymysql":
                raise
            raise UsageError(f"{self.where} needs PyMySQL: pip install 'semel[mariadb]'") from None
        return PreparedConnection(self.plain, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, key={self.key}, in two phases>"
