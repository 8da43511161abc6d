"""Rows that were appended with their event id, read once each: the view that removes repeats, in five dialects, and
what the batch steps that take them out for good have in common (`dedup_postgres.py`, `dedup_duckdb.py`,
`dedup_parquet.py`).

A repeat has the same event id as the row that it repeats, and the same values: an id names one committed record of one
outbox. So which of them stays says nothing, and no dialect is asked to choose.

Invariant: a view keeps exactly one row per event id, and so does a step; it never removes a row that it has not seen
together with another one of the same id, so what is appended meanwhile stays, and it can be ended at any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from semel.sinks.sink import SinkError

EVENT = "semel_event"  # the column: APP/SINK/incarnation/partition/offset
ONCE = "_once"  # the view of a table is named TABLE_once


class SqlDialect(StrEnum):
    POSTGRES = "postgres"
    DUCKDB = "duckdb"
    CLICKHOUSE = "clickhouse"
    BIGQUERY = "bigquery"
    SNOWFLAKE = "snowflake"


# What semel's tests run the text on, and where it is only parsed.
TRIED = {
    SqlDialect.POSTGRES: "run by semel's tests on a real server",
    SqlDialect.DUCKDB: "run by semel's tests",
    SqlDialect.CLICKHOUSE: "run by semel's tests on ClickHouse 26.9 (chdb); it is ClickHouseAppended's own view",
    SqlDialect.BIGQUERY: "generated and parsed, never run by semel's tests: try it on a copy first",
    SqlDialect.SNOWFLAKE: "generated and parsed, never run by semel's tests: try it on a copy first",
}


def event_ids(app: str, sink: str, incarnation: int, partition: int, offsets: Sequence[int]) -> list[str]:
    """The ids of committed records of one outbox. The names hold no "/", so no two records share one."""
    assert "/" not in app + sink, (app, sink)
    beginning = f"{app}/{sink}/{incarnation}/{partition}/"
    return [beginning + text for text in map(str, offsets)]


def quoted(dialect: SqlDialect, name: str) -> str:
    if dialect is SqlDialect.BIGQUERY:
        if "`" in name or "\\" in name:
            raise SinkError(f"BigQuery takes no backtick or backslash in a name: {name!r}.")
        return f"`{name}`"
    if dialect is SqlDialect.CLICKHOUSE:
        name = name.replace("\\", "\\\\")  # the only one of these in which it escapes within double quotes
    return '"' + name.replace('"', '""') + '"'


def view(
    dialect: SqlDialect,
    table: Sequence[str],
    columns: Sequence[str] | None,
    ids: Sequence[str] = (EVENT,),
    name: Sequence[str] | None = None,
) -> str:
    """`CREATE OR REPLACE VIEW TABLE_once`: each event id once. `table` is a name with what qualifies it before it;
    `columns` None: all of them, as the table has them when the view is made."""
    made = tuple(name) if name is not None else (*table[:-1], table[-1] + ONCE)
    return f"CREATE OR REPLACE VIEW {_path(dialect, made)} AS {once(dialect, table, columns, ids)}"


def once(
    dialect: SqlDialect, table: Sequence[str], columns: Sequence[str] | None, ids: Sequence[str] = (EVENT,)
) -> str:
    """The query behind the view."""
    assert ids, "an event id has at least one column"
    what = "*" if columns is None else ", ".join(quoted(dialect, c) for c in columns)
    of = _path(dialect, table)
    id = ", ".join(quoted(dialect, c) for c in ids)
    match dialect:
        case SqlDialect.POSTGRES:
            return f"SELECT DISTINCT ON ({id}) {what} FROM {of} ORDER BY {id}"
        case SqlDialect.CLICKHOUSE:
            return f"SELECT {what} FROM {of} LIMIT 1 BY {id}"
        case SqlDialect.DUCKDB | SqlDialect.SNOWFLAKE:
            # Snowflake wants an ORDER BY in the window; the rows of one id are equal, so it decides nothing.
            return f"SELECT {what} FROM {of} QUALIFY row_number() OVER (PARTITION BY {id} ORDER BY {id}) = 1"
        case SqlDialect.BIGQUERY:  # QUALIFY once wanted a WHERE beside it
            return f"SELECT {what} FROM {of} WHERE TRUE QUALIFY ROW_NUMBER() OVER (PARTITION BY {id} ORDER BY {id}) = 1"


def _path(dialect: SqlDialect, parts: Sequence[str]) -> str:
    return ".".join(quoted(dialect, part) for part in parts)


# --- the batch step: what its kinds share ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Removed:
    """What one run of the step has done. A row whose id is NULL is nobody's repeat."""

    rows: int  # that were there when it began
    removed: int
    notes: tuple[str, ...] = ()

    @property
    def left(self) -> int:
        return self.rows - self.removed


At = Callable[[str], None]  # told where the step is: "chosen", "deleted", …; for tests, which end it there


def no_at(stage: str) -> None:
    return


def differ(where: str, ids: Sequence[str], found: Sequence[Sequence[object]]) -> SinkError:
    """Rows of one id that are not equal are no repeats: one of them would be lost, and which one would be chance."""
    named = ", ".join("/".join(map(str, one)) for one in found[:3])
    return SinkError(
        f"{where}: rows of one {', '.join(ids)} differ in other columns ({named}), so they are no repeats of each "
        "other. Nothing was removed. If a column tells when a row arrived, name it: --ignore COLUMN. If not, two "
        "writers give the same ids, or a log went back: look at these rows first."
    )
