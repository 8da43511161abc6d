"""`semel run` and `semel check` of an app that archives into objects: each order is in one of them, whoever dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from semel.host.steps import read_counters
from semel.ports import NewTopic, Step
from semel.sinks import Objects
from tests.sinks.cut_child import opened
from tests.support.broker import BrokerProcess

APP = Path(__file__).parent / "apps" / "archive.py"
WAIT_S = 60.0


class Job:
    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.sink = Objects(folder / "orders")
        self.processes: list[subprocess.Popen[str]] = []
        self.fed = 0

    def feed(self, count: int) -> None:
        """While nobody has the folder of an embedded log."""
        log, _ = opened(self.url, None)
        log.create([NewTopic("orders", 2)])
        write = log.writer("orders")
        for n in range(self.fed, self.fed + count):
            write(-1, b"%d" % n, json.dumps({"id": n, "customer": "c"}).encode(), 1_000, None)
        log.flush()
        log.close()
        if (engine := getattr(log, "_engine", None)) is not None:
            engine.close()
        self.fed += count

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "semel.cli.main", "run", str(APP), "--on", self.url]
        command += ["--state", str(self.folder / "state"), *words]
        environ = {**os.environ, "ARCHIVE": str(self.folder / "orders"), "PYTHONFAULTHANDLER": "1", **env}
        with (self.folder / f"{len(self.processes)}.err").open("w") as err:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, text=True, env=environ)
        self.processes.append(process)
        return process

    def ids(self) -> list[int]:
        """Of every object that lies there, named by a manifest or not."""
        files = sorted((self.folder / "orders").glob("0*/*.jsonl"))
        return [json.loads(line)["id"] for file in files for line in file.read_text().splitlines()]

    def until_all_is_there(self) -> None:
        deadline = time.monotonic() + WAIT_S
        while len(self.ids()) < self.fed or sum(one.records for one in self.sink.complete()) < self.fed:
            assert time.monotonic() < deadline, self.said()
            assert all(process.poll() is None for process in self.processes[-1:]), self.said()
            time.sleep(0.05)
        assert sorted(self.ids()) == list(range(self.fed))

    def leave(self, process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0, self.said()

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.err")))

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()


@pytest.fixture(params=["embedded", pytest.param("broker", marks=pytest.mark.long)])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Job]:
    with contextlib.ExitStack() as stack:
        if request.param == "embedded":
            url = f"embedded:{tmp_path / 'log'}"
        else:
            url = f"kafka://{stack.enter_context(BrokerProcess(tmp_path / 'data')).address}"
        made = Job(url, tmp_path)
        stack.callback(made.close)
        yield made


def test_each_order_is_in_one_object_over_kills_and_restarts(job: Job) -> None:
    """S3: the worker is killed within a cut; the next one finishes it, leaves in good order, and one more goes on."""
    job.feed(300)
    for step in (Step.CUT_AFTER, Step.OBJECT_AFTER):
        killed = job.start(SEMEL_KILL=f"{step}:2", SEMEL_STEPS=str(job.folder / "steps"))
        assert killed.wait(WAIT_S) == -signal.SIGKILL, job.said()
    heir = job.start()
    job.until_all_is_there()
    job.leave(heir)
    job.feed(100)
    last = job.start(SEMEL_STEPS=str(job.folder / "steps"))
    job.until_all_is_there()
    job.leave(last)
    counters = read_counters(job.folder / "steps")
    assert counters[Step.CUT_AFTER] and counters[Step.OBJECT_AFTER] and counters[Step.POSITION_AFTER]


@pytest.mark.parametrize("job", ["broker"], indirect=True)
def test_two_workers_share_the_partitions(job: Job) -> None:
    """A partition of the outbox has one owner at a time; one of the workers dies."""
    job.feed(200)
    job.start("--workers", "2")
    job.until_all_is_there()
    job.feed(200)
    job.until_all_is_there()


def test_check_names_the_boundary_and_the_reasons() -> None:
    """Effectively-once: what is there already is not made a second time; where it stops, and why."""
    done = subprocess.run(
        [sys.executable, "-m", "semel.cli.main", "check", str(APP), "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (path,) = json.loads(done.stdout)["paths"]
    assert path["guarantee"] == "effectively-once"
    assert path["sink"] == "objects in s3://bucket/orders"
    assert path["boundary"].endswith(
        "then each batch at the sink by the cut's name: incarnation/partition/[start, end)"
    )
    reasons = "\n".join(path["reasons"])
    for said in ("recognised by the cut's name", "the position is in the delivery topic", "create-only", "sent again"):
        assert said in reasons, reasons
