"""A Postgres table by cursor: every row once, also those that commit late under a lower number."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from semel import Topic
from semel.host.postgres import PostgresServer
from semel.ports import Step
from semel.sources import PostgresTable, postgres_table_connection
from semel.sources.source import SourceDiverged, SourceError
from tests.sources.world import Died, Reader, die, keys, values
from tests.support.outboxlog import OutboxLog


@dataclass(frozen=True)
class Event:
    customer: str
    amount: Decimal | None
    at: datetime
    payload: dict[str, Any] | None = None


BY_SEQUENCE = "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
BY_SERIAL = "id serial PRIMARY KEY"
BY_XID = (
    "txid xid8 NOT NULL DEFAULT pg_current_xact_id(), id uuid NOT NULL DEFAULT gen_random_uuid(), UNIQUE (txid, id)"
)
REST = "customer text, amount numeric, at timestamptz DEFAULT now(), payload jsonb"
CURSORS: dict[str, tuple[str, ...]] = {BY_SEQUENCE: ("id",), BY_SERIAL: ("id",), BY_XID: ("txid", "id")}


def connect(dsn: str) -> psycopg.Connection[Any]:
    return psycopg.connect(dsn)


def make(dsn: str, columns: str = BY_SEQUENCE, table: str = "events", rest: str = REST) -> Topic[str, Event]:
    with connect(dsn) as connection:
        connection.execute(f"CREATE TABLE {table} ({columns}, {rest})")  # type: ignore[arg-type]
    source = PostgresTable(dsn, table, cursor=CURSORS.get(columns, ("id",)), key="customer")
    return Topic("orders", key=str, value=Event, source=source, partitions=2)


def put(connection: psycopg.Connection[Any], *customers: str) -> None:
    for customer in customers:
        connection.execute("INSERT INTO events (customer, amount) VALUES (%s, 1.50)", (customer,))


def customers(log: OutboxLog) -> list[str]:
    return sorted(json.loads(value)["customer"] for value in values(log, "orders"))


@pytest.fixture(params=[BY_SEQUENCE, BY_SERIAL, BY_XID], ids=["identity", "serial", "xid8"])
def columns(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_rows_with_their_types(dsn: str, columns: str) -> None:
    """What Postgres has is what the type has; null where it may be; the key from its column."""
    topic = make(dsn, columns)
    with connect(dsn) as connection:
        put(connection, "a", "b")
        connection.execute("INSERT INTO events (customer, payload) VALUES ('c', '{\"x\": [1, 2]}')")
    log = OutboxLog()
    Reader(log, topic, records_max=2).all()
    assert customers(log) == ["a", "b", "c"]
    assert sorted(k for k in keys(log, "orders") if k) == [b"a", b"b", b"c"]
    by = {json.loads(v)["customer"]: json.loads(v) for v in values(log, "orders")}
    assert by["a"]["amount"] == "1.50" and by["c"]["payload"] == {"x": [1, 2]} and by["c"]["amount"] is None


def test_a_row_that_commits_late_under_a_lower_number_is_not_left_out(dsn: str, columns: str) -> None:
    """The trap: a transaction is held open, others commit behind it, the table is read; then it commits."""
    topic = make(dsn, columns)
    log = OutboxLog()
    reader = Reader(log, topic, follow=True)
    with connect(dsn) as first:
        put(first, "a")
    reader.turn(3)
    with connect(dsn) as held, connect(dsn) as other:
        put(held, "held")
        put(other, "b", "c")
        other.commit()
        reader.turn(5)
        assert customers(log) == ["a"]  # nothing is passed, and nothing is waited for by those who write
        put(other, "d")
        other.commit()
        held.commit()
    reader.turn(6)
    assert customers(log) == ["a", "b", "c", "d", "held"]
    order = [
        json.loads(r.value)["customer"] for p in log.topics["orders"].partitions for r in p if r.visible and r.value
    ]
    assert len(order) == 5
    reader.dies()
    Reader(log, topic).all()
    assert customers(log) == ["a", "b", "c", "d", "held"]


def test_a_transaction_that_is_rolled_back_or_prepared(dsn: str) -> None:
    topic = make(dsn)
    log = OutboxLog()
    reader = Reader(log, topic, follow=True)
    with connect(dsn) as gone, connect(dsn) as prepared, connect(dsn) as other:
        put(gone, "gone")
        prepared.tpc_begin(prepared.xid(1, "held", "x"))
        put(prepared, "prepared")
        prepared.tpc_prepare()
        put(other, "b")
        other.commit()
        reader.turn(4)
        gone.rollback()
        reader.turn(4)
        assert customers(log) == []
        prepared.tpc_commit()
    reader.turn(4)
    assert customers(log) == ["b", "prepared"]


def test_a_prepared_transaction_is_waited_for_over_a_restart(server: PostgresServer, dsn: str) -> None:
    """The server starts again while it is held: pg_locks has it under another name then."""
    topic = make(dsn)
    log = OutboxLog()
    reader = Reader(log, topic, follow=True)
    prepared, other = connect(dsn), connect(dsn)
    xid = prepared.xid(1, "over a restart", "x")
    prepared.tpc_begin(xid)
    put(prepared, "prepared")
    prepared.tpc_prepare()
    put(other, "b")
    other.commit()
    reader.turn(4)
    assert customers(log) == []
    server.kill()
    server.start()
    reader.turn(6)
    assert customers(log) == []
    with psycopg.connect(dsn) as again:
        again.tpc_commit(xid)
    reader.turn(6)
    assert customers(log) == ["b", "prepared"]


def test_a_table_that_others_inherit_from_is_refused(dsn: str) -> None:
    topic = make(dsn)
    with connect(dsn) as connection:
        connection.execute("CREATE TABLE child () INHERITS (events)")
    with pytest.raises(SourceError, match="inherit from it"):
        Reader(OutboxLog(), topic).all()


def test_who_wrote_before_the_bound_was_taken_is_waited_for(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holders are asked for after the bound was taken. Between the two looks, whichever comes first, one begins to
    write and another one commits behind it."""
    topic = make(dsn)
    log = OutboxLog()
    with connect(dsn) as held, connect(dsn) as other:
        connection = postgres_table_connection.TableConnection
        plain, begun = connection._held, []

        def looked(self: Any, session: Any) -> frozenset[str]:
            found = plain(self, session)
            if not begun:
                begun.append(1)
                put(held, "held")
                put(other, "b")
                other.commit()
            return found

        monkeypatch.setattr(connection, "_held", looked)
        reader = Reader(log, topic, follow=True)
        put(other, "a")
        other.commit()
        reader.turn(4)
        assert customers(log) == ["a"]
        held.commit()
    reader.turn(4)
    assert customers(log) == ["a", "b", "held"]


def test_new_writers_do_not_hold_up_what_is_settled(dsn: str) -> None:
    """Transactions that began to write after the bound was taken are not waited for: with writers all the time the
    reader goes on."""
    topic = make(dsn)
    log = OutboxLog()
    reader = Reader(log, topic, follow=True)
    with connect(dsn) as one, connect(dsn) as two:
        for n in range(6):
            writer, other = (one, two) if n % 2 else (two, one)
            put(writer, f"{n}")
            other.commit()
            reader.turn(2)
            assert len(customers(log)) >= n - 1
            assert n < 3 or customers(log)
        one.commit()
        two.commit()
    reader.turn(3)
    assert customers(log) == [str(n) for n in range(6)]


def test_who_is_waited_for_is_told(dsn: str, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setattr(postgres_table_connection, "WAIT_TOLD_S", -1.0)
    topic, said = make(dsn, columns), []
    with connect(dsn) as held, connect(dsn) as other:
        put(held, "held")
        put(other, "b")
        other.commit()
        reader = Reader(OutboxLog(), topic, follow=True, say=said.append)
        reader.turn(4)
        assert said and "still" in said[0]
        assert columns == BY_XID or f"process {held.info.backend_pid}" in said[0]
        held.rollback()
    reader.turn(9)
    assert said[-1].endswith("reading again")


@pytest.mark.parametrize("step", [Step.INGEST_READ, Step.INGEST_POSITION, Step.INGEST_COMMIT])
def test_ended_at_a_step_each_row_is_there_once(dsn: str, step: Step, columns: str) -> None:
    topic = make(dsn, columns)
    with connect(dsn) as connection:
        put(connection, *(f"{n:03}" for n in range(30)))
    log = OutboxLog()
    for nth in (2, 3, 10**6):
        try:
            Reader(log, topic, records_max=4, steps=die(step, nth)).all()
        except Died:
            continue
    assert customers(log) == [f"{n:03}" for n in range(30)]


def test_a_partitioned_table(dsn: str) -> None:
    """Whoever writes to a partition directly holds a lock of that alone."""
    topic = make(dsn, "id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY", rest=f"{REST}) PARTITION BY HASH (id")
    with connect(dsn) as connection:
        connection.execute("CREATE TABLE part PARTITION OF events FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
    log = OutboxLog()
    reader = Reader(log, topic, follow=True)
    with connect(dsn) as held, connect(dsn) as other:
        held.execute("INSERT INTO part (id, customer) VALUES (nextval('events_id_seq'), 'held')")
        put(other, "b")
        other.commit()
        reader.turn(4)
        assert customers(log) == []
        held.commit()
    reader.turn(4)
    assert customers(log) == ["b", "held"]


Wrong = tuple[str, tuple[str, ...], str]
WRONG: list[Wrong] = [
    ("id bigint GENERATED ALWAYS AS IDENTITY", ("id",), "nothing makes id unique"),
    ("id bigint PRIMARY KEY", ("id",), "no column that an identity or a sequence fills"),
    ("id timestamptz DEFAULT now() PRIMARY KEY", ("id",), "a time is that of its transaction's beginning"),
    ("id uuid DEFAULT gen_random_uuid() PRIMARY KEY", ("id",), "pg_current_xact_id"),
    ("id bigint GENERATED ALWAYS AS IDENTITY (CACHE 10) PRIMARY KEY", ("id",), "CACHE 10"),
    ("id bigint GENERATED ALWAYS AS IDENTITY (INCREMENT -1) PRIMARY KEY", ("id",), "INCREMENT -1"),
    ("id int GENERATED ALWAYS AS IDENTITY, x int, UNIQUE (id, x)", ("id",), "nothing makes id unique"),
    ("id xid8 NOT NULL UNIQUE", ("id",), "an xid8 without its default"),
    ("id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY", ("id", "customer"), "may be null"),
    ("id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY", ("nr",), "no column nr"),
]


@pytest.mark.parametrize(("columns", "cursor", "why"), WRONG)
def test_a_cursor_that_could_pass_rows_by_is_refused(dsn: str, columns: str, cursor: tuple[str, ...], why: str) -> None:
    """Before anything is read, with what to do."""
    make(dsn, columns)
    topic = Topic("orders", key=str, value=Event, source=PostgresTable(dsn, "events", cursor=cursor))
    with pytest.raises(SourceError, match=why):
        Reader(OutboxLog(), topic).all()


Change = Callable[[psycopg.Connection[Any]], object]
CHANGES: list[tuple[str, Change]] = [
    ("made anew", lambda c: c.execute("ALTER TABLE events RENAME TO gone") and c.execute(
        f"CREATE TABLE events ({BY_SEQUENCE.replace('PRIMARY KEY', 'UNIQUE')}, {REST})")),
    ("sequence was restarted", lambda c: c.execute("SELECT setval('events_id_seq', 1)")),
]  # fmt: skip


@pytest.mark.parametrize(("why", "change"), CHANGES, ids=[why for why, _ in CHANGES])
@pytest.mark.parametrize("running", [False, True])
def test_a_table_that_is_not_the_one_that_was_read_stops_it(dsn: str, why: str, change: Change, running: bool) -> None:
    """New rows under numbers that were read would be left out."""
    if running and why == "made anew":
        pytest.skip("seen at the next claim")
    topic = make(dsn)
    log = OutboxLog()
    reader = Reader(log, topic, follow=True)
    with connect(dsn) as connection:
        put(connection, "a", "b", "c")
        connection.commit()
        reader.turn(4)
        change(connection)
    with pytest.raises(SourceDiverged, match=why):
        reader.turn(3) if running else Reader(log, topic).all()
    assert customers(log) == ["a", "b", "c"]


def test_bad_rows(dsn: str) -> None:
    """Stopped at, by its cursor; or into the dead letters with its reason."""
    topic = make(dsn)
    with connect(dsn) as connection:
        put(connection, "a")
        connection.execute("INSERT INTO events (amount) VALUES (7)")
        put(connection, "c")
    log = OutboxLog()
    with pytest.raises(SourceError, match=r"events, id=2: .*customer"):
        Reader(log, topic).all()
    assert customers(log) == ["a"]
    kept = Topic("orders", key=str, value=Event, source=topic.source, partitions=2, on_error="dead-letter")
    Reader(log, kept).all()
    assert customers(log) == ["a", "c"]
    assert json.loads(values(log, "orders-refused")[0])["amount"] == "7"


def test_a_server_that_is_away_is_waited_for(dsn: str) -> None:
    topic, said = make(dsn), []
    with connect(dsn) as connection:
        put(connection, "a")
    log = OutboxLog()
    reader = Reader(log, topic, follow=True, say=said.append)
    reader.turn(3)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'semel ingest'"
        )
        put(connection, "b")
    reader.turn(6)
    assert customers(log) == ["a", "b"]
    assert len(said) == 2 and "hunter" not in said[0]


def test_what_cannot_be_right_is_refused_when_it_is_declared(dsn: str) -> None:
    with pytest.raises(Exception, match="key=nr is no field of Event"):
        Topic("orders", key=str, value=Event, source=PostgresTable(dsn, "events", cursor="id", key="nr"))
    with pytest.raises(Exception, match="rows have columns"):
        Topic("orders", key=str, value=str, source=PostgresTable(dsn, "events", cursor="id"))
    with pytest.raises(SourceError, match="there is no such table"):
        Reader(OutboxLog(), Topic("o", key=str, value=Event, source=PostgresTable(dsn, "nothing", cursor="id"))).all()
    assert "secret" not in repr(PostgresTable("postgresql://me:secret@h/db", "t", cursor="id"))
