"""The two brokers under test as child processes with one interface: start, address, CPU and memory, stop."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from pathlib import Path

from tests.support.broker import BrokerProcess
from tests.support.kafka import KafkaProcess

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mib(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


class Server:
    """`semel-fsync`, `semel-os`, `kafka` or `kafka-flush` (log.flush.interval.messages=1), with a folder of its own."""

    KINDS = ("semel-fsync", "semel-os", "kafka", "kafka-flush")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.folder = Path(tempfile.mkdtemp(prefix=f"bench-{kind}-"))
        began = time.perf_counter()
        if kind.startswith("semel"):
            self._semel: BrokerProcess | None = BrokerProcess(self.folder / "data", durability=kind.split("-")[1])
            self.address, self.pid = self._semel.address, self._semel.pid
            self.start_s = time.perf_counter() - began
        else:
            self._semel = None
            # The orders carry times of years ago: by default Kafka deletes them half a minute after its start.
            props = {"log.retention.ms": "-1"} | ({"log.flush.interval.messages": "1"} if kind == "kafka-flush" else {})
            self._kafka = KafkaProcess(self.folder / "data", props=props).start()
            self.address, self.pid = self._kafka.address, self._kafka.pid
            self.start_s = time.perf_counter() - began  # with the formatting of a new folder, as the other's

    def stop(self) -> None:
        if self._semel is not None:
            self._semel.stop()
        else:
            self._kafka.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
