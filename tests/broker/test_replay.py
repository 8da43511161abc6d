"""Recovery is replay: the state after a restart equals the state before (FAULTS B13), for any history."""

from __future__ import annotations

import random

import pytest

from semel.broker.admin_requests import (
    CreatePartitionsRequest,
    CreatePartitionsTopic,
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
    DeleteTopicsRequest,
    DeleteTopicState,
)
from semel.broker.requests import (
    DeleteGroupsRequest,
    OffsetDeleteRequest,
    OffsetDeleteRequestPartition,
    OffsetDeleteRequestTopic,
)

from .member import Member, stable
from .snapshot import durable
from .world import Txn, World, batch, commit_offsets

TOPICS = ("a", "b", "c")


class Life:
    """Random requests that a broker may meet, some of them wrong."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.dice = random.Random(seed)
        self.txns = [Txn(world, f"t{n}", connection=200 + n, timeout_ms=20_000) for n in range(3)]
        self.sequence = 0

    def step(self) -> None:
        dice, world = self.dice, self.world
        topic, partition = dice.choice(TOPICS), dice.randrange(2)
        txn, group = dice.choice(self.txns), dice.choice(("g", "h"))
        match dice.randrange(16):
            case 0:
                world.describe(topic)
            case 1 | 2:
                world.produce(topic, batch("plain"), partition)
            case 3:
                row = world.produce(
                    topic, batch("i", producer_id=99, producer_epoch=0, base_sequence=self.sequence), partition
                )
                self.sequence += row.error_code == 0 and dice.random() < 0.8
            case 4:
                txn.init(resume=dice.random() < 0.3 and txn.producer_id >= 0)
            case 5 | 6 | 7:
                txn.send(topic, partition, "t")
            case 8:
                txn.offsets(group, {(topic, partition): dice.randrange(100)})
            case 9 | 10:
                txn.end(dice.random() < 0.6)
            case 11:
                commit_offsets(world, group, {(topic, partition): dice.randrange(100)})
            case 12:
                world.wait(dice.choice((10, 3_000, 25_000)))
            case 13:
                self.administrate(topic, partition, group)
            case 14:
                members = [Member(world, group, session_ms=6_000) for _ in range(dice.randrange(1, 3))]
                if group not in world.node.broker.memberships or not world.node.broker.memberships[group].members:
                    stable(*members)
            case 15:
                world.node.checkpoint()
                world.settle()

    def administrate(self, topic: str, partition: int, group: str) -> None:
        dice, world = self.dice, self.world
        match dice.randrange(5):
            case 0:
                world.ask(DeleteTopicsRequest(topics=(DeleteTopicState(topic),)))
            case 1:
                world.ask(CreatePartitionsRequest((CreatePartitionsTopic(topic, 2),)))
            case 2:
                rows = (DeleteRecordsPartition(partition, dice.choice((-1, 1, 3))),)
                world.ask(DeleteRecordsRequest((DeleteRecordsTopic(topic, rows),)))
            case 3:
                world.ask(DeleteGroupsRequest((group,)))
            case 4:
                rows_deleted = (OffsetDeleteRequestTopic(topic, (OffsetDeleteRequestPartition(partition),)),)
                world.ask(OffsetDeleteRequest(group, rows_deleted))


@pytest.mark.parametrize("seed", range(12))
def test_the_state_after_a_replay_is_the_state_before(seed: int) -> None:
    """Offsets, pending offsets, members, transactions, producers, every byte: after a power cut, after kill -9, after
    a clean end, with checkpoints anywhere between."""
    world = World(seed, num_partitions=2, log_segment_bytes=2_000)
    life = Life(world, seed)
    for _ in range(6):
        for _ in range(25):
            life.step()
        before = durable(world.state)
        life.dice.choice((world.crash, world.kill, world.stop))()
        assert durable(world.state) == before


def test_the_run_is_recorded_where_any_client_can_read_it() -> None:
    """Each start is a new run with a random id, in `__semel_runs`; its number is the leader epoch (FAULTS S12)."""
    world = World()
    world.topic("a")
    for number in range(1, 4):
        assert world.node.run == number
        assert world.describe("a").topics[0].partitions[0].leader_epoch == number
        world.crash()
    runs = world.read("__semel_runs")
    assert [f'"run": {number}' in text for number, text in enumerate(runs, 1)] == [True] * 4
    assert len(set(runs)) == 4
