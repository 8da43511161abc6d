"""`semel run --metrics`: what a running app and its sinks count, scraped as Prometheus does."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from semel.errors import UsageError
from semel.host.free_port import free_port
from semel.host.metrics import Address, address_of
from tests.host.test_worker import APP, WAIT_S, Job, job

__all__ = ["job"]  # a fixture


def scraped(port: int) -> dict[str, float]:
    """By name and labels, the app's left out."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels.pop("app") == "counts"
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "sink")
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def until(port: int, condition: object) -> dict[str, float]:
    assert callable(condition)
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            if condition(found := scraped(port)):
                return found
        except OSError:
            found = {}
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def total(found: dict[str, float], name: str) -> float:
    return sum(value for key, value in found.items() if key.startswith(name + "{"))


def test_what_the_sink_holds_is_what_is_counted(job: Job) -> None:
    port = free_port()
    job.feed(500)
    process = job.start("--metrics", str(port))
    job.until(job.delivered)
    told = until(port, lambda found: total(found, "semel_sink_records_total") >= 500 and lag(found) == 0)
    assert total(told, "semel_sink_records_total") == 500 == told["semel_records_total{}"] - 500, (
        "500 orders, and 500 through the repartition; each changed its total once"
    )
    assert told["semel_commits_total{}"] >= 1
    assert told["semel_sink_calls_total{outcome=done}"] == total(told, "semel_sink_batches_total") >= 1
    assert told["semel_sink_batch_seconds_count{}"] == told["semel_sink_calls_total{outcome=done}"]
    assert told["semel_sink_claims_total{}"] == 4
    info = next(key for key in told if key.startswith("semel_sink_info"))
    assert "contract=Transactional" in info and "guarantee=exactly-once" in info and "totals" in info

    lock = sqlite3.connect(job.database, isolation_level=None)  # an outage: somebody holds the database
    lock.execute("BEGIN EXCLUSIVE")
    job.feed(100)
    until(port, lambda found: lag(found) > 0 and found["semel_sink_calls_total{outcome=not-done}"] > 0)
    lock.execute("ROLLBACK")
    lock.close()
    job.until(job.delivered)
    until(port, lambda found: lag(found) == 0 and total(found, "semel_sink_records_total") == 600)
    assert job.leave(process)[0] == 0


def lag(found: dict[str, float]) -> float:
    """-1 until all four partitions are told."""
    told = [value for key, value in found.items() if key.startswith("semel_sink_lag{")]
    return sum(told) if len(told) == 4 else -1


def test_each_worker_has_a_port(job: Job) -> None:
    ports = next((p, p + 1) for p in iter(free_port, 0) if _is_free(p + 1))
    job.feed(100)
    parent = job.start("--workers", "2", "--metrics", f"127.0.0.1:{ports[0]}")
    job.until(job.delivered)
    for port in ports:
        until(port, lambda found: "semel_commits_total{}" in found)
    counted = sum(total(scraped(port), "semel_sink_records_total") for port in ports)
    assert counted >= 100, "each total was delivered by one of them"
    assert job.leave(parent)[0] == 0


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_what_is_asked_wrongly_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for given, said in ((str(port), "cannot be served: Address already in use"), ("here", "write PORT")):
            done = subprocess.run(
                [sys.executable, "-m", "semel.cli.main", "run", str(APP), "--on", f"embedded:{tmp_path / 'log'}",
                 "--metrics", given],
                capture_output=True, text=True, timeout=WAIT_S, cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )  # fmt: skip
            assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("9464", Address("127.0.0.1", 9464)),
        (":9464", Address("127.0.0.1", 9464)),
        ("0.0.0.0:1", Address("0.0.0.0", 1)),
        ("[::1]:9464", Address("::1", 9464)),
    ],
)
def test_addresses(given: str, wanted: Address) -> None:
    assert address_of(given) == wanted


@pytest.mark.parametrize("given", ["", "0", "65536", "host", "host:", "::1:9464", "-1"])
def test_no_addresses(given: str) -> None:
    with pytest.raises(UsageError, match="write PORT"):
        address_of(given)
