"""The delivery on semel's own logs, embedded and broker: a folder put back, a topic made anew (S12, S16)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from semel.contract import AtLeastOnce
from semel.host.cluster import ClusterLog, open_cluster
from semel.ports import Log, NewTopic
from semel.sinks import Lines, SQLite
from semel.sinks.delivery import Delivery
from semel.sinks.sink import Diverged
from tests.sinks.values import Total, held, opened, totals
from tests.support.broker import BrokerProcess

OUTBOX = "app-totals-outbox"
EVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
WAIT_S = 30.0


class Folder:
    """A log over a folder that can be stopped, copied, put back and started."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.data, self.kept = kind, folder / "data", folder / "copy"
        self._broker: BrokerProcess | None = None
        self._engine: Any = None
        self._open: list[Log] = []
        self.start()

    def start(self) -> None:
        if self.kind == "broker":
            self._broker = self._broker or BrokerProcess(self.data, start=False)
            self._broker.start()
        else:
            from semel.host.engine import Engine

            self._engine = Engine(self.data)

    def stop(self) -> None:
        for log in self._open:
            log.close()
        self._open.clear()
        if self._broker is not None and self._broker.process is not None:
            self._broker.stop()
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def close(self) -> None:
        self.stop()
        if self._broker is not None:
            self._broker.close()

    def open(self, group: str | None = None, transactional_id: str | None = None) -> Log:
        log: Log
        if self._broker is not None:
            url = f"kafka://{self._broker.address}"
            log = open_cluster(url, group=group, transactional_id=transactional_id, session_timeout_ms=2_000)
        else:
            from semel.host.embedded import EmbeddedLog

            log = EmbeddedLog(self._engine, group=group, transactional_id=transactional_id)
        self._open.append(log)
        return log

    def keep_a_copy(self) -> None:
        self.stop()
        shutil.copytree(self.data, self.kept)
        self.start()

    def put_the_copy_back(self) -> None:
        self.stop()
        shutil.rmtree(self.data)
        shutil.copytree(self.kept, self.data)
        self.start()


@pytest.fixture(params=["embedded", pytest.param("broker", marks=pytest.mark.long)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    made = Folder(request.param, tmp_path)
    yield made
    made.close()


class Nobody:
    """A listener that does nothing."""

    def assigned(self, partitions: object) -> None: ...
    def revoked(self, partitions: object) -> None: ...
    def lost(self, partitions: object) -> None: ...


def put(folder: Folder, sink: SQLite, *values: Total, partitions: int = 2) -> None:
    log = folder.open()
    log.create([NewTopic(OUTBOX, partitions, EVER)])
    write = log.writer(OUTBOX)
    for value in values:
        write(-1, sink.encode_key(value), sink.encode_value(value), 1_000, None)
    log.flush()


def deliver(folder: Folder, sink: Any, until: Callable[[Delivery, int], bool] | None = None, **more: Any) -> int:
    """Delivers until nothing is left, in a session of its own. How many records it took."""
    log = folder.open("app.totals")
    delivery = Delivery(log, sink, app="app", outbox=OUTBOX, value_type=Total, **more)
    delivery.join()
    count, deadline = 0, time.monotonic() + WAIT_S
    try:
        while not (until(delivery, count) if until else delivery._lanes and delivery.lag() == 0):
            assert time.monotonic() < deadline, "waited half a minute in vain"
            count += delivery.step(time.monotonic_ns() // 1_000_000, 0.02)
    finally:
        delivery.close()
        log.close()
        folder._open.remove(log)
    return count


def shown(sink: SQLite) -> list[tuple[Any, ...]]:
    connection = opened(sink)
    try:
        return held(connection)
    finally:
        connection.close()


def some(name: str, count: int) -> list[Total]:
    return [Total(f"{name}{n}", n) for n in range(count)]


def pairs(*values: list[Total]) -> list[tuple[Any, ...]]:
    return totals((v.customer, v.total) for given in values for v in given)


def test_over_restarts_of_the_log_each_record_arrives_once(folder: Folder, tmp_path: Path) -> None:
    """New runs are no divergence."""
    sink = SQLite(tmp_path / "sink.db", "totals", key="customer")
    put(folder, sink, *some("a", 20))
    assert deliver(folder, sink) == 20
    folder.stop()
    folder.start()
    assert deliver(folder, sink) == 0
    put(folder, sink, *some("b", 20))
    assert deliver(folder, sink) == 20
    assert shown(sink) == pairs(some("a", 20), some("b", 20))


@pytest.mark.parametrize("went_on", [0, 20], ids=["behind", "went-on"])
def test_a_folder_put_back_stops_the_delivery(folder: Folder, tmp_path: Path, went_on: int) -> None:
    """S12: the data folder is copied, the log goes on, the copy is put back, and perhaps it goes on from there: the
    same values under the same offsets and the same run number, written in another run. Diverged; nothing written."""
    sink = SQLite(tmp_path / "sink.db", "totals", key="customer")
    put(folder, sink, *some("a", 20))
    deliver(folder, sink)
    folder.keep_a_copy()  # restarts it: run 2
    put(folder, sink, *some("b", 20))
    deliver(folder, sink)
    folder.put_the_copy_back()  # run 2 again, under another id
    if went_on:
        put(folder, sink, *some("b", went_on))
    with pytest.raises(Diverged, match="with the id" if went_on else "now ends at"):
        deliver(folder, sink)
    assert shown(sink) == pairs(some("a", 20), some("b", 20))


@pytest.mark.long
@pytest.mark.parametrize("before", [0, 5], ids=["nothing-before", "records-before"])
def test_a_folder_put_back_behind_an_aborted_tail_stops_the_delivery(
    folder: Folder, tmp_path: Path, before: int
) -> None:
    """S12: the position at the sink has passed an aborted transaction that the copy does not have; new records lie at
    its offsets, and the last record delivered, below them, is still the same."""
    sink = SQLite(tmp_path / "sink.db", "totals", key="customer")
    put(folder, sink, *some("a", before), partitions=1)
    assert deliver(folder, sink) == before
    folder.keep_a_copy()
    log = folder.open("other", "other.0")
    log.join([OUTBOX], Nobody())
    log.begin()
    write = log.writer(OUTBOX)
    for value in some("aborted", 5_000):  # more than waits to be handed over
        write(0, sink.encode_key(value), sink.encode_value(value), 1_000, None)
    if isinstance(log, ClusterLog):
        assert log._transactions is not None and log._transactions._producer is not None
        assert log._transactions._producer.flush(10) == 0
    log.abort()
    assert deliver(folder, sink) == 0
    folder.put_the_copy_back()
    put(folder, sink, *some("b", 6_000), partitions=1)
    with pytest.raises(Diverged, match="now there is one at"):
        deliver(folder, sink)
    assert shown(sink) == pairs(some("a", before))


def test_a_topic_made_anew_stops_the_delivery(folder: Folder, tmp_path: Path) -> None:
    """S16: another folder has a topic of that name, with another id."""
    sink = SQLite(tmp_path / "sink.db", "totals")
    put(folder, sink, *some("a", 20))
    deliver(folder, sink)
    folder.stop()
    shutil.rmtree(folder.data)
    folder.start()
    put(folder, sink, *some("b", 40))
    with pytest.raises(Diverged, match="re-created"):
        deliver(folder, sink)
    assert shown(sink) == pairs(some("a", 20))


def test_a_weak_sink_goes_by_the_groups_offsets(folder: Folder, tmp_path: Path) -> None:
    """Stored in the log itself; without a crash each line is there once."""
    sink = Lines(tmp_path / "lines.jsonl")
    for n in range(2):
        put(folder, sink, *some("a", 10))  # type: ignore[arg-type]
        took = deliver(folder, sink, until=lambda delivery, count: count >= 10, accept=AtLeastOnce("lines may repeat"))
        assert took == 10, n
    assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == 20
