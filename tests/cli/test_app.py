"""`semel app`, on both logs, with the app really run before and after."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from semel.broker.requests import DeleteGroupsRequest
from semel.cli.app import begin, discard, reset
from semel.cli.sink import adopt
from semel.errors import SemelError, UsageError
from semel.host.engine import Ask
from semel.host.groups import Tended, tend
from semel.ports import Done, NewTopic, Position
from semel.streams.layout import UNFINISHED
from semel.streams.reset import ResetFailed, To
from tests.host.logs import parts
from tests.support.broker import BrokerProcess

APP = str(Path(__file__).parent.parent / "host" / "apps" / "counts.py")
CUSTOMERS, ORDERS = 5, 40
OUTBOX, CHANGELOG, REPARTITION = "counts-totals-outbox", "counts-sums-changelog", "counts-sums-repartition"
WAIT_S = 60.0
SESSION_MS = "6000" if "SEMEL_TEST_KAFKA" in os.environ else "1000"  # Apache Kafka takes none below 6 s


class Place:
    """A log, a database and the app that lies between them."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.database = folder / "totals.db"

    def tended(self, do: Callable[[Tended], object]) -> object:
        with tend(self.url) as log:
            return do(log)

    def feed(self) -> None:
        def write(tended: Tended) -> None:
            log = tended.session("feeds")
            log.create([NewTopic("orders", 4)])
            to = log.writer("orders")
            for n in range(ORDERS):
                to(n % 4, None, json.dumps({"customer": f"c{n % CUSTOMERS}", "amount": 1}).encode(), now_ms() + n, None)
            log.flush()

        self.tended(write)

    def run(self, until: Callable[[], bool]) -> tuple[int, str]:
        """Runs the app until then; its exit code and what it said on stderr."""
        err = self.folder / "err"
        with err.open("w") as said:
            command = [sys.executable, "-m", "semel", "run", APP, "--on", self.url]
            command += ["--state", str(self.folder / "state"), "--session-timeout-ms", SESSION_MS]
            process = subprocess.Popen(command, stderr=said, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + WAIT_S
            while not until() and process.poll() is None:
                assert time.monotonic() < deadline, err.read_text()
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            process.wait(WAIT_S)
        finally:
            process.kill()
            process.wait()
        return process.returncode, err.read_text()

    def run_to(self, count: int) -> None:
        """Empties the sink's table and runs until every customer's total there is `count`."""
        with sqlite3.connect(self.database) as database:
            if self.rows():
                database.execute("delete from totals")
        code, said = self.run(lambda: self.rows() == dict.fromkeys((f"c{n}" for n in range(CUSTOMERS)), count))
        assert code == 0, said
        self.alone()

    def rows(self) -> dict[str, int]:
        with sqlite3.connect(self.database) as database:
            try:
                return dict(database.execute("select customer, total from totals").fetchall())
            except sqlite3.OperationalError:
                return {}

    def alone(self) -> None:
        """A static member counts until its session times out."""

        def gone(tended: Tended) -> None:
            deadline = time.monotonic() + WAIT_S
            while tended.members("counts") or tended.members("counts.totals"):
                assert time.monotonic() < deadline
                time.sleep(0.05)

        self.tended(gone)

    def position(self, group: str, topic: str, count: int = 4) -> list[int | None]:
        def asked(tended: Tended) -> list[int | None]:
            found = tended.session(group).committed(parts(topic, count))
            return [None if at is None else at.offset for at in found.values()]

        found = self.tended(asked)
        assert isinstance(found, list)
        return found

    def move(self, group: str, topic: str, to: Position, count: int = 4) -> None:
        self.tended(lambda log: _done(log.session(group).commit_offsets(dict.fromkeys(parts(topic, count), to))))

    def ids(self) -> dict[str, str]:
        found = self.tended(lambda log: {k: v.topic_id for k, v in log.session("x").topics().items()})
        assert isinstance(found, dict)
        return found


def now_ms() -> int:
    """Apache Kafka deletes what is older than a topic's retention."""
    return int(time.time() * 1000)


def _done(outcome: object) -> None:
    assert isinstance(outcome, Done), outcome


def forget(log: Any) -> None:
    """What Kafka does to a group without members after 7 days."""
    for group in ("counts", "counts.totals"):
        if hasattr(log, "_admin"):
            log._admin.delete_consumer_groups([group])[group].result(10)
        else:
            asked = Ask(42, 2, DeleteGroupsRequest((group,)))
            assert log._engine.ask(log._connection, asked).results[0].error_code == 0


# SEMEL_TEST_KAFKA=HOST:PORT names a fresh cluster: of one test, because topics stay.
KAFKA = os.environ.get("SEMEL_TEST_KAFKA")


@pytest.fixture(params=["kafka"] if KAFKA else ["embedded", pytest.param("broker", marks=pytest.mark.long)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with ExitStack() as stack:
        url = f"embedded:{tmp_path / 'log'}"
        if request.param == "embedded":
            from semel.host.engine import Engine

            Engine(tmp_path / "log").close()
        elif KAFKA:
            url = f"kafka://{KAFKA}"
        else:
            broker = BrokerProcess(tmp_path / "log")
            stack.callback(broker.close)
            url = f"kafka://{broker.address}"
        made = Place(url, tmp_path)
        monkeypatch.setenv("COUNTS_DB", str(made.database))
        made.feed()
        yield made


def test_reset_says_what_it_does_and_then_the_app_starts_anew(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --yes nothing changes. With it every state begins from nothing: the totals come out as before."""
    place.run_to(8)
    ids, positions = place.ids(), place.position("counts", "orders")
    reset(APP, on=place.url)
    told = capsys.readouterr().out
    assert "positions in orders, by partition: 10 -> 0, 10 -> 0, 10 -> 0, 10 -> 0" in told
    assert f"emptied: {CHANGELOG}" in told and f"emptied: {REPARTITION}" in told
    assert f"kept: {OUTBOX} (all of it was delivered); the sink goes on where it is" in told
    assert "not undone: rows in SQLite table totals" in told and "not undone: records in topic totals" in told
    assert told.endswith("Nothing has been done. To do it: --yes\n")
    assert (place.ids(), place.position("counts", "orders")) == (ids, positions)

    reset(APP, on=place.url, yes=True)
    assert capsys.readouterr().out.endswith(f"Done: counts on {place.url} starts anew.\n")
    now = place.ids()
    assert {name for name in ids if ids[name] != now[name]} == {CHANGELOG, REPARTITION}
    assert place.position("counts", "orders") == place.position("counts", REPARTITION) == [0, 0, 0, 0]
    place.run_to(8)


def test_after_the_positions_are_gone_reset_is_the_way_on(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Kafka forgets the positions of a group that was away. The start stops and names the command; at the latest
    records, the app counts from nothing only what comes."""
    place.run_to(8)
    place.tended(forget)
    code, said = place.run(lambda: False)
    assert code == 1 and f"`semel app reset {APP} --on {place.url}`" in said, said
    place.alone()
    reset(APP, on=place.url, to=To.LATEST, yes=True)
    # Its sink has a position, whatever the group has forgotten.
    assert f"kept: {OUTBOX} (" in capsys.readouterr().out
    assert place.position("counts", "orders") == [10] * 4
    place.feed()
    place.run_to(8)
    assert place.position("counts", "orders") == [20] * 4


def test_an_outbox_that_is_computed_again_is_emptied_and_its_sink_must_be_told(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """What waits in it would come twice. Its sink stops at the new topic until a person has run the command that reset
    printed."""
    place.run_to(8)
    place.move("counts.totals", OUTBOX, Position(0))  # as if it had not been delivered
    reset(APP, on=place.url, yes=True)
    told = capsys.readouterr().out
    assert f"emptied: {OUTBOX} (made anew, 40 records in it given up)" in told
    assert f"semel sink adopt {APP} totals --on {place.url} --at start --yes" in told
    code, said = place.run(lambda: False)
    assert code == 1 and "re-created" in said
    place.alone()
    adopt(APP, "totals", on=place.url, stands="start", yes=True)
    assert "was re-created" in capsys.readouterr().out
    place.run_to(8)


def test_a_reset_that_did_not_finish_stops_the_start(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old state at new positions, or the reverse, would be wrong silently."""
    place.run_to(8)

    def dies(*given: object, **named: object) -> None:
        raise ResetFailed("died")

    with monkeypatch.context() as broken:
        broken.setattr("semel.streams.reset.lay_out", _second(dies))
        with pytest.raises(ResetFailed):
            reset(APP, on=place.url, yes=True)
    assert place.position("counts", "orders") == [UNFINISHED.offset] * 4
    code, said = place.run(lambda: False)
    assert code == 1 and "has begun and not finished" in said and f"semel app reset {APP} --on {place.url}" in said
    place.alone()
    capsys.readouterr()
    reset(APP, on=place.url, yes=True)
    assert "unfinished reset -> 0" in capsys.readouterr().out
    place.run_to(8)


def _second(replaced: Callable[..., object]) -> Callable[..., object]:
    """The real one first, then the replacement."""
    from semel.streams.layout import lay_out

    calls = iter([lay_out, replaced])
    return lambda *given, **named: next(calls)(*given, **named)


def test_an_app_that_runs_is_not_reset(place: Place) -> None:
    """On a cluster its group has members; an embedded folder is locked."""
    refused: list[str] = []

    def tried() -> bool:
        if not place.rows():
            return False
        with pytest.raises(SemelError) as raised:
            reset(APP, on=place.url, yes=True)
        refused.append(str(raised.value))
        return True

    assert place.run(tried)[0] == 0
    assert "already open by pid" in refused[0] or "group counts has 1 member: counts." in refused[0]
    place.alone()
    assert place.position("counts", "orders") == [10] * 4


def test_discard_gives_up_what_a_removed_node_left(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """The start names the command with its topic; after it the app starts. Nothing else can be discarded."""
    place.run_to(8)
    for group, name in (("counts", "counts-old-repartition"), ("counts.old", "counts-old-outbox")):

        def left(tended: Tended, group: str = group, name: str = name) -> None:
            log = tended.session(group)
            log.create([NewTopic(name, 1)])
            write = log.writer(name)
            for n in range(3):
                write(0, b"k", b"%d" % n, now_ms(), None)
            log.flush()
            _done(log.commit_offsets({parts(name, 1)[0]: Position(1)}))

        place.tended(left)
        code, said = place.run(lambda: False)
        assert code == 1 and f"`semel app discard {APP} {name} --on {place.url}`" in said, said
        place.alone()
        discard(APP, name, on=place.url)
        told = capsys.readouterr().out
        assert "deleted, with 2 records not " in told and "Nothing has been done" in told
        discard(APP, name, on=place.url, yes=True)
        assert name not in place.ids()
    for name, why in ((OUTBOX, "belongs to the program"), ("orders", "is the user's own"), ("no", "no topic no")):
        with pytest.raises(UsageError, match=why):
            discard(APP, name, on=place.url, yes=True)
    place.tended(lambda log: log.session("x").create([NewTopic("counts-other-x-outbox", 1)]))
    with pytest.raises(UsageError, match="nothing says that topic"):
        discard(APP, "counts-other-x-outbox", on=place.url, yes=True)
    place.feed()
    place.run_to(16)


def test_a_state_that_is_gone_begins_only_when_asked_to(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Its changelog was deleted: every start stops, and names the command; that says what the state will lack."""
    place.run_to(8)
    with pytest.raises(UsageError, match="there is nothing to begin"):
        begin(APP, "sums", on=place.url, yes=True)
    place.tended(lambda log: log.delete([CHANGELOG]))
    for _ in range(2):
        code, said = place.run(lambda: False)
        assert code == 1 and f"`semel app begin {APP} sums --on {place.url}`" in said, said
        place.alone()
    assert CHANGELOG not in place.ids()
    begin(APP, "sums", on=place.url)
    told = capsys.readouterr().out
    assert "nothing of what the app has read of orders (partition 0 at 10, 1 at 10, 2 at 10, 3 at 10)" in told
    assert told.endswith("Nothing has been done. To do it: --yes\n") and CHANGELOG not in place.ids()
    begin(APP, "sums", on=place.url, yes=True)
    assert CHANGELOG in place.ids() and place.position("counts", "orders") == [10] * 4
    place.feed()
    place.run_to(8)


def test_a_state_that_was_renamed_is_told_all_its_commands(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """`begin` names what the former name has left, changelog and repartition; else each would stop another start. A
    start names both, too."""
    place.run_to(8)
    former = [REPARTITION.replace("sums", "old"), CHANGELOG.replace("sums", "old")]

    def left(tended: Tended) -> None:
        log = tended.session("counts")
        for name in former:
            log.create([NewTopic(name, 1)])
            log.writer(name)(0, b"k", b"1", now_ms(), None)
            log.flush()
            _done(log.commit_offsets({parts(name, 1)[0]: Position(0)}))

    place.tended(left)
    place.tended(lambda log: log.delete([CHANGELOG]))
    begin(APP, "sums", on=place.url, yes=True)
    told = capsys.readouterr().out
    assert all(f"`semel app discard {APP} {name} --on {place.url}`" in told for name in former)
    code, said = place.run(lambda: False)
    assert code == 1 and all(f"`semel app discard {APP} {name} --on {place.url}`" in said for name in former), said


def test_reset_is_a_way_on_for_a_state_that_is_gone(place: Place) -> None:
    """Everything is computed again, so nothing is short of anything."""
    place.run_to(8)
    place.tended(lambda log: log.delete([CHANGELOG]))
    reset(APP, on=place.url, yes=True)
    place.run_to(8)


def test_a_removed_state_is_given_up_by_discard(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Left there, it would come back as it was then, should its name come back."""
    place.run_to(8)
    name = "counts-old-changelog"

    def left(tended: Tended) -> None:
        log = tended.session("counts")
        log.create([NewTopic(name, 1, {"cleanup.policy": "compact"})])
        log.writer(name)(0, b"k", b"1", now_ms(), None)
        log.flush()
        _done(log.commit_offsets({parts(name, 1)[0]: Position(0)}))

    place.tended(left)
    code, said = place.run(lambda: False)
    assert code == 1 and f"`semel app discard {APP} {name} --on {place.url}`" in said, said
    place.alone()
    discard(APP, name, on=place.url, yes=True)
    assert f"topic {name} on {place.url}: to be deleted, with the state 'old'." in capsys.readouterr().out
    place.feed()
    place.run_to(16)


def test_looking_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no semel log"):
        reset(APP, on=f"embedded:{tmp_path / 'none'}")
    assert not (tmp_path / "none").exists()
