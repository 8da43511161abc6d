"""Rows of a batch as statements of Postgres, inside the caller's transaction, for whichever contract.

Invariant: each key is in one of upserts and deletes, once; what is written is what the shape has converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from semel.sinks.postgres_session import PostgresSession, brief, copy_text, each, is_refusal, names
from semel.sinks.rows import Delete, Shape, Upsert, by_column, by_row
from semel.sinks.sink import RowRefused, SinkError

COPY_ROWS_MIN = 100  # below this, statements in a pipeline are quicker than COPY and a merge


def write(
    connection: psycopg.Connection[Any],
    table: sql.Composable,
    shape: Shape,
    upserts: Sequence[Upsert],
    deletes: Sequence[Delete],
    *,
    temporary: bool,
) -> None:
    """`temporary`: whether this transaction may use a temporary table. One that is to be prepared may not: Postgres
    refuses to prepare it (0A000)."""
    key, fields = shape.key, [column.name for column in shape.columns]
    columns = names(fields)
    if deletes:
        match = sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in key or ())
        query = sql.SQL("DELETE FROM {} WHERE {}").format(table, match)
        each(connection, query, [one.key for one in deletes])
    if not upserts:
        return
    merge = sql.SQL("") if key is None else sql.SQL(" ON CONFLICT ({}) DO ").format(names(key)) + _update(fields, key)
    if len(upserts) < COPY_ROWS_MIN or (key is not None and not temporary):
        places = sql.SQL(", ").join(sql.Placeholder() * len(fields))
        insert = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(table, columns, places) + merge
        each(connection, insert, list(by_row(upserts)))
        return
    target: sql.Composable = table
    if key is not None:
        target = sql.Identifier("pg_temp", "semel_batch")
        connection.execute(
            sql.SQL(
                "CREATE TEMP TABLE IF NOT EXISTS semel_batch ON COMMIT DELETE ROWS AS SELECT {} FROM {} WITH NO DATA"
            ).format(columns, table)
        )
    with (
        connection.cursor() as cursor,
        cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(target, columns)) as copy,
    ):
        copy.write(copy_text(by_column(upserts)))
    if key is not None:
        connection.execute(
            sql.SQL("INSERT INTO {} ({c}) SELECT {c} FROM pg_temp.semel_batch").format(table, c=columns) + merge
        )


def refuse(
    session: PostgresSession,
    connection: psycopg.Connection[Any],
    where: str,
    upserts: Sequence[Upsert],
    deletes: Sequence[Delete],
    why: psycopg.Error,
) -> None:
    """Finds the row that the server refuses by trying each alone, in a transaction that is rolled back, and raises
    RowRefused. Returns when the server does not answer."""
    shape = session.shape
    assert shape is not None
    offset = -1
    try:
        connection.execute("BEGIN")
        for delete in deletes:
            offset = delete.offset
            write(connection, session.table, shape, [], [delete], temporary=False)
        for upsert in upserts:
            offset = upsert.offset
            write(connection, session.table, shape, [upsert], [], temporary=False)
    except psycopg.Error as refusal:
        session.rolled_back()
        if is_refusal(refusal):
            raise RowRefused(brief(refusal), offset) from None
        return
    session.rolled_back()
    raise SinkError(f"{where} refuses a batch each of whose rows it accepts alone: {brief(why)}.")


def _update(fields: Sequence[str], key: Sequence[str]) -> sql.Composable:
    others = [name for name in fields if name not in key]
    if not others:
        return sql.SQL("NOTHING")
    return sql.SQL("UPDATE SET ") + sql.SQL(", ").join(
        sql.SQL("{c} = excluded.{c}").format(c=sql.Identifier(name)) for name in others
    )
