"""`semel verify examples/flights.py` against a real Postgres: exactly-once holds over 50 kills, and the other two modes
are shown for what they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semel.host.postgres import PostgresServer
from semel.verify.schedule import BROKER_STEPS, SINK_STEPS, WORKER_STEPS
from tests.support.planted import ROOT

CRASHES = int(os.environ.get("CRASHES", "50"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
        yield server


def verify(server: PostgresServer, folder: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "semel.cli.main", "verify", "examples/flights.py", "--seed", "1", "--json", *words]
    env = {**os.environ, "FLIGHTS_POSTGRES": server.dsn, "FLIGHTS_SQLITE": str(folder / "alerts.db")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300 + 15 * CRASHES)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, f"{done.stdout}\n{done.stderr}"


def total(report: dict[str, Any], what: str) -> int:
    return sum(output[what] for output in report["outputs"].values())


def test_exactly_once_holds(server: PostgresServer, tmp_path: Path) -> None:
    """Every step of workers, broker and sinks was reached; zombies were refused; nothing is lost, repeated, wrong."""
    code, report, said = verify(server, tmp_path, "--crashes", str(CRASHES))
    print(said)  # the report of `make proof`
    assert (code, report.get("verdict"), report.get("counterexample")) == (0, "holds", None), said
    assert report.keys() >= {"verdict", "seed", "on", "mode", "kills", "zombies", "steps", "outputs", "counterexample"}
    assert (report["seed"], report["on"], report["mode"]) == (1, "broker", "exactly-once")
    assert report["kills"]["worker"] + report["kills"]["broker"] >= CRASHES and report["kills"]["broker"] >= 5
    assert report["zombies"] >= CRASHES // 10 and report["refused"] >= CRASHES // 10, said
    assert all(report["steps"][step] > 0 for step in (*WORKER_STEPS, *BROKER_STEPS, *SINK_STEPS))
    sink, topic = report["outputs"]["sink alerts"], report["outputs"]["totals"]
    assert sink.keys() >= {"kind", "expected", "present", "lost", "repeated", "wrong"}
    assert sink["present"] > 100 and topic["present"] > 1000
    print(json.dumps(report))  # for docs/proof


def test_at_least_once_repeats(server: PostgresServer, tmp_path: Path) -> None:
    """Outputs come before their offsets: killed in between, they come again."""
    code, report, said = verify(
        server, tmp_path, "--crashes", "4", "--mode", "at-least-once", "--at", "offsets.before"
    )  # fmt: skip
    assert (code, report.get("verdict")) == (1, "broken"), said
    assert total(report, "repeated") > 0 and report["counterexample"], said


def test_at_most_once_loses(server: PostgresServer, tmp_path: Path) -> None:
    """Offsets come before their outputs: killed in between, they never come."""
    code, report, said = verify(server, tmp_path, "--crashes", "4", "--mode", "at-most-once", "--at", "offsets.after")
    assert (code, report.get("verdict")) == (1, "broken"), said
    assert total(report, "lost") > 0 and report["counterexample"], said
