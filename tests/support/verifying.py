"""`semel verify` of an app of tests/servers/apps, and what is asked of its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from semel.verify.schedule import SINK_STEPS
from tests.support.planted import ROOT


def verified(app: str, outputs: Sequence[str], crashes: int, environ: dict[str, str]) -> dict[str, Any]:
    """The report of a run that holds: every step of a delivery was hit, a zombie was refused, each output is there."""
    command = [sys.executable, "-m", "semel.cli.main", "verify", f"tests/servers/apps/{app}.py"]
    done = subprocess.run(
        [*command, f"--crashes={crashes}", "--seed=3", "--json"],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=600,
    )
    report: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    said = f"{done.stdout}\n{done.stderr}"
    assert (done.returncode, report.get("verdict"), report.get("counterexample")) == (0, "holds", None), said
    assert report["kills"]["worker"] + report["kills"]["broker"] >= crashes
    assert report["refused"] >= 1, said
    assert all(report["steps"][step] > 0 for step in SINK_STEPS)
    for name in outputs:
        assert report["outputs"][name]["present"] > 0, said
    return report
