"""`semel check` on DuckDB, Delta and Iceberg. (`semel verify`: test_verify_sinks.py.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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
