"""DuckDB, in this process and in killed ones: through the contract kit, through the tests of every transactional sink,
and what only a file that one process at a time can open gets wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from semel.contract import Claim, LogIdentity
from semel.ports import Done, NotDone, Unknown
from semel.sinks import DuckDB, duckdb_file
from semel.sinks import duckdb_connection as under
from semel.sinks.sink import Diverged, RowRefused, SinkError
from semel.testing import processes, trials
from semel.testing.contracts import ContractTests, Refused, Subject, run
from tests.servers import lake_subjects as subjects
from tests.sinks.conftest import MakeSink
from tests.sinks.test_tables import (  # noqa: F401
    EVERYTHING,
    Everything,
    test_a_key_of_any_type_finds_its_row,
    test_any_value_with_named_fields_is_a_row,
    test_different_keys_have_different_bytes,
    test_equal_keys_have_equal_bytes,
    test_every_type_arrives_as_it_was_committed,
    test_what_is_no_row_is_refused_before_it_enters_the_outbox,
)
from tests.sinks.test_transactional import (  # noqa: F401
    test_a_batch_written_again_changes_nothing,
    test_a_claim_returns_what_the_last_batch_left,
    test_a_gap_is_not_written,
    test_a_large_batch_is_the_same_as_a_small_one,
    test_a_renamed_sink_takes_the_shape_of_its_original_when_the_type_is_unknown,
    test_a_superseded_owner_writes_nothing,
    test_a_value_that_is_refused_is_named_and_nothing_is_written,
    test_another_log_is_diverged_and_leaves_no_trace,
    test_none_deletes_the_row_of_its_key,
    test_none_without_a_key_is_refused,
    test_only_renamed_tables_are_dropped,
    test_rows_and_position_are_one,
    test_the_kind_is_transactional,
    test_the_last_value_of_a_key_replaces_the_row,
    test_without_a_key_every_value_is_inserted,
)
from tests.sinks.values import Total, adopted, claimed, deleted, held, opened, rows, totals


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "sink.duckdb")


@pytest.fixture
def make_sink(path: str) -> MakeSink:
    return lambda table="totals", **said: DuckDB(path, table, **said)


class TestDuckDB(ContractTests):
    """By key; also in processes that are killed and stopped."""

    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        return subjects.duckdb_subject(subjects.duckdb_keyed, tmp_path)


def test_the_kit_on_appended_rows(tmp_path: Path) -> None:
    assert not subjects.held(subjects.duckdb_subject(subjects.duckdb_appended, tmp_path))


# --- planted mistakes ------------------------------------------------------------------------------------------------


class Rewriting:
    """A DuckDB connection that says something else than it was told."""

    def __init__(self, raw: Any, say: Any) -> None:
        self._raw, self._say = raw, say

    def execute(self, statement: str, *more: Any) -> Any:
        return self._say(self._raw, statement, *more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def _no_epoch(raw: Any, statement: str, *more: Any) -> Any:
    return raw.execute(statement.replace("AND epoch = ?", "AND epoch >= ?"), *more)


def _no_position(raw: Any, statement: str, *more: Any) -> Any:
    return raw.execute(statement.replace("AND position = ?", "AND position + ? >= 0"), *more)


def _position_outside(raw: Any, statement: str, *more: Any) -> Any:
    if "SET position" in statement:
        raw.execute("COMMIT").fetchall()
        raw.execute("BEGIN").fetchall()
    return raw.execute(statement, *more)


def _autocommitted(raw: Any, statement: str, *more: Any) -> Any:
    return raw.execute("SELECT 1" if statement in ("BEGIN", "COMMIT", "ROLLBACK") else statement, *more)


@pytest.mark.parametrize(
    ("mistake", "names"),
    [
        (_no_epoch, ("zombie",)),
        (_no_position, ("replay", "recut")),
        (_position_outside, ("torn", "replay")),
        (_autocommitted, ("torn", "replay")),
    ],
    ids=["no epoch", "no position", "position outside", "autocommitted"],
)
def test_a_mistake_in_the_transaction_is_found(
    mistake: Any, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S1, S10: the kit on DuckDB is worth what it finds."""
    real = under.DuckDBConnection._opened

    @contextlib.contextmanager
    def rewriting(self: Any, *words: Any) -> Iterator[Any]:
        with real(self, *words) as connection:
            yield Rewriting(connection, mistake)

    monkeypatch.setattr(under.DuckDBConnection, "_opened", rewriting)
    for name in names:
        with pytest.raises(Refused):
            run(subjects.duckdb_subject(subjects.duckdb_appended, tmp_path), getattr(trials, name))


def kept_open(address: str, suffix: str) -> DuckDB:
    """A delivery that keeps the file open from its claim on. At module level: processes import it."""
    sink = subjects.duckdb_appended(address, suffix)
    held = []
    opened = sink.open

    def keeping(steps: Any = None) -> Any:
        connection: Any = opened(steps)
        claiming = connection.claim

        def claim(*words: Any) -> Any:
            claimed = claiming(*words)
            if isinstance(claimed, Claim):
                held.append(duckdb.connect(address))
            return claimed

        connection.claim = claim
        return connection

    sink.open = keeping  # type: ignore[method-assign]
    return sink


def test_a_file_that_is_kept_open_is_found(tmp_path: Path) -> None:
    """S14: a stopped worker that has the file open between its batches holds up its successor without end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "WAIT_S", 3.0)
        with pytest.raises(Refused, match="the successor ended with None"):
            run(subjects.duckdb_subject(kept_open, tmp_path), processes.zombies)


# --- the file and who holds it ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def holding(path: str, *, read_only: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has the file open."""
    program = f"import duckdb, time; c = duckdb.connect({path!r}, read_only={read_only}); print('!', flush=True); "
    program += "time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None and child.stdout.readline() == b"!\n"
        yield child
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("read_only", [False, True], ids=["writer", "reader"])
def test_who_holds_the_file_is_named(path: str, read_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """S14: a process that stopped with the file open: its pid, that it is stopped, and the two commands that help. A
    batch and a claim are not done, and go on once it is gone."""
    monkeypatch.setattr(under, "WAIT_S", 0.05)
    sink = DuckDB(path, "totals")
    connection = opened(sink)
    claim = claimed(connection, sink)
    with holding(path, read_only=read_only) as other:
        other.send_signal(signal.SIGSTOP)
        os.waitpid(other.pid, os.WUNTRACED)
        for outcome in (
            connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])),
            connection.claim(claim.delivery, claim.log),
        ):
            assert isinstance(outcome, NotDone)
            assert f"held by pid {other.pid} (stopped)" in outcome.reason
            assert f"kill -CONT {other.pid}" in outcome.reason and f"kill -9 {other.pid}" in outcome.reason
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    assert held(connection) == totals([("a", 1)])


def test_a_reader_has_its_turn_between_batches(path: str) -> None:
    """Nothing is open between batches: another process opens the file, reads, and semel goes on."""
    sink = DuckDB(path, "totals")
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    with holding(path, read_only=True):
        pass
    assert connection.write(claim, 1, 2, "r", rows(sink, [Total("b", 1)], 1)) == Done()


def test_a_short_hold_is_waited_for(path: str) -> None:
    """A reader that lets go within a second costs no claim."""
    sink = DuckDB(path, "totals")
    connection = opened(sink)
    claim = claimed(connection, sink)
    with holding(path, read_only=True) as other:
        subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.1); os.kill({other.pid}, 9)"])
        began = time.monotonic()
        assert connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
        assert time.monotonic() - began < 1


@pytest.mark.parametrize("size", [1, under.MANY_ROWS])
def test_others_have_a_turn_while_this_process_is_busy(path: str, size: int) -> None:
    """Two deliveries of one process follow each other without a gap: another process comes in between all the same,
    also where large batches leave the file open from one to the next."""
    assert _another_comes_in(path, size, 20)


def test_a_file_that_is_never_left_closed_is_found(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test before this one is worth something: without an end of its turn nobody else comes in."""
    monkeypatch.setattr(duckdb_file, "TURN_S", 60.0)
    monkeypatch.setattr(duckdb_file, "IDLE_S", 60.0)
    assert not _another_comes_in(path, under.MANY_ROWS, 3)


def _another_comes_in(path: str, size: int, within_s: float) -> bool:
    first, second = DuckDB(path, "one", name="one"), DuckDB(path, "two", name="two")
    stop, begun = threading.Event(), set[str]()

    def busy(sink: DuckDB) -> None:
        connection = opened(sink)
        claim, at = claimed(connection, sink), 0
        batch = [Total("a", n) for n in range(size)]
        while not stop.is_set():
            at += size * (connection.write(claim, at, at + size, "r", rows(sink, batch, at)) == Done())
            begun.add(sink.name)
        connection.close()

    threads = [threading.Thread(target=busy, args=(sink,)) for sink in (first, second)]
    for thread in threads:
        thread.start()
    program = (
        f"import duckdb, sys, time\nuntil = time.monotonic() + {within_s}\nwhile True:\n"
        f"    try:\n        duckdb.connect({path!r}).close(); break\n"
        "    except duckdb.IOException:\n        assert time.monotonic() < until; time.sleep(0.01)\n"
    )
    try:
        while len(begun) < 2:  # the other process begins when this one is at work
            assert all(thread.is_alive() for thread in threads)
            time.sleep(0.01)
        return subprocess.run([sys.executable, "-c", program], timeout=60, stderr=subprocess.DEVNULL).returncode == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _large(sink: DuckDB, start: int = 0) -> list[Any]:
    return rows(sink, [Total(f"c{n}", n) for n in range(under.MANY_ROWS)], start)


def test_a_large_batch_leaves_the_file_open_for_a_moment(path: str) -> None:
    """The next batch of a backlog finds it open; when none comes, or the delivery ends, it is closed. After a small one
    it is closed at once."""
    sink = DuckDB(path, "totals")
    connection = opened(sink)
    claim, file = claimed(connection, sink), duckdb_file.file_of(path)
    assert file._left is None, "a claim says nothing of a backlog"
    for start in (0, 1_000):
        assert connection.write(claim, start, start + 1_000, "r", _large(sink, start)) == Done()
        assert file._left is not None
    assert connection.write(claim, 2_000, 2_001, "r", rows(sink, [Total("a", 1)], 2_000)) == Done()
    assert file._left is None
    assert connection.write(claim, 2_001, 3_001, "r", _large(sink, 2_001)) == Done()
    until = time.monotonic() + 10
    while file._left is not None:
        assert time.monotonic() < until, "nobody closes it"
        time.sleep(0.01)
    with holding(path):  # another process can have it
        pass
    assert connection.write(claim, 3_001, 4_001, "r", _large(sink, 3_001)) == Done()
    connection.close()
    assert file._left is None


def test_after_an_error_nothing_is_left_open(path: str) -> None:
    """What an error leaves in the open file is nobody's business: it is opened anew."""
    subjects.query(path, "CREATE TABLE totals (customer VARCHAR, total BIGINT CHECK (total < 5000))")
    sink = DuckDB(path, "totals")
    connection = opened(sink)
    claim, file = claimed(connection, sink), duckdb_file.file_of(path)
    assert connection.write(claim, 0, 1_000, "r", _large(sink)) == Done()
    with pytest.raises(RowRefused) as refused:
        connection.write(claim, 1_000, 2_001, "r", [*_large(sink, 1_000), *rows(sink, [Total("x", 5_000)], 2_000)])
    assert refused.value.offset == 2_000 and file._left is None
    assert connection.write(claim, 1_000, 2_000, "r", _large(sink, 1_000)) == Done()
    assert len(list(connection.rows())) == 2_000


def test_a_process_that_is_killed_with_the_file_left_open_has_lost_nothing(path: str) -> None:
    """What was committed is in the log beside the file, and the next opening reads it (S13)."""
    program = f"""
import os
from tests.servers.test_duckdb import DuckDB, _large, claimed, opened
sink = DuckDB({path!r}, "totals")
connection = opened(sink)
print(connection.write(claimed(connection, sink), 0, 1_000, "r", _large(sink)), flush=True)
os.kill(os.getpid(), 9)
"""
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, env={
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})  # fmt: skip
    assert child.returncode == -signal.SIGKILL and child.stdout == b"Done()\n", child.stderr
    sink = DuckDB(path, "totals")
    connection = opened(sink)
    assert claimed(connection, sink).position == 1_000 and len(list(connection.rows())) == 1_000


def test_a_file_that_is_no_database_is_a_persons_business(path: str) -> None:
    """The message says what to do; the file is left as it is."""
    Path(path).write_bytes(b"no database at all, but long enough to look like one" * 200)
    with pytest.raises(SinkError, match="move this file away"):
        DuckDB(path, "totals").open().prepare(Total)
    assert Path(path).read_bytes().startswith(b"no database")


@pytest.mark.parametrize("size", [1, under.MANY_ROWS])
def test_a_file_that_was_removed_is_not_made_anew_by_a_batch(path: str, size: int) -> None:
    """A batch under a claim of the former file is not done, also where it was left open; the next claim finds an empty
    one, at position 0."""
    sink = DuckDB(path, "totals")
    connection = opened(sink)
    claim = claimed(connection, sink)
    assert connection.write(claim, 0, size, "r", _large(sink)[:size]) == Done()
    os.remove(path)
    outcome = connection.write(claim, size, size + 1, "r", rows(sink, [Total("b", 1)], size))
    assert isinstance(outcome, NotDone) and "removed" in outcome.reason
    assert not os.path.exists(path)
    again = claimed(connection, sink)
    assert (again.epoch, again.position) == (1, 0)


def test_a_table_that_was_dropped_is_not_made_anew_behind_its_positions(path: str) -> None:
    """An empty table would never get the delivered rows again."""
    sink = DuckDB(path, "totals")
    connection = opened(sink)
    assert connection.write(claimed(connection, sink), 0, 1, "r", rows(sink, [Total("a", 1)])) == Done()
    subjects.query(path, "DROP TABLE totals")
    again = opened(sink)
    with pytest.raises(SinkError, match="is not there"):
        claimed(again, sink)


def test_the_choice_of_a_new_log_can_be_taken(path: str) -> None:
    """S16: a person moves it to the other log; a new incarnation, from the start."""
    sink = DuckDB(path, "totals")
    connection = opened(sink)
    assert connection.write(claimed(connection, sink), 0, 5, "r", []) == Done()
    other = LogIdentity("another", 4)
    with pytest.raises(Diverged, match=r"semel sink adopt APP.py totals"):
        claimed(connection, sink, log=other)
    adopted(connection, other)
    claim = claimed(connection, sink, log=other)
    assert (claim.incarnation, claim.position) == (2, 0)


def test_a_failed_commit_is_unknown(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S8: neither done nor failed; the next claim reads which."""
    sink = DuckDB(path, "totals")
    connection: Any = opened(sink)
    claim: Claim = claimed(connection, sink)

    def lost(commit: Any) -> None:
        commit()
        raise duckdb.IOException("IO Error: gone")

    subjects.arm(connection, lost)
    assert isinstance(connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])), Unknown)
    assert claimed(connection, sink).position == 1


# --- what a column would change --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "field", "good", "bad"),
    [
        ("DECIMAL(9,2)", "x", ["1.25", "9999999.99"], ["1.255", "10000000"]),
        ("SMALLINT", "x", [32767], [32768]),
        ("TIMESTAMP", "at", ["2020-01-01T00:00:00.123456"], ["2020-01-01T00:00:00Z", "2020-01-01T00:00:00.1234567"]),
        ("TIMESTAMPTZ", "at", ["2020-01-01T02:00:00+02:00"], ["2020-01-01T00:00:00", "0001-01-01T00:00:00+14:00"]),
        ("INTERVAL", "at", ["P1DT1S"], ["P106751992D", "-P999999999D"]),
        ("TIMESTAMP_S", "at", ["2020-01-01T00:00:01"], ["2020-01-01T00:00:00.5"]),
        ("TIMESTAMP_MS", "at", ["2020-01-01T00:00:00.125"], ["2020-01-01T00:00:00.1255"]),
        ("DOUBLE", "x", [0.1, 2**53], [2**53 + 1]),
        ("DATE", "at", ["2020-01-01"], ["20200101", "now"]),
        ("TIME", "at", ["01:02:03.5"], ["01:02:03+01:00"]),
        ("UUID", "at", ["123e4567-e89b-12d3-a456-426614174000"], ["no uuid"]),
        ("VARCHAR NOT NULL", "at", ["007", ""], [None]),
    ],
)
def test_what_a_column_would_change_is_refused(
    path: str, column: str, field: str, good: list[Any], bad: list[Any]
) -> None:
    """DuckDB rounds, shifts and casts without a word; by its offset, and nothing of the batch is written."""
    subjects.query(path, f'CREATE TABLE totals (customer VARCHAR, "{field}" {column})')
    sink = DuckDB(path, "totals")
    connection = opened(sink, None)
    claim = claimed(connection, sink)
    for value in bad:
        batch = rows(sink, [{"customer": "a", field: good[0]}, {"customer": "b", field: value}])
        with pytest.raises(RowRefused) as refused:
            connection.write(claim, 0, 2, "r", batch)
        assert refused.value.offset == 1
    batch = rows(sink, [{"customer": str(n), field: value} for n, value in enumerate(good)])
    assert connection.write(claim, 0, len(good), "r", batch) == Done()
    assert sorted(connection.rows()) == sorted(connection.canonical(row.value or b"") for row in batch)


@pytest.mark.parametrize("column", ["FLOAT", "INTEGER[]", "ENUM ('a')", "HUGEINT", "TIMESTAMP_NS", "TIMETZ"])
def test_a_column_that_would_change_any_value_is_refused_at_the_start(path: str, column: str) -> None:
    subjects.query(path, f"CREATE TABLE totals (customer VARCHAR, total {column})")
    with pytest.raises(SinkError, match="total"):
        DuckDB(path, "totals").open().prepare(None)


def test_a_constraint_of_the_table_refuses_by_offset(path: str) -> None:
    """Two rows of one batch that a unique index keeps apart, and a CHECK: the record is found."""
    sink = DuckDB(path, "totals")
    subjects.query(path, "CREATE TABLE totals (customer VARCHAR UNIQUE, total BIGINT CHECK (total < 5))")
    connection = opened(sink)
    for count in (2, 300):
        twice = rows(sink, [*(Total(f"c{n}", 1) for n in range(count)), Total("c1", 2)])
        with pytest.raises(RowRefused, match=r"(?i)unique|duplicate") as refused:
            connection.write(claimed(connection, sink), 0, 999, "r", twice)
        assert refused.value.offset == count
    high = rows(sink, [Total("a", 1), Total("b", 7), Total("c", 1)])
    with pytest.raises(RowRefused, match="CHECK") as refused:
        connection.write(claimed(connection, sink), 0, 3, "r", high)
    assert refused.value.offset == 1


def test_a_key_that_ignores_case_is_refused(path: str) -> None:
    """S15: it holds different keys for equal."""
    subjects.query(path, "CREATE TABLE totals (customer VARCHAR COLLATE NOCASE PRIMARY KEY, total BIGINT)")
    with pytest.raises(SinkError, match="cannot be a key"):
        DuckDB(path, "totals", key="customer").open().prepare(Total)


def test_a_key_without_its_index_is_refused(path: str) -> None:
    subjects.query(path, "CREATE TABLE totals (customer VARCHAR, total BIGINT)")
    with pytest.raises(SinkError, match="CREATE UNIQUE INDEX") as refused:
        DuckDB(path, "totals", key="customer").open().prepare(Total)
    statement = str(refused.value).partition("CREATE UNIQUE INDEX ")[2].replace(" name ON table", " u ON totals")
    subjects.query(path, "CREATE UNIQUE INDEX u ON totals " + statement[statement.index("(") :])
    sink = DuckDB(path, "totals", key="customer")
    connection = opened(sink)
    claim = claimed(connection, sink)
    batch = [*rows(sink, [Total("a", 1), Total("b", 1)]), deleted(sink, "b", 2)]
    assert connection.write(claim, 0, 3, "r", batch) == Done()
    assert connection.write(claim, 3, 4, "r", rows(sink, [Total("a", 4)], 3)) == Done()
    assert held(connection) == totals([("a", 4)])


def test_decimals_of_the_created_column_are_exact(path: str) -> None:
    """20 digits before the point and 18 behind it; what has more is refused."""
    sink = DuckDB(path, "totals", value=Everything)
    connection = opened(sink, Everything)
    claim = claimed(connection, sink)
    for amount in ("0." + "1" * 19, "1" + "0" * 20):
        with pytest.raises(RowRefused, match="amount"):
            connection.write(claim, 0, 1, "r", rows(sink, [replace(EVERYTHING, amount=Decimal(amount))]))
