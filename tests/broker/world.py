"""One broker node on the simulated disk, asked by tests without bytes or sockets.

    world = World()
    world.ask(MetadataRequest(...))        # the reply, once durable; the newest version served unless told otherwise
    world.send(request)                    # without waiting for durability: the replies that left
    world.settle()                         # write, sync: the replies that this set free
    world.crash() / world.kill()           # power cut / kill -9, then the next start

A connection is an integer; its accept number is the same, so a lower one was accepted earlier.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from semel.broker import admin_requests, requests
from semel.broker.config import Config
from semel.broker.events import ConnectionClosed, Reply, Request, Tick
from semel.broker.node import Node
from semel.broker.requests import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    AddPartitionsToTxnTopic,
    EndTxnRequest,
    FetchPartition,
    FetchRequest,
    FetchTopic,
    InitProducerIdRequest,
    MetadataRequest,
    MetadataRequestTopic,
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopics,
    PartitionProduceData,
    ProduceRequest,
    TopicProduceData,
    TxnOffsetCommitRequest,
    TxnOffsetCommitRequestPartition,
    TxnOffsetCommitRequestTopic,
)
from semel.ports import Steps
from semel.record.batch import columns, encode, parse_all
from semel.record.control import parse_marker
from semel.sim.disk import Disk

# API key and the newest version served, by request class.
APIS: dict[type, tuple[int, int]] = {
    requests.ProduceRequest: (0, 11),
    requests.FetchRequest: (1, 12),
    requests.ListOffsetsRequest: (2, 11),
    requests.MetadataRequest: (3, 13),
    requests.OffsetCommitRequest: (8, 9),
    requests.OffsetFetchRequest: (9, 9),
    requests.FindCoordinatorRequest: (10, 6),
    requests.JoinGroupRequest: (11, 9),
    requests.HeartbeatRequest: (12, 4),
    requests.LeaveGroupRequest: (13, 5),
    requests.SyncGroupRequest: (14, 5),
    requests.DescribeGroupsRequest: (15, 6),
    requests.ListGroupsRequest: (16, 5),
    admin_requests.CreateTopicsRequest: (19, 7),
    admin_requests.DeleteTopicsRequest: (20, 6),
    admin_requests.DeleteRecordsRequest: (21, 2),
    requests.InitProducerIdRequest: (22, 5),
    admin_requests.OffsetForLeaderEpochRequest: (23, 4),
    requests.AddPartitionsToTxnRequest: (24, 3),
    requests.AddOffsetsToTxnRequest: (25, 4),
    requests.EndTxnRequest: (26, 4),
    requests.TxnOffsetCommitRequest: (28, 4),
    admin_requests.DescribeConfigsRequest: (32, 4),
    admin_requests.AlterConfigsRequest: (33, 2),
    admin_requests.DescribeLogDirsRequest: (35, 4),
    admin_requests.CreatePartitionsRequest: (37, 3),
    requests.DeleteGroupsRequest: (42, 2),
    admin_requests.IncrementalAlterConfigsRequest: (44, 1),
    requests.OffsetDeleteRequest: (47, 0),
    admin_requests.DescribeClusterRequest: (60, 2),
    requests.DescribeProducersRequest: (61, 0),
    requests.DescribeTransactionsRequest: (65, 0),
    requests.ListTransactionsRequest: (66, 2),
}

LOOKING = 100  # the connection of whoever asks without naming one
START_MS = 1_700_000_000_000


class World:
    def __init__(self, seed: int = 1, steps: Steps | None = None, **settings: Any) -> None:
        self.random = random.Random(seed)
        self.config = Config(**settings)
        self.steps = steps
        self.now_ms = START_MS
        self.disk = Disk(random.Random(seed + 1))
        self.tokens = itertools.count(1)
        self.replies: dict[int, Reply] = {}  # by token: what has left
        self.closed: set[int] = set()  # connections that the broker has ended
        self.start()

    # --- Life

    def start(self) -> None:
        self.node = Node(self.disk, self.config, now_ms=self.now_ms, random=self.random, steps=self.steps)
        self.closed = set()
        self.syncing = True  # False: `settle` does nothing

    def crash(self) -> None:
        """A power cut, and the next start."""
        self.disk = self.disk.crash()
        self.start()

    def kill(self) -> None:
        """kill -9, and the next start."""
        self.disk = self.disk.killed()
        self.start()

    def stop(self) -> None:
        """A clean end, and the next start."""
        self.settle()
        self.node.close()
        self.disk = self.disk.killed()
        self.start()

    @property
    def state(self) -> Any:
        return self.node.broker.state

    # --- Asking

    def post(self, message: Any, connection: int = LOOKING, version: int | None = None, client_id: str = "test") -> int:
        """Steps the request; returns its token. What leaves is in `replies`."""
        api_key, newest = APIS[type(message)]
        token = next(self.tokens)
        request = Request(
            connection, token, message, api_key, newest if version is None else version, connection, client_id, "host"
        )
        self.keep(self.node.step(request, self.now_ms))
        return token

    def keep(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            if reply.close:
                self.closed.add(reply.connection)
            self.replies[reply.token] = reply

    def answer(self, token: int) -> Any:
        """What was answered to it; None while nothing was."""
        reply = self.replies.get(token)
        return None if reply is None else reply.message

    def ask(self, message: Any, connection: int = LOOKING, version: int | None = None, client_id: str = "test") -> Any:
        """The reply, with as many syncs as it takes and no more: one that leaves early has been seen."""
        token = self.post(message, connection, version, client_id)
        if token not in self.replies:
            self.settle()
        assert token in self.replies, f"no answer to {message}"
        return self.replies[token].message

    def settle(self) -> None:
        while self.syncing and self.node.unsynced:
            self.node.write()
            self.keep(self.node.synced(self.node.sync(), self.now_ms))

    def wait(self, milliseconds: int) -> None:
        """Time passes, ticks come when they are due."""
        until = self.now_ms + milliseconds
        while True:
            due = self.node.wake_at_ms
            if due is None or due > until:
                break
            self.now_ms = max(self.now_ms, due)
            self.keep(self.node.step(Tick(), self.now_ms))
            self.settle()
        self.now_ms = until

    def close(self, connection: int) -> None:
        self.keep(self.node.step(ConnectionClosed(connection), self.now_ms))

    # --- In fewer words

    def topic(self, name: str, partitions: int = 1, **config: str) -> None:
        creatable = admin_requests.CreatableTopic(
            name,
            partitions,
            1,
            configs=tuple(
                admin_requests.CreatableTopicConfig(key.replace("_", "."), value) for key, value in config.items()
            ),
        )
        reply = self.ask(admin_requests.CreateTopicsRequest((creatable,)))
        assert reply.topics[0].error_code == 0, reply

    def describe(self, *names: str, **options: Any) -> Any:
        return self.ask(MetadataRequest(tuple(MetadataRequestTopic(name) for name in names), **options))

    def produce(self, topic: str, batch: bytes, partition: int = 0, connection: int = LOOKING, **options: Any) -> Any:
        """The partition's row of the reply."""
        reply = self.ask(produce_request(topic, batch, partition, **options), connection)
        return reply.responses[0].partition_responses[0]

    def fetch(self, topic: str, offset: int = 0, partition: int = 0, *, committed: bool = False, **options: Any) -> Any:
        reply = self.ask(fetch_request(topic, offset, partition, committed=committed, **options))
        return reply.responses[0].partitions[0]

    def read(self, topic: str, partition: int = 0, offset: int = 0, *, committed: bool = False) -> list[str]:
        """The values that a consumer shows: to the end, control records and (committed) aborted ones left out."""
        values: list[str] = []
        while True:
            row = self.fetch(topic, offset, partition, committed=committed)
            assert row.error_code == 0, row
            if not row.records:
                return values
            found, offset = visible(row, offset, committed=committed)
            values += found


def visible(row: Any, offset: int, *, committed: bool) -> tuple[list[str], int]:
    """What a consumer makes of one partition's fetched rows, as KIP-98 tells it to."""
    values: list[str] = []
    aborted = sorted((one.first_offset, one.producer_id) for one in row.aborted_transactions or ())
    skipping: set[int] = set()
    for batch in parse_all(b"".join(bytes(chunk) for chunk in row.records), partial=True):
        while aborted and aborted[0][0] <= batch.last_offset:
            skipping.add(aborted.pop(0)[1])
        if batch.is_control:
            decided = parse_marker(batch)
            if decided is not None and not decided.commit:
                skipping.discard(batch.producer_id)
        elif not (committed and batch.is_transactional and batch.producer_id in skipping):
            found = columns(batch)
            values += [
                (value or b"").decode() for at, value in zip(found.offsets, found.values, strict=True) if at >= offset
            ]
        offset = max(offset, batch.next_offset)
    return values, offset


def produce_request(
    topic: str, batch: bytes, partition: int = 0, *, acks: int = -1, transactional_id: str | None = None
) -> ProduceRequest:
    data = TopicProduceData(topic, (PartitionProduceData(partition, batch),))
    return ProduceRequest(transactional_id, acks, timedelta(seconds=30), (data,))


def fetch_request(
    topic: str,
    offset: int = 0,
    partition: int = 0,
    *,
    committed: bool = False,
    min_bytes: int = 1,
    max_wait_ms: int = 0,
    max_bytes: int = 1 << 20,
    **options: Any,
) -> FetchRequest:
    wanted = FetchPartition(partition, offset, max_bytes, **options)
    return FetchRequest(
        max_wait=timedelta(milliseconds=max_wait_ms),
        min_bytes=min_bytes,
        max_bytes=max_bytes,
        isolation_level=int(committed),
        topics=(FetchTopic(topic, (wanted,)),),
    )


def batch(*values: str, **options: Any) -> bytes:
    return encode([value.encode() for value in values], timestamps=START_MS, **options)


@dataclass(slots=True)
class Txn:
    """A transactional producer by hand: remembers its id, epoch and sequences, adds partitions when told."""

    world: World
    id: str
    producer_id: int = -1
    epoch: int = -1
    connection: int = 1
    sequences: dict[tuple[str, int], int] | None = None
    timeout_ms: int = 60_000

    def init(self, *, resume: bool = False, version: int = 5) -> int:
        """Returns the error code."""
        named = (self.producer_id, self.epoch) if resume else (-1, -1)
        reply = self.world.ask(
            InitProducerIdRequest(self.id, timedelta(milliseconds=self.timeout_ms), *named), self.connection, version
        )
        if reply.error_code == 0:
            self.producer_id, self.epoch = reply.producer_id, reply.producer_epoch
            self.sequences = {}
        return int(reply.error_code)

    def add_request(self, *places: tuple[str, int]) -> AddPartitionsToTxnRequest:
        topics = tuple(AddPartitionsToTxnTopic(topic, (partition,)) for topic, partition in places)
        return AddPartitionsToTxnRequest(self.id, self.producer_id, self.epoch, topics)

    def add(self, *places: tuple[str, int], version: int = 3) -> int:
        reply = self.world.ask(self.add_request(*places), self.connection, version)
        rows = [row for topic in reply.results_by_topic_v3_and_below for row in topic.results_by_partition]
        return max(int(row.partition_error_code) for row in rows)

    def batch(self, topic: str, partition: int, *values: str, sequence: int | None = None) -> bytes:
        sequences = self.sequences if self.sequences is not None else {}
        first = sequences.get((topic, partition), 0) if sequence is None else sequence
        return batch(
            *values,
            producer_id=self.producer_id,
            producer_epoch=self.epoch,
            base_sequence=first,
            transactional=True,
        )

    def write(self, topic: str, partition: int, *values: str, sequence: int | None = None) -> Any:
        """Produces, nothing else; the partition's row of the reply."""
        data = self.batch(topic, partition, *values, sequence=sequence)
        row = self.world.produce(topic, data, partition, self.connection, transactional_id=self.id)
        if row.error_code == 0 and sequence is None and self.sequences is not None:
            self.sequences[topic, partition] = self.sequences.get((topic, partition), 0) + len(values)
        return row

    def send(self, topic: str, partition: int, *values: str) -> int:
        error = self.add((topic, partition))
        return error or int(self.write(topic, partition, *values).error_code)

    def offsets_request(
        self, group: str, offsets: dict[tuple[str, int], int], generation: int = -1, member: str = "", **options: Any
    ) -> TxnOffsetCommitRequest:
        topics = tuple(
            TxnOffsetCommitRequestTopic(topic, (TxnOffsetCommitRequestPartition(partition, offset),))
            for (topic, partition), offset in offsets.items()
        )
        return TxnOffsetCommitRequest(
            self.id, group, self.producer_id, self.epoch, topics, generation, member, **options
        )

    def add_offsets(self, group: str) -> int:
        request = AddOffsetsToTxnRequest(self.id, self.producer_id, self.epoch, group)
        return int(self.world.ask(request, self.connection).error_code)

    def offsets(
        self, group: str, offsets: dict[tuple[str, int], int], *args: Any, version: int = 4, **options: Any
    ) -> int:
        error = self.add_offsets(group)
        if error:
            return error
        reply = self.world.ask(self.offsets_request(group, offsets, *args, **options), self.connection, version)
        return max(int(row.error_code) for topic in reply.topics for row in topic.partitions)

    def end_request(self, commit: bool) -> EndTxnRequest:
        return EndTxnRequest(self.id, self.producer_id, self.epoch, commit)

    def end(self, commit: bool, version: int = 4) -> int:
        return int(self.world.ask(self.end_request(commit), self.connection, version).error_code)

    def commit(self) -> int:
        return self.end(True)

    def abort(self) -> int:
        return self.end(False)


def commit_request(
    group: str, offsets: dict[tuple[str, int], int], generation: int = -1, member: str = "", **options: Any
) -> OffsetCommitRequest:
    topics = tuple(
        OffsetCommitRequestTopic(topic, (OffsetCommitRequestPartition(partition, offset, ""),))
        for (topic, partition), offset in offsets.items()
    )
    return OffsetCommitRequest(group, generation, member, topics=topics, **options)


def commit_offsets(world: World, group: str, offsets: dict[tuple[str, int], int], *args: Any, **options: Any) -> int:
    reply = world.ask(commit_request(group, offsets, *args, **options))
    return max(int(row.error_code) for topic in reply.topics for row in topic.partitions)


def committed_request(group: str, places: Sequence[tuple[str, int]], *, stable: bool = False) -> OffsetFetchRequest:
    topics = tuple(OffsetFetchRequestTopics(topic, (partition,)) for topic, partition in places)
    return OffsetFetchRequest(require_stable=stable, groups=(OffsetFetchRequestGroup(group, topics),))


def committed(world: World, group: str, topic: str, partition: int = 0, *, stable: bool = False) -> tuple[int, int]:
    """Error code and offset."""
    reply = world.ask(committed_request(group, [(topic, partition)], stable=stable))
    row = reply.groups[0].topics[0].partitions[0]
    return int(row.error_code), int(row.committed_offset)


Check = Callable[[], None]
