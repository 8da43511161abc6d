"""What `ports.Log` promises, held against both logs: the embedded one and one behind a socket."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from semel.ports import Done, Log, LogLost, NewTopic, NotDone, Position, Records, TopicPartition
from tests.host.logs import Logs, Member, cluster_logs, embedded_logs, fill, parts, polled, read_all, take

NAMES = itertools.count()


@pytest.fixture(scope="module", params=["embedded", "broker"])
def logs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logs]:
    made = {"embedded": embedded_logs, "broker": cluster_logs}[request.param](tmp_path_factory.mktemp("log"))
    yield made
    made.close()


@pytest.fixture
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A name of its own for the test's topics and groups, also when a cluster outlives the run."""
    return f"{tmp_path.parent.name}-{next(NAMES)}"


def test_topics_are_created_once_and_described(logs: Logs, name: str) -> None:
    log = logs.open()
    log.create([NewTopic(name, 3, {"cleanup.policy": "compact"})])
    first = log.topics()[name]
    log.create([NewTopic(name, 5)])  # it exists: left as it is
    again = log.topics()[name]
    assert again.partitions == 3 and again.topic_id == first.topic_id != ""
    assert log.config(name)["cleanup.policy"] == "compact"


def test_what_was_written_is_read_back_as_it_was(logs: Logs, name: str) -> None:
    """Keys, values (also none), times and headers; partition -1 is murmur2 of the key."""
    log = logs.open()
    log.create([NewTopic(name, 2)])
    write = log.writer(name)
    write(0, b"a", b"1", 5, None)
    write(0, None, None, 6, [("h", b"x"), ("n", None)])
    write(0, b"", b"", 7, None)
    write(-1, b"key-1", b"2", 8, None)
    write(-1, b"key-2", b"3", 9, None)
    log.flush()
    records = [r for at in parts(name, 2) for r in log.read(at, 0, log.ends([at])[at])]
    by_time = {
        time: (r.source.partition, key, value, tuple(headers))
        for r in records
        for time, key, value, headers in zip(r.timestamps, r.keys, r.values, r.headers or [()] * len(r.keys))
    }
    assert by_time[5] == (0, b"a", b"1", ())
    assert by_time[6] == (0, None, None, (("h", b"x"), ("n", None)))
    assert by_time[7] == (0, b"", b"", ())
    from semel.record.murmur2 import partition_for

    assert [by_time[8][0], by_time[9][0]] == [partition_for(b"key-1", 2), partition_for(b"key-2", 2)]


def test_outputs_and_positions_are_committed_together(logs: Logs, name: str) -> None:
    fill(logs, name, {0: [b"a", b"b"], 1: [b"c"]})
    log = logs.open(name, "m", name)
    log.create([NewTopic(f"{name}-out", 2)])
    log.join([name], Member(log))
    log.begin()
    write = log.writer(f"{name}-out")
    for at, values in take(log, 3).items():
        for value in values:
            write(at.partition, None, value, 1, None)
    assert log.commit({TopicPartition(name, 0): Position(2, "time=7"), TopicPartition(name, 1): Position(1)}) == Done()
    look = logs.open(name)
    assert look.committed(parts(name, 2)) == {
        TopicPartition(name, 0): Position(2, "time=7"),
        TopicPartition(name, 1): Position(1),
    }
    assert read_all(look, f"{name}-out", 2) == {0: [b"a", b"b"], 1: [b"c"]}


def test_an_aborted_transaction_is_never_seen(logs: Logs, name: str) -> None:
    """Neither its records nor its positions; and readers get past it."""
    fill(logs, name, {0: [b"a"]})
    log = logs.open(name, "m", name)
    log.create([NewTopic(f"{name}-out", 1)])
    log.join([name], Member(log))
    write = log.writer(f"{name}-out")
    take(log, 1)
    log.begin()
    write(0, None, b"aborted", 1, None)
    log.abort()
    log.begin()
    write(0, None, b"committed", 1, None)
    assert log.commit({TopicPartition(name, 0): Position(1)}) == Done()
    log.begin()
    write(0, None, b"aborted too", 1, None)
    log.abort()
    assert read_all(logs.open(), f"{name}-out", 1) == {0: [b"committed"]}
    assert log.committed(parts(name, 1)) == {TopicPartition(name, 0): Position(1)}


def test_a_partition_without_a_position_says_none(logs: Logs, name: str) -> None:
    fill(logs, name, {0: [b"a"]})
    assert logs.open(name).committed(parts(name, 2)) == dict.fromkeys(parts(name, 2))


def test_a_new_owner_of_the_id_ends_what_the_old_one_left_open(logs: Logs, name: str) -> None:
    """The open transaction of an owner that went away is aborted when its successor joins, not 10 s later; until
    then `read` waits, and says so with empty records (FAULTS P1)."""
    fill(logs, name, {0: [b"a"]})
    dead = logs.open(name, "m", name)
    dead.create([NewTopic(f"{name}-out", 1)])
    dead.join([name], Member(dead))
    take(dead, 1)
    dead.begin()
    write = dead.writer(f"{name}-out")
    for _ in range(10_000):
        write(0, None, b"left open", 1, None)
    look = logs.open()
    out = parts(f"{name}-out", 1)[0]
    # A high watermark counts what is not decided.
    polled(dead, lambda: look.ends([out])[out] > 0)
    reading = look.read(out, 0, look.ends([out])[out])
    first = next(reading)
    assert (list(first.offsets), first.next_offset) == ([], 0)
    dead.close()
    successor = logs.open(name, "m", name)
    successor.join([name], Member(successor))
    rest: list[Records] = list(reading)
    assert [v for records in rest for v in records.values] == []
    assert rest[-1].next_offset >= 1


def test_seek_pause_and_resume(logs: Logs, name: str) -> None:
    fill(logs, name, {0: [b"%d" % n for n in range(10)], 1: [b"x"]})
    log = logs.open(name, "m")
    log.join([name], Member(log))
    take(log, 11)
    first, second = parts(name, 2)
    log.pause([first])
    log.seek(second, 0)
    assert take(log, 1) == {second: [b"x"]}
    log.seek(first, 7)
    log.resume([first])
    assert take(log, 3) == {first: [b"7", b"8", b"9"]}


def test_a_position_that_the_log_does_not_hold_is_an_error(logs: Logs, name: str) -> None:
    """The client never chooses another place to go on from by itself."""
    fill(logs, name, {0: [b"a"], 1: [b"b"]})
    log = logs.open(name, "m")
    log.join([name], Member(log))
    take(log, 2)
    log.seek(TopicPartition(name, 0), 1_000)
    with pytest.raises(LogLost, match=rf"{name}-0"):
        polled(log, lambda: False)


def test_plain_writes_and_positions(logs: Logs, name: str) -> None:
    """At-least-once and at-most-once: flush, then positions, or the other way round."""
    fill(logs, name, {0: [b"a", b"b"]})
    log = logs.open(name, "m")
    log.create([NewTopic(f"{name}-out", 1)])
    log.join([name], Member(log))
    write = log.writer(f"{name}-out")
    for values in take(log, 2).values():
        for value in values:
            write(0, None, value, 1, None)
    log.flush()
    assert log.commit_offsets({TopicPartition(name, 0): Position(2, "m")}) == Done()
    assert read_all(log, f"{name}-out", 1) == {0: [b"a", b"b"]}
    log.close()
    again = logs.open(name, "m")
    member = Member(again)
    again.join([name], member)
    polled(again, lambda: bool(member.owned))
    assert again.committed(parts(name, 1)) == {TopicPartition(name, 0): Position(2, "m")}


def test_an_app_that_reads_another_topic_than_before_is_given_it(logs: Logs, name: str) -> None:
    """Apache Kafka gives a static member that restarts its old partitions, whatever it subscribes to now."""
    fill(logs, f"{name}-a", {0: [b"a"]}, 1)
    fill(logs, f"{name}-b", {0: [b"b"]}, 1)
    before = logs.open(name, "m")
    before.join([f"{name}-a"], Member(before))
    take(before, 1)
    before.close()
    after = logs.open(name, "m")
    member = Member(after)
    after.join([f"{name}-a", f"{name}-b"], member)
    polled(after, lambda: len(member.owned) == 2)


def test_an_empty_transaction_commits(logs: Logs, name: str) -> None:
    fill(logs, name, {0: [b"a"]})
    log = logs.open(name, "m", name)
    log.join([name], Member(log))
    take(log, 1)
    log.begin()
    assert log.commit({}) == Done()
    log.begin()
    assert log.commit({TopicPartition(name, 0): Position(1)}) == Done()


def test_many_records_keep_their_order(logs: Logs, name: str) -> None:
    count = 20_000
    fill(logs, name, {p: [b"%d" % n for n in range(count)] for p in range(2)})
    log = logs.open(name, "m")
    log.join([name], Member(log))
    found = take(log, 2 * count)
    assert found == {at: [b"%d" % n for n in range(count)] for at in parts(name, 2)}


def test_what_lies_below_is_deleted_and_nothing_else(logs: Logs, name: str) -> None:
    """An outbox is truncated by its delivery: the log begins later then, whatever was asked before, and never beyond
    its end."""
    fill(logs, name, {0: [b"%d" % n for n in range(10)], 1: [b"x", b"y"]})
    log = logs.open()
    first, second = parts(name, 2)
    assert log.truncate({first: 4, second: 1}) == Done()
    assert log.starts([first, second]) == {first: 4, second: 1}
    assert log.ends([first, second]) == {first: 10, second: 2}
    assert read_from(log, first, 4) == [b"%d" % n for n in range(4, 10)]
    assert log.truncate({first: 2}) == Done()
    assert log.starts([first]) == {first: 4}
    assert isinstance(log.truncate({first: 11}), NotDone)
    assert isinstance(log.truncate({TopicPartition(f"{name}-none", 0): 1}), NotDone)
    assert log.starts([first]) == {first: 4}
    assert log.truncate({first: 10}) == Done()
    assert log.starts([first]) == log.ends([first]) == {first: 10}


def read_from(log: Log, at: TopicPartition, start: int) -> list[bytes | None]:
    return [value for records in log.read(at, start, log.ends([at])[at]) for value in records.values]
