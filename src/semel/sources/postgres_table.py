"""A table of Postgres as a source, by cursor, declared: `PostgresTable(dsn, "outbox", cursor="id", key="customer")`.

Nothing here needs the client library: `check` reads the declaration without it. `postgres_table_connection.py` does the
work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from semel.contract import Guarantee, RecordIdentity, Replay, SourceContract, SourceFence, SourcePosition
from semel.errors import UsageError
from semel.sinks.postgres import place
from semel.source_ports import SourceConnection, SourceTrial
from semel.sources.source import SourceError, fields_of, key_complaint, key_fields

CONTRACT = SourceContract(
    name="PostgresTable",
    guarantee=Guarantee.EXACTLY_ONCE,
    identity=RecordIdentity.CURSOR,
    replay=Replay.SETTLED,
    position=SourcePosition.WITH_RECORDS,
    fence=SourceFence.TRANSACTIONAL_ID,
    boundary="changes and deletions of rows (they are read as they are when their turn comes, and not again); a cursor "
    "that is written by hand, or drawn from its sequence before the INSERT that uses it",
)


@dataclass(frozen=True, init=False)
class PostgresTable:
    """The rows of a table (Postgres 14 or newer), each once, in the order of a cursor that the database gives them.

    `cursor`: a column of whole numbers that an identity or a sequence fills; or a column of type xid8 with the default
    `pg_current_xact_id()`, and behind it what makes it unique: `cursor=("txid", "id")`. Rows are read when no open
    transaction can put one before them any more. `key`: the columns that make the records' keys.
    """

    dsn: str
    schema: str
    table_name: str
    cursor: tuple[str, ...]
    key: tuple[str, ...]
    original: str  # of a renamed one: the app's own table

    def __init__(
        self, dsn: str, table: str, *, cursor: str | Sequence[str], key: str | Sequence[str] | None = None
    ) -> None:
        schema, _, last = table.rpartition(".")
        if not last or "." in schema or "%" in table:
            raise SourceError(f"PostgresTable {table!r}: wanted is TABLE or SCHEMA.TABLE, without a per cent sign.")
        if not key_fields(cursor):
            raise SourceError(f"PostgresTable {table!r}: a cursor is wanted, the column that orders its rows.")
        for name, value in (("dsn", dsn), ("schema", schema), ("table_name", last)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "cursor", key_fields(cursor))
        object.__setattr__(self, "key", key_fields(key))
        object.__setattr__(self, "original", "")

    @property
    def table(self) -> str:
        return ".".join(filter(None, (self.schema, self.table_name)))

    @property
    def where(self) -> str:
        return f"Postgres table {self.table} at {place(self.dsn)}"

    @property
    def contract(self) -> SourceContract:
        return CONTRACT

    @property
    def ordered(self) -> bool:
        return True

    @property
    def transaction_ms(self) -> int:
        return 10_000

    @property
    def lanes(self) -> int:
        return 1

    def complaint(self, key: Any, value: Any) -> str:
        if value in (str, bytes, int, float, bool) or fields_of(value) == frozenset():
            return f"{self.where}: rows have columns; the topic's value must be a type with fields."
        return key_complaint(self.where, self.key, key, value)

    def renamed(self, suffix: str) -> PostgresTable:
        table = ".".join(filter(None, (self.schema, (self.table_name + suffix).replace(".", "_"))))
        made = PostgresTable(self.dsn, table, cursor=self.cursor, key=self.key)
        object.__setattr__(made, "original", self.original or self.table)
        return made

    def open(self, topic: Any, lane: int, follow: bool) -> SourceConnection:
        self._needs_psycopg()
        from semel.sources.postgres_table_connection import TableConnection

        return TableConnection(self, topic)

    def trial(self, topic: Any) -> SourceTrial:
        self._needs_psycopg()
        from semel.sources.postgres_table_trial import TableTrial

        return TableTrial(self, topic)

    def _needs_psycopg(self) -> None:
        try:
            from semel.sources import postgres_session  # noqa: F401
        except ModuleNotFoundError as missing:
            if missing.name != "psycopg":
                raise
            raise UsageError(f"{self.where} needs psycopg: pip install 'semel[postgres]'") from None

    def __repr__(self) -> str:
        return f"<{self.where}, cursor={self.cursor}>"
