"""ClickHouse as a table that is only ever appended to: `ClickHouseAppended(url, "events")`. Contract: Deduplicated.

Each row carries the id of its event (`semel_event`) and is the sorting key of a ReplacingMergeTree: repeats are stored,
the view TABLE_once leaves them out, and merges take them out for good some time. No token, no window: what comes again
after a year is a repeat, too. Nothing here needs the client library; `clickhouse_appended_connection.py` does the work.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from semel.contract import Contract, Deduplicated, PositionIn
from semel.ports import NoSteps, SinkConnection, Steps
from semel.sinks.clickhouse import CONTRACT, ROWS_MAX, address_of, lacking, named
from semel.sinks.cuts import Rule
from semel.sinks.declared import Declared
from semel.sinks.dedup import ONCE
from semel.sinks.postgres_appended import deduplicated
from semel.sinks.sink import SinkError


class ClickHouseAppended(Declared):
    """A table of ClickHouse (tried on 26.9) to which every value is appended with its event id, by HTTP.

    Readers use the view TABLE_once, which is created with the table. `name`, `value`, `records`, `bytes`, `seconds`,
    `timeout_s` and `compress` are those of `ClickHouse`; a batch is not written down before it is sent, and need not
    be.
    """

    def __init__(
        self,
        url: str,
        table: str,
        *,
        name: str | None = None,
        value: Any = None,
        records: int = 100_000,
        bytes: int = 32 << 20,
        seconds: float = 1.0,
        timeout_s: float = 30.0,
        compress: bool = False,
        _suffix: str = "",
    ) -> None:
        self.at, self.table_name, self.suffix = address_of(url), named(table, "ClickHouse"), _suffix
        if not 1 <= records <= ROWS_MAX or bytes < 1 or seconds <= 0 or timeout_s <= 0:
            raise SinkError(
                f"ClickHouse table {table!r}: records of a batch are 1 to {ROWS_MAX:,}; bytes, seconds and timeout_s "
                "are above 0."
            )
        self.rule = Rule(records, bytes, int(seconds * 1000))
        self.url, self.value_type, self.timeout_s, self.compress = url, value, timeout_s, compress
        self._given: dict[str, Any] = {
            "value": value, "records": records, "bytes": bytes, "seconds": seconds, "timeout_s": timeout_s,
            "compress": compress,
        }  # fmt: skip
        self._name = name or re.sub(r"[^a-zA-Z0-9._-]", "-", table)

    @property
    def table(self) -> str:
        return self.table_name + self.suffix

    @property
    def view(self) -> str:
        """Where each record is once."""
        return self.table_name + ONCE + self.suffix

    @property
    def where(self) -> str:
        return f"ClickHouse table {self.table} at {self.at}"

    @property
    def kind(self) -> type[Deduplicated]:
        return Deduplicated

    @property
    def contract(self) -> Contract:
        made = deduplicated(f"the view {self.view}", CONTRACT.durability)
        return replace(made, position=PositionIn.GROUP_OFFSETS)

    def renamed(self, suffix: str) -> ClickHouseAppended:
        return ClickHouseAppended(
            self.url, self.table_name, name=self._name, _suffix=self.suffix + suffix, **self._given
        )

    def open(self, steps: Steps | None = None) -> SinkConnection:
        try:
            from semel.sinks.clickhouse_appended_connection import ClickHouseAppendedConnection
        except ModuleNotFoundError as missing:
            raise lacking(missing, self.where) from None
        return ClickHouseAppendedConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, appended>"
