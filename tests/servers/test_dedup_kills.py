"""The batch step as a process that is killed (SIGKILL) at each of its stages, while others append: nothing is lost, and
the last run leaves each event once. Through the command, as a person runs it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from semel.host.postgres import PostgresServer
from semel.sinks import dedup
from semel.sinks.dedup import SqlDialect
from tests.servers.test_dedup import Store, events, on_duckdb, on_parquet, on_postgres, once, repeated
from tests.support.planted import ROOT

KILLED = """
import os, signal, sys
from semel.cli import dedup as command
from semel.sinks import dedup
stage, nth, *words = sys.argv[1:]
left = [int(nth)]
def at(reached):
    left[0] -= reached == stage
    if reached == stage and left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
module = command._module
def armed(name, library, extra):
    found = module(name, library, extra)
    class Armed:
        deduplicate = staticmethod(lambda *given: found.deduplicate(*given, at=at))
    return Armed
command._module = armed
command.dedup(["run", "--json", *words])
"""


def step(words: list[str], stage: str = "", nth: int = 1) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, stage, str(nth), *words],
        cwd=ROOT, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert done.returncode == (-signal.SIGKILL if stage else 0), f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout) if done.stdout else {}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("dedup")) as server:
        yield server
        server.kill()


@pytest.fixture(params=["postgres", "parquet"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, list[str]]:
    if request.param == "parquet":
        return on_parquet(tmp_path), [str(tmp_path)]
    dsn = request.getfixturevalue("server").dsn
    return on_postgres(dsn), [dsn, "--table", "events"]


def test_killed_at_each_stage_while_others_append(place: tuple[Store, list[str]]) -> None:
    """Twice each, in its first file and in a later one, with a writer that never waits for it."""
    store, words = place
    rows = events(0, 200)
    store.append(repeated(rows))
    over = threading.Event()
    numbers = itertools.count(200, 10)

    def appends() -> None:
        while not over.wait(0.02):
            start = next(numbers)
            store.append([*events(start, start + 10), *events(start - 30, start - 20)])
            rows.extend(events(start, start + 10))

    writer = threading.Thread(target=appends)
    writer.start()
    try:
        for stage in store.stages:
            for nth in (1, 2 if stage in ("written", "replaced") else 1):
                step(words, stage, nth)
    finally:
        over.set()
        writer.join()
    assert len(rows) > 300, "the writer wrote while the step was killed"
    assert set(store.read()) == set(rows)
    told = step(words)
    assert told["left"] == len(rows), told
    once(store, rows)
    assert step(words)["removed"] == 0


def test_duckdb_killed_at_each_stage(tmp_path: Path) -> None:
    """Its file belongs to one process at a time: others append between the deaths; a second process is told so."""
    rows = events(0, 200)
    on_duckdb(tmp_path).append(repeated(rows))
    file = str(tmp_path / "events.duckdb")
    words = [file, "--table", "events"]
    for stage in ("chosen", "deleted", "committed"):
        with duckdb.connect(file) as connection:
            more = events(len(rows), len(rows) + 20)
            rows += more
            found = [[id, n] for id, n in [*more, *rows[:5]]]
            connection.executemany("INSERT INTO events (semel_event, n) VALUES (?, ?)", found)
        step(words, stage)
    with duckdb.connect(file):
        refused = subprocess.run(
            [sys.executable, "-m", "semel.cli.main", "dedup", "run", *words], cwd=ROOT, capture_output=True, text=True,
            timeout=120, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        assert refused.returncode != 0 and "lock" in refused.stderr and "Traceback" not in refused.stderr
    step(words)
    with duckdb.connect(file) as connection:
        assert sorted(connection.execute("SELECT semel_event, n FROM events").fetchall()) == sorted(rows)


def test_the_view_of_clickhouse_has_each_event_once(tmp_path: Path) -> None:
    """On ClickHouse's engine in process: 900 MB, loaded here only."""
    from chdb import session as chdb

    session = chdb.Session(str(tmp_path / "clickhouse"))
    session.query("CREATE DATABASE shop")
    session.query("CREATE TABLE shop.events (n Int64, semel_event String) ENGINE = MergeTree ORDER BY n")
    session.query("INSERT INTO shop.events SELECT number % 50, 'a/s/1/0/' || toString(number % 50) FROM numbers(120)")
    session.query(dedup.view(SqlDialect.CLICKHOUSE, ("shop", "events"), ["n", "semel_event"]))
    found = session.query("SELECT count(), uniqExact(semel_event), sum(n) FROM shop.events_once")
    assert str(found).strip() == "50,50,1225"
