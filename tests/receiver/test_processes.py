"""Receivers killed and stopped at the worst moments, over one database: one effect per key, whatever happens."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from semel.receiver.probe import Probe, Reply
from tests.receiver.served import Served

pytestmark = pytest.mark.long

KINDS = ["starlette-sqlite", "fastapi-postgres", "fastapi-async-postgres"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def address(kind: str, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("dsn" if kind.endswith("postgres") else "file"))


@pytest.mark.parametrize(("moment", "left", "then"), [("before-commit", 0, "first"), ("after-commit", 1, "replayed")])
def test_killed_around_its_commit(kind: str, address: str, tmp_path: Path, moment: str, left: int, then: str) -> None:
    """SIGKILL between handler and commit: nothing happened, the same request runs. Between commit and answer: it
    happened, and the same request is answered from the table."""
    with Served(kind, address, tmp_path, RECEIVER_KILL=f"{moment}:2") as served:
        probe = Probe(served.url)
        assert probe.post("one", '"1"').status == 201
        died = probe.post("two", '"2"')
        assert died.status == 0, died
        served.environ.clear()
        served.restart()
        assert probe.effects("two") == left
        again = probe.post("two", '"2"')
        assert (again.status, again.headers["semel-answer"]) == (201, then)
        assert (probe.effects("one"), probe.effects("two")) == (1, 1)


def test_two_processes_share_the_keys(kind: str, address: str, tmp_path: Path) -> None:
    """The same forty requests to both at once; each has one effect and, in the end, one answer."""
    with Served(kind, address, tmp_path) as one, Served(kind, address, tmp_path) as other:
        probes = Probe(one.url), Probe(other.url)

        def send(n: int) -> tuple[Reply, Reply]:
            first, second = probes[0].at_once(
                [lambda: probes[0].post(f"e{n}", f'"{n}"'), lambda: probes[1].post(f"e{n}", f'"{n}"')]
            )
            return first, second

        with ThreadPoolExecutor(4) as pool:
            pairs = list(pool.map(send, range(20)))
        for n, pair in enumerate(pairs):
            assert {reply.status for reply in pair} <= {201, 409}, pair
            assert sum(reply.headers.get("semel-answer") == "first" for reply in pair) == 1
            final = {probe.post(f"e{n}", f'"{n}"').body for probe in probes}
            assert len(final) == 1 and probes[0].effects(f"e{n}") == 1


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_stopped_receiver_gives_its_key_up(kind: str, address: str, tmp_path: Path) -> None:
    """S14: SIGSTOP in the handler. Another process is told 409, then, after `running_s` (5 s here), runs the request;
    the stopped one, resumed, commits nothing."""
    with Served(kind, address, tmp_path) as paused, Served(kind, address, tmp_path) as other:
        probe, heir = Probe(paused.url, timeout_s=60), Probe(other.url)
        first = probe.started(lambda: probe.post("e", '"1"', sleep_ms=1500))
        time.sleep(0.7)
        paused.signal(signal.SIGSTOP)
        assert heir.post("e", '"1"').status == 409
        deadline = time.monotonic() + 30
        while (reply := heir.post("e", '"1"')).status == 409:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert (reply.status, reply.headers["semel-answer"]) == (201, "first")
        paused.signal(signal.SIGCONT)
        assert first().status == 503
        assert heir.effects("e") == 1


def test_the_database_crashes_under_the_receiver(tmp_path: Path) -> None:
    """Postgres killed and started: what was answered stays answered, what was not is 503 and runs again."""
    import psycopg

    from semel.host.postgres import PostgresServer

    with PostgresServer(tmp_path / "server") as server:
        with psycopg.connect(server.dsn) as connection:
            connection.execute("CREATE TABLE effects (name text NOT NULL)")
        with Served("fastapi-async-postgres", server.dsn, tmp_path) as served:
            probe = Probe(served.url)
            assert probe.post("one", '"1"').status == 201
            slow = probe.started(lambda: probe.post("two", '"2"', sleep_ms=1000))
            time.sleep(0.4)
            server.kill()
            assert slow().status == 503
            assert probe.post("one", '"1"').status == 503
            server.start()
            assert probe.post("one", '"1"').headers["semel-answer"] == "replayed"
            assert probe.post("two", '"2"').headers["semel-answer"] == "first"
            assert (probe.effects("one"), probe.effects("two")) == (1, 1)
        server.kill()
