"""SQLite as a sink: `SQLite("alerts.db", "alerts")`. Contract: Transactional.

Nothing is opened here; `sqlite_connection.py` does the work.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from semel.contract import Contract, Transactional
from semel.ports import NoSteps, SinkConnection, Steps
from semel.sinks.declared import Declared
from semel.sinks.positions import transactional
from semel.sinks.sink import SinkError, key_fields
from semel.sinks.sqlite_connection import SQLiteConnection

CONTRACT = transactional("synchronous=EXTRA, which semel sets; a local file system whose syncs and locks are honest")


class SQLite(Declared):
    """A table of a SQLite file. With `key`, a row per key that the last value replaces, and a value None deletes;
    without, every value is inserted. `value` is the type of the values where the topology cannot tell it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        table: str,
        *,
        key: str | Sequence[str] | None = None,
        name: str | None = None,
        value: Any = None,
        _suffix: str = "",
    ) -> None:
        if not table or table.startswith("sqlite_"):
            raise SinkError(f"SQLite table {table!r}: wanted is a name that does not begin with sqlite_.")
        self.path = os.fspath(path)
        if self.path == ":memory:" or not self.path:
            raise SinkError(f"SQLite at {self.path!r}: rows must outlive the process; name a file.")
        self.original, self.suffix = table, _suffix
        self.value_type = value
        self._key = key_fields(key)
        self._name = name or re.sub(r"[^a-zA-Z0-9._-]", "-", table)

    @property
    def table(self) -> str:
        return self.original + self.suffix

    @property
    def where(self) -> str:
        return f"SQLite table {self.table} in {self.path}"

    @property
    def kind(self) -> type[Transactional]:
        return Transactional

    @property
    def contract(self) -> Contract:
        return CONTRACT

    def renamed(self, suffix: str) -> SQLite:
        return SQLite(
            self.path,
            self.original,
            key=self._key,
            name=self._name,
            value=self.value_type,
            _suffix=self.suffix + suffix,
        )

    def open(self, steps: Steps | None = None) -> SinkConnection:
        return SQLiteConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, key={self._key}>"
