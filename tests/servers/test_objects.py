"""Objects on a real S3 server (SeaweedFS), from semel's logs and from Apache Kafka: killed, stopped, answers lost."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semel.host.steps import read_counters
from semel.ports import Step
from semel.sinks import Objects
from semel.sinks.sink import SinkError
from semel.testing.contracts import ContractTests, Subject
from tests.sinks.subjects import S3_SECRET, s3_subject
from tests.sinks.test_cut_processes import Place, stopped
from tests.sinks.test_cuts import Worker, held, listed, name, names, outbox, put, store_of
from tests.support.broker import BrokerProcess
from tests.support.kafka import KafkaProcess
from tests.support.seaweed import SeaweedProcess
from tests.support.tcpproxy import TcpProxy

ROOT = Path(__file__).parents[2]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with SeaweedProcess(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


class TestS3(ContractTests):
    """The contract kit on the real server, which is killed."""

    @pytest.fixture
    def subject(self, seaweed: SeaweedProcess) -> Subject:
        def crash() -> None:
            seaweed.kill()
            seaweed.start()

        return s3_subject(seaweed.port, crash)


def bucket() -> str:
    """A prefix of its own. One bucket: SeaweedFS grows seven volumes for each."""
    return f"s3://semel-test/orders-{next(_numbers)}"


def sink_at(server: SeaweedProcess, url: str | None = None, **said: Any) -> Objects:
    return Objects(url or bucket(), **{"name": "orders", "records": 10, "options": server.options(), **said})


def test_killed_at_every_step_twice_each_record_is_in_one_object(seaweed: SeaweedProcess, tmp_path: Path) -> None:
    """S3: SIGKILL before and after the claim, the cut, the object, the manifest and the position."""
    place = Place(f"embedded:{tmp_path / 'log'}", sink_at(seaweed), tmp_path)
    try:
        place.fill()
        place.killed_at_every_step_twice()
        place.check()
    finally:
        place.close()


@pytest.mark.parametrize("step", [Step.CUT_BEFORE, Step.OBJECT_BEFORE, Step.OBJECT_AFTER])
def test_a_zombie_decides_nothing_and_changes_nothing(seaweed: SeaweedProcess, tmp_path: Path, step: Step) -> None:
    """S1: its late put is answered with 412, and what is there is what it wanted to write; its position is refused."""
    with BrokerProcess(tmp_path / "data") as broker:
        place = Place(f"kafka://{broker.address}", sink_at(seaweed), tmp_path)
        try:
            place.fill()
            place.zombie(step)
        finally:
            place.close()


def test_on_apache_kafka(seaweed: SeaweedProcess, tmp_path: Path) -> None:
    """The owner is a transactional id there, too: killed at the steps of a cut, each with another size of cuts;
    and a zombie whose id was taken over decides nothing."""
    kafka = KafkaProcess(tmp_path / "kafka").start()
    place = Place(f"kafka://{kafka.address}", sink_at(seaweed), tmp_path)
    try:
        place.fill()
        for step in (Step.CUT_BEFORE, Step.CUT_AFTER, Step.OBJECT_AFTER, Step.POSITION_AFTER):
            child = place.start(SEMEL_KILL=f"{step}:2", SESSION_MS="6000")
            assert child.wait(timeout=120) == -signal.SIGKILL, (step, place.said(child))
        zombie = place.start(SEMEL_STOP=f"{Step.CUT_BEFORE}:2", SESSION_MS="6000")
        stopped(zombie)
        place.finish(place.start(SESSION_MS="6000"))
        place.check()
        zombie.send_signal(signal.SIGCONT)
        place.finish(zombie)
        place.check()
        assert read_counters(place.steps)[Step.SINK_FENCED] == 1
    finally:
        place.close()
        kafka.kill()


@pytest.mark.parametrize("effect", [False, True])
@pytest.mark.parametrize("what", ["00001-00000/", "_semel/00001-00000.json", "_semel/delivery.json"])
def test_a_put_whose_answer_is_lost_is_read_back(seaweed: SeaweedProcess, what: str, effect: bool) -> None:
    """S8: the connection is lost at the put of the object, of the manifest, of the control object, before or after it
    had its effect. The client library sends again and is told 412 for its own write; what lies there is compared."""
    proxy = TcpProxy(seaweed.port)
    try:
        url = bucket()
        through = sink_at(seaweed, url, options=seaweed.options(f"http://127.0.0.1:{proxy.port}"))
        log = outbox()
        put(log, *range(10))
        worker = Worker(log, through)
        path = url.removeprefix("s3:/") + "/" + what
        (proxy.lose_answer if effect else proxy.lose_request)(f"PUT {path}".encode())
        worker.turn(12)
        put(log, *range(10, 30))
        worker.turn(12)
        assert proxy.cuts == 1
        direct = sink_at(seaweed, url)
        assert held(direct) == listed(direct) == list(range(30))
        assert names(direct) == [name(n, n + 10) for n in (0, 10, 20)]
    finally:
        proxy.close()


def test_other_bytes_under_the_key_are_an_error(seaweed: SeaweedProcess) -> None:
    """412 is no success by itself. No secret is in the message."""
    log, sink = outbox(), sink_at(seaweed)
    put(log, *range(10))
    worker = Worker(log, sink)
    worker.turn()
    store_of(sink).create(f"00001-00000/{name(0, 10)}", b"something else\n", "0" * 64)
    with pytest.raises(SinkError, match="is there already, with other bytes") as refused:
        worker.turn(3)
    assert S3_SECRET not in str(refused.value)
    assert held(sink) == []


def test_a_server_that_crashes_and_comes_back(tmp_path: Path) -> None:
    """S13: what it has answered it still has; the delivery waits and goes on."""
    with SeaweedProcess(tmp_path) as server:
        log, sink = outbox(), sink_at(server)
        put(log, *range(20))
        worker = Worker(log, sink)
        worker.turn(2)
        server.kill()
        put(log, *range(20, 30))
        assert worker.turn(1) == 0
        assert "trying again" in worker.said[-1]
        server.start()
        for _ in range(30):
            worker.turn()
        assert held(sink) == listed(sink) == list(range(30))


def test_a_wrong_key_is_an_error_without_a_secret(seaweed: SeaweedProcess) -> None:
    """A person decides; the message names the place, and neither the key that was tried nor the right one."""
    options = seaweed.options() | {"secret_access_key": "wrong-secret"}
    log = outbox()
    put(log, *range(10))
    with pytest.raises(SinkError, match="Check the URL, the options and the rights") as refused:
        Worker(log, sink_at(seaweed, options=options)).turn(3)
    assert "wrong-secret" not in str(refused.value)


@pytest.mark.parametrize("on", ["broker", "embedded"])
def test_verify_holds(on: str, tmp_path: Path) -> None:
    """`semel verify` of an app that archives: workers killed at the steps of a cut among others; zombies are refused,
    on the embedded log those on a copy of the folder."""
    command = [sys.executable, "-m", "semel.cli.main", "verify", "tests/host/apps/archive.py", "--on", on, "--json"]
    environ = {**os.environ, "ARCHIVE": str(tmp_path / "orders")}
    done = subprocess.run(
        [*command, "--crashes", "16"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=280
    )
    report = json.loads(done.stdout)
    assert (done.returncode, report["verdict"]) == (0, "holds"), done.stdout + done.stderr[-3_000:]
    assert report["steps"][Step.CUT_AFTER] and report["steps"][Step.OBJECT_AFTER]
    assert not list(tmp_path.iterdir()), "what it made is removed"
