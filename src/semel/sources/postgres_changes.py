"""The changes of a Postgres table as a source (logical replication), declared.

Nothing here needs the client library; `postgres_changes_connection.py` does the work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from semel.contract import Guarantee, RecordIdentity, Replay, SourceContract, SourceFence, SourcePosition
from semel.errors import UsageError
from semel.sinks.postgres import place
from semel.source_ports import SourceConnection, SourceTrial
from semel.sources.source import SourceError, key_complaint, key_fields

R = TypeVar("R")

CONTRACT = SourceContract(
    name="PostgresChanges",
    guarantee=Guarantee.EXACTLY_ONCE,
    identity=RecordIdentity.LSN,
    replay=Replay.KEPT,
    position=SourcePosition.WITH_RECORDS,
    fence=SourceFence.TRANSACTIONAL_ID,
    boundary="TRUNCATE, and changes of the table's definition; a failover to a server without the slot (it stops then)",
)


@dataclass(frozen=True)
class Change(Generic[R]):
    """A row that was there when the reading began ("read"), or what became of one since. A change of its key is a
    delete under the former key and an insert under the new one."""

    op: Literal["read", "insert", "update", "delete"]
    before: R | None
    after: R | None


@dataclass(frozen=True, init=False)
class PostgresChanges:
    """Every row that a table has, then every change of it, each once, in the order of the commits (Postgres 14 or
    newer, `wal_level=logical`, the table with `REPLICA IDENTITY FULL`). The topic's value is a `Change[ROW]`.

    `key`: the columns that make the records' keys: the table's primary key. `slot`: the name of the replication slot
    and of the publication, which are made when they are not there.
    """

    dsn: str
    schema: str
    table_name: str
    key: tuple[str, ...]
    slot: str
    original: str  # of a renamed one: the app's own table

    def __init__(self, dsn: str, table: str, *, key: str | Sequence[str], slot: str | None = None) -> None:
        schema, _, last = table.rpartition(".")
        if not last or "." in schema or "%" in table:
            raise SourceError(f"PostgresChanges {table!r}: wanted is TABLE or SCHEMA.TABLE, without a per cent sign.")
        if not key_fields(key):
            raise SourceError(f"PostgresChanges {table!r}: key= is wanted, the columns of its primary key.")
        name = slot or "semel_" + re.sub(r"[^a-z0-9_]", "_", table.lower())
        if not re.fullmatch(r"[a-z0-9_]{1,63}", name):
            raise SourceError(f"PostgresChanges {table!r}: slot={name!r}; 1 to 63 of a-z, 0-9 and _.")
        given = {"dsn": dsn, "schema": schema, "table_name": last, "key": key_fields(key), "slot": name, "original": ""}
        for field, value in given.items():
            object.__setattr__(self, field, value)

    @property
    def table(self) -> str:
        return ".".join(filter(None, (self.schema, self.table_name)))

    @property
    def where(self) -> str:
        return f"changes of Postgres table {self.table} at {place(self.dsn)}"

    @property
    def contract(self) -> SourceContract:
        return CONTRACT

    @property
    def ordered(self) -> bool:
        return True

    @property
    def transaction_ms(self) -> int:
        return 900_000  # a snapshot is one; the most that Kafka takes by default

    @property
    def lanes(self) -> int:
        return 1

    def complaint(self, key: Any, value: Any) -> str:
        if get_origin(value) is not Change:
            return f"{self.where}: the topic's value is a change of a row: Topic(…, value=Change[ROW])."
        return key_complaint(self.where, self.key, key, get_args(value)[0])

    def renamed(self, suffix: str) -> PostgresChanges:
        table = ".".join(filter(None, (self.schema, (self.table_name + suffix).replace(".", "_"))))
        made = PostgresChanges(self.dsn, table, key=self.key)
        object.__setattr__(made, "original", self.original or self.table)
        return made

    def open(self, topic: Any, lane: int, follow: bool) -> SourceConnection:
        self._needs_psycopg()
        from semel.sources.postgres_changes_connection import ChangesConnection

        return ChangesConnection(self, topic)

    def trial(self, topic: Any) -> SourceTrial:
        self._needs_psycopg()
        from semel.sources.postgres_changes_trial import ChangesTrial

        return ChangesTrial(self, topic)

    def _needs_psycopg(self) -> None:
        try:
            from semel.sources import postgres_session  # noqa: F401
        except ModuleNotFoundError as missing:
            if missing.name != "psycopg":
                raise
            raise UsageError(f"{self.where} needs psycopg: pip install 'semel[postgres]'") from None

    def __repr__(self) -> str:
        return f"<{self.where}>"
