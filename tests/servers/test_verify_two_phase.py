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
from tests.servers import mariadb_subjects, two_phase_subjects
from tests.sinks.subjects import S3_KEY, S3_SECRET
from tests.support.mariadb import MariaDBServer
from tests.support.planted import ROOT
from tests.support.seaweed import SeaweedProcess

CRASHES = int(os.environ.get("CRASHES", "30"))
# Postgres on semel broker in CI; all of them in `make proof WHAT=two-phase`.
ALL = pytest.mark.skipif("CRASHES" not in os.environ, reason="CRASHES=100, as `make proof WHAT=two-phase` has it")


def verified(on: str, environ: dict[str, str]) -> tuple[dict[str, Any], str]:
    """The report of a run that holds, in which every step was reached and a zombie was refused."""
    command = [sys.executable, "-m", "semel.cli.main", "verify", "tests/servers/apps/two_phase.py"]
    done = subprocess.run(
        [*command, "--on", on, f"--crashes={CRASHES}", "--seed=5", "--json"],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=3_600,
    )
    report = json.loads(done.stdout) if done.stdout else {}
    said = f"{done.stdout}\n{done.stderr}"
    assert (done.returncode, report.get("verdict"), report.get("counterexample")) == (0, "holds", None), said
    assert report["refused"] >= 1, said
    assert all(report["steps"][step] > 0 for step in (*SINK_STEPS, *CUT_STEPS, *PHASE_STEPS)), said
    return report, said


@pytest.mark.parametrize("on", ["broker", pytest.param("embedded", marks=ALL)])
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


@ALL
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


@ALL
def test_uploads_in_parts_hold(tmp_path: Path) -> None:
    """The same through S3; no upload and no object is left."""
    with SeaweedProcess(tmp_path / "seaweed") as seaweed:
        keys = {"AWS_ACCESS_KEY_ID": S3_KEY, "AWS_SECRET_ACCESS_KEY": S3_SECRET}
        report, said = verified("broker", {"TWO_PHASE_S3": seaweed.endpoint, **keys})
        assert report["outputs"]["sink parts"]["present"] > 0, said
        assert report["outputs"]["in doubt at parts"]["present"] == 0, said
        assert not [one for one in two_phase_subjects.left_in_parts(seaweed.endpoint, "") if "verify" in one]
