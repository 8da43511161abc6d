"""A table of the run's own that is changed, for `semel verify`: rows are inserted, updated and deleted, and
what the topic must hold is noted as it is done.

Invariant: nothing is changed before the slot is there, so that every change is one of the stream; only this table, its
publication and its slot are made and dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from semel.sources.postgres_changes import PostgresChanges
from semel.sources.postgres_session import ReadingSession
from semel.sources.source import Coder, SourceError

DELETE_EVERY = 5  # of those whose key is there


class ChangesTrial:
    after_the_start = True

    def __init__(self, source: PostgresChanges, topic: Any) -> None:
        self._source, self._coder = source, Coder(topic, source.key)
        self._table = sql.Identifier(*filter(None, (source.schema, source.table_name)))
        self._like = sql.Identifier(*(source.original or source.table).split("."))
        self._session = ReadingSession(source.dsn, source.where)
        self._waiting: list[dict[str, Any]] = []
        self._there: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._expected: list[tuple[bytes | None, bytes | None]] = []
        self._met = 0
        self._made = False

    def prepare(self) -> None:
        connection = self._session.connected()
        try:
            connection.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(self._table, self._like))
        except psycopg.Error as why:
            raise SourceError(f"{self._source.where}: a table like the app's could not be made: {why}") from None
        self._made = True
        connection.execute(sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(self._table))

    def add(self, rows: Sequence[Any]) -> int:
        new = [row["after"] or row["before"] for row in rows if row["after"] or row["before"]]
        self._waiting += new
        self._apply()
        return len(new)

    def _apply(self) -> None:
        connection = self._session.connected()
        begun = connection.execute(
            "SELECT 1 FROM pg_replication_slots WHERE slot_name = %s AND confirmed_flush_lsn IS NOT NULL",
            (self._source.slot,),
        ).fetchone()
        if begun is None or not self._waiting:
            return
        some, self._waiting = self._waiting, []
        with connection.transaction():
            for row in some:
                self._change(connection, row)

    def _change(self, connection: psycopg.Connection[Any], row: dict[str, Any]) -> None:
        key = tuple(row.get(name) for name in self._source.key)
        before = self._there.get(key)
        self._met += before is not None
        with connection.cursor(row_factory=dict_row) as cursor:
            if before is not None and self._met % DELETE_EVERY == 0:
                cursor.execute(sql.SQL("DELETE FROM {} WHERE {}").format(self._table, self._where()), key)
                del self._there[key]
                self._note("delete", before, None)
                return
            values = [Jsonb(value) if isinstance(value, dict) else value for value in row.values()]
            names = sql.SQL(", ").join(map(sql.Identifier, row))
            marks = sql.SQL(", ").join([sql.Placeholder()] * len(row))
            if before is None:
                query = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING *").format(self._table, names, marks)
                cursor.execute(query, values)
            else:
                query = sql.SQL("UPDATE {} SET ({}) = ROW ({}) WHERE {} RETURNING *").format(
                    self._table, names, marks, self._where()
                )
                cursor.execute(query, [*values, *key])
            after = cursor.fetchone()
            assert after is not None
            self._there[key] = after
            self._note("insert" if before is None else "update", before, after)

    def _where(self) -> sql.Composable:
        return sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in self._source.key)

    def _note(self, op: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> None:
        self._expected.append(self._coder.record({"op": op, "before": before, "after": after}, after or before))

    def rows(self) -> Sequence[tuple[bytes | None, bytes | None]]:
        self._apply()
        return self._expected

    def drop(self) -> None:
        with contextlib.suppress(psycopg.Error, SourceError):
            connection = self._session.connected()
            if self._made:
                connection.execute(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s",
                    (self._source.slot,),
                )
                connection.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(self._source.slot)))
                connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self._table))
        self._session.close()
