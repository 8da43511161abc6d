"""A topic of another cluster, on `semel broker` and on Apache Kafka: through the contract kit, through the tests of
every transactional sink, and what only a log as a sink can get wrong."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import confluent_kafka
import msgspec
import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from semel.contract import LogIdentity, Remembered, Row
from semel.errors import UsageError
from semel.host import kafka_sink
from semel.host.cluster import ClusterLog
from semel.host.kafka_owner import KafkaOwner
from semel.ports import Done, Fenced, NewRecord, NoSteps, NotDone, Step, TopicPartition
from semel.record.murmur2 import partition_for
from semel.sinks import KafkaTopic
from semel.sinks.sink import Diverged, RowRefused, SinkError
from semel.testing import trials
from semel.testing.contracts import EVERY, ContractTests, Refused, Subject, run, tried
from semel.testing.processes import processes
from semel.testing.subject import standing
from tests.servers import kafka_subjects as subjects
from tests.servers.lake_subjects import held as trials_held
from tests.sinks.conftest import MakeSink
from tests.sinks.test_transactional import (  # noqa: F401
    test_a_batch_written_again_changes_nothing,
    test_a_claim_returns_what_the_last_batch_left,
    test_a_gap_is_not_written,
    test_a_position_that_a_person_has_moved_is_the_one_that_counts,
    test_a_superseded_owner_writes_nothing,
    test_another_log_is_diverged_and_leaves_no_trace,
    test_looking_makes_nothing,
    test_none_deletes_the_row_of_its_key,
    test_only_renamed_tables_are_dropped,
    test_rows_and_position_are_one,
    test_the_kind_is_transactional,
    test_the_last_value_of_a_key_replaces_the_row,
    test_what_has_changed_since_a_person_looked_is_not_moved,
)
from tests.sinks.values import LOG, Total, claimed, delivery, opened, rows
from tests.support.broker import BrokerProcess
from tests.support.kafka import KafkaProcess
from tests.support.proxy import END_TXN, Proxy

_numbers = itertools.count()


class Target(NamedTuple):
    address: str  # through the proxy, as the broker advertises it
    proxy: Proxy
    crash: Callable[[], None]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with (
        Proxy() as proxy,
        BrokerProcess(tmp_path_factory.mktemp("target") / "data", advertise=proxy.address, start=False) as broker,
    ):
        proxy.target = ("127.0.0.1", broker.port)
        yield Target(proxy.address, proxy, broker.restart)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("kafka")
    with Proxy() as proxy, KafkaProcess(folder, advertise=proxy.address, props=subjects.KEEPING) as kafka:
        proxy.target = ("127.0.0.1", kafka.port)

        def crash() -> None:
            # Killed between its answer to a commit and the markers, and back before its session has ended, Apache Kafka
            # 4.3.1 with one broker never writes them (docs/kafka-to-kafka.md): that is not what is tried here.
            until = time.monotonic() + 20
            while subjects.open_transactions(proxy.address, "") and time.monotonic() < until:
                time.sleep(0.05)
            kafka.kill()
            until = time.monotonic() + 30
            with contextlib.suppress(OSError):
                while time.monotonic() < until:  # its port is closed when it is dead
                    socket.create_connection(("127.0.0.1", kafka.port)).close()
            kafka.start()
            subjects.ready(proxy.address)

        subjects.ready(proxy.address)
        yield Target(proxy.address, proxy, crash)


@pytest.fixture
def make_sink(broker: Target) -> MakeSink:
    """Each test under a topic of its own."""
    number = next(_numbers)

    def make(topic: str = "totals", **said: Any) -> KafkaTopic:
        name = said.pop("name", topic)
        return KafkaTopic(
            said.pop("url", f"kafka://{broker.address}"), f"{topic}-{number}", name=f"{name}-{number}", **said
        )

    return make


# --- the kit ---------------------------------------------------------------------------------------------------------


class TestOnApacheKafka(ContractTests):
    """By the stream's key, on Apache Kafka 4.3.1, which is killed."""

    @pytest.fixture
    def subject(self, kafka: Target) -> Subject:
        return subjects.subject(subjects.by_stream, *kafka)


def test_by_a_field_of_the_value(broker: Target) -> None:
    """On `semel broker`, keyed by what the value says: the trials in one process, in `make proof` all."""
    subject = subjects.subject(subjects.by_field, *broker)
    found = tried(subject, EVERY) if os.environ.get("KIT") == "all" else trials_held(subject)
    assert not {name: told for name, told in found.items() if told and not told.startswith("not tried")}


@pytest.mark.parametrize("target", ["broker", "kafka"])
def test_no_transaction_is_left_open(target: str, request: pytest.FixtureRequest) -> None:
    """Owners that die inside their transactions: each is ended by the next claim, and readers of committed records see
    everything at once."""
    at: Target = request.getfixturevalue(target)
    with standing(subjects.subject(subjects.by_stream, *at), "open") as stand, processes(stand) as runs:
        for step in (Step.ROWS_AFTER, Step.SINK_BEFORE):
            child = runs.start(SEMEL_KILL=f"{step}:3")
            runs.ends(child, -signal.SIGKILL, f"a process to be killed at {step}")
        assert subjects.open_transactions(at.address, stand.suffix), "none was open: nothing was tried"
        runs.ends(runs.start(), 0, "the last process")
        until = time.monotonic() + 5  # Apache Kafka writes the last markers behind its answer
        while left := subjects.open_transactions(at.address, stand.suffix):
            assert time.monotonic() < until, left


# --- planted: the kit on this sink is worth what it finds ------------------------------------------------------------


def _position_in_another_transaction(self: Any, lane: Any, delivery: Any, now: Any, batch: Any) -> Any:
    place, key = self._places[delivery], kafka_sink._key(delivery)
    sent = lane.owner.send([NewRecord(self._sink.topic, -1, r.key, r.value, r.timestamp_ms) for r in batch])
    self._steps.reached(Step.ROWS_AFTER)
    if batch and isinstance(sent, Done):
        sent = lane.owner.commit()
    self._steps.reached(Step.POSITION_BEFORE)
    if not isinstance(sent, Done):
        return sent
    return lane.owner.append(place, [(key, msgspec.json.encode(now))], 0)


def _read_before_it_is_initialised(self: Any, lane: Any, at: TopicPartition, key: bytes) -> Any:
    lane.record = self._read(at, key)
    lane.owner.initialise()
    return lane.record


def _no_init(self: Any, lane: Any, at: TopicPartition, key: bytes) -> Any:
    """Every claim under an id of its own, as with a new random transactional id at each start (P8)."""
    lane.owner = KafkaOwner(self._at, f"anybody-{next(_numbers)}")
    lane.owner.initialise()
    lane.record = self._read(at, key, decided_only=True)
    return lane.record


@pytest.mark.parametrize(
    ("name", "mistake", "found_by"),
    [
        ("_committed", _position_in_another_transaction, ("torn",)),
        ("_taken_over", _read_before_it_is_initialised, ("torn",)),
        ("_taken_over", _no_init, ("zombie",)),
    ],
    ids=["position in another transaction", "position read before the id is initialised", "an id per start"],
)
def test_a_mistake_in_the_transaction_is_found(
    name: str, mistake: Any, found_by: tuple[str, ...], broker: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_sink.KafkaTopicConnection, name, mistake)
    monkeypatch.setattr(subjects, "HAND_OVER_S", 2.0)
    for trial in found_by:
        with pytest.raises(Refused):
            run(subjects.subject(subjects.by_stream, *broker), getattr(trials, trial))


@contextlib.contextmanager
def somebodys_transaction(address: str, topic: str) -> Iterator[confluent_kafka.Producer]:
    """Open in the first partition of the topic: its stable end does not move."""
    other = confluent_kafka.Producer({"bootstrap.servers": address, "transactional.id": f"other-{next(_numbers)}"})
    other.init_transactions(10)
    other.begin_transaction()
    other.produce(topic, b"{}", b"somebody's", partition=0)
    other.flush(10)
    try:
        yield other
    finally:
        other.abort_transaction(10)


def _to_the_stable_end(self: Any, at: TopicPartition) -> int:
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": self._sink.servers, "group.id": "a-reader", "isolation.level": "read_committed"}
    )
    try:
        return int(consumer.get_watermark_offsets(confluent_kafka.TopicPartition(*at), timeout=10)[1])
    finally:
        consumer.close()


def test_a_position_behind_an_open_transaction_is_waited_for(
    make_sink: MakeSink, broker: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P1: the position that was committed last lies behind somebody's open transaction. Read up to the stable end, the
    one before it would count, and a batch would be delivered again; that is planted, and seen."""
    sink = make_sink(hand_over_s=2)
    first, second = opened(sink), opened(sink)
    claim = claimed(first, sink)
    assert first.write(claim, 0, 5, "r", rows(sink, [Total("a", n) for n in range(5)])) == Done()
    topic = sink.positions_topic("app")
    with somebodys_transaction(broker.address, topic):
        assert first.write(claim, 5, 7, "r", rows(sink, [Total("a", n) for n in (5, 6)], 5)) == Done()
        found = second.claim(delivery(sink), LOG)
        assert isinstance(found, NotDone) and f"a transaction is open in {topic}-0" in found.reason
    claim = claimed(second, sink)
    assert claim.position == 7
    with somebodys_transaction(broker.address, topic):
        assert second.write(claim, 7, 9, "r", rows(sink, [Total("a", n) for n in (7, 8)], 7)) == Done()
        monkeypatch.setattr(kafka_sink.KafkaTopicConnection, "_end", _to_the_stable_end)
        assert claimed(first, sink).position == 7, "the planted bug is none any more"


class Torn(Exception):
    """Stands for the end of the owner's process."""


@pytest.mark.parametrize("planted", [False, True], ids=["as it is", "B1: lost connections do not count"])
def test_a_late_end_of_transaction_tears_nothing(
    planted: bool, make_sink: MakeSink, kafka: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B1, on Apache Kafka: EndTxn of one batch is held by the network, the client asks again and goes on; it arrives
    when the rows of the next batch are written and their position is not, and then the owner dies. The lost connection
    has cost the id, so what arrives is of an epoch that is over. Without that rule rows are there and no position."""
    sink = make_sink(url=f"kafka://{kafka.address}")
    connection: Any = opened(sink)
    claim = claimed(connection, sink)
    batch = rows(sink, [Total("a", 0), Total("b", 1)])
    if planted:
        monkeypatch.setattr(KafkaOwner, "_lost_a_connection", lambda self, producer: False)
    kafka.proxy.hold_next(END_TXN)
    assert connection.write(claim, 0, 2, "r", batch) == Done()
    held = kafka.proxy.wait_held()
    if not planted:
        assert isinstance(connection.write(claim, 2, 4, "r", batch), NotDone), "the id is to be claimed again"
        claim = claimed(connection, sink)

    class Late:
        def reached(self, step: Step) -> None:
            if step is Step.ROWS_AFTER:
                connection._lanes[claim.delivery].owner._producer.flush(10)
                held.release()
            if step is Step.POSITION_BEFORE:
                raise Torn

    connection._steps = Late()
    with pytest.raises(Torn):
        connection.write(claim, 2, 4, "r", rows(sink, [Total("a", 2), Total("b", 3)], 2))
    connection.close()
    heir: Any = opened(sink)
    assert claimed(heir, sink).position == 2
    found = [value for _, value, _, _ in subjects.messages(kafka.address, sink.topic)]
    totals = sorted(msgspec.json.decode(value)["total"] for value in found if value)
    assert totals == ([0, 1, 2, 3] if planted else [0, 1])


# --- what arrives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["broker", "kafka"])
def test_key_value_and_time_arrive_and_the_partition_is_javas(target: str, request: pytest.FixtureRequest) -> None:
    """Bytes as they lie in the outbox, the record's time, murmur2 of the key, a null value for a delete."""
    at: Target = request.getfixturevalue(target)
    sink = KafkaTopic(f"kafka://{at.address}", f"bytes-{next(_numbers)}", partitions=5)
    connection = opened(sink, bytes)
    batch = [Row(n, 1_600_000_000_000 + n, f"key {n}".encode(), b"\x00\xff%d" % n) for n in range(40)]
    batch += [Row(40, 1_600_000_000_040, b"key 3", None), Row(41, 1_600_000_000_041, None, b"bare")]
    assert connection.write(claimed(connection, sink), 0, 42, "r", batch) == Done()
    found = subjects.messages(at.address, sink.topic)
    assert sorted(f[2] for f in found) == [row.timestamp_ms for row in batch]
    for key, value, ms, partition in found:
        row = batch[ms - 1_600_000_000_000]
        assert (key, value) == (row.key, row.value)
        assert key is None or partition == partition_for(key, 5)


# --- what is refused -------------------------------------------------------------------------------------------------


def configured(address: str, topic: str, **config: str) -> None:
    admin = AdminClient({"bootstrap.servers": address})
    names = {name.replace("_", "."): value for name, value in config.items()}
    admin.create_topics([NewTopic(topic, 1, 1, config=names)])[topic].result(10)


@pytest.mark.parametrize("target", ["broker", "kafka"])
def test_a_record_that_is_never_taken_is_named(target: str, request: pytest.FixtureRequest) -> None:
    """S11: larger than the topic takes, without a key where it is compacted, of a time that the broker refuses. Nothing
    of its batch is there; many small records are no poison."""
    at: Target = request.getfixturevalue(target)
    topic = f"narrow-{next(_numbers)}"
    configured(at.address, topic, max_message_bytes="2000", cleanup_policy="compact")
    sink = KafkaTopic(f"kafka://{at.address}", topic)
    connection = opened(sink, bytes)
    good = [Row(n, 1_000, b"k", b"%d" % n * 100) for n in range(50)]
    ahead = int(time.time() * 1000) + 7_200_000
    poison = [Row(50, 1_000, b"k", b"x" * 2_000), Row(50, 1_000, None, b"x")]
    if target == "kafka":  # `semel broker` takes any time
        poison.append(Row(50, ahead, b"k", b"x"))
    for bad in poison:
        with pytest.raises(RowRefused) as refused:
            connection.write(claimed(connection, sink), 0, 52, "r", [*good, bad, Row(51, 1_000, b"k", b"y")])
        assert refused.value.offset == 50
    assert not subjects.messages(at.address, topic)
    assert connection.write(claimed(connection, sink), 0, 50, "r", good) == Done()
    assert len(subjects.messages(at.address, topic)) == 50


def test_another_count_of_partitions_is_refused(make_sink: MakeSink) -> None:
    opened(make_sink(partitions=2))
    with pytest.raises(SinkError, match="has 2 partitions, the program says partitions=3"):
        make_sink(partitions=3).open(NoSteps()).prepare(Total)


def test_positions_that_could_be_forgotten_are_refused(make_sink: MakeSink, broker: Target) -> None:
    sink = make_sink()
    connection = opened(sink)
    configured(broker.address, sink.positions_topic("app"), cleanup_policy="delete")
    with pytest.raises(SinkError, match=r"cleanup.policy=delete: it could forget"):
        connection.claim(delivery(sink), LOG)


def test_a_topic_made_anew_is_not_taken_for_the_one_that_was_delivered(make_sink: MakeSink, broker: Target) -> None:
    """What it held would be missing for good: it stops, and a person says what stands."""
    sink = make_sink()
    connection = opened(sink)
    assert connection.write(claimed(connection, sink), 0, 2, "r", rows(sink, [Total("a", 1), Total("b", 2)])) == Done()
    log = ClusterLog(f"kafka://{broker.address}")
    log.delete([sink.topic])
    log.close()
    with pytest.raises(Diverged, match=r"made anew: .*semel sink rewind .*adopt"):
        opened(sink).claim(delivery(sink), LOG)
    (seen,) = connection.remembered("app")  # type: ignore[attr-defined]
    assert connection.move("app", [seen], [replace(seen, position=0, run="")]) == Done()  # type: ignore[attr-defined]
    assert claimed(opened(sink), sink).position == 0


def test_an_outbox_with_more_partitions_finds_room_for_its_positions(make_sink: MakeSink) -> None:
    """Positions made for four partitions hold those of six after a person has moved them: two in one partition."""
    sink = make_sink()
    connection: Any = opened(sink)
    claimed(connection, sink, 1)
    seen = connection.remembered("app")
    larger = LogIdentity("another", 6)
    to = [Remembered(p, 0, 2, 10 + p, "m", larger) for p in range(6)]
    assert connection.move("app", seen, to) == Done()
    assert [claimed(connection, sink, p, larger).position for p in range(6)] == [10, 11, 12, 13, 14, 15]
    assert [one.position for one in connection.remembered("app")] == [10, 11, 12, 13, 14, 15]


def test_what_a_person_moves_waits_for_nobody_and_fences_everybody(make_sink: MakeSink) -> None:
    """An owner in the middle of its batch is ended; what it sends then is refused."""
    sink = make_sink()
    owner, operator = opened(sink), opened(sink)
    claim = claimed(owner, sink)

    class Moved:
        def reached(self, step: Step) -> None:
            if step is Step.SINK_BEFORE:
                seen = operator.remembered("app")  # type: ignore[attr-defined]
                assert operator.move("app", seen, [replace(seen[0], position=9)]) == Done()  # type: ignore[attr-defined]

    owner._steps = Moved()  # type: ignore[attr-defined]
    assert isinstance(owner.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])), Fenced)
    assert claimed(operator, sink).position == 9
    assert not list(operator.rows())


# --- what is said ----------------------------------------------------------------------------------------------------


def test_secrets_are_in_no_text(make_sink: MakeSink, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither of the address nor of the options, whatever goes wrong."""
    with pytest.raises(SinkError) as odd:
        KafkaTopic("kafka://me:hush@host", "t")
    sink = KafkaTopic(
        "kafka://127.0.0.1:1?sasl.password=hush1&security.protocol=SASL_PLAINTEXT", "t",
        options={"sasl.mechanism": "PLAIN", "sasl.username": "me", "sasl.password": "hush2"}, hand_over_s=1,
    )  # fmt: skip
    connection: Any = sink.open(NoSteps())
    away = connection.prepare(Total)
    assert isinstance(away, NotDone)
    connection.close()
    with pytest.raises(UsageError) as owned:
        KafkaTopic("kafka://h:1", "t", options={"acks": "1"}).open(NoSteps())
    assert "acks cannot be set" in str(owned.value)
    told = [odd.value, sink, sink.where, away, owned.value, capfd.readouterr()]
    assert not any("hush" in str(one) + repr(one) for one in told)


def test_what_weakens_it_is_said(make_sink: MakeSink) -> None:
    connection = opened(make_sink())
    assert any("has one replica" in note for note in connection.notes())


def test_a_cluster_that_is_away_is_no_error(make_sink: MakeSink, tmp_path: Path) -> None:
    """NotDone in bounded time, at each call; and it goes on when it is there again."""
    with BrokerProcess(tmp_path / "data") as server:
        sink = make_sink(url=f"kafka://{server.address}", hand_over_s=2)
        connection: Any = opened(sink)
        claim = claimed(connection, sink)
        server.kill()
        began = time.monotonic()
        assert not isinstance(connection.write(claim, 0, 1, "r", rows(sink, [Total("a", 1)])), Done)
        assert isinstance(connection.claim(delivery(sink), LOG), NotDone)
        assert isinstance(connection.remembered("app"), NotDone)
        assert time.monotonic() - began < 20
        server.start()
        claim = claimed(connection, sink)
        assert connection.write(claim, claim.position, claim.position + 1, "r", []) == Done()
