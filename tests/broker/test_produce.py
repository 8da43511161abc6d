"""Produce: what is appended, what is answered as the first time, what is refused."""

from __future__ import annotations

import pytest

from semel.broker.errors import Error
from semel.broker.requests import InitProducerIdRequest, PartitionProduceData, ProduceRequest, TopicProduceData
from semel.record.batch import encode
from semel.record.control import marker

from .world import World, batch, produce_request


def idempotent(*values: str, sequence: int, epoch: int = 0, producer_id: int = 7) -> bytes:
    return batch(*values, producer_id=producer_id, producer_epoch=epoch, base_sequence=sequence)


@pytest.fixture
def world() -> World:
    world = World()
    world.topic("a", 2)
    return world


def test_batches_get_consecutive_offsets_per_partition(world: World) -> None:
    """Each partition counts for itself; the reply says where the batch stands."""
    assert [world.produce("a", batch("x", "y")).base_offset for _ in range(2)] == [0, 2]
    assert world.produce("a", batch("z"), 1).base_offset == 0
    assert world.read("a") == ["x", "y", "x", "y"]


@pytest.mark.parametrize("acks", [1, -1])
def test_no_ack_before_the_batch_is_durable(world: World, acks: int) -> None:
    """acks=1 and acks=all mean the same here: durable (law 1)."""
    token = world.post(produce_request("a", batch("x"), acks=acks))
    assert world.answer(token) is None
    world.settle()
    assert world.answer(token).responses[0].partition_responses[0].error_code == 0
    world.crash()
    assert world.read("a") == ["x"]


def test_acks_0_is_written_and_not_answered(world: World) -> None:
    """The reply is empty, at once; a refusal ends the connection, as in Kafka."""
    token = world.post(produce_request("a", batch("x"), acks=0))
    assert token in world.replies and world.answer(token) is None
    world.settle()
    assert world.read("a") == ["x"]
    world.post(produce_request("nowhere", batch("x"), acks=0), connection=5)
    assert world.closed == {5}


def test_a_repeated_batch_is_answered_as_the_first_time_and_not_stored_again(world: World) -> None:
    """Law 2, for the last five batches, also after a crash and after a checkpoint (FAULTS B17)."""
    batches = [idempotent(f"v{n}", sequence=n) for n in range(6)]
    offsets = [world.produce("a", one).base_offset for one in batches]
    for again in (lambda: None, world.crash, lambda: world.node.checkpoint(), world.stop):
        again()
        world.settle()
        for one, offset in list(zip(batches, offsets, strict=True))[1:]:
            row = world.produce("a", one)
            assert (row.error_code, row.base_offset) == (0, offset)
    assert world.read("a") == [f"v{n}" for n in range(6)]


def test_a_duplicate_in_flight_is_not_answered_before_the_first_is_durable(world: World) -> None:
    """Both answers say the same, so both wait for the same record."""
    one = idempotent("x", sequence=0)
    first, second = world.post(produce_request("a", one)), world.post(produce_request("a", one), connection=2)
    assert world.answer(first) is None and world.answer(second) is None
    world.settle()
    assert world.answer(first) == world.answer(second)
    assert world.read("a") == ["x"]


def test_other_bytes_under_a_used_sequence_are_refused(world: World) -> None:
    """FAULTS B19: Kafka compares ranges only and acknowledges what it drops. Checked by taking the checksum out of
    the window's comparison: the second batch was then acknowledged and lost."""
    world.produce("a", idempotent("x", sequence=0))
    row = world.produce("a", idempotent("other", sequence=0))
    assert row.error_code == Error.INVALID_RECORD and "other bytes" in row.error_message
    assert world.read("a") == ["x"]


def test_a_gap_and_what_lies_below_the_window_are_out_of_order(world: World) -> None:
    """Never DUPLICATE_SEQUENCE_NUMBER, which clients take for success though nobody knows."""
    for sequence in range(7):
        world.produce("a", idempotent("x", sequence=sequence))
    assert world.produce("a", idempotent("x", sequence=9)).error_code == Error.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert world.produce("a", idempotent("x", sequence=0)).error_code == Error.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert len(world.read("a")) == 7


def test_an_older_epoch_is_fenced_a_newer_one_starts_its_sequence_again(world: World) -> None:
    """KIP-98 and KIP-360."""
    world.produce("a", idempotent("x", sequence=0, epoch=1))
    assert world.produce("a", idempotent("x", sequence=1, epoch=0)).error_code == Error.INVALID_PRODUCER_EPOCH
    assert world.produce("a", idempotent("y", sequence=3, epoch=2)).error_code == Error.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert world.produce("a", idempotent("y", sequence=0, epoch=2)).error_code == 0


def broken() -> bytes:
    data = bytearray(batch("x"))
    data[-1] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (broken(), Error.CORRUPT_MESSAGE),
        (batch("x")[:40], Error.CORRUPT_MESSAGE),
        (b"", Error.INVALID_RECORD),
        (batch("x") + batch("y"), Error.INVALID_RECORD),
        (marker(True, 7, 0, 0, 0), Error.INVALID_RECORD),
        (encode([b"x" * 2_000_000]), Error.MESSAGE_TOO_LARGE),
        (
            batch("x", producer_id=7, producer_epoch=0, base_sequence=0, transactional=True),
            Error.INVALID_PRODUCER_ID_MAPPING,
        ),
    ],
)
def test_what_a_client_may_not_write_is_refused(world: World, data: bytes, error: Error) -> None:
    """Nothing of it is stored."""
    assert world.produce("a", data).error_code == error
    assert world.state.topics["a"].partitions[0].end_offset == 0


def test_the_topics_own_limit_counts(world: World) -> None:
    """max.message.bytes of the topic goes before message.max.bytes of the broker."""
    world.topic("small", max_message_bytes="100")
    assert world.produce("small", encode([b"x" * 200])).error_code == Error.MESSAGE_TOO_LARGE


@pytest.mark.parametrize(
    ("topic", "partition", "acks", "error"),
    [
        ("b", 0, -1, Error.UNKNOWN_TOPIC_OR_PARTITION),
        ("a", 2, -1, Error.UNKNOWN_TOPIC_OR_PARTITION),
        ("a", -1, -1, Error.UNKNOWN_TOPIC_OR_PARTITION),
        ("a", 0, 7, Error.INVALID_REQUIRED_ACKS),
        ("__consumer_offsets", 0, -1, Error.INVALID_TOPIC),
        ("__semel_runs", 0, -1, Error.INVALID_TOPIC),
    ],
)
def test_where_nothing_may_be_written(world: World, topic: str, partition: int, acks: int, error: Error) -> None:
    """Unknown places, unknown acks, the broker's own topics."""
    assert world.produce(topic, batch("x"), partition, acks=acks).error_code == error


def test_one_refused_partition_does_not_refuse_the_others(world: World) -> None:
    """Each has its own row."""
    rows = (PartitionProduceData(0, broken()), PartitionProduceData(1, batch("x")))
    reply = world.ask(ProduceRequest(topic_data=(TopicProduceData("a", rows),)))
    assert [row.error_code for row in reply.responses[0].partition_responses] == [Error.CORRUPT_MESSAGE, 0]
    assert world.read("a", 1) == ["x"]


def test_producer_ids_are_never_given_twice() -> None:
    """Not after a crash either, and not before the gift is durable."""
    world = World()
    ids = [world.ask(InitProducerIdRequest()).producer_id for _ in range(3)]
    assert world.answer(world.post(InitProducerIdRequest())) is None
    world.crash()
    ids += [world.ask(InitProducerIdRequest()).producer_id for _ in range(2)]
    assert len(set(ids)) == 5
