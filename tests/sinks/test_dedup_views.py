"""The view that has each event once, in five dialects: names are names, and what is run shows it."""

from __future__ import annotations

import duckdb
import pytest
import sqlglot

from semel.sinks import dedup
from semel.sinks.dedup import EVENT, SqlDialect

EVENTS = [(f"app/sink/1/{n % 4}/{n}", n) for n in range(50)]
ODD = ['a "quoted" name', "n", EVENT]


@pytest.mark.parametrize("dialect", SqlDialect)
def test_the_view_parses_in_its_dialect_and_names_are_names(dialect: SqlDialect) -> None:
    """By a parser that is not ours: one view, over one table, of these columns, one row per event id."""
    text = dedup.view(dialect, ("shop", "events"), ODD)
    (parsed,) = sqlglot.parse(text, read=dialect.value)
    exp = sqlglot.exp
    assert isinstance(parsed, exp.Create) and parsed.args["kind"] == "VIEW" and parsed.args["replace"]
    assert [table.name for table in parsed.find_all(exp.Table)] == ["events_once", "events"]
    assert [column.name for column in parsed.expression.expressions] == ODD
    select = parsed.expression
    per = {
        SqlDialect.POSTGRES: lambda: select.args["distinct"].args["on"].expressions,
        SqlDialect.CLICKHOUSE: lambda: select.args["limit"].expressions,
    }.get(dialect, lambda: next(select.args["qualify"].find_all(exp.Window)).args["partition_by"])
    assert [column.name for column in per()] == [EVENT]


def test_the_view_of_duckdb_has_each_event_once() -> None:
    """Run, not only parsed. (Postgres': test_appended.py.)"""
    connection = duckdb.connect()
    connection.execute(f'CREATE TABLE events ("a ""quoted"" name" int, n int, {EVENT} varchar)')
    connection.executemany("INSERT INTO events VALUES (?, ?, ?)", [[n, n, id] for id, n in [*EVENTS, *EVENTS[::2]]])
    connection.execute(dedup.view(SqlDialect.DUCKDB, ("events",), ODD))
    found = connection.execute(f"SELECT {EVENT}, n FROM events_once").fetchall()
    assert sorted(found) == sorted(EVENTS)
    connection.execute(dedup.view(SqlDialect.DUCKDB, ("events",), None))
    assert len(connection.execute("SELECT * FROM events_once").fetchall()) == 50
