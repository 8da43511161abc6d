"""`semel sink` on a bridge, with the app really run before and after: shown, rewound, and the topic deleted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semel.cli.sink import adopt, list_, rewind, show
from semel.host.cluster import ClusterLog
from semel.host.engine import Engine
from semel.host.groups import tend
from semel.ports import NewTopic
from semel.sinks import KafkaTopic
from tests.servers.kafka_subjects import messages
from tests.support.broker import BrokerProcess

APP = str(Path(__file__).parent / "apps" / "bridge.py")
WAIT_S = 60.0
ORDERS = 20


def fed(url: str) -> None:
    with tend(url) as log:
        session = log.session("feeds")
        session.create([NewTopic("orders", 2)])
        write = session.writer("orders")
        for n in range(ORDERS):
            write(n % 2, b"c%d" % n, b'{"customer":"c%d","number":%d}' % (n, n), 1_000 + n, None)
        session.flush()


def ran(url: str, folder: Path, until: Callable[[], bool]) -> tuple[int, str]:
    """The app, until then or until it ends by itself; its exit code, and what it said."""
    said = folder / "said"
    with said.open("w") as into:
        command = [sys.executable, "-m", "semel", "run", APP, "--on", url, "--state", str(folder / "state")]
        process = subprocess.Popen(command, stderr=into, stdout=subprocess.DEVNULL, env=dict(os.environ))
    try:
        deadline = time.monotonic() + WAIT_S
        while process.poll() is None and not until():
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait(WAIT_S)
    finally:
        process.kill()
        process.wait()
    return process.returncode, said.read_text()


def test_a_bridge_is_operated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rewind appends again what the outbox holds. A target that was deleted and made anew stops the delivery, which
    says what helps; and what it says helps."""
    Engine(tmp_path / "log").close()
    url = f"embedded:{tmp_path / 'log'}"
    with BrokerProcess(tmp_path / "target") as target:
        monkeypatch.setenv("BRIDGE_BROKER", target.address)
        sink = KafkaTopic(f"kafka://{target.address}", "orders", key="customer", name="by-customer")

        def there(count: int) -> Callable[[], bool]:
            return lambda: len(messages(target.address, "orders")) >= count

        fed(url)
        code, said = ran(url, tmp_path, there(ORDERS))
        assert code == 0, said
        list_(APP, on=url, json_lines=True)
        seen: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert (seen["sink"], seen["contract"], seen["state"], seen["waiting"]) == (
            "by-customer",
            "Transactional",
            "ok",
            0,
        )
        show(APP, "by-customer", on=url)
        assert "incarnation 1, the position is in a row of the sink" in capsys.readouterr().out

        rewind(APP, "by-customer", on=url, to_start=True, yes=True)
        assert "appended once more" in capsys.readouterr().out
        code, said = ran(url, tmp_path, there(2 * ORDERS))
        assert code == 0 and len(messages(target.address, "orders")) == 2 * ORDERS, said

        cluster = ClusterLog(f"kafka://{target.address}")
        cluster.delete(["orders"])
        code, said = ran(url, tmp_path, lambda: False)
        assert code != 0 and "was deleted and made anew" in said and "semel sink rewind APP.py by-customer" in said, (
            said
        )
        rewind(APP, "by-customer", on=url, to_start=True, yes=True)
        code, said = ran(url, tmp_path, there(ORDERS))
        assert code == 0 and len(messages(target.address, "orders")) == ORDERS, said

        cluster.delete(["orders"])
        adopt(APP, "by-customer", on=url, stands="sink", yes=True)
        capsys.readouterr()
        seconds = time.monotonic() + 3
        code, said = ran(url, tmp_path, lambda: time.monotonic() > seconds)
        assert code == 0 and not messages(target.address, "orders"), said
        cluster.close()
        assert sink.positions_topic("bridge") == "semel-bridge-by-customer-positions"
