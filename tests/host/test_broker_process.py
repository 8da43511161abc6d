"""`semel broker` as users run it: a real process, real sockets, other people's clients, kill -9 in between."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from semel.host.steps import arm
from semel.ports import Step
from semel.wire.incoming import HEADER
from tests.support.broker import BrokerFailed, BrokerProcess

WAIT_S = 30.0
QUIET: dict[str, Any] = {"log_level": 0, "reconnect.backoff.ms": 20, "reconnect.backoff.max.ms": 200}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path / "data") as running:
        yield running


def create(broker: BrokerProcess, topic: str, partitions: int = 1) -> None:
    admin = AdminClient({"bootstrap.servers": broker.address, **QUIET})
    admin.create_topics([NewTopic(topic, partitions, -1)])[topic].result(WAIT_S)


def producer(broker: BrokerProcess, transactional_id: str | None = None, **settings: Any) -> Producer:
    config = {"bootstrap.servers": broker.address, **QUIET, **settings}
    if transactional_id is None:
        return Producer({**config, "enable.idempotence": True, "linger.ms": 0})
    made = Producer({**config, "transactional.id": transactional_id, "transaction.timeout.ms": 10_000, "linger.ms": 0})
    made.init_transactions(WAIT_S)
    return made


def transaction(client: Producer, topic: str, values: Sequence[str], commit: bool = True) -> None:
    client.begin_transaction()
    for value in values:
        client.produce(topic, value)
    if commit:
        client.commit_transaction(WAIT_S)
    else:
        client.flush(WAIT_S)
        client.abort_transaction(WAIT_S)


def values(broker: BrokerProcess, topic: str, *, committed: bool = True, partitions: int = 1) -> list[str]:
    """Everything from the start to the end, which for a committed reader is the last stable offset."""
    consumer = Consumer(
        {
            "bootstrap.servers": broker.address,
            "group.id": "reads-in-no-group",
            "auto.offset.reset": "error",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            **QUIET,
        }
    )
    try:
        consumer.assign([TopicPartition(topic, index, 0) for index in range(partitions)])
        found, ended = [], 0
        while ended < partitions:
            message = consumer.poll(WAIT_S)
            assert message is not None, f"nothing of {topic} within {WAIT_S} s"
            error = message.error()
            if error is None:
                found.append((message.value() or b"").decode())
            elif error.code() == confluent_kafka.KafkaError._PARTITION_EOF:
                ended += 1
            else:
                assert error.retriable() or error.code() in (-195, -187), error
        return found
    finally:
        consumer.close()


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "semel.cli.main", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=60)


# --- start and end


def test_it_says_ready_ends_with_0_and_starts_again(tmp_path: Path) -> None:
    """One line on stdout, exit code 0 after SIGTERM and SIGINT, and the second start has what the first wrote."""
    with BrokerProcess(tmp_path / "data") as broker:
        create(broker, "t", 3)
        client = producer(broker)
        for number in range(100):
            client.produce("t", str(number), partition=number % 3)
        assert client.flush(WAIT_S) == 0
        broker.stop()
        broker.start()
        assert sorted(map(int, values(broker, "t", partitions=3))) == list(range(100))
        assert broker.process is not None and broker.process.stdout is not None
        process = broker.process
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0
        assert broker.process.stdout.read() == b""
        broker.process = None
        assert "Traceback" not in broker.log


def test_a_port_in_use_is_an_error_before_the_folder_is_touched(tmp_path: Path) -> None:
    """With the address, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(BrokerFailed, match=r"exit code 1.*\n.*is in use\. .*--listen"):
            BrokerProcess(tmp_path / "data", taken.getsockname()[1])
        assert not (tmp_path / "data").exists()


def test_a_folder_in_use_is_an_error_with_the_pid(broker: BrokerProcess) -> None:
    """And the one who has it goes on."""
    with pytest.raises(BrokerFailed, match=f"already open by pid {broker.pid}"):
        BrokerProcess(broker.folder)
    create(broker, "still-there")


def test_a_folder_of_another_version_is_left_alone(tmp_path: Path) -> None:
    """Exit code 1, both formats named, nothing written."""
    (tmp_path / "format").write_text("semel log, format 99\n")
    with pytest.raises(BrokerFailed, match="exit code 1") as failed:
        BrokerProcess(tmp_path)
    assert "format 99" in str(failed.value)
    assert "Traceback" not in str(failed.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"format", "lock"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "nowhere"], "write HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "write HOST:PORT"),
        (["--listen", "0.0.0.0:0"], "add --advertise HOST"),
        (["--set", "num.partitions=x"], "num.partitions=x"),
        (["--set", "a=1"], "Unknown setting"),
        (["--durability", "none"], "choose fsync or os"),
    ],
)
def test_what_is_asked_wrongly_is_refused_with_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    """One line, no traceback, no folder."""
    done = run("broker", str(tmp_path / "data"), *arguments)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert done.stdout == b""
    assert not (tmp_path / "data").exists()


def test_garbage_from_others_does_not_touch_it(broker: BrokerProcess) -> None:
    """An HTTP client, a forged array length that aborts kio's native reader, half a frame."""
    # Produce 9 with 2^32 - 2 topics in a compact array: kio's native reader asks for the memory and aborts the process.
    body = HEADER.pack(0, 9, 1, -1) + bytes(1) + bytes(7) + b"\xff\xff\xff\xff\x0f"
    forged = len(body).to_bytes(4) + body
    for data in (b"GET / HTTP/1.1\r\n\r\n", forged, b"\x00\x00\x00\x10\x00\x12"):
        with socket.create_connection(("127.0.0.1", broker.port)) as link:
            link.settimeout(WAIT_S)
            link.sendall(data)
            if len(data) > 6:
                assert link.recv(100) == b""
    create(broker, "still-there")
    assert "Traceback" not in broker.log


# --- transactions


def test_committed_is_there_aborted_is_not_and_kill_9_changes_nothing(broker: BrokerProcess) -> None:
    """To read_committed and read_uncommitted readers, before and after the crash."""
    create(broker, "t")
    client = producer(broker, "x")
    transaction(client, "t", ["a", "b"])
    transaction(client, "t", ["c", "d"], commit=False)
    transaction(client, "t", ["e"])
    for _ in range(2):
        assert values(broker, "t") == ["a", "b", "e"]
        assert values(broker, "t", committed=False) == ["a", "b", "c", "d", "e"]
        broker.restart()
    transaction(client, "t", ["f"])  # the same producer object, over the restart
    assert values(broker, "t") == ["a", "b", "e", "f"]


def test_an_open_transaction_is_hidden_and_its_successor_ends_it(broker: BrokerProcess) -> None:
    """The killed broker remembers it; init with the same id aborts it and fences the one who left it open."""
    create(broker, "t")
    dead = producer(broker, "x")
    dead.begin_transaction()
    dead.produce("t", "left open")
    dead.flush(WAIT_S)
    plain = producer(broker)
    plain.produce("t", "behind it")
    plain.flush(WAIT_S)
    assert values(broker, "t") == []
    assert values(broker, "t", committed=False) == ["left open", "behind it"]
    broker.restart()
    assert values(broker, "t") == []
    successor = producer(broker, "x")
    assert values(broker, "t") == ["behind it"]
    with pytest.raises(confluent_kafka.KafkaException):
        dead.commit_transaction(WAIT_S)
    transaction(successor, "t", ["mine"])
    assert values(broker, "t") == ["behind it", "mine"]


@pytest.mark.parametrize(
    "step",
    [
        Step.DECISION_BEFORE,
        Step.DECISION_AFTER,
        Step.MARKERS_BEFORE,
        Step.MARKERS_AFTER,
        Step.SYNC_BEFORE,
        Step.SYNC_AFTER,
    ],
)
def test_killed_within_a_commit_it_is_whole_or_not_at_all(tmp_path: Path, step: Step) -> None:
    """Two partitions and an offset: after the restart all three or none, from the decision on all (FAULTS B11, B12)."""
    armed = tmp_path / "armed"
    with BrokerProcess(tmp_path / "data", env={"SEMEL_ARM": str(armed)}) as broker:
        create(broker, "out", 2)
        create(broker, "in")
        client = producer(broker, "x")
        consumer = Consumer({"bootstrap.servers": broker.address, "group.id": "g", **QUIET})
        consumer.assign([TopicPartition("in", 0, 0)])
        client.begin_transaction()
        client.produce("out", "left", partition=0)
        client.produce("out", "right", partition=1)
        client.flush(WAIT_S)
        client.send_offsets_to_transaction([TopicPartition("in", 0, 7)], consumer.consumer_group_metadata(), WAIT_S)
        arm(armed, step, signal.SIGKILL)
        with pytest.raises(confluent_kafka.KafkaException):
            client.commit_transaction(2.0)
        broker.wait(-signal.SIGKILL)
        arm(armed, step, 0)
        broker.start()
        producer(broker, "x")  # ends what was left open
        found = sorted(values(broker, "out", partitions=2))
        reader = Consumer({"bootstrap.servers": broker.address, "group.id": "g", **QUIET})
        offset = reader.committed([TopicPartition("in", 0)], WAIT_S)[0].offset
        if step is Step.DECISION_BEFORE:
            assert (found, offset) == ([], confluent_kafka.OFFSET_INVALID)
        else:
            assert (found, offset) == (["left", "right"], 7)
        consumer.close()
        reader.close()


def test_a_group_reads_on_after_the_crash(broker: BrokerProcess) -> None:
    """Committed offsets survive kill -9; nothing is read twice or left out."""
    create(broker, "t")
    client = producer(broker)
    for number in range(50):
        client.produce("t", str(number))
    client.flush(WAIT_S)
    settings = {
        "bootstrap.servers": broker.address,
        "group.id": "g",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        **QUIET,
    }
    seen = []
    for upto in (20, 50):
        consumer = Consumer(settings)
        consumer.subscribe(["t"])
        while len(seen) < upto:
            message = consumer.poll(WAIT_S)
            assert message is not None
            if message.error() is None:
                seen.append(int(message.value() or b""))
        consumer.commit(offsets=[TopicPartition("t", 0, seen[-1] + 1)], asynchronous=False)
        consumer.close()
        broker.restart()
    assert seen == list(range(50))


def test_a_disk_that_takes_no_more_ends_it_before_it_answers(tmp_path: Path) -> None:
    """Exit code 1 and a sentence; what was acknowledged is there at the next start."""
    with BrokerProcess(tmp_path / "data") as broker:
        create(broker, "t")
        client = producer(broker)
        client.produce("t", "before")
        assert client.flush(WAIT_S) == 0
        journal = max((broker.folder / "journal").iterdir())
        limit = journal.stat().st_size + 1000
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (limit, limit))
        client.produce("t", "x" * 100_000)
        client.flush(1.0)
        broker.wait(1)
        assert "writing or syncing failed (File too large)" in broker.log
        assert "Traceback" not in broker.log
        broker.start()
        assert values(broker, "t")[0] == "before"


# --- the command line on it


def test_write_read_and_topics(broker: BrokerProcess) -> None:
    """A line is a record; keys come from a field; reading stops at the end; the size is known."""
    on = ["--on", f"kafka://{broker.address}"]
    lines = b'{"id":1,"v":"a"}\n{"id":2,"v":"b"}\n{"id":1,"v":"c"}\n'
    done = run("write", "orders", "-", "--key", "id", *on, stdin=lines)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert done.stderr.startswith(b"3 records written to orders")
    done = run("read", "orders", *on)
    assert done.stdout.decode().splitlines()[0] == '0\t0\t1\t{"id":1,"v":"a"}'
    assert len(done.stdout.splitlines()) == 3
    done = run("read", "orders", "--json", "--from", "1", "--max", "1", *on)
    found = json.loads(done.stdout)
    assert (found["offset"], found["key"], json.loads(found["value"])["v"]) == (1, "2", "b")
    assert run("read", "orders", "--from", "2099-01-01", *on).stdout == b""
    done = run("topics", "--json", *on)
    topics = {found["topic"]: found for found in map(json.loads, done.stdout.splitlines())}
    assert topics["orders"]["partitions"][0]["end"] == 3
    assert topics["orders"]["partitions"][0]["size"] > 100
    assert topics["__consumer_offsets"]["internal"]
    for arguments, message in [
        (["read", "nope"], "there is no topic 'nope'"),
        (["read", "orders", "--from", "99"], "orders-0 has no offset 99"),
        (["read", "orders", "--partition", "5"], "there is no partition 5"),
        (["read", "orders", "--from", "soon"], "write start, end, an offset"),
    ]:
        done = run(*arguments, *on)
        assert done.returncode == 2, arguments
        assert message in done.stderr.decode()
        assert "Traceback" not in done.stderr.decode()


def test_read_shows_what_is_committed(broker: BrokerProcess) -> None:
    """And with --uncommitted the rest."""
    create(broker, "t")
    client = producer(broker, "x")
    transaction(client, "t", ["yes"])
    transaction(client, "t", ["no"], commit=False)
    on = ["--on", f"kafka://{broker.address}"]
    assert run("read", "t", *on).stdout == b"0\t0\tnull\tyes\n"
    assert run("read", "t", "--uncommitted", *on).stdout == b"0\t0\tnull\tyes\n0\t2\tnull\tno\n"


def test_the_same_folder_without_a_broker(broker: BrokerProcess) -> None:
    """embedded:DIR reads and writes what the broker did, once the broker is gone; before, it says who has it."""
    on = ["--on", f"embedded:{broker.folder}"]
    done = run("topics", *on)
    assert (done.returncode, f"already open by pid {broker.pid}" in done.stderr.decode()) == (1, True)
    create(broker, "t")
    client = producer(broker)
    client.produce("t", "by the broker")
    client.flush(WAIT_S)
    broker.stop()
    assert run("write", "t", "-", *on, stdin=b"by hand\n").returncode == 0
    assert run("read", "t", *on).stdout == b"0\t0\tnull\tby the broker\n0\t1\tnull\tby hand\n"
    broker.start()
    assert values(broker, "t") == ["by the broker", "by hand"]
