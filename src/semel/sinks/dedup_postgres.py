"""The batch step on a Postgres table: repeats are deleted, in one transaction.

Invariant: a row is deleted only together with an earlier row of its id that stays, both in one snapshot. What others
append meanwhile is not in it and is not touched; nothing is locked against them. Ended at any moment, the transaction
is rolled back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from semel.sinks.dedup import EVENT, At, Removed, differ, no_at
from semel.sinks.postgres import place
from semel.sinks.postgres_session import brief, names, one
from semel.sinks.sink import SinkError


def deduplicate(
    dsn: str, table: Sequence[str], ids: Sequence[str] = (EVENT,), ignore: Sequence[str] = (), at: At = no_at
) -> Removed:
    """Keeps one row per id. `table`: its name, with the schema before it or without."""
    where = f"Postgres table {'.'.join(table)} at {place(dsn)}"
    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=10, application_name="semel dedup") as connection:
            return _deduplicate(connection, where, sql.Identifier(*table), ids, ignore, at)
    except psycopg.Error as why:
        raise SinkError(f"{where}: {brief(why)}. Nothing was removed, or all of it: run it again.") from None


def _deduplicate(
    connection: psycopg.Connection[Any],
    where: str,
    table: sql.Identifier,
    ids: Sequence[str],
    ignore: Sequence[str],
    at: At,
) -> Removed:
    text = table.as_string(connection)
    there = connection.execute(
        "SELECT a.attname::text, NOT a.atthasdef AND a.attidentity = '' FROM pg_attribute a "
        "WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped",
        (text,),
    ).fetchall()
    if not there:
        raise SinkError(f"{where}: there is no such table.")
    if lacks := [name for name in (*ids, *ignore) if name not in {column for column, _ in there}]:
        raise SinkError(f"{where}: it has no column {lacks[0]!r}.")
    # A session's lock, taken before the snapshot: of two runs at once the second would wait for rows that are gone.
    if not one(connection, "SELECT pg_try_advisory_lock(hashtext('semel dedup'), hashtext(%s))", text)[0]:
        raise SinkError(f"{where}: another run of this step is at work on it. Wait for it to end.")
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    rows = one(connection, sql.SQL("SELECT count(*) FROM {}").format(table))[0]
    # What fills itself (an arrival's time, a number) is another one in each repeat.
    compared = [name for name, written in there if written and name not in (*ids, *ignore)]
    id, has = names(ids), sql.SQL(" AND ").join(sql.SQL("{} IS NOT NULL").format(sql.Identifier(c)) for c in ids)
    if compared:
        found = connection.execute(
            sql.SQL(
                "SELECT {id} FROM {t} WHERE {has} AND ({id}) IN "
                "(SELECT {id} FROM {t} GROUP BY {id} HAVING count(*) > 1) "
                "GROUP BY {id} HAVING count(DISTINCT ROW({compared})::text) > 1 LIMIT 3"
            ).format(id=id, t=table, has=has, compared=names(compared))
        ).fetchall()
        if found:
            raise differ(where, ids, found)
    at("chosen")
    removed = connection.execute(
        sql.SQL(
            "WITH ranked AS (SELECT tableoid AS part, ctid AS place, row_number() OVER (PARTITION BY {id} "
            "ORDER BY tableoid, ctid) AS n FROM {t} WHERE {has}) "
            "DELETE FROM {t} AS t USING ranked r WHERE t.tableoid = r.part AND t.ctid = r.place AND r.n > 1"
        ).format(id=id, t=table, has=has)
    ).rowcount
    at("deleted")
    status = connection.execute("COMMIT").statusmessage
    assert status == "COMMIT", f"{where}: COMMIT was answered with {status}"
    at("committed")
    return Removed(rows, removed)
