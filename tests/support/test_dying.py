"""The brokers that tests start end with the tests, also when those are killed: no teardown runs then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WAIT_S = 60.0
BROKER = """
import sys, time
from tests.support.broker import BrokerProcess
broker = BrokerProcess(sys.argv[1])
print(broker.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own signal at a parent's death")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_broker_dies_with_its_test(tmp_path: Path, number: signal.Signals) -> None:
    """The story: a `timeout` around pytest, which SIGTERM ends without a teardown, left brokers with parent 1."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    test = subprocess.Popen(
        [sys.executable, "-c", BROKER, str(tmp_path / "log")], stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert test.stdout is not None
    broker = int(test.stdout.readline())
    assert alive(broker)
    test.send_signal(number)
    test.communicate(timeout=WAIT_S)
    deadline = time.monotonic() + WAIT_S
    while alive(broker):
        assert time.monotonic() < deadline, f"{broker} lives on"
        time.sleep(0.02)
