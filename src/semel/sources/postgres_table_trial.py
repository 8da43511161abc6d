"""A table of the run's own, for `semel verify`: like the app's, filled in the way that is the hardest to read.

Of what is added together, the first half is written by a transaction that stays open until more is added, the second by
one that commits at once: lower numbers always appear after higher ones.

Invariant: only this table is written and dropped; its numbers come from a sequence of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from semel.sources.postgres_session import ReadingSession
from semel.sources.postgres_table import PostgresTable
from semel.sources.source import Coder, SourceError


class TableTrial:
    after_the_start = False

    def __init__(self, source: PostgresTable, topic: Any) -> None:
        self._source, self._topic = source, topic
        self._table = sql.Identifier(*filter(None, (source.schema, source.table_name)))
        self._like = sql.Identifier(*(source.original or source.table).split("."))
        self._session = ReadingSession(source.dsn, source.where)
        self._held: psycopg.Connection[Any] | None = None  # its transaction is open
        self._made = False

    def prepare(self) -> None:
        connection = self._session.connected()
        try:
            connection.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(self._table, self._like))
        except psycopg.Error as why:
            raise SourceError(f"{self._source.where}: a table like the app's could not be made: {why}") from None
        self._made = True
        column = sql.Identifier(self._source.cursor[0])
        default = connection.execute(
            "SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid "
            "AND a.attnum = d.adnum WHERE a.attrelid = to_regclass(%s) AND a.attname = %s",
            (self._table.as_string(connection), self._source.cursor[0]),
        ).fetchone()
        if default is not None and "nextval(" in default[0]:  # of the app's own sequence, so far
            schema, last = self._source.schema, self._source.table_name
            sequence = sql.Identifier(*filter(None, (schema, f"{last}_seq")))
            connection.execute(sql.SQL("CREATE SEQUENCE {} OWNED BY {}.{}").format(sequence, self._table, column))
            connection.execute(
                sql.SQL("ALTER TABLE {} ALTER {} SET DEFAULT nextval({})").format(
                    self._table, column, sql.Literal(sequence.as_string(connection))
                )
            )

    def add(self, rows: Sequence[Any]) -> int:
        self._settle()
        if not rows:
            return 0
        held = self._held = psycopg.connect(self._source.dsn, application_name="semel verify")
        half = max(1, len(rows) // 2)
        self._insert(held, rows[:half])
        self._insert(self._session.connected(), rows[half:])
        return len(rows)

    def _insert(self, connection: psycopg.Connection[Any], rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            given = {name: value for name, value in row.items() if name not in self._source.cursor}
            values = [Jsonb(value) if isinstance(value, dict) else value for value in given.values()]
            names = sql.SQL(", ").join(map(sql.Identifier, given))
            marks = sql.SQL(", ").join([sql.Placeholder()] * len(given))
            into = sql.SQL("INSERT INTO {} ({}) VALUES ({})") if given else sql.SQL("INSERT INTO {} DEFAULT VALUES{}{}")
            connection.execute(into.format(self._table, names, marks), values)

    def _settle(self) -> None:
        if self._held is not None:
            self._held.commit()
            self._held.close()
            self._held = None

    def rows(self) -> Sequence[tuple[bytes | None, bytes | None]]:
        self._settle()
        coder = Coder(self._topic, self._source.key)
        order = sql.SQL(", ").join(map(sql.Identifier, self._source.cursor))
        with self._session.connected().cursor(row_factory=dict_row) as cursor:
            cursor.execute(sql.SQL("SELECT * FROM {} ORDER BY {}").format(self._table, order))
            return [coder.record(row) for row in cursor]

    def drop(self) -> None:
        with contextlib.suppress(psycopg.Error):
            if self._held is not None:
                self._held.close()
            if self._made:
                self._session.connected().execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self._table))
        self._session.close()
