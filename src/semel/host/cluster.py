"""`ports.Log` on Apache Kafka, or anything that speaks its protocol, through confluent-kafka.

Invariants: a partition's records are handed out from the offset that the caller asked for, in order, without a gap
and without one twice, whatever the group does in between; offsets travel with the membership under which their
partitions were assigned (a generation learnt later would get a zombie's offsets past the fence); and the client
library never decides where to start reading: a position that the log does not hold is an error.

The group protocol is the eager one. While a member still holds partitions under it, its generation cannot change
behind its back, so the commit in `revoked` is valid under the membership taken at the assignment; under the
cooperative protocol the generation moves before the callback is told. A static member (`member`) that restarts is
given its old partitions without a rebalance.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import confluent_kafka
from confluent_kafka import Consumer, Message
from confluent_kafka import TopicPartition as At

from semel.errors import UsageError
from semel.host.kafka_admin import ASK_TIMEOUT_S, PASSING, Admin
from semel.host.kafka_client import (
    LOST_AFTER_S,
    Address,
    KafkaError,
    KafkaException,
    address,
    base_settings,
    bury,
    error_of,
    is_fenced,
    made,
    patient,
)
from semel.host.kafka_columns import columns, empty, ends_of, split
from semel.host.kafka_producer import TRANSACTION_TIMEOUT_MS, PlainWriter, TransactionalWriter
from semel.ports import (
    Done,
    Fenced,
    Listener,
    LogLost,
    NewTopic,
    NoSteps,
    NotDone,
    Outcome,
    Position,
    Records,
    Steps,
    TopicInfo,
    TopicPartition,
    Unknown,
    Write,
)

BATCH_RECORDS_MAX = 4_000
PROBE_TIMEOUT_S = 5.0
WAIT_STEP_S = 0.1
VERIFICATION = "transaction.partition.verification.enable"
SESSION_TIMEOUT_MS = 10_000

_READING: dict[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "isolation.level": "read_committed",
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
    "allow.auto.create.topics": False,
    "fetch.queue.backoff.ms": 5,  # the default leaves a partition alone for a second once its queue is full
    "fetch.wait.max.ms": 100,
    "queued.min.messages": 200_000,
    "queued.max.messages.kbytes": 131_072,
    "fetch.message.max.bytes": 4_194_304,
    "topic.metadata.refresh.interval.ms": 30_000,
}


class _Health:
    """Whether the brokers were all down, for how long, and what ended a client object for good."""

    def __init__(self, name: str = "", notice: Callable[[str], None] | None = None) -> None:
        self.down_since: float | None = None
        self.fatal: confluent_kafka.KafkaError | None = None
        self._name, self._notice = name, notice

    def seen(self, error: confluent_kafka.KafkaError) -> None:
        if error.fatal() or error.code() == KafkaError._FATAL:
            self.fatal = error
        elif error.code() == KafkaError._ALL_BROKERS_DOWN and self.down_since is None:
            self.down_since = time.monotonic()
            self._say("does not answer; waiting for it, and trying again")

    def answered(self) -> None:
        if self.down_since is not None:
            self.down_since = None
            self._say("answers again")

    def _say(self, what: str) -> None:
        if self._notice is not None:
            self._notice(f"{self._name} {what}")


class _Reader:
    """One Consumer of ours that is in no group: for restores and for looking."""

    def __init__(self, at: Address, isolation: str) -> None:
        self.health = _Health()
        self.consumer = made(
            Consumer,
            {
                **base_settings(at),
                **_READING,
                "isolation.level": isolation,
                # An end of partition is told by an answer without records, which comes no sooner than this: a wait for
                # every changelog partition that is restored.
                "fetch.wait.max.ms": 10,
                "group.id": "semel-reads-in-no-group",  # librdkafka wants one; it is never joined and commits nothing
                "error_cb": self.health.seen,
            },
            at,
        )


class ClusterLog:
    """One member's session. `group`: for `join`, `committed` and commits. `member`: its static identity.
    `transactional_id`: writes are bracketed with begin and commit; without one, `flush` and `commit_offsets`."""

    def __init__(
        self,
        url: str,
        *,
        group: str | None = None,
        member: str | None = None,
        transactional_id: str | None = None,
        steps: Steps | None = None,
        session_timeout_ms: int = SESSION_TIMEOUT_MS,
        transaction_timeout_ms: int = TRANSACTION_TIMEOUT_MS,
        isolation: str = "read_committed",
        patience_s: Callable[[], float] = patient,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        self._at = replace(address(url), patience_s=patience_s)
        self.name = self._at.url
        self._group, self._member = group, member
        self._session_timeout_ms = session_timeout_ms
        self._isolation = isolation
        self._transaction_timeout_s = transaction_timeout_ms / 1000
        self._admin = Admin(self._at)
        self._consumer_made: Consumer | None = None
        self._health = _Health(self.name, notice)
        self._idle: list[_Reader] = []
        self._listener: Listener | None = None
        self._topics: list[str] | None = None  # to subscribe to with the next poll
        self._subscribed = False
        self._membership: Any = None  # of the current assignment; None: not a member
        self._positions: dict[TopicPartition, int] = {}  # of what is assigned: the next offset to hand out
        self._paused: set[TopicPartition] = set()
        self._dropped: set[TopicPartition] = set()  # of the paused: the client stands past what was handed out
        self._in_callback = False
        self._moved = False  # the assignment changed during the current poll
        self._raised: BaseException | None = None  # by a listener, to be raised by poll
        self._unknown_topic_since: float | None = None
        self._transactions = (
            None
            if transactional_id is None
            else TransactionalWriter(self._at, transactional_id, steps or NoSteps(), transaction_timeout_ms)
        )
        self._plain = PlainWriter(self._at)

    # --- topics and their ends ---

    def connect(self, patience_s: float = 10.0) -> None:
        """LogLost when no broker answers within `patience_s`."""
        self._admin.connect(patience_s)

    def topics(self) -> Mapping[str, TopicInfo]:
        return self._admin.topics()

    def topic_ids(self, names: Sequence[str]) -> Mapping[str, str] | None:
        return self._admin.topic_ids(names)

    def config(self, topic: str) -> Mapping[str, str]:
        return self._admin.config(topic)

    def create(self, topics: Sequence[NewTopic]) -> None:
        self._admin.create(topics)

    def delete(self, topics: Sequence[str]) -> None:
        self._admin.delete(topics)

    def replicas(self, topic: str) -> int:
        return self._admin.replicas(topic)

    def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self._admin.ends(partitions)

    def starts(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return self._admin.starts(partitions)

    def truncate(self, before: Mapping[TopicPartition, int]) -> Done | NotDone:
        return self._admin.truncate(before)

    # --- positions ---

    @property
    def _consumer(self) -> Consumer:
        if self._consumer_made is None:
            assert self._group is not None, "this session has no group"
            settings: dict[str, Any] = {
                **base_settings(self._at),
                **_READING,
                "group.id": self._group,
                "partition.assignment.strategy": "range",
                "session.timeout.ms": self._session_timeout_ms,
                "heartbeat.interval.ms": max(100, min(1_000, self._session_timeout_ms // 4)),
                "error_cb": self._health.seen,
            }
            if self._member is not None:
                settings["group.instance.id"] = self._member
            self._consumer_made = made(Consumer, settings, self._at)
        return self._consumer_made

    def committed(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Position | None]:
        if not partitions:
            return {}
        asked = [At(at.topic, at.partition) for at in partitions]

        def answered(timeout_s: float) -> dict[TopicPartition, Position | None]:
            positions: dict[TopicPartition, Position | None] = {}
            # A read_committed consumer asks with require_stable and waits out undecided transactions.
            for at in self._consumer.committed(asked, timeout_s):
                if at.error is not None:
                    raise KafkaException(at.error)
                known = None if at.offset < 0 else Position(at.offset, at.metadata or "")
                positions[TopicPartition(at.topic, at.partition)] = known
            return positions

        return self._admin.ask(f"committed offsets of group {self._group}", answered, self._stable_wait_s)

    def _stable_wait_s(self) -> float:
        """How long an undecided transaction of a former owner may hold the offsets: it has our own time-out."""
        patience_s = self._at.patience_s()
        return patience_s if patience_s < LOST_AFTER_S else max(patience_s, 1.5 * self._transaction_timeout_s)

    def read(self, at: TopicPartition, start: int, target: int) -> Iterator[Records]:
        reader = self._idle.pop() if self._idle else _Reader(self._at, self._isolation)
        try:
            reader.consumer.assign([At(at.topic, at.partition, start)])
            position, decided = start, -1
            while position < target:
                messages, events = split(self._consumed(reader.consumer, WAIT_STEP_S))
                # The reader served other partitions before: what still comes of those is nothing to this one.
                events = [e for e in events if e.topic() is None or (e.topic(), e.partition()) == at]
                if any(_out_of_range(e) for e in events):
                    self._must_hold(at, position)
                    reader.consumer.assign([At(at.topic, at.partition, position)])
                    continue
                self._judge(events, reader.health, reader.consumer)
                yielded = False
                for records in columns(messages):
                    if records.source != at or records.offsets[0] < position:
                        continue
                    position = records.next_offset
                    yielded = True
                    yield records
                decided = ends_of(events).get(at, decided)  # told once, not again while it stays there
                if decided > position or not yielded:
                    position = max(position, decided)
                    yield empty(at, position)._replace(undecided=position == decided < target)
        finally:
            reader.consumer.unassign()
            self._idle.append(reader)

    def _must_hold(self, at: TopicPartition, position: int) -> None:
        """Raises LogLost unless the log holds that position, in spite of what the client library heard."""
        start, end = self.starts([at])[at], self.ends([at])[at]
        if not start <= position <= end:
            raise LogLost(
                f"{self.name}: {at.topic}-{at.partition}: the position {position} is not in the log, which goes from "
                f"{start} to {end}. The records were deleted (retention), or the topic was made anew. Decide where to "
                "go on, then reset the group's offsets."
            )

    # --- reading, as a member of a group ---

    def join(self, topics: Sequence[str], listener: Listener) -> None:
        if self._transactions is not None:
            if self._admin.broker_setting(VERIFICATION) == "false":
                raise LogLost(
                    f"{self.name}: the brokers have {VERIFICATION}=false: a write that arrives late can hang in the "
                    "log and hide what comes after it. Set it to true (its default); exactly-once rests on it."
                )
            # Before the first position is read: whatever this identity left open is decided now.
            self._transactions.open()
        if self._member is not None:
            # Apache Kafka ignores the new subscription of a static member that restarts: it is given its old
            # partitions, and topics added since would be read by nobody (4.3.1, tried). Other topics, another identity.
            self._member += f".{zlib.crc32(' '.join(sorted(topics)).encode()):08x}"
            self._close_consumer()
        self._listener = listener
        # Subscribed by the first poll: who finds a reason not to start never enters the group (see _close_consumer).
        self._topics = list(topics)

    def _assigned(self, consumer: Consumer, given: list[At]) -> None:
        self._moved = True
        self._membership = consumer.consumer_group_metadata()
        partitions = [TopicPartition(at.topic, at.partition) for at in given]
        self._positions.clear()
        self._paused.clear()
        self._dropped.clear()
        starts: list[At] = []
        self._in_callback = True
        try:
            if self._listener is not None and self._raised is None:
                self._listener.assigned(partitions)
                unsaid = [at for at in partitions if at not in self._positions and at not in self._paused]
                for at, position in self.committed(unsaid).items():
                    if position is None:
                        raise LogLost(
                            f"{self.name}: group {self._group} has no position in {at.topic}-{at.partition}, "
                            "and nobody said where to start"
                        )
                    self._positions[at] = position.offset
            for at in partitions:
                # Paused without a position: nothing is fetched until a seek says from where. A number, because a
                # logical offset is asked of the broker, and its answer would undo a seek that comes before it.
                starts.append(At(at.topic, at.partition, self._positions.get(at, 0)))
        except BaseException as raised:  # callbacks run inside the client library: poll raises it
            self._raised = raised
            starts = []
        finally:
            self._in_callback = False
        consumer.assign(starts)
        if self._paused and starts:
            consumer.pause(_plain(self._paused))

    def _revoked(self, consumer: Consumer, taken: list[At]) -> None:
        self._taken(consumer, taken, lost=False)

    def _lost(self, consumer: Consumer, taken: list[At]) -> None:
        self._taken(consumer, taken, lost=True)

    def _taken(self, consumer: Consumer, taken: list[At], lost: bool) -> None:
        self._moved = True
        partitions = [TopicPartition(at.topic, at.partition) for at in taken]
        if lost:
            self._membership = None  # nothing may be committed under it any more
        try:
            if self._listener is not None and self._raised is None:
                (self._listener.lost if lost else self._listener.revoked)(partitions)
        except BaseException as raised:
            self._raised = raised
        self._membership = None
        self._positions.clear()
        self._paused.clear()
        self._dropped.clear()
        consumer.unassign()

    def poll(self, timeout_s: float) -> list[Records]:
        consumer = self._consumer
        if self._topics is not None:
            topics, self._topics = self._topics, None
            self._subscribed = True
            consumer.subscribe(topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        self._moved = False
        messages, events = split(self._consumed(consumer, timeout_s))
        if self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised
        if self._moved:
            # Records of the old and of the new assignment cannot be told apart in this batch: fetch them again.
            for at in {TopicPartition(m.topic() or "", m.partition() or 0) for m in (*messages, *events)}:
                if at in self._positions and at not in self._paused:
                    self.seek(at, self._positions[at])
            messages = []
        self._judge(events, self._health, consumer)
        found: list[Records] = []
        for records in columns(messages):
            expected = self._positions.get(records.source)
            if expected is None:
                continue  # fetched before it was revoked
            if records.source in self._paused:
                self._dropped.add(records.source)  # fetched before it was paused
                continue
            if records.offsets[0] < expected:
                # Fetched for an earlier position (verify, seed 2: a delivery that had to wait for its claim).
                self.seek(records.source, expected)
                continue
            self._positions[records.source] = records.next_offset
            found.append(records)
        if not self._moved:
            for at, end in ends_of(events).items():
                if end > self._positions.get(at, end) and at not in self._paused:
                    self._positions[at] = end
                    found.append(empty(at, end))
        if found:
            self._health.answered()
        return found

    def _consumed(self, consumer: Consumer, timeout_s: float) -> list[Message]:
        """What is there at once; when nothing is, the first thing within `timeout_s` and what came with it
        (`consume(n, timeout)` waits for n records or the whole timeout)."""
        try:
            messages = consumer.consume(BATCH_RECORDS_MAX, 0)
            if not messages and timeout_s > 0:
                messages = consumer.consume(1, timeout_s)
                if messages:
                    messages += consumer.consume(BATCH_RECORDS_MAX - 1, 0)
        except (KafkaException, SystemError) as failed:
            if self._raised is not None:
                raise self._raised from None
            raise LogLost(f"{self.name}: reading failed: {error_of(failed).str()}") from failed
        return messages

    def _judge(self, events: Sequence[Message], health: _Health, consumer: Consumer) -> None:
        """Raises for what does not pass by itself, or has not passed in bounded time."""
        unknown = False
        for event in events:
            error = event.error()
            assert error is not None
            code = error.code()
            if code == KafkaError._PARTITION_EOF:
                continue
            if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
                raise LogLost(
                    f"{self.name}: {event.topic()}-{event.partition()}: the position asked for is not in the log: "
                    f"{error.str()}. The records were deleted (retention), or the topic was made anew. "
                    "Decide where to go on, then reset the group's offsets."
                )
            if code in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
                unknown = True
                if self._unknown_topic_since is None:
                    self._unknown_topic_since = time.monotonic()
                elif time.monotonic() - self._unknown_topic_since > ASK_TIMEOUT_S:
                    raise LogLost(f"{self.name}: {error.str()}")
            elif error.fatal() or code in (KafkaError._FATAL, KafkaError.FENCED_INSTANCE_ID):
                health.fatal = error
            elif code == KafkaError._ALL_BROKERS_DOWN:
                health.seen(error)
            elif code not in PASSING and not error.retriable():
                raise LogLost(f"{self.name}: {error.str()}")
        if not unknown and events:
            self._unknown_topic_since = None
        if health.fatal is not None:
            raise LogLost(
                f"{self.name}: {self._member or self._group}: {health.fatal.str()}. "
                "Another process runs under the same identity: is this state folder a copy of one that is in use?"
            )
        if health.down_since is not None and time.monotonic() - health.down_since > self._at.patience_s():
            try:
                consumer.list_topics(timeout=PROBE_TIMEOUT_S)
            except KafkaException as failed:
                raise LogLost(self._at.lost) from failed
            health.answered()

    def seek(self, at: TopicPartition, offset: int) -> None:
        self._positions[at] = offset
        if self._in_callback:
            return  # the assignment that follows starts there
        deadline = time.monotonic() + ASK_TIMEOUT_S
        while True:
            try:
                self._consumer.seek(At(at.topic, at.partition, offset))
                return
            except KafkaException as failed:
                # Right after an assignment the client's own thread has not started the partition yet.
                error = error_of(failed)
                if error.code() not in (KafkaError._STATE, KafkaError._PREV_IN_PROGRESS) or time.monotonic() > deadline:
                    raise LogLost(
                        f"{self.name}: cannot go to {offset} in {at.topic}-{at.partition}: {error.str()}"
                    ) from failed
                time.sleep(0.002)

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.update(partitions)
        if not self._in_callback and partitions:
            self._consumer.pause(_plain(partitions))

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.difference_update(partitions)
        for at in self._dropped.intersection(partitions):
            self._dropped.discard(at)
            self.seek(at, self._positions[at])
        if not self._in_callback and partitions:
            self._consumer.resume(_plain(partitions))

    # --- writing ---

    def writer(self, topic: str) -> Write:
        return (self._plain if self._transactions is None else self._transactions).writer(topic)

    def begin(self) -> None:
        assert self._transactions is not None, "a session without a transactional id cannot begin a transaction"
        self._transactions.begin()

    def commit(self, positions: Mapping[TopicPartition, Position]) -> Outcome:
        assert self._transactions is not None, "a session without a transactional id cannot commit a transaction"
        if positions and self._membership is None:
            self._transactions.abort()
            return Fenced(f"{self._member or self._group} is no member of its group any more")
        return self._transactions.commit(positions, self._membership)

    def abort(self) -> None:
        assert self._transactions is not None, "a session without a transactional id cannot abort a transaction"
        self._transactions.abort()

    def flush(self) -> None:
        self._plain.flush()

    def commit_offsets(self, positions: Mapping[TopicPartition, Position]) -> Outcome:
        if not positions:
            return Done()
        if self._listener is not None and self._membership is None:
            return Fenced(f"{self._member or self._group} is no member of its group any more")
        offsets = [At(at.topic, at.partition, position.offset, position.metadata) for at, position in positions.items()]
        try:
            # In this thread: from another one it would wait for the callback, if it is called in one (2.16.1).
            answers = self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as failed:
            return _outcome(error_of(failed))
        for answer in answers or ():
            if answer.error is not None:
                return _outcome(answer.error)
        return Done()

    def close(self) -> None:
        """A static member does not leave: its partitions wait for its restart, at most one session timeout."""
        self._listener = None
        if self._transactions is not None:
            self._transactions.close()
        self._plain.close()
        for reader in self._idle:
            bury(reader.consumer)
        self._idle.clear()
        self._close_consumer()
        self._admin.close()

    def _close_consumer(self) -> None:
        if self._consumer_made is not None:
            # A consumer that met a fatal error (a second owner of its identity) raises that again, as SystemError.
            with contextlib.suppress(KafkaException, SystemError, RuntimeError):
                if self._subscribed:
                    # A rebalance that waits to be served is served now. In close() it can come too late for
                    # librdkafka (2.16.1): assign() then waits for ever, with the interpreter's lock held.
                    self._consumer_made.consume(1, 0.0)
                self._consumer_made.close()
            self._consumer_made, self._subscribed = None, False


def _out_of_range(event: Message) -> bool:
    error = event.error()
    return error is not None and error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)


def _plain(partitions: Sequence[TopicPartition] | set[TopicPartition]) -> list[At]:
    return [At(at.topic, at.partition) for at in partitions]


def _outcome(error: confluent_kafka.KafkaError) -> Outcome:
    if is_fenced(error):
        return Fenced(error.str())
    if error.code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError.REQUEST_TIMED_OUT):
        return Unknown(error.str())
    return NotDone(error.str())


def open_cluster(url: str, **session: Any) -> ClusterLog:
    """A session with a cluster that has answered. UsageError for an address that is none."""
    if not url.startswith("kafka://"):
        raise UsageError(f"{url!r} is no Kafka address. Write it as kafka://host:port")
    log = ClusterLog(url, **session)
    log.connect()
    return log
