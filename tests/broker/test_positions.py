"""ListOffsets and OffsetForLeaderEpoch."""

from __future__ import annotations

import pytest

from semel.broker.admin_requests import OffsetForLeaderEpochRequest, OffsetForLeaderPartition, OffsetForLeaderTopic
from semel.broker.errors import Error
from semel.broker.requests import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from semel.record.batch import encode

from .world import START_MS, Txn, World, batch, produce_request


@pytest.fixture
def world() -> World:
    world = World()
    world.topic("a")
    return world


def ask(world: World, timestamp: int, *, committed: bool = False, epoch: int = -1) -> tuple[int, int, int]:
    """Error code, offset, timestamp."""
    wanted = ListOffsetsTopic("a", (ListOffsetsPartition(0, timestamp, epoch),))
    row = world.ask(ListOffsetsRequest(topics=(wanted,), isolation_level=int(committed))).topics[0].partitions[0]
    return row.error_code, row.offset, row.timestamp


def test_the_end_depends_on_who_asks(world: World) -> None:
    """-1: the high watermark, for read_committed the last stable offset; -2: the start."""
    world.produce("a", batch("x"))
    txn = Txn(world, "t")
    txn.init()
    txn.send("a", 0, "y")
    assert ask(world, -1) == (0, 2, -1)
    assert ask(world, -1, committed=True) == (0, 1, -1)
    assert ask(world, -2) == ask(world, -4) == (0, 0, -1)
    assert ask(world, -5) == (0, -1, -1)


def test_an_end_that_is_not_durable_is_not_the_end(world: World) -> None:
    """FAULTS B27: the answer leaves at once, with what a power cut cannot take."""
    world.post(produce_request("a", batch("x")))
    assert ask(world, -1) == (0, 0, -1)


def test_offsets_by_time(world: World) -> None:
    """The first record at or past it; -3: the newest timestamp; none: -1. Readers of committed data stop at the LSO."""
    for value, time in (("x", 10), ("y", 30), ("z", 20)):
        world.produce("a", encode([value.encode()], timestamps=START_MS + time))
    assert ask(world, START_MS) == (0, 0, START_MS + 10)
    assert ask(world, START_MS + 11) == (0, 1, START_MS + 30)
    assert ask(world, START_MS + 31) == (0, -1, -1)
    assert ask(world, -3) == (0, 1, START_MS + 30)
    txn = Txn(world, "t")
    txn.init()
    txn.add(("a", 0))
    open_batch = encode(
        [b"o"],
        timestamps=START_MS + 99,
        producer_id=txn.producer_id,
        producer_epoch=0,
        base_sequence=0,
        transactional=True,
    )
    world.produce("a", open_batch)
    assert ask(world, START_MS + 50) == (0, 3, START_MS + 99)
    assert ask(world, START_MS + 50, committed=True) == (0, -1, -1)


def test_a_client_of_another_run_is_told(world: World) -> None:
    """KIP-320."""
    world.crash()
    assert ask(world, -1, epoch=2)[0] == 0
    assert ask(world, -1, epoch=1)[0] == Error.FENCED_LEADER_EPOCH
    assert ask(world, -1, epoch=3)[0] == Error.UNKNOWN_LEADER_EPOCH


def test_the_end_of_a_run(world: World) -> None:
    """OffsetForLeaderEpoch: where the records of a run end, so that a reader sees whether its log has parted."""
    world.produce("a", batch("x"))
    world.crash()
    world.crash()
    world.produce("a", batch("y"))

    def end(epoch: int) -> tuple[int, int, int]:
        wanted = OffsetForLeaderTopic("a", (OffsetForLeaderPartition(0, -1, epoch), OffsetForLeaderPartition(9, -1, 1)))
        row, unknown = world.ask(OffsetForLeaderEpochRequest((wanted,))).topics[0].partitions
        assert unknown.error_code == Error.UNKNOWN_TOPIC_OR_PARTITION
        return row.error_code, row.leader_epoch, row.end_offset

    assert end(1) == (0, 1, 1)
    assert end(2) == (0, 1, 1)
    assert end(3) == (0, 3, 2)
    assert end(4) == (0, -1, -1)
