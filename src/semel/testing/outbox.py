"""A log in memory as a delivery sees one: topics with ids and runs, invisible offsets, copies that are put back.

`OutboxLog` is what the sessions share; `session(group)` gives one. Members are given partitions by `assign`, which the
next poll of that session reports. Only an owner writes, a delivery's decisions.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from semel.ports import (
    Done,
    Fenced,
    Listener,
    NewRecord,
    NewTopic,
    NotDone,
    Outcome,
    Position,
    Records,
    TopicInfo,
    TopicPartition,
    Unknown,
    Write,
)


@dataclass
class Stored:
    timestamp: int
    key: bytes | None
    value: bytes | None
    epoch: int
    visible: bool


@dataclass
class MemTopic:
    topic_id: str
    partitions: list[list[Stored]]
    config: dict[str, str]
    starts: dict[int, int] = field(default_factory=dict)


class OutboxLog:
    def __init__(self, *, with_runs: bool = True) -> None:
        self.topics: dict[str, MemTopic] = {}
        self.offsets: dict[tuple[str, TopicPartition], Position] = {}
        self.epoch = 0
        self.owned: dict[str, OutboxOwner] = {}  # transactional id -> who initialised it last
        self.owners: list[OutboxOwner] = []
        self.fate: Callable[[], str] = lambda: ""  # of the next commit of any owner, where its `next` says nothing
        self._made = 0
        if with_runs:
            self.create("__semel_runs", 1)
        self.restart()

    def create(self, name: str, partitions: int, config: Mapping[str, str] | None = None) -> None:
        self.topics[name] = MemTopic(self._id(name), [[] for _ in range(partitions)], dict(config or {}))

    def _id(self, of: str) -> str:
        """Another one each time, and the same ones in every process that does the same."""
        self._made += 1
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{of} {self._made}"))

    def restart(self) -> None:
        """A new run: what is appended from now on has the next leader epoch."""
        self.epoch += 1
        if "__semel_runs" in self.topics:
            value = b'{"run": %d, "id": "%s"}' % (self.epoch, self._id("run").encode())
            self.append("__semel_runs", 0, str(self.epoch).encode(), value)

    def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, *, visible: bool = True, at: int = 1
    ) -> int:
        """The offset. `visible=False`: a marker, or a record of an aborted transaction."""
        records = self.topics[topic].partitions[partition]
        records.append(Stored(at, key, value, self.epoch, visible))
        return len(records) - 1

    def copy(self) -> dict[str, list[list[Stored]]]:
        """The folder, copied; `put_back` makes it the log again."""
        return {name: [list(records) for records in topic.partitions] for name, topic in self.topics.items()}

    def put_back(self, copied: Mapping[str, list[list[Stored]]]) -> None:
        for name, partitions in copied.items():
            self.topics[name].partitions = [list(records) for records in partitions]
        self.epoch = len(copied.get("__semel_runs", [[]])[0]) or self.epoch
        self.restart()

    def remember(self, group: str, positions: Mapping[TopicPartition, Position]) -> None:
        self.offsets.update({(group, at): position for at, position in positions.items()})

    def session(self, group: str = "app.sink") -> OutboxSession:
        return OutboxSession(self, group)

    def owner(self, transactional_id: str, timeout_ms: int = 0) -> OutboxOwner:
        owner = OutboxOwner(self, transactional_id)
        self.owners.append(owner)
        return owner


class OutboxOwner:
    """One `ports.Owner`. `next`: what becomes of the next append: "lost": it has no effect and nobody knows; "unheard":
    it has its effect and nobody knows; "refused"."""

    def __init__(self, log: OutboxLog, transactional_id: str) -> None:
        self._log, self._id = log, transactional_id
        self.next = ""
        self.initialised = 0
        self._sent: list[NewRecord] = []

    def initialise(self) -> None:
        self._log.owned[self._id] = self
        self.initialised += 1
        self._sent.clear()  # what was open is aborted
        self._good = True

    def append(self, at: TopicPartition, records: Sequence[tuple[bytes, bytes | None]], now_ms: int) -> Outcome:
        assert at.topic.endswith("-delivery") and self._id.endswith(f".{at.partition}"), (at, self._id)
        return self.together([NewRecord(*at, key, value, now_ms) for key, value in records])

    def together(self, records: Sequence[NewRecord]) -> Outcome:
        sent = self.send(records)
        return self.commit() if isinstance(sent, Done) else sent

    def send(self, records: Sequence[NewRecord]) -> Outcome:
        assert self._good, "after anything but Done the owner initialises again"
        if self._log.owned[self._id] is not self:
            self._good = False
            return Fenced(f"another owner has taken over {self._id}")
        self._sent += records
        return Done()

    def commit(self) -> Outcome:
        assert self._good and self._sent, "after anything but Done the owner initialises again"
        then, self.next = self.next or self._log.fate(), ""
        self._good = False
        if self._log.owned[self._id] is not self:
            return Fenced(f"another owner has taken over {self._id}")
        if then == "refused":
            return NotDone("the log refused it")
        if then != "lost":
            for r in self._sent:
                self._log.append(r.topic, r.partition, r.key, r.value, at=r.timestamp_ms)
            for topic, partition in dict.fromkeys((r.topic, r.partition) for r in self._sent):
                self._log.append(topic, partition, None, None, visible=False)  # the marker
        self._sent.clear()
        if then:
            return Unknown("the commit was not answered")
        self._good = True
        return Done()

    def close(self) -> None: ...


class OutboxSession:
    """One `ports.Log` session."""

    name = "mem:"

    def __init__(self, log: OutboxLog, group: str) -> None:
        self._log, self._group = log, group
        self._listener: Listener | None = None
        self._assigned: list[TopicPartition] = []
        self._pending: list[tuple[str, list[TopicPartition]]] = []
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self.records_max = 1_000

    def assign(self, topic: str, *partitions: int) -> None:
        """Told at the next poll: what was assigned before goes, as under the eager protocol."""
        if self._assigned:
            self._pending.append(("revoked", self._assigned))
        self._assigned = [TopicPartition(topic, partition) for partition in partitions]
        self._pending.append(("assigned", self._assigned))

    def topics(self) -> Mapping[str, TopicInfo]:
        return {n: TopicInfo(n, t.topic_id, len(t.partitions), t.config) for n, t in self._log.topics.items()}

    def topic_ids(self, names: Sequence[str]) -> Mapping[str, str]:
        return {name: self._log.topics[name].topic_id for name in names if name in self._log.topics}

    def config(self, topic: str) -> Mapping[str, str]:
        return self._log.topics[topic].config

    def create(self, topics: Sequence[NewTopic]) -> None:
        for topic in topics:
            if topic.name not in self._log.topics:
                self._log.create(topic.name, topic.partitions, topic.config)

    def join(self, topics: Sequence[str], listener: Listener) -> None:
        self._listener = listener

    def poll(self, timeout_s: float) -> list[Records]:
        assert self._listener is not None
        pending, self._pending = self._pending, []
        for what, partitions in pending:
            self._paused.clear()
            self._positions.clear()
            getattr(self._listener, what)(partitions)
        found = []
        for at in self._assigned:
            if at not in self._paused and self._positions[at] < self.ends([at])[at]:
                records = self._records(at, self._positions[at], self.records_max)
                self._positions[at] = records.next_offset
                found.append(records)
        return found

    def _records(self, at: TopicPartition, start: int, count: int) -> Records:
        stored = self._log.topics[at.topic].partitions[at.partition][start : start + count]
        seen = [(start + n, record) for n, record in enumerate(stored) if record.visible]
        return Records(
            at,
            [offset for offset, _ in seen],
            [record.timestamp for _, record in seen],
            [record.key for _, record in seen],
            [record.value for _, record in seen],
            None,
            start + len(stored),
            seen[-1][1].epoch if seen else -1,
            seen[0][1].epoch if seen else -1,
        )

    def seek(self, at: TopicPartition, offset: int) -> None:
        self._positions[at] = offset

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.difference_update(partitions)

    def committed(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Position | None]:
        return {at: self._log.offsets.get((self._group, at)) for at in partitions}

    def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {at: len(self._log.topics[at.topic].partitions[at.partition]) for at in partitions}

    def starts(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {at: self._log.topics[at.topic].starts.get(at.partition, 0) for at in partitions}

    def truncate(self, before: Mapping[TopicPartition, int]) -> Done | NotDone:
        for at, offset in before.items():
            assert offset <= self.ends([at])[at], (at, offset)
            topic = self._log.topics[at.topic]
            topic.starts[at.partition] = max(offset, topic.starts.get(at.partition, 0))
            gone = topic.partitions[at.partition][:offset]
            # Their bytes are gone, whatever a reader does.
            topic.partitions[at.partition][:offset] = [Stored(0, None, None, one.epoch, False) for one in gone]
        return Done()

    def read(self, at: TopicPartition, start: int, target: int) -> Iterator[Records]:
        if start < target:
            yield self._records(at, start, 1 << 30)

    def writer(self, topic: str) -> Write:
        raise NotImplementedError("a delivery does not write to the log")

    def begin(self) -> None:
        raise NotImplementedError("a delivery does not write to the log")

    def commit(self, positions: Mapping[TopicPartition, Position]) -> Outcome:
        raise NotImplementedError("a delivery does not write to the log")

    def abort(self) -> None: ...
    def flush(self) -> None: ...

    def commit_offsets(self, positions: Mapping[TopicPartition, Position]) -> Outcome:
        self._log.remember(self._group, positions)
        return Done()

    def close(self) -> None:
        self._listener = None
