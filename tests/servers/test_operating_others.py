"""`semel sink` at files, a DuckDB file, Delta and Iceberg: the app is really run on an embedded log, then each delivery
is listed, rewound and drained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from semel.cli.sink import drain, list_, rewind, show
from semel.host.engine import Engine
from semel.host.groups import tend
from semel.ports import NewTopic, NoSteps
from tests.servers.apps import operated

APP = str(Path(operated.__file__))
SINKS = ("files", "duck", "delta", "iceberg")


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("OPERATED", str(tmp_path))
    Engine(tmp_path / "log").close()
    yield f"embedded:{tmp_path / 'log'}"


def fed(url: str, count: int) -> None:
    with tend(url) as tended:
        log = tended.session("feeds")
        log.create([NewTopic("orders", 2)])
        to = log.writer("orders")
        for n in range(count):
            to(n % 2, b"c%d" % n, json.dumps({"id": n, "customer": f"c{n}"}).encode(), int(time.time() * 1000), None)
        log.flush()


def held(sink: str) -> int:
    from semel.host.load import load_app

    write = next(w for w in load_app(APP).graph().writes() if w.sink is not None and w.sink.name == sink)
    assert write.sink is not None
    connection = write.sink.open(NoSteps())
    try:
        connection.prepare(operated.Order)
        return len(connection.rows())
    finally:
        connection.close()


def test_each_is_listed_rewound_and_drained(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What comes again is there once more, under the next incarnation, and nothing else is."""
    fed(url, 20)
    command = [sys.executable, "-m", "semel", "run", APP, "--on", url, "--state", str(tmp_path / "state")]
    err = (tmp_path / "err").open("w")
    process = subprocess.Popen(command, stderr=err, stdout=subprocess.DEVNULL, env={**os.environ})
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "files").glob("0*/0*.jsonl"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline, (tmp_path / "err").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    err.close()
    assert process.returncode == 0, (tmp_path / "err").read_text()
    for sink in SINKS:  # what is left: the app was ended when the first had everything
        drain(APP, sink, on=url)
        assert held(sink) == 20
    capsys.readouterr()
    list_(APP, on=url, json_lines=True)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["sink"], one["state"], one["waiting"]) for one in found] == [(sink, "ok", 0) for sink in SINKS]
    for sink in SINKS:
        rewind(APP, sink, on=url, to_start=True, yes=True)
        assert capsys.readouterr().out.endswith("Done: the next start delivers from there, as incarnation 2.\n")
        drain(APP, sink, on=url)
        assert f"sink {sink}: 20 records delivered, nothing is left" in capsys.readouterr().out
        assert held(sink) == 40
        show(APP, sink, on=url)
        assert "incarnation 2" in capsys.readouterr().out
