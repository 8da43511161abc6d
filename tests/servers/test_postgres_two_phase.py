"""Postgres in two phases on its real server: through the contract kit, and what only prepared transactions can get
wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from semel.host.postgres import PostgresServer
from semel.ports import Done, Step
from semel.sinks import PostgresTwoPhase
from semel.sinks.sink import Diverged, SinkError
from semel.testing import trials
from semel.testing.contracts import ContractTests, Refused, Subject, over_the_wire, run
from tests.servers import two_phase_subjects as subjects
from tests.sinks.conftest import database
from tests.sinks.planted_sinks import Altered, Planted
from tests.sinks.subjects import at_port
from tests.sinks.test_cuts import DELIVERY, OUTBOX, Died, Worker, die, outbox, put


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
        yield server
        server.kill()


class TestPostgresTwoPhase(ContractTests):
    """By key, on a server that is killed. (Appended: below, without the processes.)"""

    @pytest.fixture
    def subject(self, server: PostgresServer) -> Subject:
        return subjects.postgres_subject(subjects.postgres_keyed, server, server.dsn)


@pytest.mark.parametrize("trial", [trials.plain, trials.torn, trials.zombie, trials.poison, trials.lost_after])
def test_appended_rows_hold_too(trial: Any, server: PostgresServer) -> None:
    """Without key= every value is inserted."""
    run(subjects.postgres_subject(subjects.postgres_appended, server, server.dsn), trial)


# --- the kit finds what is planted -----------------------------------------------------------------------------------


def planted(**methods: Callable[..., Any]) -> Callable[[str, str], Any]:
    def make(address: str, suffix: str) -> Any:
        return Planted(subjects.postgres_appended(address, suffix), lambda connection: Altered(connection, **methods))

    return make


def _settles_nothing(connection: Any, delivery: Any, log: Any, latest: Any, decided: bool) -> Any:
    return connection._session.claim(delivery, log)


def _rolls_back_what_was_decided(connection: Any, delivery: Any, log: Any, latest: Any, decided: bool) -> Any:
    return connection.take_over(delivery, log, latest, False)


def _commits_whatever_is_there(connection: Any, delivery: Any, log: Any, latest: Any, decided: bool) -> Any:
    return connection.take_over(delivery, log, latest, True)


def _gone_is_done(connection: Any, claim: Any, attempt: Any) -> Any:
    try:
        return connection.commit_cut(claim, attempt)
    except Diverged:
        return Done()


def _committed_at_once(connection: Any, claim: Any, attempt: Any, run: str, rows: Any) -> Any:
    outcome = connection.prepare_cut(claim, attempt, run, rows)
    return connection.commit_cut(claim, attempt) if outcome == Done() else outcome


def _never_committed(connection: Any, claim: Any, attempt: Any) -> Any:
    return Done()


@pytest.mark.parametrize(
    ("mistake", "trial"),
    [
        ({"take_over": _settles_nothing}, trials.torn),  # an orphan left
        ({"take_over": _rolls_back_what_was_decided}, trials.torn),  # the decision is not read
        ({"take_over": _commits_whatever_is_there}, trials.torn),  # nor waited for
        ({"commit_cut": _gone_is_done}, trials.undone),  # 42704 taken for success
        ({"prepare_cut": _committed_at_once}, trials.torn),  # the commit before the decision
        ({"commit_cut": _never_committed}, trials.plain),
    ],
    ids=["orphan", "rolled back", "undecided committed", "42704", "committed at once", "never committed"],
)
def test_a_mistake_in_the_two_phases_is_found(mistake: dict[str, Any], trial: Any, server: PostgresServer) -> None:
    """S4, S8: each turns the kit red. What the mistake leaves prepared is removed by the test."""
    whole = subjects.postgres_subject(subjects.postgres_appended, server, server.dsn)
    try:
        with pytest.raises((Refused, AssertionError)):
            run(replace(whole, make=planted(**mistake)), trial)
    finally:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            for (gid,) in connection.execute("SELECT gid FROM pg_prepared_xacts").fetchall():
                connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))


# --- what only Postgres can get wrong --------------------------------------------------------------------------------


@dataclass
class Value:
    customer: str
    total: int


class Place:
    """A sink on a database of its own, fed from a log in memory."""

    def __init__(self, server: PostgresServer, **said: Any) -> None:
        self.server, self.dsn = server, database(server)
        self.sink = self.at(self.dsn, **said)
        self.log = outbox()
        self.log.create(DELIVERY, 1, {"cleanup.policy": "compact"})
        self.count = 0

    def at(self, dsn: str, **said: Any) -> PostgresTwoPhase:
        return PostgresTwoPhase(dsn, "totals", **{"value": Value, "hand_over_s": 2.0, "records": 10, **said})

    def put(self, count: int) -> None:
        put(self.log, *(asdict(Value("c", self.count + n)) for n in range(count)))
        self.count += count

    def query(self, statement: str) -> list[Any]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def prepared(self) -> list[str]:
        return [gid for (gid,) in self.query("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")]

    def finish(self) -> None:
        worker = Worker(self.log, self.sink)
        worker.turn(20)
        worker.close()
        assert [n for (n,) in self.query("SELECT total FROM totals ORDER BY total")] == list(range(self.count))
        assert not self.prepared()


def test_a_server_that_prepares_nothing_is_refused_at_the_start(tmp_path: Path) -> None:
    """max_prepared_transactions is 0 by default: the message says what to set."""
    with PostgresServer(tmp_path, settings={"max_prepared_transactions": "0"}) as server:
        with pytest.raises(SinkError, match=r"max_prepared_transactions is 0.*restart the server"):
            PostgresTwoPhase(server.dsn, "totals").open().prepare(Value)
        server.kill()


def test_more_than_the_server_prepares_is_waited_for(tmp_path: Path) -> None:
    """53200: nothing is prepared, the delivery tries again, and says what to raise."""
    with PostgresServer(tmp_path, settings={"max_prepared_transactions": "1"}) as server:
        place = Place(server)
        place.query("BEGIN; CREATE TABLE other (n int); PREPARE TRANSACTION 'another'")
        place.put(10)
        worker = Worker(place.log, place.sink)
        worker.turn(3)
        assert "raise max_prepared_transactions" in worker.said[-1]
        place.query("ROLLBACK PREPARED 'another'")
        worker.turn(6)
        worker.close()
        place.finish()
        server.kill()


def test_a_failed_transaction_is_not_taken_for_prepared(server: PostgresServer) -> None:
    """PREPARE TRANSACTION of a failed transaction is answered with ROLLBACK, and no error."""
    place = Place(server)
    place.put(10)
    worker = Worker(place.log, place.sink)

    def fail() -> None:
        with pytest.raises(psycopg.errors.DivisionByZero):
            worker.delivery._connection._session.connected().execute("SELECT 1/0")  # type: ignore[union-attr]

    worker.steps.at[Step.PREPARE_BEFORE] = fail
    worker.turn(2)
    assert "was answered with ROLLBACK" in worker.said[0]
    assert Step.DECIDE_BEFORE not in worker.steps.hits
    worker.turn(5)
    worker.close()
    place.finish()


def test_a_trigger_that_cannot_be_prepared_is_refused(server: PostgresServer) -> None:
    """0A000: temporary tables. A large keyed cut of our own uses none, though COPY and merge would be quicker."""
    place = Place(server, key="customer", records=1_000)
    for value in (Value(f"c{n}", n) for n in range(500)):
        place.log.append(OUTBOX, 0, place.sink.encode_key(value), place.sink.encode_value(value))
    worker = Worker(place.log, place.sink)
    worker.turn(4)
    assert len(place.query("SELECT * FROM totals")) == 500
    place.query(
        "CREATE FUNCTION temporary() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "CREATE TEMP TABLE seen (n int); RETURN NEW; END $$; "
        "CREATE TRIGGER t BEFORE INSERT ON totals FOR EACH STATEMENT EXECUTE FUNCTION temporary()"
    )
    place.log.append(OUTBOX, 0, place.sink.encode_key(value), place.sink.encode_value(value))
    with pytest.raises(SinkError, match=r"cannot be prepared.*trigger"):
        worker.turn(6)
    assert not place.prepared()


def test_a_deferred_constraint_refuses_when_it_is_prepared(server: PostgresServer) -> None:
    """Checked at PREPARE: the record's cut is named, nothing is prepared or decided."""
    place = Place(server)
    place.query("CREATE TABLE totals (customer text, total bigint, UNIQUE (total) DEFERRABLE INITIALLY DEFERRED)")
    put(place.log, asdict(Value("a", 1)), asdict(Value("a", 1)))
    worker = Worker(place.log, place.sink)
    with pytest.raises(SinkError, match=r"at offset 0.*constraint"):
        worker.turn(12)
    assert Step.DECIDE_BEFORE not in worker.steps.hits
    assert not place.prepared()


@pytest.mark.parametrize("needle", [b"PREPARE TRANSACTION", b"COMMIT PREPARED", b"ROLLBACK PREPARED"])
@pytest.mark.parametrize("effect", [False, True], ids=["before", "after"])
def test_an_answer_of_each_phase_is_lost(server: PostgresServer, needle: bytes, effect: bool) -> None:
    """S8: prepared unheard is settled; committed unheard is asked again; so is a rollback."""
    place = Place(server)
    place.put(20)
    if needle == b"ROLLBACK PREPARED":
        dying = Worker(place.log, place.sink)
        dying.steps.at[Step.PREPARE_AFTER] = die
        with pytest.raises(Died):
            dying.turn(3)
        assert len(place.prepared()) == 1
    with over_the_wire(server.port, needle, lambda port: at_port(place.dsn, port)) as loses:
        worker = Worker(place.log, place.at(loses.address()))
        loses.lose(None, after_effect=effect)  # type: ignore[arg-type]
        worker.turn(12)
        assert loses.lost() == 1
        worker.close()
    place.finish()


@pytest.mark.parametrize("step", [Step.ROWS_AFTER, Step.PREPARE_AFTER, Step.DECIDE_AFTER, Step.SINK_AFTER])
@pytest.mark.parametrize("owner", ["goes on", "ends"])
def test_the_server_is_killed_between_the_phases(step: Step, owner: str, server: PostgresServer) -> None:
    """kill -9: what is prepared survives it, and is settled by the owner itself or by the next one."""
    place = Place(server)
    place.put(30)
    worker = Worker(place.log, place.sink)

    def strike() -> None:
        server.kill()
        server.start()
        if owner == "ends":
            raise Died

    worker.steps.at[step] = strike
    try:
        worker.turn(8)
    except Died:
        if step in (Step.PREPARE_AFTER, Step.DECIDE_AFTER):
            assert place.prepared() == ["semel:app:totals:0:0-10:1"]
            assert place.query("SELECT * FROM totals") == []
    place.finish()


def test_what_was_rolled_back_by_hand_after_the_decision_stops_the_delivery(server: PostgresServer) -> None:
    """42704 after a rollback is no commit; nothing is reset."""
    place = Place(server)
    place.put(10)
    for take_over in (False, True):
        worker = Worker(place.log, place.sink)

        def by_hand() -> None:
            (gid,) = place.prepared()
            place.query(f"ROLLBACK PREPARED '{gid}'")

        if not take_over:
            worker.steps.at[Step.DECIDE_AFTER] = by_hand
        with pytest.raises(Diverged, match="backup"):
            worker.turn(6)
        worker.close()
    assert place.query("SELECT * FROM totals") == []


def test_an_orphan_is_listed_and_holds_the_table_until_it_is_settled(server: PostgresServer) -> None:
    """S4: of an owner that died after PREPARE. The next one settles it though it holds the row that a claim wants."""
    place = Place(server)
    place.put(10)
    worker = Worker(place.log, place.sink)
    worker.steps.at[Step.PREPARE_AFTER] = die
    with pytest.raises(Died):
        worker.turn(3)
    worker.close()
    connection = place.sink.open()
    connection.prepare(Value)
    assert connection.in_doubt() == ["semel:app:totals:0:0-10:1"]
    connection.close()
    place.finish()


def test_a_copy_of_the_log_settles_nothing_of_the_other(server: PostgresServer) -> None:
    """S12: a copy of the folder is in use. What the other has prepared since is later than what it knows: it stops."""
    place = Place(server)
    place.put(20)
    copied = place.log.copy()
    worker = Worker(place.log, place.sink)
    worker.steps.at[Step.PREPARE_AFTER] = die
    with pytest.raises(Died):
        worker.turn(3)
    left = place.prepared()
    place.log.put_back(copied)
    with pytest.raises(Diverged, match="asked twice"):
        Worker(place.log, place.sink).turn(8)
    assert place.prepared() == left
    place.query(f"ROLLBACK PREPARED '{left[0]}'")


def test_names_that_could_be_another_ones_are_refused() -> None:
    """A colon separates the parts of the name of a prepared transaction."""
    with pytest.raises(SinkError, match="colon"):
        PostgresTwoPhase("postgresql://h/d", "totals", name="a:b")
    with pytest.raises(SinkError, match="above 0"):
        PostgresTwoPhase("postgresql://h/d", "totals", records=0)
    sink = PostgresTwoPhase("postgresql://me:hunter2@h/d", "s.totals", key="a", records=7)
    assert "hunter2" not in f"{sink!r} {sink.where}"
    assert (sink.renamed("_x").where, sink.renamed("_x").rule.records) == ("Postgres table s.totals_x at h:5432/d", 7)
