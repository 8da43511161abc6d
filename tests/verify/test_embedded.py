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

# Two sinks, and what is made up for a test never exceeds 200.
SHOP = """\
from dataclasses import dataclass
from semel import App, Builder, Topic
from semel.sinks import SQLite

@dataclass(frozen=True)
class Order:
    customer: str
    amount: int

@dataclass(frozen=True)
class Total:
    customer: str
    total: int

orders = Topic("orders", key=str, value=Order, partitions=2)

def build(b: Builder) -> None:
    s = b.read(orders)
    t = s.key_by(lambda o: o.customer, key=str).fold(0, lambda total, o: total + o.amount, name="sum").changes()
    t.map(Total).write(SQLite("shop.db", "totals", key="customer"))
    s.filter(lambda o: o.amount > 900).write(SQLite("shop.db", "alerts"))

app = App("shop", build, commit_interval_ms=50)
"""


@pytest.mark.long
@pytest.mark.xdist_group("processes")
def test_a_sink_that_gets_nothing_stops_no_storm_and_proves_nothing(tmp_path: Path) -> None:
    """Two stories. The storm waited for rows in every sink, took a zombie without them for a crash and then fed a
    folder that its own successor held: `already open by pid`. And the verdict was `holds`, with alerts at 0 and 0."""
    (tmp_path / "shop.py").write_text(SHOP)
    words = ["verify", "shop.py", "--on", "embedded", "--crashes", "1", "--json", "--at", "offsets.before:zombie"]
    done = subprocess.run(
        [sys.executable, "-m", "semel.cli.main", *words], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert (done.returncode, report["verdict"], report["counterexample"]) == (2, "unknown", None), done.stdout
    assert report["zombies"] >= 1 and report["refused"] >= 1, done.stderr
    assert report["outputs"]["sink totals"]["present"] > 20
    untried = [doubt for doubt in report["doubts"] if "not tried" in doubt]
    assert [doubt.partition(":")[0] for doubt in untried] == ["nothing reached alerts"]
    assert "--input orders=FILE" in untried[0]
    assert not (tmp_path / "shop.db").exists()


@pytest.mark.long
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
