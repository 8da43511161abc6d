"""Asked to leave: once, twice, and while the main thread stands in something that does not return."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

TIMEOUT_S = 30


def process(body: str) -> subprocess.Popen[str]:
    script = f"""
import ctypes, time
from semel.host import leaving as module
from semel.host.leaving import Leaving, LeftEarly
def deaf():
    # Waits in C. A signal interrupts it, but the handler runs only between two lines of Python: never, if this loops.
    ctypes.CDLL(None).sem_wait(ctypes.create_string_buffer(64))
{body}
"""
    started = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None and started.stdout.readline() == "up\n"
    return started


def test_the_first_signal_is_a_question() -> None:
    asked = process(
        """
with Leaving(ignore_keyboard=False) as leaving:
    leaving.later()
    print("up", flush=True)
    while not leaving.asked: time.sleep(0.01)
print("left", flush=True)
"""
    )
    asked.send_signal(signal.SIGTERM)
    out, _ = asked.communicate(timeout=TIMEOUT_S)
    assert (asked.returncode, out) == (0, "left\n")


def test_before_the_start_is_over_it_interrupts() -> None:
    early = process(
        """
try:
    with Leaving(ignore_keyboard=False):
        print("up", flush=True)
        time.sleep(60)
except LeftEarly: print("early", flush=True)
"""
    )
    early.send_signal(signal.SIGINT)
    out, _ = early.communicate(timeout=TIMEOUT_S)
    assert (early.returncode, out) == (0, "early\n")


STANDS = """
with Leaving(ignore_keyboard=False) as leaving:
    leaving.later()
    print("up", flush=True)
    while True: deaf()
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_the_second_one_ends_it_wherever_it_stands(second: signal.Signals) -> None:
    standing = process(f"module.LEAVE_MAX_S = 60\n{STANDS}")
    standing.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        standing.wait(0.3)
    standing.send_signal(second)
    standing.communicate(timeout=TIMEOUT_S)
    assert standing.returncode == 128 + second


def test_who_does_not_answer_is_ended_and_says_where_it_stood() -> None:
    standing = process(f"module.LEAVE_MAX_S = 0.2\n{STANDS}")
    standing.send_signal(signal.SIGTERM)
    _, err = standing.communicate(timeout=TIMEOUT_S)
    assert standing.returncode == 1
    assert err.startswith("error: asked to leave") and "in deaf" in err


def test_under_a_parent_the_keyboard_is_the_parents() -> None:
    child = process(
        """
with Leaving(ignore_keyboard=True) as leaving:
    leaving.later()
    print("up", flush=True)
    while not leaving.asked: time.sleep(0.01)
"""
    )
    child.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=TIMEOUT_S)
    assert child.returncode == 0
