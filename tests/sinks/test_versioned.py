"""Rows with versions: at-least-once processing before them ends where exactly-once does; what takes the versions away
is found; and a plain INSERT repeats under the same faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import msgspec
import psycopg
import pytest

from semel.contract import Mode, Versioned
from semel.host.postgres import PostgresServer
from semel.ports import Done, Fenced, Step, TopicPartition
from semel.sinks import Postgres, PostgresVersioned, postgres_versioned_connection
from semel.sinks.sink import SinkError
from semel.streams.builder import Builder
from semel.streams.topic import Topic
from semel.testing import processes, trials
from semel.testing.contracts import Refused, run
from semel.testing.subject import Counting, Crashed
from tests.sinks import subjects
from tests.sinks.conftest import MakeSink, database
from tests.sinks.naive import NaiveInsert
from tests.sinks.planted_sinks import Altered, Planted, claiming
from tests.sinks.test_delivery import EVER, OUTBOX, Worker
from tests.sinks.values import Total, claimed, deleted, held, opened, renamed_goes_on, rows, totals
from tests.streams.test_worker import Machine, fill
from tests.support.memlog import MemBroker
from tests.support.outboxlog import OutboxLog

orders = Topic("orders", key=str, value=int)
RECORDS, KEYS = 120, 7


@pytest.fixture
def make(server: PostgresServer) -> MakeSink:
    dsn = database(server)
    return lambda table="totals", **said: PostgresVersioned(
        dsn, table, **{"key": "customer", "hand_over_s": 2.0, **said}
    )


# --- the cheapest honest path ----------------------------------------------------------------------------------------


def latest(b: Builder, sink: Any) -> None:
    """A function of each record alone."""
    b.read(orders).map(lambda key, order: Total(key, order)).write(sink)


def processed(sink: Any, mode: Mode, topology: Callable[[Builder, Any], None] = latest) -> OutboxLog:
    """The outbox after a topology, run by a worker that is killed three times between its outputs and its offsets."""
    broker = MemBroker()
    broker.create("orders", 1)
    machine = Machine("a", broker, lambda b: topology(b, sink), mode=mode)
    for part in range(4):
        fill(broker, RECORDS // 4, KEYS, start=part * RECORDS // 4)
        if part < 3:
            machine.take()
            machine.log.flush()  # the outputs have arrived, the offsets have not: it dies here
            machine.start()
        machine.run(5)
    log = OutboxLog()
    (topic,) = [name for name in broker.topics if name.endswith("-outbox")]
    log.create(OUTBOX, 1, EVER)
    for partition in range(broker.topics[topic].partitions):
        for _, entry in broker.visible(TopicPartition(topic, partition)):
            log.append(OUTBOX, 0, entry.key, entry.value)
    return log


def delivered(log: OutboxLog, sink: Any, **more: Any) -> None:
    """By deliveries that die behind their rows, before anybody knows of them, and by one that finishes."""
    for _ in range(3):
        worker = Worker(log, sink, **more)
        worker.session.records_max = 20
        behind = Step.SINK_AFTER if isinstance(sink, PostgresVersioned) else Step.ROWS_AFTER
        worker.delivery._connection._steps = Counting(crash_at=behind)  # type: ignore[attr-defined]
        with pytest.raises(Crashed):
            worker.turn(10)
        worker.delivery._connection.close()
    last = Worker(log, sink, **more)
    last.turn(10)
    assert last.delivery.lag() == 0
    last.close()


def test_at_least_once_with_versions_ends_where_exactly_once_does(make: MakeSink) -> None:
    """The cheapest honest path: no transactions in the log, none over rows and position at the sink. Processing that
    is a function of each record alone repeats what it repeats in order, and by version the last one stays."""
    ends = {}
    for mode in (Mode.EXACTLY_ONCE, Mode.AT_LEAST_ONCE):
        sink = make(mode.value.replace("-", "_"))
        log = processed(sink, mode)
        written = len(log.topics[OUTBOX].partitions[0])
        assert (written > RECORDS) == (mode is Mode.AT_LEAST_ONCE), "the faults repeat outputs in one of the modes only"
        delivered(log, sink)
        ends[mode] = held(opened(sink))
    expected = {f"k{n % KEYS}": n for n in range(RECORDS)}
    assert ends[Mode.EXACTLY_ONCE] == ends[Mode.AT_LEAST_ONCE] == totals(expected.items())


def test_a_map_that_reads_the_clock_gives_the_sink_one_value_per_record(make: MakeSink) -> None:
    """S2: an output that differs at each try. Behind exactly-once processing the outbox holds one try of each record,
    so deliveries that die and begin again write that one. Behind at-least-once it holds several: versions do not mend
    what is no function of its record."""
    ticks = count(1_000_000)

    def stamped(b: Builder, sink: Any) -> None:
        b.read(orders).map(lambda key, order: Total(f"{key}-{order}", next(ticks))).write(sink)

    tries = {}
    for mode in (Mode.EXACTLY_ONCE, Mode.AT_LEAST_ONCE):
        sink = make("clock_" + mode.value.replace("-", "_"))
        log = processed(sink, mode, stamped)
        written = [msgspec.json.decode(record.value or b"") for record in log.topics[OUTBOX].partitions[0]]
        tries[mode] = max(Counter(row["customer"] for row in written).values())
        delivered(log, sink)
        assert held(opened(sink)) == totals({row["customer"]: row["total"] for row in written}.items())
    assert tries[Mode.EXACTLY_ONCE] == 1 < tries[Mode.AT_LEAST_ONCE]


@pytest.mark.parametrize("mode", [Mode.EXACTLY_ONCE, Mode.AT_LEAST_ONCE])
def test_a_naive_insert_repeats_under_the_same_faults(make: MakeSink, mode: Mode) -> None:
    """The same processing and the same deaths of deliveries, an INSERT per record: rows are there more than once, also
    behind exactly-once processing."""
    from semel import AtLeastOnce

    dsn = make().dsn
    log = processed(make(), mode)
    naive = NaiveInsert(dsn, "naive", ("customer", "total"))
    delivered(log, naive, accept=AtLeastOnce("it is shown what that means"))
    with psycopg.connect(dsn) as connection:
        found = connection.execute("SELECT count(*), count(DISTINCT (customer, total)) FROM naive").fetchone()
    assert found is not None
    assert found[1] == RECORDS, "nothing is lost"
    assert found[0] > len(log.topics[OUTBOX].partitions[0]), "and the sink has repeated what the log holds once"


def naive(address: str, suffix: str) -> NaiveInsert:
    return NaiveInsert(address, "entries", ("id", "n")).renamed(suffix)


def naive_that_claims(address: str, suffix: str) -> Any:
    """At module level: processes import it."""
    return claiming(naive, Postgres(address, "x").contract, Postgres("", "x").kind)(address, suffix)


@pytest.mark.long
def test_a_naive_insert_that_claims_more_is_found_by_killed_processes(server: PostgresServer) -> None:
    """Under its own contract the kit finds it honest; as Transactional it reaches no step around a commit of its own,
    and its repeats are there."""
    subject = subjects.postgres_subject(naive, server, database(server))
    run(subject, processes.crashes)
    lying = subjects.postgres_subject(naive_that_claims, server, database(server))
    for trial in (processes.crashes, trials.replay, trials.zombie, trials.position):
        with pytest.raises(Refused):
            run(lying, trial)


# --- what takes the versions away ------------------------------------------------------------------------------------


def _without_guard(text: str) -> str:
    return text.partition(" WHERE (t.{i}, t.{o}) <")[0]


def _by_offset_alone(text: str) -> str:
    return text.replace("(t.{i}, t.{o}) < (excluded.{i}, excluded.{o})", "t.{o} < excluded.{o}")


@pytest.mark.parametrize(
    ("change", "names"),
    [(_without_guard, ("zombie", "recut", "deletes", "reborn")), (_by_offset_alone, ("reborn",))],
)
def test_a_guard_that_is_dropped_is_found(
    change: Callable[[str], str], names: tuple[str, ...], server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S1, S9, S12: an upsert without versions, and versions without the incarnation."""
    real = postgres_versioned_connection.sql

    class Said:
        SQL = staticmethod(lambda text: real.SQL(change(text)))
        Identifier, Placeholder = real.Identifier, real.Placeholder

    monkeypatch.setattr(postgres_versioned_connection, "sql", Said)
    subject = subjects.postgres_subject(subjects.postgres_versioned, server, database(server))
    for name in names:
        with pytest.raises(Refused):
            run(_live(subject), getattr(trials, name))


def _hard_deletes(connection: Any) -> Any:
    written = connection._rows

    def rows(session: Any, *batch: Any) -> int:
        taken: int = written(session, *batch)
        session.execute(f"DELETE FROM {connection._table.as_string(session)} WHERE semel_deleted IS NOT NULL")
        return taken

    connection._rows = rows
    return connection


def _position_first(connection: Any) -> Any:
    def write(real: Any, claim: Any, start: int, end: int, run: str, batch: Any) -> Any:
        held = real._session.held(claim)
        if held is not None:
            real._moved(held, claim, end, run)
        return real.write(claim, start, end, run, batch)

    return Altered(connection, write=write)


def _live(subject: Any) -> Any:
    from dataclasses import replace

    return replace(subject, read=subjects.read_live)


@pytest.mark.parametrize(
    ("alter", "names"), [(_hard_deletes, ("deletes",)), (_position_first, ("torn",))], ids=["deletes", "position"]
)
def test_a_mistake_around_versions_is_found(
    alter: Callable[[Any], Any], names: tuple[str, ...], server: PostgresServer
) -> None:
    """S9: deletes without a tombstone; S10: a position that is ahead of its rows."""
    subject = subjects.postgres_subject(
        lambda address, suffix: Planted(subjects.postgres_versioned(address, suffix), alter), server, database(server)
    )
    for name in names:
        with pytest.raises(Refused):
            run(_live(subject), getattr(trials, name))


def test_an_older_write_does_not_bring_a_deleted_row_back(make: MakeSink) -> None:
    """S9: a delete, a crash before anybody knows of it, and an owner that was paused writes what came before it."""
    sink = make()
    zombie, heir = opened(sink), opened(sink)
    former = claimed(zombie, sink)
    own = claimed(heir, sink)
    assert heir.write(own, 0, 2, "r", [*rows(sink, [Total("a", 1)]), deleted(sink, "a", 1)]) == Done()
    zombie.write(former, 0, 1, "r", rows(sink, [Total("a", 1)]))
    with psycopg.connect(sink.dsn) as other:
        assert other.execute("SELECT * FROM totals_live").fetchall() == []


# --- the table -------------------------------------------------------------------------------------------------------


def test_a_renamed_sink_goes_on(make: MakeSink) -> None:
    renamed_goes_on(make)


def test_an_older_write_is_stale_and_no_error(make: MakeSink) -> None:
    """Rowcount 0 is counted, not raised; a superseded owner is told by the position that it is one."""
    sink = make()
    steps = Counting()
    connection = opened(sink, steps=steps)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    assert steps.hits[Step.SINK_STALE] == 0
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 0)])) == Done()
    assert steps.hits[Step.SINK_STALE] == 1
    heir = opened(sink)
    assert heir.write(claimed(heir, sink), 1, 2, "r", rows(sink, [Total("a", 2)], 1)) == Done()
    assert isinstance(connection.write(claim, 1, 2, "r", rows(sink, [Total("a", 1)], 1)), Fenced)
    assert held(heir) == [("a", 2)]
    assert sink.kind is Versioned


def test_a_deleted_row_stays_as_a_tombstone_outside_the_view(make: MakeSink) -> None:
    """The key and the version of the delete; readers of TABLE_live do not see it; a later write takes its place."""
    sink = make()
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 2, "r", [*rows(sink, [Total("a", 1)]), deleted(sink, "a", 1)]) == Done()
    with psycopg.connect(sink.dsn) as other:
        found = other.execute("SELECT customer, total, semel_offset, semel_deleted IS NULL FROM totals").fetchall()
        assert found == [("a", None, 1, False)]
        assert other.execute("SELECT * FROM totals_live").fetchall() == []
    assert connection.write(claim, 2, 3, "r", rows(sink, [Total("a", 5)], 2)) == Done()
    with psycopg.connect(sink.dsn) as other:
        assert other.execute("SELECT * FROM totals_live").fetchall() == [("a", 5)]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (
            "(customer text PRIMARY KEY, total bigint)",
            r"ALTER TABLE totals ADD COLUMN semel_incarnation .*semel_deleted",
        ),
        (
            "(customer text PRIMARY KEY, total bigint NOT NULL, semel_incarnation int, semel_offset bigint, "
            "semel_deleted timestamptz)",
            "'total' is bigint NOT NULL, and a tombstone",
        ),
        (
            "(customer text PRIMARY KEY, total bigint, semel_incarnation int, semel_offset text, "
            "semel_deleted timestamptz)",
            "'semel_offset' is text, wanted is bigint",
        ),
    ],
)
def test_a_table_without_room_for_versions_is_refused(make: MakeSink, table: str, says: str) -> None:
    """The message holds the statement that mends it."""
    with psycopg.connect(make().dsn, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE totals {table}")  # type: ignore[arg-type]
    with pytest.raises(SinkError, match=says):
        make().open().prepare(Total)


def test_the_statement_that_mends_a_table_does(make: MakeSink) -> None:
    """A table that was there, with rows: what is written from now on wins over them."""
    with psycopg.connect(make().dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE totals (customer text PRIMARY KEY, total bigint)")
        connection.execute("INSERT INTO totals VALUES ('a', -1), ('b', -1)")
        with pytest.raises(SinkError) as refused:
            make().open().prepare(Total)
        connection.execute("ALTER TABLE" + str(refused.value).partition("ALTER TABLE")[2].rstrip("."))  # type: ignore
    sink = make()
    written = opened(sink)
    assert written.write(claimed(written, sink), 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    assert held(written) == [("a", 1), ("b", -1)]


def test_a_declaration_that_cannot_be_is_refused(make: MakeSink) -> None:
    """No key, a key of semel's own name, a name that would be cut."""
    for wrong, says in (({"key": None}, "Name key="), ({"key": "semel_offset"}, "semel's own column")):
        with pytest.raises(SinkError, match=says):
            make(**wrong)
    with pytest.raises(SinkError, match="63 bytes"):
        make("t" * 60)


# --- a table that is gone --------------------------------------------------------------------------------------------


def test_a_dropped_table_is_not_made_anew_behind_its_positions(make: MakeSink) -> None:
    """As for rows without versions: a new table would lack for good what was delivered."""
    sink = make()
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 2, "r", rows(sink, [Total("a", 1), Total("b", 2)])) == Done()
    connection.close()
    with psycopg.connect(sink.dsn, autocommit=True) as client:
        client.execute("DROP TABLE totals CASCADE")
    for _ in range(2):  # it does not go away by trying again
        connection = opened(sink)
        with pytest.raises(SinkError, match=r"up to offset 2.*semel sink rewind .*create the table by hand"):
            claimed(connection, sink)


def test_verifys_table_is_like_the_users(make: MakeSink) -> None:
    """One that rounds must do so in the run, too, where the values' type is known as well."""
    plain = make()
    opened(plain).close()
    with psycopg.connect(plain.dsn, autocommit=True) as client:
        client.execute("ALTER TABLE totals ADD COLUMN note varchar(3)")
        opened(plain.renamed("_run")).close()
        found = client.execute("SELECT column_name FROM information_schema.columns WHERE table_name = 'totals_run'")
        assert ("note",) in found.fetchall()
