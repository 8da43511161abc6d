"""`semel verify` on sinks that prepare: killed at every step of the path and of its settlement, zombies refused, and
nothing left prepared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from semel.host.postgres import PostgresServer
from semel.verify.schedule import CUT_STEPS, PHASE_STEPS, SINK_STEPS
from tests.servers import mariadb_subjects
from tests.support.mariadb import MariaDBServer
from tests.support.planted import ROOT

CRASHES = 30


def verified(on: str, environ: dict[str, str]) -> tuple[dict[str, Any], str]:
    """The report of a run that holds, in which every step was reached and a zombie was refused."""
    command = [sys.executable, "-m", "semel.cli.main", "verify", "tests/servers/apps/two_phase.py"]
    done = subprocess.run(
        [*command, "--on", on, f"--crashes={CRASHES}", "--seed=5", "--json"],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=600,
    )
    report = json.loads(done.stdout) if done.stdout else {}
    said = f"{done.stdout}\n{done.stderr}"
    assert (done.returncode, report.get("verdict"), report.get("counterexample")) == (0, "holds", None), said
    assert report["refused"] >= 1, said
    assert all(report["steps"][step] > 0 for step in (*SINK_STEPS, *CUT_STEPS, *PHASE_STEPS)), said
    return report, said


@pytest.mark.parametrize("on", ["broker", "embedded"])
def test_postgres_in_two_phases_holds(on: str, tmp_path: Path) -> None:
    """Each step is reached, most of them by a kill; afterwards no prepared transaction and no table is left."""
    with PostgresServer(tmp_path / "postgres") as postgres:
        report, said = verified(on, {"TWO_PHASE_POSTGRES": postgres.dsn})
        for name in ("each", "latest"):
            assert report["outputs"][f"sink {name}"]["present"] > 0, said
            assert report["outputs"][f"in doubt at {name}"]["present"] == 0, said
        with psycopg.connect(postgres.dsn) as connection:
            assert not connection.execute("SELECT gid FROM pg_prepared_xacts").fetchall()
            assert not connection.execute("SELECT 1 FROM pg_class WHERE relname ~ 'latest|semel_'").fetchall()
        postgres.kill()


def test_mariadb_and_files_in_two_phases_hold(tmp_path: Path) -> None:
    """The same through XA and by renaming; no XA transaction and no temporary file is left."""
    with MariaDBServer(tmp_path / "mariadb") as mariadb:
        environ = {"TWO_PHASE_MARIADB": mariadb.url, "TWO_PHASE_FILES": str(tmp_path / "orders")}
        report, said = verified("broker", environ)
        for name in ("mariadb", "files"):
            assert report["outputs"][f"sink {name}"]["present"] > 0, said
            assert report["outputs"][f"in doubt at {name}"]["present"] == 0, said
        assert not mariadb_subjects.left(mariadb.url, "")
    assert not list(tmp_path.glob("orders*")), "what it made is removed"
