"""A server that comes back finds its port free: no connection on this machine was given it meanwhile.

The story: Apache Kafka, under test in CI, did not start because its port, chosen by binding to 0, had become the local
port of another test's connection between the choice and the start.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

import pytest

from semel.host import free_port as module
from semel.host.free_port import candidates, free_port
from tests.support.broker import BrokerProcess


def ephemeral() -> range:
    low, high = map(int, module.RANGE.read_text().split())
    return range(low, high + 1)


def test_no_candidate_is_a_port_that_the_kernel_gives_to_connections() -> None:
    inside = ephemeral()
    assert all(port not in inside for port in candidates())
    assert len(set(candidates())) == module.TRIES


def test_a_port_that_listens_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        other = free_port()
        monkeypatch.setattr(module, "candidates", lambda: [port, port - 1, other])
        assert free_port() == port - 1
        assert free_port(count=2) == other, "the pair below reaches into the taken one"


def test_with_nothing_outside_the_range_the_kernel_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "range").write_text("1024\t65535\n")
    monkeypatch.setattr(module, "RANGE", tmp_path / "range")
    assert candidates(random.Random(1)) == []
    assert free_port() > 0
    with pytest.raises(OSError, match="no 2 adjacent free ports"):
        free_port(count=2)


def test_a_broker_asked_for_any_port_comes_back_on_it(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "data") as broker:
        assert broker.port not in ephemeral()
