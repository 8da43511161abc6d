"""`semel check` and `semel verify` on DuckDB, Delta and Iceberg: killed at every step of the path, zombies refused,
nothing lost or repeated, nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from semel.verify.schedule import SINK_STEPS
from tests.support.planted import ROOT

APP = "tests/servers/apps/lake.py"


def semel(folder: Path, *words: str, sinks: str = "") -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-m", "semel.cli.main", *words, "--json"],
        cwd=ROOT,
        env={**os.environ, "LAKE": str(folder), "LAKE_SINKS": sinks},
        capture_output=True,
        text=True,
        timeout=600,
    )
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said
    return json.loads(done.stdout), said


def test_check_says_exactly_once_and_where_it_ends(tmp_path: Path) -> None:
    """Each of the six, without opening anything."""
    report, said = semel(tmp_path, "check", APP)
    labels = [path["guarantee"] for path in report["paths"] if "sink" in json.dumps(path)]
    assert labels.count("exactly-once") >= 6, said
    assert not list(tmp_path.iterdir())


def test_verify_holds(tmp_path: Path) -> None:
    """Kills at every step of the sink, zombies resumed after their successor's commit and refused."""
    sinks = ["duck-latest", "delta-each", "ice-latest"]
    report, said = semel(tmp_path, "verify", APP, "--crashes=16", "--seed=5", sinks=" ".join(sinks))
    assert (report["verdict"], report.get("counterexample")) == ("holds", None), said
    assert report["kills"]["worker"] + report["kills"]["broker"] >= 16
    assert report["refused"] >= 1, said
    assert all(report["steps"][step] > 0 for step in SINK_STEPS), said
    for name in sinks:
        assert report["outputs"][f"sink {name}"]["present"] > 0, said
    left = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "catalog.db"]
    assert not left, left
