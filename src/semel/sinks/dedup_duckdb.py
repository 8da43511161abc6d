"""The batch step on a table of a DuckDB file: repeats are deleted, in one transaction.

Invariant: as for Postgres. A DuckDB file belongs to one process at a time, so appends come meanwhile only from other
connections of this process; another process is refused by DuckDB itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from semel.sinks.dedup import EVENT, At, Removed, SqlDialect, differ, no_at, quoted
from semel.sinks.sink import SinkError


def deduplicate(
    file: str | Path,
    table: Sequence[str],
    ids: Sequence[str] = (EVENT,),
    ignore: Sequence[str] = (),
    at: At = no_at,
) -> Removed:
    """Keeps one row per id. `table`: its name, with the schema before it or without."""
    where = f"DuckDB table {'.'.join(table)} in {file}"
    if not Path(file).is_file():
        raise SinkError(f"{where}: there is no such file.")
    try:
        with duckdb.connect(str(file)) as connection:
            return within(connection, where, table, ids, ignore, at)
    except duckdb.Error as why:
        raise SinkError(f"{where}: {str(why).splitlines()[0].rstrip('.')}. Nothing was removed.") from None


def within(
    connection: Any, where: str, table: Sequence[str], ids: Sequence[str], ignore: Sequence[str], at: At
) -> Removed:
    """The same on a connection that is there already, in a transaction of its own."""

    def name(column: str) -> str:
        return quoted(SqlDialect.DUCKDB, column)

    of = ".".join(map(name, table))
    there = connection.execute(
        f"SELECT name, dflt_value IS NULL FROM pragma_table_info('{of.replace(chr(39), chr(39) * 2)}')"
    )
    columns = dict(there.fetchall())
    if lacks := [column for column in (*ids, *ignore) if column not in columns]:
        raise SinkError(f"{where}: it has no column {lacks[0]!r}.")
    id = ", ".join(map(name, ids))
    has = " AND ".join(f"{name(column)} IS NOT NULL" for column in ids)
    compared = ", ".join(name(c) for c, written in columns.items() if written and c not in (*ids, *ignore))
    connection.execute("BEGIN TRANSACTION")
    try:
        (rows,) = connection.execute(f"SELECT count(*) FROM {of}").fetchone()
        if compared:
            found = connection.execute(
                f"SELECT {id} FROM {of} WHERE {has} GROUP BY {id} HAVING count(*) > 1 "
                f"AND count(DISTINCT row({compared})) > 1 LIMIT 3"
            ).fetchall()
            if found:
                raise differ(where, ids, found)
        at("chosen")
        (removed,) = connection.execute(
            f"DELETE FROM {of} WHERE rowid IN (SELECT place FROM (SELECT rowid AS place, row_number() OVER "
            f"(PARTITION BY {id} ORDER BY rowid) AS n FROM {of} WHERE {has}) WHERE n > 1)"
        ).fetchone()
        at("deleted")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    at("committed")
    return Removed(rows, removed)
