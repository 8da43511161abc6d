"""`ports.Log` without a network: a session with an `Engine` in this process.

Records are handed over as columns: what is written is encoded once per partition and transaction, what is read is
decoded straight from the segments. Invariants are `ports.Log`'s; one transaction has one TxnOffsetCommit, last; what
a commit needs is durable and known to be right before its EndTxn is asked for.

There are no sessions and no time-outs: the folder is locked, so a group has one member, the newest session that
joined it, and it owns every partition. An older one in this process is told that it has lost them.
"""

from __future__ import annotations

import contextlib
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from semel.broker import admin_requests as admin
from semel.broker import requests as api
from semel.broker.errors import Error
from semel.errors import UsageError
from semel.host.embedded_columns import visible
from semel.host.engine import INIT_PRODUCER_ID, Ask, Engine, Ticket
from semel.ports import (
    Done,
    Fenced,
    Headers,
    Listener,
    LogLost,
    NewTopic,
    NoSteps,
    NotDone,
    Outcome,
    Position,
    Records,
    Step,
    Steps,
    TopicInfo,
    TopicPartition,
    Write,
)
from semel.record.batch import encode
from semel.record.murmur2 import partition_for

READ_COMMITTED, READ_UNCOMMITTED = 1, 0
FETCH_BYTES_MAX = 2 << 20
PARTITION_BYTES_MAX = 1 << 20
PENDING_RECORDS_MAX = 4_000  # of one partition, until they are encoded and handed to the engine
BATCH_BYTES_MAX = 900_000  # below max.message.bytes, with room for what encoding adds
CHOSEN_KEYS_MAX = 200_000
TOPICS_CHECK_S = 1.0
STABLE_WAIT_S = 30.0
WAIT_STEP_S = 0.1
SEQUENCE_MASK = 0x7FFFFFFF
LATEST, EARLIEST = -1, -2
TOPIC_RESOURCE = 2

FENCED_ERRORS = frozenset(
    {
        Error.INVALID_PRODUCER_EPOCH, Error.PRODUCER_FENCED, Error.INVALID_PRODUCER_ID_MAPPING,
        Error.ILLEGAL_GENERATION, Error.UNKNOWN_MEMBER_ID, Error.FENCED_INSTANCE_ID,
    }
)  # fmt: skip

Pending = list[tuple[bytes | None, bytes | None, int, Headers | None]]


class EmbeddedLog:
    """One session. Arguments as `ClusterLog`'s; there is no member id, because there is no second member."""

    def __init__(
        self,
        engine: Engine,
        *,
        group: str | None = None,
        member: str | None = None,
        transactional_id: str | None = None,
        steps: Steps | None = None,
        isolation: str = "read_committed",
    ) -> None:
        self.name = engine.name
        self._engine = engine
        self._group = group
        self._transactional_id = transactional_id
        self._steps = steps or NoSteps()
        self._isolation = READ_COMMITTED if isolation == "read_committed" else READ_UNCOMMITTED
        self._connection = engine.connect()
        # reading
        self._topics: tuple[str, ...] = ()
        self._listener: Listener | None = None
        self._joined: list[TopicPartition] | None = None  # None: not assigned yet
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._turn = 0
        self._checked = 0.0
        # writing
        self._producer: tuple[int, int] | None = None  # id, epoch
        self._pending: dict[TopicPartition, Pending] = {}
        self._sequences: dict[TopicPartition, int] = {}
        self._in_transaction: set[TopicPartition] = set()
        self._open = False
        self._tickets: list[Ticket] = []  # of what was posted and not yet checked

    def _ask(self, api_key: int, version: int, message: Any) -> Any:
        return self._engine.ask(self._connection, Ask(api_key, version, message))

    # --- topics ---

    def _partition_counts(self, names: Sequence[str]) -> dict[str, int]:
        asked = tuple(api.MetadataRequestTopic(name) for name in names)
        answer = self._ask(3, 12, api.MetadataRequest(asked, allow_auto_topic_creation=False))
        return {topic.name: len(topic.partitions) for topic in answer.topics if not topic.error_code}

    def topics(self) -> Mapping[str, TopicInfo]:
        answer = self._ask(3, 12, api.MetadataRequest(None))
        return {
            topic.name: TopicInfo(topic.name, _id_text(topic.topic_id), len(topic.partitions))
            for topic in answer.topics
            if not topic.error_code
        }

    def topic_ids(self, names: Sequence[str]) -> Mapping[str, str]:
        there = self.topics()
        return {name: there[name].topic_id for name in names if name in there}

    def config(self, topic: str) -> Mapping[str, str]:
        resource = admin.DescribeConfigsResource(TOPIC_RESOURCE, topic, None)
        (result,) = self._ask(32, 4, admin.DescribeConfigsRequest((resource,))).results
        self._raise(result.error_code, f"configuration of {topic}", result.error_message)
        return {entry.name: entry.value for entry in result.configs if entry.value is not None}

    def create(self, topics: Sequence[NewTopic]) -> None:
        if not topics:
            return
        wanted = tuple(
            admin.CreatableTopic(
                topic.name,
                topic.partitions,
                -1,
                (),
                tuple(admin.CreatableTopicConfig(name, value) for name, value in topic.config.items()),
            )
            for topic in topics
        )
        for result in self._ask(19, 7, admin.CreateTopicsRequest(wanted)).topics:
            if result.error_code != Error.TOPIC_ALREADY_EXISTS:
                self._raise(result.error_code, f"create {result.name}", result.error_message)

    # --- positions ---

    def committed(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Position | None]:
        assert self._group is not None, "this session has no group"
        if not partitions:
            return {}
        deadline = time.monotonic() + STABLE_WAIT_S
        asked = api.OffsetFetchRequest(
            self._group,
            tuple(api.OffsetFetchRequestTopic(topic, given) for topic, given in _by_topic(partitions)),
            require_stable=True,
        )
        while True:
            version = self._engine.version
            answer = self._ask(9, 7, asked)
            self._raise(answer.error_code, f"committed offsets of group {self._group}")
            found: dict[TopicPartition, Position | None] = {}
            unstable = False
            for topic in answer.topics:
                for p in topic.partitions:
                    if p.error_code == Error.UNSTABLE_OFFSET_COMMIT:
                        unstable = True
                        continue
                    self._raise(p.error_code, f"committed offset of group {self._group} in {topic.name}")
                    known = None if p.committed_offset < 0 else Position(p.committed_offset, p.metadata or "")
                    found[TopicPartition(topic.name, p.partition_index)] = known
            if not unstable:
                return found
            if time.monotonic() > deadline:
                raise LogLost(f"{self.name}: an undecided transaction holds the offsets of group {self._group}")
            self._engine.wait_moved(version, WAIT_STEP_S)

    def _listed(self, partitions: Sequence[TopicPartition], which: int) -> Mapping[TopicPartition, int]:
        if not partitions:
            return {}
        asked = tuple(
            api.ListOffsetsTopic(topic, tuple(api.ListOffsetsPartition(p, which) for p in given))
            for topic, given in _by_topic(partitions)
        )
        found = {}
        for topic in self._ask(2, 7, api.ListOffsetsRequest(-1, asked, READ_UNCOMMITTED)).topics:
            for p in topic.partitions:
                self._raise(p.error_code, f"ends of {topic.name}-{p.partition_index}")
                found[TopicPartition(topic.name, p.partition_index)] = p.offset
        return found

    def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self._listed(partitions, LATEST)

    def starts(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self._listed(partitions, EARLIEST)

    def _fetch(self, wanted: Sequence[tuple[TopicPartition, int]]) -> list[Records]:
        topics: dict[str, list[api.FetchPartition]] = {}
        for at, offset in wanted:
            topics.setdefault(at.topic, []).append(api.FetchPartition(at.partition, offset, PARTITION_BYTES_MAX))
        request = api.FetchRequest(
            max_bytes=FETCH_BYTES_MAX,
            isolation_level=self._isolation,
            topics=tuple(api.FetchTopic(name, tuple(given)) for name, given in topics.items()),
        )
        found = []
        starts = dict(wanted)
        for topic in self._ask(1, 12, request).responses:
            for data in topic.partitions:
                at = TopicPartition(topic.topic, data.partition_index)
                if data.error_code == Error.OFFSET_OUT_OF_RANGE:
                    raise LogLost(
                        f"{self.name}: {at.topic}-{at.partition}: the position asked for, {starts[at]}, is not in the "
                        "log. The records were deleted, or the topic was made anew. "
                        "Decide where to go on, then reset the group's offsets."
                    )
                self._raise(data.error_code, "reading", self._engine.damage(*at))
                records = visible(at, starts[at], data.records or (), data.aborted_transactions or (), self.name)
                if records is not None:
                    found.append(records)
        return found

    def read(self, at: TopicPartition, start: int, target: int) -> Iterator[Records]:
        position = start
        while position < target:
            version = self._engine.version
            found = self._fetch([(at, position)])
            for records in found:
                position = records.next_offset
                yield records
            if not found:
                # The end of what is decided lies below the target: somebody's transaction is open.
                yield Records(at, (), (), (), (), None, position, -1, undecided=True)
                self._engine.wait_moved(version, WAIT_STEP_S)

    # --- reading, as the member of a group ---

    def join(self, topics: Sequence[str], listener: Listener) -> None:
        assert self._group is not None, "this session has no group"
        if self._transactional_id is not None:
            self._initialise()
        self._engine.own(self._group, self._connection)
        self._remove_members()
        self._topics, self._listener, self._joined = tuple(topics), listener, None

    def _remove_members(self) -> None:
        """Members that a broker on this folder has known are gone: the folder was locked since."""
        (group,) = self._ask(15, 5, api.DescribeGroupsRequest((self._group or "",))).groups
        members = tuple(api.MemberIdentity(m.member_id, m.group_instance_id) for m in group.members)
        if members:
            self._ask(13, 5, api.LeaveGroupRequest(self._group or "", members=members))

    def _assign(self) -> None:
        """Gives the listener what the topics have now, when that differs from what it has."""
        assert self._listener is not None and self._group is not None
        self._checked = time.monotonic()
        if not self._engine.owns(self._group, self._connection):
            if self._joined:
                lost, self._joined = self._joined, []
                self._positions.clear()
                self._listener.lost(lost)
            return
        counts = self._partition_counts(self._topics)
        now = [TopicPartition(topic, p) for topic in self._topics for p in range(counts.get(topic, 0))]
        if now == self._joined:
            return
        if self._joined:
            self._listener.revoked(self._joined)
        self._positions.clear()
        self._paused.clear()
        self._joined = now
        self._listener.assigned(now)
        unsaid = [at for at in now if at not in self._positions and at not in self._paused]
        for at, position in self.committed(unsaid).items():
            if position is None:
                raise LogLost(
                    f"{self.name}: group {self._group} has no position in {at.topic}-{at.partition}, "
                    "and nobody said where to start"
                )
            self._positions[at] = position.offset

    def poll(self, timeout_s: float) -> list[Records]:
        taken_over = self._group is not None and not self._engine.owns(self._group, self._connection)
        if self._joined is None or taken_over or time.monotonic() - self._checked > TOPICS_CHECK_S:
            self._assign()
        deadline = time.monotonic() + timeout_s
        while True:
            version = self._engine.version
            wanted = [(at, offset) for at, offset in self._positions.items() if at not in self._paused]
            if wanted:
                self._turn = (self._turn + 1) % len(wanted)  # each is first in its turn: the sum of bytes is bounded
                found = self._fetch(wanted[self._turn :] + wanted[: self._turn])
                if found:
                    for records in found:
                        self._positions[records.source] = records.next_offset
                    return found
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            self._engine.wait_moved(version, left)

    def seek(self, at: TopicPartition, offset: int) -> None:
        self._positions[at] = offset

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.difference_update(partitions)

    # --- writing ---

    def writer(self, topic: str) -> Write:
        count = self._partition_counts([topic]).get(topic)
        if count is None:
            raise UsageError(f"{self.name}: there is no topic {topic}. Create it, or mend its name.")
        pending: list[Pending] = []
        for p in range(count):
            pending.append(self._pending.setdefault(TopicPartition(topic, p), []))
        send = [partial(self._send, TopicPartition(topic, p)) for p in range(count)]
        chosen: dict[bytes, int] = {}
        spread = 0

        def write(partition: int, key: bytes | None, value: bytes | None, ms: int, headers: Headers | None) -> None:
            nonlocal spread
            if partition < 0:
                if key is None:
                    partition = spread
                else:
                    found = chosen.get(key)
                    if found is None:
                        if len(chosen) >= CHOSEN_KEYS_MAX:
                            chosen.clear()
                        found = chosen[key] = partition_for(key, count)
                    partition = found
            waiting = pending[partition]
            waiting.append((key, value, ms, headers))
            if len(waiting) >= PENDING_RECORDS_MAX:
                send[partition]()
                if key is None:
                    spread = (spread + 1) % count

        return write

    def _send(self, at: TopicPartition) -> None:
        """Encodes what waits for this partition and hands it to the engine."""
        waiting = self._pending[at]
        if not waiting:
            return
        keys, values, timestamps, headers = zip(*waiting, strict=True)
        waiting.clear()
        asked: list[Ask] = []
        transactional = self._transactional_id is not None
        if transactional:
            assert self._open, f"a write to {at.topic} outside a transaction"
            if at not in self._in_transaction:
                self._in_transaction.add(at)
                asked.append(Ask(24, 3, self._of_producer(api.AddPartitionsToTxnRequest, (_topic(at),))))
        for start, end in batch_cuts(keys, values, headers):
            some = headers[start:end]
            data = encode(
                values[start:end],
                keys[start:end],
                timestamps[start:end],
                None if not any(some) else [header or () for header in some],
                **(self._sequence(at, end - start) if transactional else {}),
            )
            batch = api.PartitionProduceData(at.partition, data)
            topic = api.TopicProduceData(at.topic, (batch,))
            asked.append(Ask(0, 9, api.ProduceRequest(self._transactional_id, -1, topic_data=(topic,))))
        self._tickets += self._engine.post(self._connection, asked)

    def _sequence(self, at: TopicPartition, count: int) -> dict[str, Any]:
        assert self._producer is not None
        sequence = self._sequences.get(at, 0)
        self._sequences[at] = (sequence + count) & SEQUENCE_MASK
        producer_id, epoch = self._producer
        return {
            "producer_id": producer_id,
            "producer_epoch": epoch,
            "base_sequence": sequence,
            "transactional": True,
        }

    def _of_producer(self, request: Any, *rest: Any) -> Any:
        assert self._producer is not None
        return request(self._transactional_id, *self._producer, *rest)

    def _initialise(self) -> None:
        deadline = time.monotonic() + STABLE_WAIT_S
        while True:
            answer = self._ask(INIT_PRODUCER_ID, 4, api.InitProducerIdRequest(self._transactional_id))
            if answer.error_code != Error.CONCURRENT_TRANSACTIONS or time.monotonic() > deadline:
                break
        self._raise(answer.error_code, f"initialise {self._transactional_id}")
        self._producer = answer.producer_id, answer.producer_epoch
        self._sequences.clear()
        self._forget()

    def _forget(self) -> None:
        for waiting in self._pending.values():
            waiting.clear()
        self._in_transaction.clear()
        self._tickets.clear()
        self._open = False

    def begin(self) -> None:
        assert self._transactional_id is not None, "a session without a transactional id cannot begin a transaction"
        assert not self._open, "begin within a transaction"
        if self._producer is None:
            self._initialise()
        self._open = True

    def _sent(self) -> tuple[int, str]:
        """Everything written so far is durable, or (error code, reason) of the first that was refused."""
        for at in [at for at, waiting in self._pending.items() if waiting]:
            self._send(at)
        tickets, self._tickets = self._tickets, []
        for answer in self._engine.wait(tickets):
            code, reason = refusal(answer)
            if code:
                return code, reason
        return 0, ""

    def commit(self, positions: Mapping[TopicPartition, Position]) -> Outcome:
        assert self._open, "commit without begin"
        if not positions:
            wrote = self._in_transaction or any(self._pending.values())
            assert not wrote, "a transaction that wrote must carry offsets: without them the group fences nothing"
            self._forget()
            return Done()
        assert self._group is not None, "this session has no group"
        if not self._engine.owns(self._group, self._connection):
            self.abort()
            return Fenced(f"another session of this process has taken over group {self._group}")
        for at in [at for at, waiting in self._pending.items() if waiting]:
            self._send(at)
        self._steps.reached(Step.OFFSETS_BEFORE)
        add = Ask(25, 3, self._of_producer(api.AddOffsetsToTxnRequest, self._group))
        commit = api.TxnOffsetCommitRequest(
            self._transactional_id or "", self._group, *(self._producer or (-1, -1)), _positions(positions)
        )
        self._tickets += self._engine.post(self._connection, [add, Ask(28, 3, commit)])
        code, reason = self._sent()
        if code:
            self.abort()
            self._producer = None
            return Fenced(reason) if code in FENCED_ERRORS else NotDone(reason)
        self._steps.reached(Step.OFFSETS_AFTER)
        self._steps.reached(Step.COMMIT_BEFORE)
        answer = self._ask(26, 3, self._of_producer(api.EndTxnRequest, True))
        if answer.error_code:
            self._producer = None
            self._forget()
            return Fenced(f"the commit was refused: {error_name(answer.error_code)}")
        self._steps.reached(Step.COMMIT_AFTER)
        self._forget()
        return Done()

    def abort(self) -> None:
        if self._open and (self._in_transaction or self._tickets):
            for waiting in self._pending.values():
                waiting.clear()
            answer = self._ask(26, 3, self._of_producer(api.EndTxnRequest, False))
            if answer.error_code:
                self._producer = None  # another owner has ended it already
            self._settle()
        self._forget()

    def _settle(self) -> None:
        """A batch that was refused leaves a gap in our sequences; a new epoch begins them anew."""
        tickets, self._tickets = self._tickets, []
        if any(refusal(answer)[0] for answer in self._engine.wait(tickets)):
            self._producer = None

    def flush(self) -> None:
        code, reason = self._sent()
        if code:
            raise LogLost(f"{self.name} did not take a record: {reason}")

    def commit_offsets(self, positions: Mapping[TopicPartition, Position]) -> Outcome:
        assert self._group is not None, "this session has no group"
        if not positions:
            return Done()
        if self._listener is not None and not self._engine.owns(self._group, self._connection):
            return Fenced(f"another session of this process has taken over group {self._group}")
        topics = tuple(
            api.OffsetCommitRequestTopic(
                topic,
                tuple(
                    api.OffsetCommitRequestPartition(p, *_position(positions[TopicPartition(topic, p)])) for p in given
                ),
            )
            for topic, given in _by_topic(list(positions))
        )
        code, reason = refusal(self._ask(8, 8, api.OffsetCommitRequest(self._group, topics=topics)))
        if code:
            return Fenced(reason) if code in FENCED_ERRORS else NotDone(reason)
        return Done()

    def close(self) -> None:
        """What is not committed is aborted now, not when somebody else starts."""
        if self._open:
            with contextlib.suppress(LogLost):  # the next start of the folder does it
                self.abort()
        self._listener = None
        self._engine.disconnect(self._connection)

    def _raise(self, code: int, what: str, reason: str | None = None) -> None:
        if code:
            raise LogLost(f"{self.name}: {what}: {reason or error_name(code)}")


def _by_topic(partitions: Sequence[TopicPartition]) -> list[tuple[str, tuple[int, ...]]]:
    topics: dict[str, list[int]] = {}
    for at in partitions:
        topics.setdefault(at.topic, []).append(at.partition)
    return [(topic, tuple(given)) for topic, given in topics.items()]


def _topic(at: TopicPartition) -> api.AddPartitionsToTxnTopic:
    return api.AddPartitionsToTxnTopic(at.topic, (at.partition,))


def _position(position: Position) -> tuple[int, str]:
    return position.offset, position.metadata


def _positions(positions: Mapping[TopicPartition, Position]) -> tuple[api.TxnOffsetCommitRequestTopic, ...]:
    return tuple(
        api.TxnOffsetCommitRequestTopic(
            topic,
            tuple(
                api.TxnOffsetCommitRequestPartition(p, *_position(positions[TopicPartition(topic, p)])) for p in given
            ),
        )
        for topic, given in _by_topic(list(positions))
    )


def batch_cuts(
    keys: Sequence[bytes | None], values: Sequence[bytes | None], headers: Sequence[Headers | None]
) -> Iterator[tuple[int, int]]:
    """Ranges of records, each of which fits into one batch. A record that is too large alone stays alone: the log
    says so."""
    sizes = [len(value or b"") + len(key or b"") for key, value in zip(keys, values, strict=True)]
    if any(headers):
        for index, given in enumerate(headers):
            sizes[index] += sum(len(name) * 4 + len(value or b"") for name, value in given or ())
    if sum(sizes) <= BATCH_BYTES_MAX:
        yield 0, len(sizes)
        return
    start = total = 0
    for index, size in enumerate(sizes):
        if total + size > BATCH_BYTES_MAX and index > start:
            yield start, index
            start, total = index, 0
        total += size
    yield start, len(sizes)


def refusal(answer: Any) -> tuple[int, str]:
    """The first error in an answer to a request of a producer or of a group's member."""
    if code := getattr(answer, "error_code", 0):
        return code, error_name(code)
    for topic in getattr(answer, "responses", ()):  # Produce
        for p in topic.partition_responses:
            if p.error_code:
                return p.error_code, f"{topic.name}-{p.index}: {p.error_message or error_name(p.error_code)}"
    for topic in getattr(answer, "topics", ()):  # OffsetCommit, TxnOffsetCommit
        for p in topic.partitions:
            if p.error_code:
                return p.error_code, f"offset of {topic.name}-{p.partition_index}: {error_name(p.error_code)}"
    for topic in getattr(answer, "results_by_topic_v3_and_below", ()):  # AddPartitionsToTxn
        for p in topic.results_by_partition:
            if p.partition_error_code:
                return p.partition_error_code, f"{topic.name}-{p.partition_index}: {error_name(p.partition_error_code)}"
    return 0, ""


def error_name(code: int) -> str:
    try:
        return Error(code).name
    except ValueError:
        return f"error {code}"


def _id_text(topic_id: Any) -> str:
    """As Kafka writes topic ids: URL-safe base64 without padding."""
    return urlsafe_b64encode(topic_id.bytes).decode().rstrip("=")
