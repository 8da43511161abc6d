"""Rows that are appended with the id of their event: repeats are stored, the view removes them. The contract kit, and
what it finds: tests/servers/test_appended.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg
import pytest

from semel import App, Builder, Topic
from semel.contract import Deduplicated
from semel.guarantees import Circumstances, analyse
from semel.host.postgres import PostgresServer
from semel.ports import Done, Fenced
from semel.sinks import PostgresAppended, dedup
from semel.sinks.sink import SinkError
from tests.sinks.conftest import MakeSink, database
from tests.sinks.values import LOG, Total, claimed, held, opened, rows


@pytest.fixture
def make(server: PostgresServer) -> MakeSink:
    dsn = database(server)
    return lambda table="totals", **said: PostgresAppended(dsn, table, **{"hand_over_s": 2.0, **said})


def everything(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query).fetchall()  # type: ignore[arg-type]


def test_a_repeat_is_stored_and_the_view_has_it_once(make: MakeSink) -> None:
    """The id is made of app, sink, incarnation, partition and offset; a superseded owner appends, and is told."""
    sink = make()
    old, new = opened(sink), opened(sink)
    stale = claimed(old, sink)
    batch = rows(sink, [Total("a", 1), Total("b", 2)])
    assert old.write(stale, 0, 2, "r", batch) == Done()
    assert new.write(claimed(new, sink), 2, 3, "r", rows(sink, [Total("a", 3)], 2)) == Done()
    assert isinstance(old.write(stale, 0, 2, "r", batch), Fenced)
    assert held(new) == [("a", 1), ("a", 3), ("b", 2)]
    assert new.stored() == 5  # type: ignore[attr-defined]
    ids = everything(sink.dsn, f"SELECT {dedup.EVENT} FROM totals_once ORDER BY 1")
    assert ids == [(f"app/totals/1/0/{n}",) for n in range(3)]
    assert sink.kind is Deduplicated


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("(customer text, total bigint)", r"no column for the id .* ALTER TABLE totals ADD COLUMN semel_event"),
        ("(customer text, total bigint, semel_event text)", "'semel_event' is text NULL, wanted is text COLLATE"),
        ("(customer text, total bigint, semel_event uuid NOT NULL)", "'semel_event' is uuid, wanted"),
        ("(customer text, total bigint, semel_event text PRIMARY KEY)", "its unique index on .semel_event. would"),
        ("(customer text PRIMARY KEY, total bigint, semel_event text NOT NULL)", "would refuse a repeat"),
    ],
)
def test_a_table_that_would_lose_or_refuse_is_refused(make: MakeSink, table: str, says: str) -> None:
    """Rows without an id would be taken for repeats of one; a unique index stops at the first repeat."""
    with psycopg.connect(make().dsn, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE totals {table}")  # type: ignore[arg-type]
    with pytest.raises(SinkError, match=says):
        make().open().prepare(Total)


def test_the_statement_that_mends_a_table_does(make: MakeSink) -> None:
    """Its former rows get ids of their own and stay, each."""
    with psycopg.connect(make().dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE totals (customer text, total bigint)")
        connection.execute("INSERT INTO totals VALUES ('a', 1), ('a', 1)")
        with pytest.raises(SinkError) as refused:
            make().open().prepare(Total)
        statement = str(refused.value).partition("ALTER TABLE")[2].partition(";")[0]
        connection.execute("ALTER TABLE" + statement)  # type: ignore[arg-type]
    sink = make()
    written = opened(sink)
    assert written.write(claimed(written, sink), 0, 1, "r", rows(sink, [Total("b", 2)])) == Done()
    assert held(written) == [("a", 1), ("a", 1), ("b", 2)]


def test_a_view_that_a_person_made_is_left_and_one_that_lacks_a_column_is_refused(make: MakeSink) -> None:
    """It may have more, or another way to remove repeats; it may not have less."""
    sink = make()
    opened(sink).close()
    with psycopg.connect(sink.dsn, autocommit=True) as connection:
        connection.execute("DROP VIEW totals_once")
        connection.execute("CREATE VIEW totals_once AS SELECT DISTINCT *, 1 AS one FROM totals")
        opened(sink).close()
        assert everything(sink.dsn, "SELECT * FROM totals_once") == []
        connection.execute("DROP VIEW totals_once")
        connection.execute("CREATE VIEW totals_once AS SELECT customer FROM totals")
    with pytest.raises(SinkError, match=r"no column 'total'\. DROP VIEW"):
        sink.open().prepare(Total)


def test_a_recreated_outbox_stops_it(make: MakeSink) -> None:
    """S16: its offsets begin at 0 again, and the view would hold its records for repeats of the former ones."""
    sink = make()
    connection = opened(sink)
    claimed(connection, sink)
    with pytest.raises(SinkError, match="re-created"):
        claimed(connection, sink, log=replace(LOG, topic_id="another"))


def test_check_names_the_view_and_where_rows_can_be_twice(make: MakeSink) -> None:
    """The label is of what stands behind the view, and says so; without it, at-least-once."""
    totals = Topic("totals-in", key=str, value=Total)
    sink = make()

    def build(b: Builder) -> None:
        b.read(totals).write(sink)

    (path,) = analyse(App("a", build).graph(), Circumstances()).paths
    assert path.guarantee == "effectively-once"
    assert "the view totals_once" in path.boundary and "before it rows can be there twice" in path.boundary
    assert any("repeats among them" in reason for reason in path.reasons)
