"""`semel verify` on MariaDB and on rows with versions: killed at every step of the path, zombies refused, nothing lost,
repeated or put back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg

from semel.host.postgres import PostgresServer
from semel.verify.schedule import SINK_STEPS
from tests.servers import mariadb_subjects
from tests.support.mariadb import MariaDBServer
from tests.support.planted import ROOT

CRASHES = 24


def test_mariadb_and_versions_hold(tmp_path: Path) -> None:
    """24 kills and more, at every step; afterwards no table, no transaction and no session of the run is left."""
    with PostgresServer(tmp_path / "postgres") as postgres, MariaDBServer(tmp_path / "mariadb") as mariadb:
        command = [sys.executable, "-m", "semel.cli.main", "verify", "tests/servers/apps/contracts.py"]
        done = subprocess.run(
            [*command, f"--crashes={CRASHES}", "--seed=3", "--json"],
            cwd=ROOT,
            env={**os.environ, "CONTRACTS_MARIADB": mariadb.url, "CONTRACTS_POSTGRES": postgres.dsn},
            capture_output=True,
            text=True,
            timeout=600,
        )
        report = json.loads(done.stdout) if done.stdout else {}
        said = f"{done.stdout}\n{done.stderr}"
        assert (done.returncode, report.get("verdict"), report.get("counterexample")) == (0, "holds", None), said
        assert report["kills"]["worker"] + report["kills"]["broker"] >= CRASHES
        assert report["refused"] >= 1, said
        assert all(report["steps"][step] > 0 for step in SINK_STEPS)
        for name in ("sink each", "sink latest", "sink versioned"):
            assert report["outputs"][name]["present"] > 0, said
        with psycopg.connect(postgres.dsn) as connection:
            left = connection.execute("SELECT relname FROM pg_class WHERE relname ~ 'latest|semel_'").fetchall()
        assert not left
        assert not mariadb_subjects.left(mariadb.url, "")
