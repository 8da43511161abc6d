"""MariaDB in two phases on its real server: through the contract kit, and what only XA can get wrong."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pymysql
import pytest

from semel.ports import Done, Step
from semel.sinks import MariaDBTwoPhase
from semel.sinks.sink import Diverged, SinkError
from semel.testing import trials
from semel.testing.contracts import ContractTests, Refused, Subject, over_the_wire, run
from tests.servers import two_phase_subjects as subjects
from tests.servers.mariadb_subjects import query
from tests.sinks.planted_sinks import Altered, Planted
from tests.sinks.test_cuts import Died, Worker, die, outbox, put
from tests.support.mariadb import MariaDBServer

_numbers = itertools.count()


@dataclass
class Value:
    customer: str
    total: int


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDBServer]:
    with MariaDBServer(tmp_path_factory.mktemp("mariadb")) as server:
        yield server


class TestMariaDBTwoPhase(ContractTests):
    """By key, on a server that is killed. (Appended: below, without the processes.)"""

    @pytest.fixture
    def subject(self, server: MariaDBServer) -> Subject:
        return subjects.mariadb_subject(subjects.mariadb_keyed, server)


@pytest.mark.parametrize("trial", [trials.plain, trials.torn, trials.zombie, trials.poison, trials.lost_after])
def test_appended_rows_hold_too(trial: Any, server: MariaDBServer) -> None:
    """Without key= every value is inserted."""
    run(subjects.mariadb_subject(subjects.mariadb_appended, server), trial)


# --- the kit finds what is planted -----------------------------------------------------------------------------------


def planted(**methods: Callable[..., Any]) -> Callable[[str, str], Any]:
    def make(address: str, suffix: str) -> Any:
        return Planted(subjects.mariadb_appended(address, suffix), lambda connection: Altered(connection, **methods))

    return make


def _settles_nothing(connection: Any, delivery: Any, log: Any, latest: Any, decided: bool) -> Any:
    return connection._plain.claim(delivery, log)


def _gone_is_done(connection: Any, claim: Any, attempt: Any) -> Any:
    try:
        return connection.commit_cut(claim, attempt)
    except Diverged:
        return Done()


@pytest.mark.parametrize(
    ("mistake", "trial"),
    [({"take_over": _settles_nothing}, trials.torn), ({"commit_cut": _gone_is_done}, trials.undone)],
    ids=["orphan", "1397"],
)
def test_a_mistake_in_the_two_phases_is_found(mistake: dict[str, Any], trial: Any, server: MariaDBServer) -> None:
    """S4, S8: each turns the kit red. What the mistake leaves prepared is removed by the test."""
    whole = subjects.mariadb_subject(subjects.mariadb_appended, server)
    try:
        with pytest.raises((Refused, AssertionError)):
            run(replace(whole, make=planted(**mistake)), trial)
    finally:
        rolled_back(server)


def rolled_back(server: MariaDBServer) -> None:
    """What a mistake left, of sessions that live, too."""
    for (thread,) in query(server.url, "SELECT id FROM information_schema.processlist WHERE db = 'test'"):
        with contextlib.suppress(pymysql.MySQLError):
            query(server.url, f"KILL {thread}")
    deadline = time.monotonic() + 5
    while found := query(server.url, "XA RECOVER"):
        assert time.monotonic() < deadline, found
        for number, one, _, data in found:
            with contextlib.suppress(pymysql.MySQLError):
                query(server.url, f"XA ROLLBACK X'{data[:one].hex()}', X'{data[one:].hex()}', {number}")


# --- what only XA can get wrong --------------------------------------------------------------------------------------


class Place:
    """A sink on a database of its own, fed from a log in memory."""

    def __init__(self, server: MariaDBServer, **said: Any) -> None:
        name = f"two_{next(_numbers)}"
        query(server.url, f"CREATE DATABASE {name}")
        self.url = server.url.rpartition("/")[0] + "/" + name
        self.sink = self.at(self.url, **said)
        self.log = outbox()
        self.count = 0

    def at(self, url: str, **said: Any) -> MariaDBTwoPhase:
        return MariaDBTwoPhase(url, "totals", **{"value": Value, "hand_over_s": 2.0, "records": 10, **said})

    def put(self, count: int) -> None:
        put(self.log, *(asdict(Value("c", self.count + n)) for n in range(count)))
        self.count += count

    def prepared(self) -> list[str]:
        return list(self.sink.open().in_doubt())

    def finish(self) -> None:
        worker = Worker(self.log, self.sink)
        worker.turn(20)
        worker.close()
        assert [n for (n,) in query(self.url, "SELECT total FROM totals ORDER BY total")] == list(range(self.count))
        assert not self.prepared()


def test_an_orphan_is_listed_under_its_name(server: MariaDBServer) -> None:
    """S4: it survives its session; XA RECOVER shows it, and the next owner settles it."""
    place = Place(server)
    place.put(10)
    worker = Worker(place.log, place.sink)
    worker.steps.at[Step.PREPARE_AFTER] = die
    with pytest.raises(Died):
        worker.turn(3)
    worker.close()
    assert place.prepared() == ["semel:app:totals:0:0-10:1"]
    assert len(query(place.url, "SELECT * FROM totals")) == 0
    place.finish()


@pytest.mark.parametrize("step", [Step.PREPARE_BEFORE, Step.PREPARE_AFTER, Step.DECIDE_AFTER])
def test_what_belongs_to_a_session_that_lives_is_settled_by_ending_that(step: Step, server: MariaDBServer) -> None:
    """Of a stopped owner, whose session the server believes to live: to every other one its transaction is unknown
    (1397), though it is listed. The stopped one comes back, and has no effect."""
    place = Place(server)
    place.put(20)
    late = Worker(place.log, place.sink)

    def overtaken() -> None:
        place.put(10)
        heir = Worker(place.log, place.sink)
        heir.turn(8)
        assert len(query(place.url, "SELECT * FROM totals")) == 30
        heir.close()

    late.steps.at[step] = overtaken
    late.turn(12)
    late.close()
    place.finish()


@pytest.mark.parametrize("needle", [b"XA PREPARE", b"XA COMMIT", b"XA ROLLBACK"])
@pytest.mark.parametrize("effect", [False, True], ids=["before", "after"])
def test_an_answer_of_each_phase_is_lost(server: MariaDBServer, needle: bytes, effect: bool) -> None:
    """S8: prepared unheard is settled, also where the server has not noticed that the session is gone; committed
    unheard is asked again; so is a rollback."""
    place = Place(server)
    place.put(20)
    if needle == b"XA ROLLBACK":
        dying = Worker(place.log, place.sink)
        dying.steps.at[Step.PREPARE_AFTER] = die
        with pytest.raises(Died):
            dying.turn(3)
        dying.close()

    def at(port: int) -> str:
        return place.url.replace(f":{server.port}/", f":{port}/")

    with over_the_wire(server.port, needle, at) as loses:
        worker = Worker(place.log, place.at(loses.address()))
        loses.lose(None, after_effect=effect)  # type: ignore[arg-type]
        worker.turn(14)
        assert loses.lost() == 1
        worker.close()
    place.finish()


@pytest.mark.parametrize("binlog", [False, True], ids=["", "binlog"])
def test_the_server_is_killed_between_the_phases(binlog: bool, tmp_path: Path) -> None:
    """kill -9: what is prepared survives it and is settled. With a binary log, too, here; that a replica may differ is
    said at the start."""
    settings = {"log-bin": "bin", "server-id": "1"} if binlog else {}
    with MariaDBServer(tmp_path / "m", settings) as server:
        for step in (Step.ROWS_AFTER, Step.PREPARE_AFTER, Step.DECIDE_AFTER, Step.SINK_AFTER):
            place = Place(server)
            place.put(30)
            worker = Worker(place.log, place.sink)

            def strike() -> None:
                server.kill()
                server.start()
                raise Died

            worker.steps.at[step] = strike
            with pytest.raises(Died):
                worker.turn(8)
            if step in (Step.PREPARE_AFTER, Step.DECIDE_AFTER):
                assert place.prepared() == ["semel:app:totals:0:0-10:1"]
            assert any("MDEV-21469" in said for said in worker.said) == binlog
            place.finish()


def test_what_was_rolled_back_by_hand_after_the_decision_stops_the_delivery(server: MariaDBServer) -> None:
    """1397 after a rollback is no commit; nothing is reset."""
    place = Place(server)
    place.put(10)
    for take_over in (False, True):
        worker = Worker(place.log, place.sink)
        if not take_over:
            worker.steps.at[Step.DECIDE_AFTER] = lambda: rolled_back(server)
        with pytest.raises(Diverged, match="backup"):
            for _ in range(12):
                worker.turn()
        worker.close()
    assert len(query(place.url, "SELECT * FROM totals")) == 0


def test_a_failed_statement_does_not_leave_a_part_prepared(server: MariaDBServer) -> None:
    """MariaDB would prepare what succeeded: a refused row takes all of its cut back."""
    place = Place(server, records=300)
    query(place.url, "CREATE TABLE totals (customer longtext, total bigint UNIQUE) ENGINE = InnoDB")
    put(place.log, *(asdict(Value("a", n)) for n in (1, 2, 3, 2)), *(asdict(Value("b", n)) for n in range(10, 306)))
    worker = Worker(place.log, place.sink)
    with pytest.raises(SinkError, match="at offset 3: "):
        worker.turn(12)
    assert not place.prepared()
    assert len(query(place.url, "SELECT * FROM totals")) == 0


def test_two_databases_of_one_server_settle_only_their_own(server: MariaDBServer) -> None:
    """Names are the server's: what ends them is the control table's. (A format id of its own would not do: the server
    takes two such names for one, XAER_DUPID.)"""
    one, other = Place(server), Place(server)
    for place in (one, other):
        place.put(10)
        worker = Worker(place.log, place.sink)
        worker.steps.at[Step.PREPARE_AFTER] = die
        with pytest.raises(Died):
            worker.turn(3)
        worker.close()
    one.finish()
    assert other.prepared() == ["semel:app:totals:0:0-10:1"]
    other.finish()


def test_names_that_cannot_be_are_refused(server: MariaDBServer) -> None:
    """A colon; more than the two parts of an XA name hold."""
    with pytest.raises(SinkError, match="colon"):
        MariaDBTwoPhase("mysql://h/d", "totals", name="a:b")
    place = Place(server, name="n" * 90)
    place.put(1)
    with pytest.raises(SinkError, match="119 are allowed"):
        Worker(place.log, place.sink).turn(3)
