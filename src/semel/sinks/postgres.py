"""Postgres as a sink, declared: `Postgres(dsn, "totals", key="customer")`. Contract: Transactional.

Nothing here needs the client library: `check` reads the declaration without it. `postgres_connection.py` does the work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from semel.contract import Contract, Transactional
from semel.errors import UsageError
from semel.ports import NoSteps, SinkConnection, Steps
from semel.sinks.declared import Declared
from semel.sinks.positions import TABLE, transactional
from semel.sinks.sink import SinkError, key_fields

CONTRACT = transactional("Postgres with fsync=on (its default); semel sets synchronous_commit=on for its own session")


class Postgres(Declared):
    """A table of a Postgres database (14 or newer).

    With `key`, a row per key that the last value replaces, and a value None deletes; without, every value is
    inserted. `value` is the type of the values where the topology cannot tell it; the table is created from it when
    it is not there. `hand_over_s` bounds how long an owner that has stopped may hold its locks: a statement that
    rightly takes longer wants more of it.
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
        _suffix: str = "",
    ) -> None:
        schema, _, last = table.rpartition(".")
        if not last or "." in schema or "%" in table:  # "%" marks parameters in psycopg's statements
            raise SinkError(f"Postgres table {table!r}: wanted is TABLE or SCHEMA.TABLE, without a per cent sign.")
        for given in (last + _suffix, TABLE + _suffix):
            if len(given.encode()) > 63:  # Postgres would cut it, and two names could become one
                raise SinkError(f"Postgres table {given!r}: a name has at most 63 bytes.")
        if hand_over_s < 1:
            raise SinkError(f"hand_over_s={hand_over_s}: at least 1 second.")
        self.dsn = dsn
        self.schema, self.table_name, self.suffix = schema, last, _suffix
        self.value_type = value
        self.hand_over_s = hand_over_s
        self._key = key_fields(key)
        self._name = name or re.sub(r"[^a-zA-Z0-9._-]", "-", table)

    @property
    def table(self) -> str:
        return ".".join(filter(None, (self.schema, self.table_name + self.suffix)))

    @property
    def where(self) -> str:
        return f"Postgres table {self.table} at {place(self.dsn)}"

    @property
    def kind(self) -> type[Transactional]:
        return Transactional

    @property
    def contract(self) -> Contract:
        return CONTRACT

    def renamed(self, suffix: str) -> Postgres:
        return Postgres(
            self.dsn,
            ".".join(filter(None, (self.schema, self.table_name))),
            key=self._key,
            name=self._name,
            value=self.value_type,
            hand_over_s=self.hand_over_s,
            _suffix=self.suffix + suffix,
        )

    def open(self, steps: Steps | None = None) -> SinkConnection:
        try:
            from semel.sinks.postgres_connection import PostgresConnection
        except ModuleNotFoundError as missing:
            if missing.name != "psycopg":
                raise
            raise UsageError(f"{self.where} needs psycopg: pip install 'semel[postgres]'") from None
        return PostgresConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, key={self._key}>"


def place(dsn: str) -> str:
    """Host, port and database of a connection string, and nothing else of it."""
    if "://" in dsn:
        try:
            url = urlsplit(dsn)
            host, port = url.hostname or "localhost", url.port or 5432
        except ValueError:
            return "an address that cannot be read"
        return f"{host}:{port}{url.path}"
    said = {name: value.strip("'") for name, value in re.findall(r"(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|\S+)", dsn)}
    return f"{said.get('host', 'localhost')}:{said.get('port', '5432')}/{said.get('dbname', '')}"
