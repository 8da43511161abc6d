"""A process dies, stops or counts at the step that the environment names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from semel.errors import UsageError
from semel.host.steps import arm, read_counters, steps_from
from semel.ports import NoSteps, Step

REACH = """
import os; from semel.host.steps import steps_from; from semel.ports import Step
steps = steps_from(os.environ)
for _ in range(5): steps.reached(Step.COMMIT_BEFORE); steps.reached(Step.COMMIT_AFTER)
"""


def run(**environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", REACH], env={**os.environ, **environ}, check=False)


def test_killed_at_the_nth_time_and_counted_to_there(tmp_path: Path) -> None:
    """The counters survive the kill, and include the step at which it came."""
    counters = tmp_path / "steps"
    assert run(SEMEL_KILL="commit.after:3", SEMEL_STEPS=str(counters)).returncode == -signal.SIGKILL
    found = read_counters(counters)
    assert found[Step.COMMIT_BEFORE] == 3
    assert found[Step.COMMIT_AFTER] == 3
    assert found[Step.SYNC_BEFORE] == 0
    assert run(SEMEL_STEPS=str(counters)).returncode == 0
    assert read_counters(counters)[Step.COMMIT_AFTER] == 8


def test_stopped_then_goes_on() -> None:
    """SIGSTOP at the step; SIGCONT lets it finish."""
    process = subprocess.Popen([sys.executable, "-c", REACH], env={**os.environ, "SEMEL_STOP": "commit.before:2"})
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 0


def test_armed_from_outside_while_it_runs(tmp_path: Path) -> None:
    """The signal comes at the armed step and not before, once; the arm is used up."""
    armed, counters = tmp_path / "armed", tmp_path / "steps"
    arm(armed, Step.COMMIT_AFTER, signal.SIGKILL)
    assert run(SEMEL_ARM=str(armed), SEMEL_STEPS=str(counters)).returncode == -signal.SIGKILL
    assert (read_counters(counters)[Step.COMMIT_BEFORE], read_counters(counters)[Step.COMMIT_AFTER]) == (1, 1)
    assert run(SEMEL_ARM=str(armed)).returncode == 0


def test_nothing_is_asked_in_production() -> None:
    """Without the variables there is no cost."""
    assert isinstance(steps_from({}), NoSteps)


@pytest.mark.parametrize("text", ["nowhere:1", "commit.before:x", "commit.before:0"])
def test_a_wrong_step_is_refused_by_name(text: str) -> None:
    """A schedule that names no step must not pass as one that was survived."""
    with pytest.raises(UsageError, match="SEMEL_KILL"):
        steps_from({"SEMEL_KILL": text})
