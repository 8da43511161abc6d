"""The log in this process, where it differs from one behind a socket: one owner, one folder, shared syncs."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import confluent_kafka
import pytest

from semel.host import disk as disk_module
from semel.host.embedded import EmbeddedLog
from semel.host.embedded_columns import visible
from semel.host.engine import Engine
from semel.host.lock import FolderTaken
from semel.ports import Done, Fenced, LogLost, NewTopic, NotDone, Position, Step, TopicPartition
from semel.record.batch import encode
from semel.record.control import marker
from tests.host.logs import Logs, Member, fill, parts, polled, read_all, take
from tests.support.broker import BrokerProcess


class Counting:
    """Steps that are counted."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(Step, 0)

    def reached(self, step: Step) -> None:
        self.counts[step] += 1


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    opened = Engine(tmp_path / "data")
    yield opened
    opened.close()


@pytest.fixture
def logs(engine: Engine) -> Logs:
    return Logs(lambda **s: EmbeddedLog(engine, **s))


def test_one_folder_one_engine(engine: Engine) -> None:
    with pytest.raises(FolderTaken, match=str(os.getpid())):
        Engine(engine.folder)


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    for n in range(3):
        engine = Engine(tmp_path)
        logs = Logs(lambda engine=engine, **s: EmbeddedLog(engine, **s), engine.close)  # type: ignore[misc]
        fill(logs, "in", {0: [b"%d" % n], 1: []})
        log = logs.open("g", "m", "tx")
        log.join(["in"], Member(log))
        assert take(log, 1) == {TopicPartition("in", 0): [b"%d" % n]}
        log.begin()
        assert log.commit({TopicPartition("in", 0): Position(n + 1, str(n))}) == Done()
        assert read_all(log, "in", 1) == {0: [b"%d" % m for m in range(n + 1)]}
        logs.close()


def test_an_older_session_of_a_group_is_told_that_it_has_lost(logs: Logs) -> None:
    fill(logs, "in", {0: [b"a"]})
    old, new = logs.open("g", "m", "tx"), logs.open("g", "m", "tx")
    member = Member(old)
    old.join(["in"], member)
    take(old, 1)
    old.begin()
    successor = Member(new)
    new.join(["in"], successor)
    take(new, 1)
    assert isinstance(old.commit({TopicPartition("in", 0): Position(1)}), Fenced)
    assert isinstance(old.commit_offsets({TopicPartition("in", 0): Position(1)}), Fenced)
    old.poll(0.0)
    assert [event for event, _ in member.events] == ["assigned", "lost"]
    new.begin()
    assert new.commit({TopicPartition("in", 0): Position(1)}) == Done()


def test_a_topic_that_grows_is_assigned_anew(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is created after the group was joined."""
    monkeypatch.setattr("semel.host.embedded.TOPICS_CHECK_S", 0.0)
    log = logs.open("g", "m")
    member = Member(log)
    log.join(["in"], member)
    log.poll(0.0)
    assert member.owned == set()
    fill(logs, "in", {1: [b"x"]})
    assert take(log, 1) == {TopicPartition("in", 1): [b"x"]}
    assert member.owned == set(parts("in", 2))


def test_the_folder_of_a_killed_broker(tmp_path: Path) -> None:
    """The same folder as `semel broker`: what a client left open there is aborted when the engine opens it, not when
    it would have timed out; the members of its groups are gone with it; and the broker serves it again afterwards."""
    folder = tmp_path / "data"
    with BrokerProcess(folder) as broker:
        from semel.host.cluster import open_cluster

        cluster = Logs(lambda **s: open_cluster(f"kafka://{broker.address}", **s))
        fill(cluster, "in", {0: [b"a", b"b"]})
        client = cluster.open("g", "m", "tx")
        client.create([NewTopic("out", 1)])
        client.join(["in"], Member(client))
        take(client, 2)
        write = client.writer("out")
        client.begin()
        write(0, None, b"committed", 1, None)
        assert client.commit({TopicPartition("in", 0): Position(1)}) == Done()
        client.begin()
        for _ in range(5_000):
            write(0, None, b"open", 1, None)
        out = TopicPartition("out", 0)
        polled(client, lambda: client.ends([out])[out] > 2)
        broker.kill()
    engine = Engine(folder)
    logs = Logs(lambda **s: EmbeddedLog(engine, **s), engine.close)
    log = logs.open("g", "m", "embedded-tx")
    assert read_all(log, "out", 1) == {0: [b"committed"]}
    member = Member(log)
    log.join(["in"], member)
    assert take(log, 1) == {TopicPartition("in", 0): [b"b"]}
    log.begin()
    log.writer("out")(0, None, b"more", 1, None)
    assert log.commit({TopicPartition("in", 0): Position(2)}) == Done()
    logs.close()
    with BrokerProcess(folder) as broker:
        consumer = confluent_kafka.Consumer({"bootstrap.servers": broker.address, "group.id": "g"})
        (position,) = consumer.committed([confluent_kafka.TopicPartition("in", 0)], 10)
        assert position.offset == 2
        consumer.close()


def test_threads_that_commit_at_once_share_syncs(tmp_path: Path) -> None:
    steps = Counting()
    engine = Engine(tmp_path, steps=steps)
    logs = Logs(lambda **s: EmbeddedLog(engine, **s), engine.close)
    fill(logs, "in", {0: [b"x"]})
    logs.open().create([NewTopic("out", 4)])
    sessions = []
    for n in range(4):
        log = logs.open(f"g{n}", "m", f"tx{n}")
        log.join(["in"], Member(log))
        take(log, 1)
        sessions.append(log)
    outcomes: list[object] = []
    before = steps.counts[Step.SYNC_AFTER]

    def commits(n: int) -> None:
        write = sessions[n].writer("out")
        for m in range(50):
            sessions[n].begin()
            write(n, None, b"%d" % m, 1, None)
            outcomes.append(sessions[n].commit({TopicPartition("in", 0): Position(1)}))

    threads = [threading.Thread(target=commits, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [Done()] * 200
    assert steps.counts[Step.SYNC_AFTER] - before <= 400  # two for each, when none are shared
    assert read_all(logs.open(), "out", 4) == {n: [b"%d" % m for m in range(50)] for n in range(4)}
    logs.close()


def test_what_does_not_fit_a_batch_is_cut_and_a_record_too_large_is_told(logs: Logs) -> None:
    fill(logs, "in", {0: [b"x"]})
    log = logs.open("g", "m", "tx")
    log.create([NewTopic("out", 1)])
    log.join(["in"], Member(log))
    take(log, 1)
    write = log.writer("out")
    values = [b"%d" % n * 50_000 for n in range(100, 160)]  # 9 MB
    log.begin()
    for value in values:
        write(0, None, value, 1, None)
    assert log.commit({TopicPartition("in", 0): Position(1)}) == Done()
    assert read_all(log, "out", 1) == {0: values}
    log.begin()
    write(0, None, b"x" * 2_000_000, 1, None)
    outcome = log.commit({TopicPartition("in", 0): Position(1)})
    assert isinstance(outcome, NotDone) and "out-0: MESSAGE_TOO_LARGE" in outcome.reason
    log.begin()
    write(0, None, b"small", 1, None)
    assert log.commit({TopicPartition("in", 0): Position(1)}) == Done()
    assert read_all(log, "out", 1) == {0: [*values, b"small"]}


def test_a_disk_that_takes_no_more_ends_the_engine_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tmp_path / "data")
    logs = Logs(lambda **s: EmbeddedLog(engine, **s))
    fill(logs, "in", {0: [b"x"]})
    log = logs.open("g", "m", "tx")
    log.create([NewTopic("out", 1)])
    log.join(["in"], Member(log))
    take(log, 1)
    write = log.writer("out")
    log.begin()
    write(0, None, b"kept", 1, None)
    assert log.commit({TopicPartition("in", 0): Position(1)}) == Done()

    def full(*given: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk_module.os, "pwritev", full)
    log.begin()
    write(0, None, b"lost", 1, None)
    with pytest.raises(LogLost, match=rf"{tmp_path / 'data'}: the disk is full"):
        log.commit({TopicPartition("in", 0): Position(1)})
    with pytest.raises(LogLost, match="the disk is full"):
        log.topics()
    logs.close()
    engine.close()
    monkeypatch.undo()
    again = Engine(tmp_path / "data")
    look = EmbeddedLog(again, group="g")
    assert read_all(look, "out", 1) == {0: [b"kept"]}
    assert look.committed(parts("in", 1)) == {TopicPartition("in", 0): Position(1)}
    again.close()


class Range:
    """As a fetch tells an aborted transaction."""

    def __init__(self, producer_id: int, first_offset: int) -> None:
        self.producer_id, self.first_offset = producer_id, first_offset


@pytest.mark.parametrize("seed", range(30))
def test_a_reader_sees_what_was_committed_and_passes_everything(seed: int) -> None:
    """Interleaved transactions of several producers, plain batches between them, read from any offset: exactly the
    records of committed transactions and of none, and the position is behind the last batch (FAULTS B21, B24)."""
    dice = random.Random(seed)
    log: list[bytes] = []
    expected: list[tuple[int, bytes]] = []
    aborted: list[Range] = []
    opened: dict[int, tuple[int, list[tuple[int, bytes]]]] = {}
    offset = 0
    for _ in range(60):
        producer = dice.randrange(4)
        if producer == 0:
            values = [b"p%d" % dice.randrange(99) for _ in range(dice.randint(1, 3))]
            log.append(encode(values, timestamps=1, base_offset=offset))
            expected += [(offset + n, value) for n, value in enumerate(values)]
            offset += len(values)
        elif dice.random() < 0.3 and producer in opened:
            first, written = opened.pop(producer)
            commit = dice.random() < 0.5
            data = bytearray(marker(commit, producer, 0, 0, 1))
            data[:8] = offset.to_bytes(8, "big")
            log.append(bytes(data))
            if commit:
                expected += written
            else:
                aborted.append(Range(producer, first))
            offset += 1
        else:
            values = [b"t%d" % dice.randrange(99)]
            log.append(
                encode(values, timestamps=1, base_offset=offset, producer_id=producer, producer_epoch=0,
                       base_sequence=0, transactional=True)
            )  # fmt: skip
            opened.setdefault(producer, (offset, []))[1].append((offset, values[0]))
            offset += 1
    # What is still open is not decided: a fetch ends before the first such batch.
    stable = min((first for first, _ in opened.values()), default=offset)
    shown, end = [], 0
    for data in log:
        base = int.from_bytes(data[:8], "big")
        if base >= stable:
            break
        shown.append(data)
        end = base + int.from_bytes(data[23:27], "big") + 1
    wanted = sorted(row for row in expected if row[0] < stable)
    source = TopicPartition("t", 0)
    for position in {0, end // 3, end // 2, max(0, end - 1)}:
        found = visible(source, position, [b"".join(shown)], [a for a in aborted if a.first_offset < stable])
        if found is None:
            assert end <= position
            continue
        rows = list(zip(found.offsets, found.values))
        assert rows == [row for row in wanted if row[0] >= position]
        assert found.next_offset == end
