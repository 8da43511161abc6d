"""The flights on Apache Kafka 4.3.1, unchanged: verify holds under 30 kills of workers, and through the proxy that
delays an EndTxn or a TxnOffsetCommit into the next transaction (FAULTS P14), which tears a bare client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from semel.host.postgres import PostgresServer
from semel.verify.schedule import WORKER_STEPS
from tests.support.kafka import KafkaProcess
from tests.support.proxy import END_TXN, TXN_OFFSET_COMMIT, Proxy

ROOT = Path(__file__).resolve().parents[2]
CRASHES = int(os.environ.get("KAFKA_CRASHES", "20"))
# Kafka's default of 6 s keeps a dead worker's partitions for long; a shorter session is this test's, not the app's.
SESSIONS = {"group.min.session.timeout.ms": "1000"}


@pytest.fixture(scope="module")
def sinks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("sinks")
    with PostgresServer(folder / "postgres") as server:
        yield {"FLIGHTS_POSTGRES": server.dsn, "FLIGHTS_SQLITE": str(folder / "alerts.db")}


def verify(address: str, env: dict[str, str], *words: str) -> dict[str, object]:
    command = [sys.executable, "-m", "semel.cli.main", "verify", "examples/flights.py", "--on", f"kafka://{address}"]
    done = subprocess.run(
        [*command, *words, "--json"], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=600
    )
    assert done.stdout, done.stderr[-4000:]
    report: dict[str, object] = json.loads(done.stdout)
    assert done.returncode == 0, (report["counterexample"], report["doubts"], done.stderr[-2000:])
    return report


def test_verify_holds_on_apache_kafka(tmp_path: Path, sinks: dict[str, str]) -> None:
    """30 kills of workers, each step of the client among them: nothing lost, repeated or wrong."""
    with KafkaProcess(tmp_path / "kafka", props=SESSIONS) as kafka:
        report = verify(kafka.address, sinks, "--crashes", str(CRASHES), "--seed", "1")
    assert report["verdict"] == "holds"
    kills, steps = report["kills"], report["steps"]
    assert isinstance(kills, dict) and kills["worker"] >= CRASHES
    assert isinstance(steps, dict) and all(steps[step.value] > 0 for step in WORKER_STEPS)
    print(json.dumps(report))  # for docs/proof


class Delays:
    """Holds every n-th EndTxn and TxnOffsetCommit, and lets it go when the next transaction is on its way."""

    def __init__(self, proxy: Proxy, rounds: int) -> None:
        self.proxy, self.rounds, self.released = proxy, rounds, 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        kinds = (END_TXN, TXN_OFFSET_COMMIT)
        while self.released < self.rounds and not self.ended.is_set():
            self.proxy.hold_next(kinds[self.released % 2])
            while not self.proxy.holding.wait(0.2):
                if self.ended.is_set():
                    return
            held = self.proxy.wait_held()
            seen = len(self.proxy.requests)
            # Into the transaction after: 12 more requests of any kind, or a second.
            for _ in range(20):
                if len(self.proxy.requests) > seen + 12 or self.ended.wait(0.05):
                    break
            held.release()
            self.released += 1


def test_the_flights_hold_through_delayed_requests(tmp_path: Path, sinks: dict[str, str]) -> None:
    """P14: our processor is on transaction V1; a fresh Producer after every lost connection fences what is late."""
    with Proxy() as proxy, KafkaProcess(tmp_path / "kafka", advertise=proxy.address, props=SESSIONS) as kafka:
        proxy.target = ("127.0.0.1", kafka.port)
        delays = Delays(proxy, rounds=10)
        try:
            report = verify(proxy.address, sinks, "--crashes", "4", "--seed", "3")
        finally:
            delays.ended.set()
        delays.thread.join(15)
    assert report["verdict"] == "holds"
    assert delays.released >= 6, f"only {delays.released} requests were delayed"
