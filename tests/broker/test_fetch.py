"""Fetch: what readers see, how long they wait, how they move on."""

from __future__ import annotations

import pytest

from semel import record
from semel.broker.admin_requests import DeleteTopicsRequest, DeleteTopicState
from semel.broker.errors import Error
from semel.broker.requests import FetchPartition, FetchRequest, FetchTopic

from .world import START_MS, Txn, World, batch, fetch_request, produce_request, visible


@pytest.fixture
def world() -> World:
    world = World()
    world.topic("a", 2)
    return world


def test_nothing_is_shown_before_it_is_durable(world: World) -> None:
    """FAULTS B27: a fetch between append and sync sees nothing; after it, the record."""
    world.post(produce_request("a", batch("x")))
    row = world.answer(world.post(fetch_request("a"), connection=2)).responses[0].partitions[0]
    assert (list(row.records), row.high_watermark) == ([], 0)
    world.settle()
    assert world.fetch("a").high_watermark == 1


def test_a_fetch_waits_for_data_and_is_woken_by_the_sync(world: World) -> None:
    """A long poll leaves with the record that it waited for, not before it is durable and not only at its deadline."""
    waiting = world.post(fetch_request("a", max_wait_ms=500), connection=2)
    assert world.answer(waiting) is None
    world.post(produce_request("a", batch("x")))
    assert world.answer(waiting) is None
    world.settle()
    assert world.answer(waiting).responses[0].partitions[0].high_watermark == 1


def test_a_fetch_leaves_empty_at_its_deadline(world: World) -> None:
    """max_wait is the most a client waits; the node says when it wants to be woken."""
    waiting = world.post(fetch_request("a", max_wait_ms=500), connection=2)
    assert world.node.wake_at_ms == START_MS + 500
    world.wait(499)
    assert world.answer(waiting) is None
    world.wait(1)
    assert list(world.answer(waiting).responses[0].partitions[0].records) == []
    assert world.node.wake_at_ms is None


def test_a_fetch_waits_for_min_bytes(world: World) -> None:
    """One small batch is not enough; the second makes it so."""
    size = len(batch("x"))
    waiting = world.post(fetch_request("a", max_wait_ms=500, min_bytes=size + 1), connection=2)
    world.produce("a", batch("x"))
    assert world.answer(waiting) is None
    world.produce("a", batch("y"))
    assert world.answer(waiting) is not None


def test_a_committed_reader_is_woken_when_the_abort_lands(world: World) -> None:
    """FAULTS B21: a long poll that waits while the abort lands shows none of what was aborted."""
    txn = Txn(world, "t")
    txn.init()
    txn.send("a", 0, "gone")
    waiting = world.post(fetch_request("a", committed=True, max_wait_ms=10_000), connection=2)
    assert world.answer(waiting) is None
    txn.abort()
    row = world.answer(waiting).responses[0].partitions[0]
    assert row.last_stable_offset == 2
    assert visible(row, 0, committed=True) == ([], 2)


def test_a_closed_connection_waits_no_longer(world: World) -> None:
    """Nothing of it is left behind, and nothing is answered to it."""
    waiting = world.post(fetch_request("a", max_wait_ms=500), connection=2)
    world.close(2)
    world.produce("a", batch("x"))
    assert world.answer(waiting) is None
    assert world.node.wake_at_ms is None
    assert not world.node.broker.waits.by_partition


def test_a_wait_on_a_topic_that_is_deleted_ends_with_its_error(world: World) -> None:
    """At once: the client has to look for the topic again."""
    waiting = world.post(fetch_request("a", max_wait_ms=500), connection=2)
    world.ask(DeleteTopicsRequest(topics=(DeleteTopicState("a"),)))
    assert world.answer(waiting).responses[0].partitions[0].error_code == Error.UNKNOWN_TOPIC_OR_PARTITION


def test_limits_are_kept_but_stop_nobody(world: World) -> None:
    """KIP-74: one whole batch comes however small the limit; then the limits of partition and request hold."""
    size = len(batch("x"))
    for _ in range(3):
        world.produce("a", batch("x"))
        world.produce("a", batch("y"), 1)
    assert sum(map(len, world.fetch("a", max_bytes=1).records)) == size
    assert sum(map(len, world.fetch("a", max_bytes=2 * size).records)) == 2 * size
    wanted = tuple(FetchPartition(index, 0, 1 << 20) for index in range(2))
    reply = world.ask(FetchRequest(max_bytes=size + 1, topics=(FetchTopic("a", wanted),)))
    first, second = reply.responses[0].partitions
    assert (sum(map(len, first.records)), sum(map(len, second.records))) == (size, 0)


def test_a_reader_gets_past_a_tail_of_aborted_data_with_the_smallest_limit(world: World) -> None:
    """FAULTS B24: every fetch that finds only aborted or control batches still moves the reader. Checked by leaving
    aborted batches out of the reply: the reader stood still for ever."""
    txn = Txn(world, "t")
    txn.init()
    for number in range(4):
        txn.send("a", 0, f"gone{number}")
        txn.abort()
    offset, fetches = 0, 0
    while offset < 8:
        row = world.fetch("a", offset, committed=True, max_bytes=1)
        values, moved = visible(row, offset, committed=True)
        assert values == [] and moved > offset
        offset, fetches = moved, fetches + 1
    assert fetches == 8


def test_sessions_are_answered_without_one(world: World) -> None:
    """Session id 0 tells the client to name everything each time; one that claims a session is told it has none."""
    message = fetch_request("a")
    assert world.ask(message).session_id == 0
    claimed = FetchRequest(session_id=5, session_epoch=1, topics=message.topics)
    assert world.ask(claimed).error_code == Error.FETCH_SESSION_ID_NOT_FOUND


@pytest.mark.parametrize(
    ("topic", "partition", "offset", "error"),
    [
        ("nowhere", 0, 0, Error.UNKNOWN_TOPIC_OR_PARTITION),
        ("a", 9, 0, Error.UNKNOWN_TOPIC_OR_PARTITION),
        ("a", 0, 2, Error.OFFSET_OUT_OF_RANGE),
        ("a", 0, -1, Error.OFFSET_OUT_OF_RANGE),
        ("a", 0, 1, Error.NONE),
    ],
)
def test_places_that_are_not_there(world: World, topic: str, partition: int, offset: int, error: Error) -> None:
    """Errors leave at once, also where the client would wait."""
    world.produce("a", batch("x"))
    token = world.post(fetch_request(topic, offset, partition, max_wait_ms=0 if error is Error.NONE else 1000))
    assert world.answer(token).responses[0].partitions[0].error_code == error


def test_a_client_of_another_run_is_told(world: World) -> None:
    """KIP-320: the leader epoch is the run; an older one is fenced, a newer one unknown; a log that has parted is
    shown where."""
    world.produce("a", batch("x"))
    world.crash()
    world.produce("a", batch("y"))
    assert world.fetch("a", current_leader_epoch=2).error_code == 0
    assert world.fetch("a", current_leader_epoch=1).error_code == Error.FENCED_LEADER_EPOCH
    assert world.fetch("a", current_leader_epoch=3).error_code == Error.UNKNOWN_LEADER_EPOCH
    assert world.fetch("a", 1, last_fetched_epoch=1).diverging_epoch.end_offset == -1
    assert world.fetch("a", 2, last_fetched_epoch=1).diverging_epoch.end_offset == 1


def test_topics_are_found_by_id(world: World) -> None:
    """Version 13 and later name topics by id alone."""
    world.produce("a", batch("x"))
    wanted = FetchTopic("", (FetchPartition(0, 0),), world.state.topics["a"].id)
    (row,) = world.ask(FetchRequest(topics=(wanted,)), version=16).responses
    assert row.topic_id == wanted.topic_id and row.partitions[0].high_watermark == 1
    unknown = FetchTopic("", (FetchPartition(0, 0),), world.state.topics["__semel_runs"].id.__class__(int=1))
    (row,) = world.ask(FetchRequest(topics=(unknown,)), version=16).responses
    assert row.partitions[0].error_code == Error.UNKNOWN_TOPIC_ID


def test_a_damaged_batch_refuses_its_partition_and_no_other(world: World) -> None:
    """The broker ended when a reader met a damaged header, and took every other topic with it. Now the reader is told
    CORRUPT_MESSAGE for that partition, the others go on, and the host has one line to print, however often it is asked.
    """
    for text in ("x", "y"):
        world.produce("a", batch(text))
    world.produce("a", batch("other"), partition=1)
    partition = world.node.broker.state.topics["a"].partitions[0]
    partition.flush()
    world.disk.damage(partition.folder + "/00000000000000000000.log", partition.size // 2 + 7)
    assert [b.base_offset for b in record.parse_all(b"".join(world.fetch("a").records))] == [0]
    for _ in range(2):
        assert world.fetch("a", offset=1).error_code == Error.CORRUPT_MESSAGE
    assert world.fetch("a", partition=1).error_code == 0
    assert len(world.node.broker.untold) == 1
    assert "a partition 0, offset 1: " in world.node.broker.untold[0]
