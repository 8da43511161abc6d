"""Fetch (versions 4 to 18): reads what is durable, or waits for it.

A reader sees nothing at or above the high watermark, read_committed nothing at or above the last stable offset; both
never pass what is durable (law 1, FAULTS B22, B27), so every reply leaves at once. A request that finds fewer than
`min_bytes` waits until one of its partitions moves or `max_wait` is over. Sessions (KIP-227) are not kept: session id
0 in the reply tells the client to name its partitions each time. Invariant: a reader moves on whenever its partition
holds a whole batch below its limit, though all of it be aborted or control (FAULTS B24): batches travel as they are.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from semel.broker.errors import Error
from semel.broker.events import NOTHING, NOW, Ready, Reply, Request
from semel.broker.messages import (
    AbortedTransaction,
    FetchableTopicResponse,
    FetchEpochEndOffset,
    FetchLeaderIdAndEpoch,
    FetchResponse,
    PartitionData,
)
from semel.broker.records import PartitionKey
from semel.broker.requests import milliseconds
from semel.broker.state import Topic
from semel.log.errors import CorruptSegment
from semel.log.partition import Partition

if TYPE_CHECKING:
    from semel.broker.core import Broker

READ_COMMITTED: Final = 1


@dataclass(slots=True, eq=False)
class Wait:
    """A fetch that found too little."""

    request: Request
    deadline_ms: int
    offsets: dict[PartitionKey, int]  # where it reads on
    over: bool = False


class Waits:
    """The fetches that wait. Volatile: a client whose broker restarts asks again."""

    def __init__(self) -> None:
        self.by_partition: dict[PartitionKey, set[Wait]] = {}
        self.by_connection: dict[int, set[Wait]] = {}
        self.deadlines: list[tuple[int, int, Wait]] = []
        self.count = 0

    @property
    def next_ms(self) -> int | None:
        while self.deadlines and self.deadlines[0][2].over:
            heapq.heappop(self.deadlines)
        return self.deadlines[0][0] if self.deadlines else None

    def add(self, wait: Wait) -> None:
        self.count += 1
        heapq.heappush(self.deadlines, (wait.deadline_ms, self.count, wait))
        self.by_connection.setdefault(wait.request.connection, set()).add(wait)
        for key in wait.offsets:
            self.by_partition.setdefault(key, set()).add(wait)

    def end(self, wait: Wait) -> None:
        wait.over = True
        for key in wait.offsets:
            waiting = self.by_partition.get(key)
            if waiting is not None:
                waiting.discard(wait)
                if not waiting:
                    del self.by_partition[key]
        of_connection = self.by_connection.get(wait.request.connection)
        if of_connection is not None:
            of_connection.discard(wait)
            if not of_connection:
                del self.by_connection[wait.request.connection]

    def due(self, now_ms: int) -> list[Wait]:
        found = []
        while self.deadlines and (self.deadlines[0][2].over or self.deadlines[0][0] <= now_ms):
            wait = heapq.heappop(self.deadlines)[2]
            if not wait.over:
                found.append(wait)
        return found

    def on(self, keys: list[PartitionKey]) -> list[Wait]:
        """Those that wait for one of these partitions, each once, in the order in which they came."""
        if not self.by_partition:
            return []
        found = {wait: None for key in keys for wait in self.by_partition.get(key, ())}
        return sorted(found, key=lambda wait: (wait.deadline_ms, wait.request.connection, wait.request.token))


def fetch(broker: Broker, request: Request, now_ms: int) -> Ready:
    message = request.message
    if getattr(message, "session_id", 0) != 0 and message.session_epoch > 0:
        response = FetchResponse(error_code=Error.FETCH_SESSION_ID_NOT_FOUND)
        return Ready((), (Reply(request.connection, request.token, response, NOW),))
    response, enough = _read(broker, request)
    if not enough:
        wait_ms = milliseconds(message.max_wait)
        if wait_ms > 0:
            broker.waits.add(Wait(request, now_ms + wait_ms, _offsets(broker, request)))
            return NOTHING
    return Ready((), (Reply(request.connection, request.token, response, NOW),))


def moved(broker: Broker, keys: list[PartitionKey]) -> list[Reply]:
    """High watermarks or last stable offsets of these partitions have moved, or they are gone: waits look again."""
    replies = []
    for wait in broker.waits.on(keys):
        if not _gained(broker, wait, keys):
            continue
        response, enough = _read(broker, wait.request)
        if enough:
            broker.waits.end(wait)
            replies.append(Reply(wait.request.connection, wait.request.token, response, NOW))
    return replies


def expired(broker: Broker, now_ms: int) -> list[Reply]:
    replies = []
    for wait in broker.waits.due(now_ms):
        broker.waits.end(wait)
        response, _ = _read(broker, wait.request)
        replies.append(Reply(wait.request.connection, wait.request.token, response, NOW))
    return replies


def closed(broker: Broker, connection: int) -> None:
    for wait in list(broker.waits.by_connection.get(connection, ())):
        broker.waits.end(wait)


def _offsets(broker: Broker, request: Request) -> dict[PartitionKey, int]:
    found = {}
    for wanted in request.message.topics:
        topic = _topic(broker, wanted, request.version)
        if topic is not None:
            found.update({(topic.number, row.partition): row.fetch_offset for row in wanted.partitions})
    return found


def _gained(broker: Broker, wait: Wait, keys: list[PartitionKey]) -> bool:
    """Whether any of the partitions that moved has something new for it; else its reply is what it was, and a reader of
    a thousand partitions need not look at them all at every sync."""
    committed = wait.request.message.isolation_level == READ_COMMITTED
    for key in keys:
        offset = wait.offsets.get(key)
        if offset is not None:
            partition = broker.state.partition(key)
            if partition is None:
                return True
            if (partition.last_stable_offset if committed else partition.high_watermark) > offset:
                return True
    return False


def _topic(broker: Broker, wanted: Any, version: int) -> Topic | None:
    """From version 13 on by id alone, before by name."""
    state = broker.state
    return state.topics_by_id.get(wanted.topic_id) if version >= 13 else state.topics.get(wanted.topic)


def _read(broker: Broker, request: Request) -> tuple[FetchResponse, bool]:
    """The reply as it would be now, and whether it should leave: enough bytes, or an error to tell."""
    message = request.message
    by_id = request.version >= 13
    committed = message.isolation_level == READ_COMMITTED
    left = min(message.max_bytes, broker.config.fetch_max_bytes)
    total = 0
    tell = False
    topics = []
    for wanted_topic in message.topics:
        topic = _topic(broker, wanted_topic, request.version)
        rows = []
        for wanted in wanted_topic.partitions:
            partition = None if topic is None else topic.partition(wanted.partition)
            refusal = _refusal(broker, topic, partition, wanted, by_id)
            if refusal is not None:
                rows.append(refusal)
                tell = True
                continue
            assert partition is not None
            # The first batch of the reply comes whole, however large, so that a small limit stops nobody (KIP-74).
            limit = min(wanted.partition_max_bytes, max(left, 0))
            try:
                read = partition.read(wanted.fetch_offset, limit, committed=committed, min_one=total == 0)
            except CorruptSegment as damage:
                assert topic is not None
                met(broker, topic.name, wanted.partition, wanted.fetch_offset, damage)
                rows.append(_refused(wanted.partition, Error.CORRUPT_MESSAGE, partition))
                tell = True
                continue
            for chunk in read.chunks:
                total += len(chunk)
                left -= len(chunk)
            aborted = [AbortedTransaction(*row) for row in read.aborted] if committed else None
            rows.append(
                PartitionData(
                    wanted.partition,
                    0,
                    read.high_watermark,
                    read.last_stable_offset,
                    read.start_offset,
                    aborted_transactions=aborted,
                    records=read.chunks,
                )
            )
        if by_id:
            topics.append(FetchableTopicResponse(wanted_topic.topic_id, rows))
        else:
            topics.append(FetchableTopicResponse(None, rows, wanted_topic.topic))
    return FetchResponse(responses=topics), tell or total >= message.min_bytes or not topics


def met(broker: Broker, topic: str, index: int, offset: int, damage: Exception) -> None:
    """A reader asked for what is damaged: its partition is refused there, everything else goes on, and the host says
    so once."""
    text = f"{topic} partition {index}, offset {offset}: {damage}"
    if broker.damaged.get((topic, index)) != text:
        broker.damaged[topic, index] = text
        broker.untold.append(text)


def _refusal(
    broker: Broker, topic: Topic | None, partition: Partition | None, wanted: Any, by_id: bool
) -> PartitionData | None:
    """The row that says why there is nothing to read here, None when there may be."""
    index = wanted.partition
    if partition is None:
        error = Error.UNKNOWN_TOPIC_ID if by_id and topic is None else Error.UNKNOWN_TOPIC_OR_PARTITION
        return _refused(index, error, None)
    current = getattr(wanted, "current_leader_epoch", -1)
    if current not in (-1, broker.state.run):
        # KIP-320: a client that knows another run than this one is told so.
        error = Error.FENCED_LEADER_EPOCH if current < broker.state.run else Error.UNKNOWN_LEADER_EPOCH
        return _refused(index, error, partition, broker.fetch_leader)
    last = getattr(wanted, "last_fetched_epoch", -1)
    if last >= 0:
        epoch, end_offset = partition.epoch_end(last)
        if epoch < 0:
            return _refused(index, Error.OFFSET_OUT_OF_RANGE, partition)  # a run that this log has never seen
        if epoch != last or end_offset < wanted.fetch_offset:
            # The client's log has parted from ours: it is told where (KIP-595).
            return PartitionData(
                index,
                0,
                partition.high_watermark,
                partition.last_stable_offset,
                partition.start_offset,
                diverging_epoch=FetchEpochEndOffset(epoch, end_offset),
                records=(),
            )
    if not partition.start_offset <= wanted.fetch_offset <= partition.end_offset:
        return _refused(index, Error.OFFSET_OUT_OF_RANGE, partition)
    return None


def _refused(
    index: int,
    error: Error,
    partition: Partition | None,
    leader: FetchLeaderIdAndEpoch = FetchLeaderIdAndEpoch(),  # noqa: B008 - frozen
) -> PartitionData:
    start = -1 if partition is None else partition.start_offset
    return PartitionData(index, int(error), -1, -1, start, current_leader=leader, aborted_transactions=None, records=())
