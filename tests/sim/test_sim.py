"""The simulator: one seed is one history, to the byte; seeds hold; what is printed is enough to see it again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from semel.sim.checkers import Broken
from semel.sim.faults import PROFILES, Dice
from semel.sim.history import Crashed, Event
from semel.sim.shrink import shrink
from semel.sim.simulate import Result, simulate


def dice_of(seed: int) -> Dice:
    return lambda stream: random.Random(f"{seed}:{stream}")


def world(seed: int, left_out: frozenset[int] = frozenset()) -> Result:
    return simulate(seed, dice_of(seed), left_out=left_out)


def semel(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "semel.cli.main", "sim", *words]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)


@pytest.mark.parametrize("seed", range(len(PROFILES)))
def test_a_seed_of_each_profile_holds(seed: int) -> None:
    """Laws 1 to 5 hold; the broker has crashed, and transactions were committed all the same."""
    result = world(seed)
    assert result.broken == []
    assert result.crashes >= 5 and result.counts.transactions > 0


def test_one_seed_is_one_history(tmp_path: Path) -> None:
    """Two processes, with other hash seeds, write the same history to the byte."""
    for name in ("1", "2"):
        done = semel("--seeds", "7:8", "--history", str(tmp_path / name), PYTHONHASHSEED=name)
        assert done.returncode == 0, done.stderr
    history = (tmp_path / "1").read_bytes()
    assert history == (tmp_path / "2").read_bytes()
    assert history.count(b"\n") > 500 and b" at 0x" not in history


def test_faults_left_out_are_left_out() -> None:
    """Without its first faults a world is another one, and that one replays as well."""
    whole = world(3)
    numbers = [number for number, _ in whole.faults]
    less = world(3, frozenset(numbers[:6]))
    assert not set(numbers[:6]) & {number for number, _ in less.faults}
    assert list(less.history.lines()) == list(world(3, frozenset(numbers[:6])).history.lines())
    assert list(less.history.lines()) != list(whole.history.lines())


def test_crashes_come_everywhere() -> None:
    """Within a few seeds the broker has died in appends and syncs of the journal, in checkpoints and in recoveries."""
    places = {
        event.where.split(": ")[1].split("/")[0]
        for seed in (0, 3, 8, 9)
        for event in world(seed).history.events
        if isinstance(event, Crashed) and ": " in event.where
    }
    assert {"append journal", "sync journal"} <= places and len(places) > 4, places


def test_the_verdict_as_json() -> None:
    """Counts of what happened, and an empty list of what is broken."""
    done = semel("--seeds", "1:4", "--json", "--workers", "1")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["seeds"] == 3 and told["broken"] == []
    assert told["crashes"] > 15 and told["transactions"] > 3 and {"hand_overs", "zombies"} <= set(told)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seeds", "7"), "write FIRST:END"),
        (("--seeds", "9:3"), "write FIRST:END"),
        (("--seeds", "1:9", "--history", "x"), "for one seed"),
        (("--seeds", "1:2", "--without", "a"), "write numbers of faults"),
    ],
)
def test_asked_wrongly(words: tuple[str, ...], said: str) -> None:
    """Exit code 2 and one line that says how to ask."""
    done = semel(*words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_failing_seed_is_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults that the failure does not need are left out; the smaller world breaks the same law, every time."""

    def check(events: Sequence[Event], *, timeout_ms: int) -> list[Broken]:
        """A law that forbids to crash in a write to the journal."""
        found = [e for e in events if isinstance(e, Crashed) and "append journal" in e.where]
        return [Broken(1, "crashed", str(event.at_ms)) for event in found]

    monkeypatch.setattr("semel.sim.simulate.check", check)
    whole = world(1)
    assert whole.broken
    left_out, small = shrink(whole, dice_of(1), tries_max=8)
    assert small.broken and len(small.faults) < len(whole.faults)
    assert world(1, left_out).broken == small.broken
