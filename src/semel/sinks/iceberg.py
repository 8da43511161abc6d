"""An Iceberg table as a sink: `Iceberg("sales.totals", catalog="prod")`. Contract: Transactional.

Nothing here needs the client library; `iceberg_connection.py` does the work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from semel.contract import Contract, Transactional
from semel.errors import UsageError
from semel.ports import NoSteps, SinkConnection, Steps
from semel.sinks.cuts import Rule
from semel.sinks.declared import Declared
from semel.sinks.positions import transactional
from semel.sinks.sink import SinkError, key_fields

CONTRACT = transactional(
    "a catalog and an object store that have answered: always. A local folder as warehouse: the end of processes, not "
    "a power cut, nothing in it is synced"
)


class Iceberg(Declared):
    """The table NAMESPACE.TABLE of a catalog: one that pyiceberg's own configuration names, or one that `options` say
    (type, uri, warehouse, credentials: pyiceberg's properties).

    With `key`, a row per key that the last value replaces, and a value None deletes; without, every value is appended.
    `value` is the type of the values where the topology cannot tell it. A batch is written once `records` records are
    there, or `seconds` after its first one: each is a snapshot and a file."""

    def __init__(
        self,
        table: str,
        *,
        catalog: str = "default",
        key: str | Sequence[str] | None = None,
        name: str | None = None,
        value: Any = None,
        records: int = 10_000,
        seconds: float = 10.0,
        options: Mapping[str, str] | None = None,
        _suffix: str = "",
    ) -> None:
        if not re.fullmatch(r"[^.]+(\.[^.]+)+", table):
            raise SinkError(f"Iceberg table {table!r}: wanted is NAMESPACE.TABLE.")
        if records < 1 or seconds < 0:
            raise SinkError(f"Iceberg table {table}: records is above 0, seconds not below.")
        self.original, self.suffix = table, _suffix
        self.catalog, self.options = catalog, dict(options or {})
        self.value_type = value
        self.rule = Rule(records=records, ms=int(seconds * 1000))
        self._records, self._seconds = records, seconds
        self._key = key_fields(key)
        self._name = name or re.sub(r"[^a-zA-Z0-9._-]+", "-", table)

    @property
    def table(self) -> str:
        # A dot would begin another namespace; catalogs allow little else in a name.
        return self.original + re.sub(r"[^a-zA-Z0-9_]", "_", self.suffix)

    @property
    def where(self) -> str:
        return f"Iceberg table {self.table} of the catalog {self.catalog}"

    @property
    def kind(self) -> type[Transactional]:
        return Transactional

    @property
    def contract(self) -> Contract:
        return CONTRACT

    def renamed(self, suffix: str) -> Iceberg:
        return Iceberg(
            self.original,
            catalog=self.catalog,
            key=self._key,
            name=self._name,
            value=self.value_type,
            records=self._records,
            seconds=self._seconds,
            options=self.options,
            _suffix=self.suffix + suffix,
        )

    def open(self, steps: Steps | None = None) -> SinkConnection:
        try:
            from semel.sinks.iceberg_connection import IcebergConnection
        except ModuleNotFoundError as missing:
            if (missing.name or "").partition(".")[0] not in ("pyiceberg", "pyarrow"):
                raise
            raise UsageError(
                f"{self.where} needs pyiceberg and pyarrow, which are not installed here: pip install 'semel[iceberg]'"
            ) from None
        return IcebergConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, key={self._key}>"
