"""The parent of several workers, with workers that do nothing but end in every way."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from semel.host.supervisor import FREE_RESTARTS, PAUSE_MAX_S, pause_after

TIMEOUT_S = 60


def run(body: str, folder: Path, workers: int = 2) -> subprocess.Popen[str]:
    """A parent whose workers run `body`, with `slot`, and `life`: how often this slot has been started, from 1."""
    script = f"""
import os, signal, sys, time
from pathlib import Path
from semel.host.supervisor import supervise
def work(slot):
    marks = Path({str(folder)!r})
    life = len(list(marks.glob(f"{{slot}}-*"))) + 1
    (marks / f"{{slot}}-{{life}}").touch()
{body}
sys.exit(supervise({workers}, work))
"""
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


WAIT_FOR_TERM = """
    print(f"slot {slot} life {life}", flush=True)
    signal.sigwait([signal.SIGTERM])
    return 0
"""


def test_a_killed_worker_is_started_again_and_a_signal_ends_all(tmp_path: Path) -> None:
    parent = run(
        "    if slot == 1 and life < 3: os.kill(os.getpid(), signal.SIGKILL)\n" + BLOCKED + WAIT_FOR_TERM, tmp_path
    )
    assert parent.stdout is not None
    said = {parent.stdout.readline().strip() for _ in range(2)}
    assert said == {"slot 0 life 1", "slot 1 life 3"}
    parent.send_signal(signal.SIGTERM)
    _, err = parent.communicate(timeout=TIMEOUT_S)
    assert parent.returncode == 0
    assert err.count("worker 2 of 2 was ended by SIGKILL; starting it again") == 2


BLOCKED = "    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_worker_that_ends_by_itself_ends_all_with_its_code(code: int, tmp_path: Path) -> None:
    parent = run(f"{BLOCKED}    if slot == 0: return {code}\n{WAIT_FOR_TERM}", tmp_path)
    parent.communicate(timeout=TIMEOUT_S)
    assert parent.returncode == code
    assert not (tmp_path / "0-2").exists()


def test_a_bug_in_a_worker_is_told(tmp_path: Path) -> None:
    parent = run("    return 1 // 0\n", tmp_path, workers=1)
    _, err = parent.communicate(timeout=TIMEOUT_S)
    assert parent.returncode == 1 and "ZeroDivisionError" in err


def test_a_second_signal_kills_what_does_not_leave(tmp_path: Path) -> None:
    parent = run(f"{BLOCKED}    print('up', flush=True)\n    time.sleep(600)\n", tmp_path)
    assert parent.stdout is not None
    for _ in range(2):
        parent.stdout.readline()
    parent.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        parent.wait(0.3)
    parent.send_signal(signal.SIGTERM)
    parent.communicate(timeout=TIMEOUT_S)


def test_a_worker_that_always_dies_is_started_more_and_more_slowly() -> None:
    pauses = [pause_after(n) for n in range(20)]
    assert pauses[: FREE_RESTARTS + 1] == [0.0] * (FREE_RESTARTS + 1)
    assert pauses == sorted(pauses) and pauses[-1] == PAUSE_MAX_S
