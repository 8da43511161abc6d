"""`semel verify --on embedded`, whole: real processes, kills, a zombie on a copied folder, then the reckoning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from semel.contract import Mode
from semel.host.load import load_app
from semel.ports import Step
from semel.proof.campaign import steps_of

APP = Path(__file__).resolve().parents[1] / "host" / "apps" / "counts.py"


@pytest.mark.xdist_group("processes")
def test_a_small_app_holds_on_the_embedded_log(tmp_path: Path) -> None:
    """Nothing lost, repeated or wrong over six kills. So few kills do not reach every step, which it says."""
    words = ["verify", str(APP), "--on", "embedded", "--crashes", "6", "--seed", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "semel.cli.main", *words], cwd=tmp_path, capture_output=True, text=True, timeout=240,
        env={**os.environ, "COUNTS_DB": str(tmp_path / "counts.db")},
    )  # fmt: skip
    report = json.loads(done.stdout or "{}")
    assert done.returncode in (0, 2), done.stdout + done.stderr
    assert report["kills"]["worker"] >= 6
    outputs = report["outputs"]
    assert not any(o["lost"] or o["repeated"] or o["wrong"] for o in outputs.values()), report["counterexample"]
    assert outputs["sink totals"]["present"] > 20 and outputs["totals"]["present"] > 100
    assert all(doubt.startswith("steps of the path") for doubt in report["doubts"]), report["doubts"]


def test_a_mode_without_transactions_is_not_blamed_for_their_steps() -> None:
    """The story: `verify --mode at-least-once` ended unknown, because commit.before was never reached."""
    graph = load_app(str(APP)).graph()
    for on in ("embedded", "broker", "kafka://127.0.0.1:9092"):
        weak = steps_of(graph, on, Mode.AT_LEAST_ONCE)
        missing = set(steps_of(graph, on)).difference(weak)
        assert {step.value.partition(".")[0] for step in missing} <= {"commit", "decision", "markers"}
        assert Step.OFFSETS_AFTER in weak and Step.COMMIT_AFTER in missing
