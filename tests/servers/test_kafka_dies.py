"""The Apache Kafka that tests start ends with them, also when they are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.planted import ROOT
from tests.support.test_dying import alive

WAIT_S = 60.0
KAFKA = """
import sys, time
from pathlib import Path
from tests.support.kafka import KafkaProcess
print(KafkaProcess(Path(sys.argv[1])).start().pid, flush=True)
time.sleep(600)
"""


def test_a_kafka_dies_with_its_test(tmp_path: Path) -> None:
    """Its script leaves it without a parent (setsid): somebody waits for the test's end."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    test = subprocess.Popen(
        [sys.executable, "-c", KAFKA, str(tmp_path / "kafka")], stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert test.stdout is not None
    broker = int(test.stdout.readline())
    assert alive(broker)
    test.kill()
    test.communicate(timeout=WAIT_S)
    deadline = time.monotonic() + WAIT_S
    while alive(broker):
        assert time.monotonic() < deadline, f"{broker} lives on"
        time.sleep(0.1)
    while (tmp_path / "kafka" / "kafka.pid").exists():  # its guard tidies up after the broker's end
        assert time.monotonic() < deadline, "its pid file is still there"
        time.sleep(0.1)
