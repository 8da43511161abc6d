"""`semel verify` on sources: killed at every step of the ingest, zombies refused, each row of files and of a table in
its topic once, also requests and changes; and the bug that is planted is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from semel.host.postgres import PostgresServer
from semel.verify.schedule import SOURCE_STEPS
from tests.support.campaigns import SOURCES, run
from tests.support.kafka import KafkaProcess
from tests.support.planted import CANARIES, ROOT, planted

CRASHES = 12
EVENTS = "CREATE TABLE events (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text, amount bigint)"
ITEMS = "CREATE TABLE items (id bigint PRIMARY KEY, customer text, amount bigint)"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with PostgresServer(tmp_path_factory.mktemp("postgres"), settings={"wal_level": "logical"}) as server:
        with psycopg.connect(server.dsn) as connection:
            connection.execute(EVENTS)
            connection.execute(ITEMS)
        yield server.dsn


def verify(folder: Path, database: str, *words: str, source: Path | None = None) -> tuple[int, dict[str, Any], str]:
    env = {**os.environ, "SOURCES_FOLDER": str(folder), "SOURCES_POSTGRES": database}
    if source is not None:
        env["PYTHONPATH"] = str(source)
    command = [sys.executable, "-m", "semel.cli.main", "verify", "tests/servers/apps/sources.py", "--json", *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, f"{done.stdout}\n{done.stderr}"


def test_sources_hold(tmp_path: Path, database: str) -> None:
    """At every step, with zombies; afterwards no folder and no table of the run is left."""
    code, report, said = verify(tmp_path, database, f"--crashes={CRASHES}", "--seed=2")
    assert (code, report.get("verdict"), report.get("counterexample")) == (0, "holds", None), said
    assert report["kills"]["worker"] + report["kills"]["broker"] >= CRASHES and report["refused"] >= 1, said
    assert all(report["steps"][step] > 0 for step in SOURCE_STEPS)
    for name in ("source orders", "source events", "source calls", "source items"):
        assert report["outputs"][name]["present"] > 500, said
    assert sorted(path.name for path in tmp_path.iterdir() if "verify" in path.name) == []
    with psycopg.connect(database) as connection:
        left = connection.execute("SELECT relname FROM pg_class WHERE relname LIKE 'events%' AND relkind = 'r'")
        assert left.fetchall() == [("events",)]
        assert connection.execute("SELECT * FROM pg_replication_slots").fetchall() == []
        assert connection.execute("SELECT * FROM pg_publication").fetchall() == []


def on(log: str, folder: Path) -> None:
    found = run(SOURCES["sources"], folder, crashes=4, seed=2, on=log)
    assert found.holds, f"{found.as_json()}\n{found.said}"
    assert all(count > 100 for count in found.rows.values()), found.rows


def test_sources_hold_on_an_embedded_log(tmp_path: Path) -> None:
    """One process, and no zombies: a copy of the log would read from the sources, too. (A second snapshot, after a
    kill within the first, was taken for rows that nobody had put there.)"""
    on("embedded", tmp_path)


def test_sources_hold_on_apache_kafka(tmp_path: Path) -> None:
    """All four, with a zombie."""
    with KafkaProcess(tmp_path / "kafka", props={"group.min.session.timeout.ms": "1000"}) as kafka:
        on(f"kafka://{kafka.address}", tmp_path)


def test_a_position_beside_the_records_is_found(tmp_path: Path, database: str) -> None:
    """The planted bug repeats rows, and the verdict says so. (Without it the test above loses and repeats nothing.)"""
    words = ("--at", "ingest.records", "--crashes=2", "--seed=1")
    source = planted(CANARIES / "verify" / "position-beside-the-source.patch", tmp_path / "src")
    code, report, said = verify(tmp_path, database, *words, source=source)
    assert (code, report.get("verdict")) == (1, "broken"), said
    repeated = {name: output["repeated"] for name, output in report["outputs"].items() if name.startswith("source ")}
    assert sum(repeated.values()) > 0, said  # of which source depends on who was reading when it was killed
