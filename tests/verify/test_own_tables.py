"""The run's own tables are like the user's, so that what those do to values is seen."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest

from semel.host.postgres import PostgresServer
from semel.ports import Done
from semel.sinks import Postgres, SQLite
from semel.sinks.columns import Column, ColumnType, canonical_row
from semel.sinks.sink import RowRefused, SinkError
from tests.sinks.values import Total, claimed, opened, rows


@dataclass(frozen=True)
class Day:
    day: str
    n: int


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
        yield server


def test_a_sqlite_column_that_rounds_keys_is_seen(tmp_path: Path) -> None:
    """The story: `day DATE PRIMARY KEY` has the affinity of a number, so "007" and "7" are one row. verify made its
    table from the type, compared 40 rows with 40, and said `holds`; the real table had 20. Now the run's table does
    the same, or it is refused as the real one is."""
    file = tmp_path / "sink.db"
    with sqlite3.connect(file) as made:
        made.execute("CREATE TABLE days (day DATE PRIMARY KEY, n INTEGER)")
    made.close()
    sink = SQLite(file, "days", key="day").renamed("_v")
    try:
        connection = opened(sink, Day)
    except SinkError:
        return  # the table is refused, and so is the run
    batch = rows(sink, [Day("007", 1), Day("7", 2)])
    assert connection.write(claimed(connection, sink), 0, 2, "r", batch) == Done()
    assert sorted(connection.rows()) != sorted(connection.canonical(row.value) for row in batch if row.value)


@pytest.mark.parametrize("name", ["totals", "select", 'a "b" [c]', "it's"])
def test_a_sqlite_table_is_repeated_with_all_that_belongs_to_it(tmp_path: Path, name: str) -> None:
    """Checks, collations and indexes, whatever the table's name; then the run's are removed and the user's stay."""
    file = tmp_path / "sink.db"
    quoted = '"' + name.replace('"', '""') + '"'
    with sqlite3.connect(file) as made:
        made.execute(
            f"create  table if not exists main.{quoted}(customer TEXT, total INTEGER CHECK (total < 9), "
            "PRIMARY KEY (customer)) WITHOUT ROWID"
        )
        made.execute(f'create unique index "an ""index" on {quoted} (total)')
        made.execute(f"create index plain on {quoted} (total desc)")
        before = made.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()
    sink = SQLite(file, name, key="customer").renamed("verify-1.")
    connection = opened(sink)
    there = made.execute("SELECT type FROM sqlite_schema WHERE tbl_name = ? AND sql IS NOT NULL", (sink.table,))
    assert sorted(there.fetchall()) == [("index",), ("index",), ("table",)]
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    for wrong in (Total("b", 1), Total("b", 9)):
        with pytest.raises(RowRefused):
            connection.write(claim, 1, 2, "r", rows(sink, [wrong], start=1))
    connection.drop()
    connection.close()
    assert made.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall() == before
    made.close()


def test_a_sqlite_view_is_no_table_to_be_like(tmp_path: Path) -> None:
    """The run itself would refuse it: so does verify."""
    file = tmp_path / "sink.db"
    with sqlite3.connect(file) as made:
        made.execute("CREATE VIEW totals AS SELECT 'a' AS customer, 1 AS total")
    made.close()
    with pytest.raises(SinkError, match="view"):
        opened(SQLite(file, "totals").renamed("_v"))


def test_a_postgres_table_is_repeated_with_its_types_and_checks(server: PostgresServer) -> None:
    """Checks, unique indexes and narrow types of the user's table are the run's, too."""
    with psycopg.connect(server.dsn, autocommit=True) as made:
        made.execute("CREATE TABLE totals (customer text PRIMARY KEY, total bigint UNIQUE CHECK (total < 9))")
        sink = Postgres(server.dsn, "totals", key="customer").renamed("_v")
        connection = opened(sink)
        claim = claimed(connection, sink)
        assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
        for wrong in (Total("b", 1), Total("b", 9)):
            with pytest.raises(RowRefused):
                connection.write(claim, 1, 2, "r", rows(sink, [wrong], start=1))
        connection.drop()
        connection.close()
        tables = made.execute("SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relname ~ 'totals|semel'")
        assert tables.fetchall() == [("totals",)]
        made.execute("CREATE UNLOGGED TABLE loose (customer text PRIMARY KEY, total bigint)")
        with pytest.raises(SinkError, match="UNLOGGED"):
            opened(Postgres(server.dsn, "loose", key="customer").renamed("_v"))


def test_whole_numbers_that_no_float_holds_are_not_equal_to_one_that_does() -> None:
    """A float field may hold an int: 2**53 + 1 in a column of floats is 2**53, which is another number."""
    columns = [Column("ratio", ColumnType.FLOAT, nullable=True)]

    def row(value: object) -> bytes:
        return canonical_row(columns, {"ratio": value})

    big = 2**53
    assert row(big) == row(float(big)) == row(Decimal(big)) and row(1) == row(1.0) == row(Decimal("1.00"))
    assert row(0.1) == row(Decimal("0.1")) and row(0) == row(-0.0) and row(None) == row(None)
    assert row(big + 1) != row(float(big)) and row(big + 1) == row(Decimal(big + 1))
    assert row(10**400) != row(10**400 + 1) and row(Decimal("1e400")) == row(10**400)
