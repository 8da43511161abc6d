"""Rows of a batch as statements of Postgres, inside the caller's transaction, for whichever contract.

Invariant: each key is in one of upserts and deletes, once; what is written is what the shape has converted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg import sql

from semel.sinks.postgres_session import Plain, copy_text, each, names
from semel.sinks.rows import Begun, Upsert, Upserts, by_column, by_row

COPY_ROWS_MIN = 100  # below this, statements in a pipeline are quicker than COPY and a merge


def write(
    connection: psycopg.Connection[Any],
    table: sql.Composable,
    batch: Begun,
    *,
    temporary: bool,
) -> None:
    """`temporary`: whether this transaction may use a temporary table. One that is to be prepared may not: Postgres
    refuses to prepare it (0A000). Raises RowRefused with some of the rows written: the caller rolls back."""
    shape = batch.shape
    key, fields = shape.key, [column.name for column in shape.columns]
    columns = names(fields)
    if batch.deletes:
        match = sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in key or ())
        query = sql.SQL("DELETE FROM {} WHERE {}").format(table, match)
        each(connection, query, [one.key for one in batch.deletes])
    if not batch.rows:
        return
    merge = sql.SQL("") if key is None else sql.SQL(" ON CONFLICT ({}) DO ").format(names(key)) + _update(fields, key)
    if len(batch.rows) < COPY_ROWS_MIN:
        places = sql.SQL(", ").join(sql.Placeholder() * len(fields))
        insert = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(table, columns, places) + merge
        each(connection, insert, [values for piece in batch.pieces() for values in by_row(piece)])
        return
    if key is not None and not temporary:
        types = _types(connection, table)
        cast = sql.SQL(", ").join(sql.SQL("{}::" + types[name]).format(sql.Identifier(name)) for name in fields)
        arrays = sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(fields))
        insert = sql.SQL("INSERT INTO {} ({c}) SELECT {} FROM unnest({}) AS semel_batch ({c})").format(
            table, cast, arrays, c=columns
        )
        for piece in batch.pieces():
            connection.execute(insert + merge, [_array(column) for column in by_column(piece)])
        return
    target: sql.Composable = table
    if key is not None:
        target = sql.Identifier("pg_temp", "semel_batch")
        connection.execute(
            sql.SQL(
                "CREATE TEMP TABLE IF NOT EXISTS semel_batch ON COMMIT DELETE ROWS AS SELECT {} FROM {} WITH NO DATA"
            ).format(columns, table)
        )
    copy(connection, target, columns, map(by_column_plain, batch.pieces()))
    if key is not None:
        connection.execute(
            sql.SQL("INSERT INTO {} ({c}) SELECT {c} FROM pg_temp.semel_batch").format(table, c=columns) + merge
        )


def _types(connection: psycopg.Connection[Any], table: sql.Composable) -> dict[str, Any]:
    """The types of the columns, without their modifiers: a cast to varchar(3) cuts, an assignment refuses."""
    found = connection.execute(
        "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = to_regclass(%s) "
        "AND attnum > 0 AND NOT attisdropped",
        (table.as_string(connection),),
    )
    return dict(found.fetchall())


def _array(values: Sequence[object]) -> str:
    """As an array of texts is written (PostgreSQL: Arrays, Input and Output Syntax)."""
    texts = ["" if v is None else v if type(v) is str else str(v) for v in values]
    whole = "".join(texts)
    if '"' in whole or "\\" in whole:
        texts = [text.replace("\\", "\\\\").replace('"', '\\"') for text in texts]
    if None in values:
        return "{" + ",".join(["NULL" if v is None else f'"{t}"' for v, t in zip(values, texts)]) + "}"
    return '{"' + '","'.join(texts) + '"}'


def by_column_plain(piece: Sequence[Upsert]) -> Sequence[Sequence[object]]:
    """By column, and of each whether it is text as COPY takes it: what JSON did not escape needs no look at it."""
    columns = by_column(piece)
    if not isinstance(piece, Upserts):
        return columns
    return [Plain(held) if plain else held for held, plain in zip(columns, piece.plain)]  # type: ignore[arg-type]


def copy(
    connection: psycopg.Connection[Any],
    target: sql.Composable,
    columns: sql.Composable,
    pieces: Iterable[Sequence[Sequence[object]]],
) -> None:
    """Rows, given by column, a part at a time: the server reads the one while the next is made."""
    with (
        connection.cursor() as cursor,
        cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(target, columns)) as copy,
    ):
        for piece in pieces:
            copy.write(copy_text(piece))


def _update(fields: Sequence[str], key: Sequence[str]) -> sql.Composable:
    others = [name for name in fields if name not in key]
    if not others:
        return sql.SQL("NOTHING")
    return sql.SQL("UPDATE SET ") + sql.SQL(", ").join(
        sql.SQL("{c} = excluded.{c}").format(c=sql.Identifier(name)) for name in others
    )
