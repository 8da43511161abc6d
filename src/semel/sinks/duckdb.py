"""DuckDB as a sink: `DuckDB("totals.duckdb", "totals", key="customer")`. Contract: Transactional.

Nothing here needs the client library; `duckdb_connection.py` does the work.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from semel.contract import Contract, Transactional
from semel.errors import UsageError
from semel.ports import NoSteps, SinkConnection, Steps
from semel.sinks.declared import Declared
from semel.sinks.positions import transactional
from semel.sinks.sink import SinkError, key_fields

CONTRACT = transactional("always: DuckDB syncs its log at each commit; a local file system whose syncs are honest")


class DuckDB(Declared):
    """A table of a DuckDB file. With `key`, a row per key that the last value replaces, and a value None deletes;
    without, every value is inserted. `value` is the type of the values where the topology cannot tell it.

    One process at a time can have such a file open. So it is open for the time of a batch, and whoever else wants it,
    another worker or a reader, has its turn in between; of a backlog of large batches about every second."""

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
        self.path = os.fspath(path)
        if not table:
            raise SinkError("DuckDB: name a table.")
        if not self.path or self.path.startswith(":memory:") or re.match(r"[a-z]\w+:", self.path):
            raise SinkError(f"DuckDB at {self.path.partition(':')[0]!r}: rows must outlive the process; name a file.")
        self.original, self.suffix = table, _suffix
        self.value_type = value
        self._key = key_fields(key)
        self._name = name or re.sub(r"[^a-zA-Z0-9._-]", "-", table)

    @property
    def table(self) -> str:
        return self.original + self.suffix

    @property
    def where(self) -> str:
        return f"DuckDB table {self.table} in {self.path}"

    @property
    def kind(self) -> type[Transactional]:
        return Transactional

    @property
    def contract(self) -> Contract:
        return CONTRACT

    def renamed(self, suffix: str) -> DuckDB:
        return DuckDB(
            self.path,
            self.original,
            key=self._key,
            name=self._name,
            value=self.value_type,
            _suffix=self.suffix + suffix,
        )

    def open(self, steps: Steps | None = None) -> SinkConnection:
        try:
            from semel.sinks.duckdb_connection import DuckDBConnection
        except ModuleNotFoundError as missing:
            if (missing.name or "").partition(".")[0] not in ("duckdb", "pyarrow"):
                raise
            raise UsageError(
                f"{self.where} needs duckdb and pyarrow, which are not installed here: pip install 'semel[duckdb]'"
            ) from None
        return DuckDBConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, key={self._key}>"
