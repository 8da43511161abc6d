"""Postgres as a sink whose rows carry versions: `PostgresVersioned(dsn, "totals", key=…)`. Contract: Versioned.

Nothing here needs the client library; `postgres_versioned_connection.py` does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from semel.contract import (
    Atomicity,
    Contract,
    Fence,
    Guarantee,
    Identity,
    PositionIn,
    Resolution,
    Settlement,
    Versioned,
)
from semel.errors import UsageError
from semel.ports import NoSteps, SinkConnection, Steps
from semel.sinks.declared import DeclaredByKey
from semel.sinks.postgres import Postgres
from semel.sinks.sink import SinkError

INCARNATION, OFFSET, DELETED = "semel_incarnation", "semel_offset", "semel_deleted"
LIVE = "_live"  # the view without tombstones

CONTRACT = Contract(
    name="Versioned",
    guarantee=Guarantee.EFFECTIVELY_ONCE,
    identity=Identity.VERSION,
    atomicity=Atomicity.BATCH,
    remembers_position=False,
    fence=Fence.OLDER_VERSION_LOSES,
    resolution=Resolution.SEND_AGAIN,
    durability="Postgres with fsync=on (its default); semel sets synchronous_commit=on for the rows; the position "
    "follows asynchronously: if it is lost, rows are sent again without effect",
    position=PositionIn.SINK,
    settlement=Settlement.REPEATED,
)


class PostgresVersioned(DeclaredByKey):
    """A table of a Postgres database (14 or newer) with a row per key, which carries the version (incarnation and
    offset) of the record that wrote it: an older write has no effect, whoever sends it, however late.

    A value None leaves a tombstone (`semel_deleted`) in place of the row; readers use the view TABLE_live. Fields,
    `key`, `name`, `value` and `hand_over_s` are those of `Postgres`.
    """

    def __init__(
        self,
        dsn: str,
        table: str,
        *,
        key: str | Sequence[str],
        name: str | None = None,
        value: Any = None,
        hand_over_s: float = 10.0,
        _suffix: str = "",
    ) -> None:
        plain = Postgres(dsn, table, key=key, name=name, value=value, hand_over_s=hand_over_s, _suffix=_suffix)
        if plain.key is None:
            raise SinkError(f"Postgres table {table!r}: versions are compared by key. Name key=.")
        if taken := {INCARNATION, OFFSET, DELETED} & set(plain.key):
            raise SinkError(f"Postgres table {table!r}: {taken.pop()!r} is semel's own column. Name another key.")
        if len((plain.table_name + LIVE + _suffix).encode()) > 63:
            raise SinkError(f"Postgres table {table!r}: with {LIVE} its name has more than 63 bytes.")
        self._plain, self._name, self._key = plain, plain.name, plain.key
        self.dsn, self.schema, self.table_name, self.suffix = dsn, plain.schema, plain.table_name, _suffix
        self.value_type, self.hand_over_s = value, hand_over_s

    @property
    def table(self) -> str:
        return self._plain.table

    @property
    def where(self) -> str:
        return self._plain.where

    @property
    def kind(self) -> type[Versioned]:
        return Versioned

    @property
    def contract(self) -> Contract:
        return CONTRACT

    def renamed(self, suffix: str) -> PostgresVersioned:
        return PostgresVersioned(
            self.dsn,
            ".".join(filter(None, (self.schema, self.table_name))),
            key=self.key,
            name=self.name,
            value=self.value_type,
            hand_over_s=self.hand_over_s,
            _suffix=self.suffix + suffix,
        )

    def open(self, steps: Steps | None = None) -> SinkConnection:
        try:
            from semel.sinks.postgres_versioned_connection import VersionedConnection
        except ModuleNotFoundError as missing:
            if missing.name != "psycopg":
                raise
            raise UsageError(f"{self.where} needs psycopg: pip install 'semel[postgres]'") from None
        return VersionedConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, key={self.key}, by version>"
