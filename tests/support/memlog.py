"""An in-memory log with Kafka's rules, for tests of what runs over `ports.Log`.

`MemBroker` holds topics, transactions and one group; each `MemLog` is a member's session. Kept as Kafka keeps them:
a read_committed reader stops at the last stable offset and skips aborted records and markers; transactional offsets are
unstable until decided; a commit carries the generation its member learnt at its assignment, and an older one is fenced.

The test moves partitions (`broker.assign`) and ends the transactions of the dead (`broker.expire`). A member learns of
its new assignment in its next `poll`: revoked and assigned for the living, lost for one whose generation is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from semel.ports import (
    Done,
    Fenced,
    Headers,
    Listener,
    LogLost,
    NewTopic,
    NoSteps,
    Outcome,
    Position,
    Records,
    Step,
    Steps,
    TopicInfo,
    TopicPartition,
    Unknown,
    Write,
)
from semel.record.murmur2 import partition_for


@dataclass
class Entry:
    """One offset of a partition. `transaction` 0: none; a marker has no key and value and is never handed out."""

    key: bytes | None
    value: bytes | None
    ms: int
    headers: Headers | None
    transaction: int
    marker: bool = False


@dataclass
class Transaction:
    """`decided`: None while open."""

    number: int
    member: str
    decided: bool | None = None
    partitions: dict[TopicPartition, None] = field(default_factory=dict)
    offsets: dict[TopicPartition, Position] = field(default_factory=dict)


class MemBroker:
    """All topics and one group."""

    def __init__(self) -> None:
        self.topics: dict[str, TopicInfo] = {}
        self.logs: dict[TopicPartition, list[Entry]] = {}
        self.starts: dict[TopicPartition, int] = {}
        self.transactions: dict[int, Transaction] = {}
        self.offsets: dict[TopicPartition, Position] = {}
        self.generation = 0
        self.assignment: dict[str, list[TopicPartition]] = {}
        self.epochs: dict[str, int] = {}  # transactional id (here: the member's name) -> newest session
        self.when_waiting = self.expire_all  # what happens while somebody waits for an open transaction
        self._ids = 0

    def create(self, name: str, partitions: int, config: Mapping[str, str] | None = None) -> None:
        if name not in self.topics:
            self._ids += 1
            self.topics[name] = TopicInfo(name, f"id-{self._ids}", partitions, dict(config or {}))
            for p in range(partitions):
                self.logs[TopicPartition(name, p)] = []

    def put(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int = -1,
        ms: int = 0,
        headers: Headers | None = None,
        transaction: int = 0,
    ) -> int:
        info = self.topics.get(topic)
        assert info is not None, f"no topic {topic}"
        if partition < 0:
            partition = 0 if key is None else partition_for(key, info.partitions)
        log = self.logs[TopicPartition(topic, partition)]
        log.append(Entry(key, value, ms, headers, transaction))
        if transaction:
            self.transactions[transaction].partitions[TopicPartition(topic, partition)] = None
        return len(log) - 1

    # --- transactions ---

    def end(self, transaction: Transaction, commit: bool) -> None:
        assert transaction.decided is None, transaction
        transaction.decided = commit
        for at in transaction.partitions:
            self.logs[at].append(Entry(None, None, 0, None, transaction.number, marker=True))
        if commit:
            self.offsets.update(transaction.offsets)

    def expire(self, member: str) -> None:
        """The transaction timeout of a member passes: what it left open is aborted."""
        for transaction in self.transactions.values():
            if transaction.member == member and transaction.decided is None:
                self.end(transaction, False)

    def expire_all(self) -> None:
        for transaction in list(self.transactions.values()):
            if transaction.decided is None:
                self.end(transaction, False)

    def stable_end(self, at: TopicPartition) -> int:
        for offset, entry in enumerate(self.logs[at]):
            if entry.transaction and self.transactions[entry.transaction].decided is None:
                return offset
        return len(self.logs[at])

    def visible(self, at: TopicPartition, start: int = 0) -> list[tuple[int, Entry]]:
        """Committed records, with their offsets."""
        end = self.stable_end(at)
        return [
            (offset, entry)
            for offset, entry in enumerate(self.logs[at][start:end], start)
            if not entry.marker and not (entry.transaction and self.transactions[entry.transaction].decided is False)
        ]

    def committed(self, topic: str) -> list[tuple[bytes | None, bytes | None]]:
        """All committed records of a topic, partition by partition."""
        parts = range(self.topics[topic].partitions)
        return [(e.key, e.value) for p in parts for _, e in self.visible(TopicPartition(topic, p))]

    # --- the group ---

    def assign(self, assignment: Mapping[str, Sequence[TopicPartition]]) -> None:
        """A rebalance: from now on the generation is another."""
        self.generation += 1
        self.assignment = {member: list(partitions) for member, partitions in assignment.items()}

    def all_partitions(self, topics: Sequence[str]) -> list[TopicPartition]:
        return [TopicPartition(t, p) for t in topics for p in range(self.topics[t].partitions)]


class MemLog:
    """One member's session (`ports.Log`)."""

    def __init__(self, broker: MemBroker, member: str, steps: Steps | None = None, batch: int = 100) -> None:
        self.name = "mem:"
        self.broker = broker
        self.member = member
        self.batch = batch
        self.calls: list[str] = []  # what was asked of the log, in order
        self.next_outcome: Outcome | None = None  # the next commit: not attempted, or done and not told (Unknown)
        self._steps = steps or NoSteps()
        self._listener: Listener | None = None
        self._generation = -1
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._transaction: Transaction | None = None
        self._session = broker.epochs[member] = broker.epochs.get(member, 0) + 1
        self._plain: dict[TopicPartition, Position] = {}
        self._unflushed: list[tuple[str, int, bytes | None, bytes | None, int, Headers | None]] = []
        self._bracketed = False
        self.alive = True

    def topics(self) -> Mapping[str, TopicInfo]:
        return dict(self.broker.topics)

    def topic_ids(self, names: Sequence[str]) -> Mapping[str, str]:
        return {name: self.broker.topics[name].topic_id for name in names if name in self.broker.topics}

    def config(self, topic: str) -> Mapping[str, str]:
        return self.broker.topics[topic].config

    def create(self, topics: Sequence[NewTopic]) -> None:
        for topic in topics:
            self.broker.create(topic.name, topic.partitions, topic.config)

    # --- reading ---

    def join(self, topics: Sequence[str], listener: Listener) -> None:
        self.broker.expire(self.member)  # InitProducerId: what this identity left open is aborted
        self._topics, self._listener = list(topics), listener
        if self.member not in self.broker.assignment and not self.broker.assignment:
            self.broker.assign({self.member: self.broker.all_partitions(self._topics)})

    def poll(self, timeout_s: float) -> list[Records]:
        assert self._listener is not None and self.alive
        if self._generation != self.broker.generation:
            mine = list(self._positions)
            if mine:
                # The living are asked first. One that another has already replaced, or that slept through a whole
                # generation and is no member any more, only learns that it lost.
                taken = {at for m, ps in self.broker.assignment.items() if m != self.member for at in ps}
                if taken.intersection(mine) or self._generation != self.broker.generation - 1:
                    self.calls.append("lost")
                    self._listener.lost(mine)
                else:
                    self.calls.append("revoked")
                    self._generation = self.broker.generation  # still a member while it is asked
                    self._listener.revoked(mine)
            self._generation = self.broker.generation
            self._positions, self._paused = {}, set()
            given = self.broker.assignment.get(self.member, [])
            self._positions = dict.fromkeys(given, -1)
            self.calls.append("assigned")
            self._listener.assigned(given)
            return []
        found = []
        for at in list(self._positions):
            if at not in self._paused and (records := self._fetch(at, self._positions[at])) is not None:
                self._positions[at] = records.next_offset
                found.append(records)
        return found

    def _fetch(self, at: TopicPartition, start: int) -> Records | None:
        assert start >= 0, f"{at} has no position"
        end = self.broker.stable_end(at)
        if start >= end:
            return None
        rows = self.broker.visible(at, start)[: self.batch]
        next_offset = rows[-1][0] + 1 if len(rows) == self.batch else end
        headers = [e.headers or () for _, e in rows] if any(e.headers for _, e in rows) else None
        return Records(
            at,
            [offset for offset, _ in rows],
            [e.ms for _, e in rows],
            [e.key for _, e in rows],
            [e.value for _, e in rows],
            headers,
            next_offset,
            -1,
        )

    def seek(self, at: TopicPartition, offset: int) -> None:
        assert at in self._positions, f"{at} is not ours"
        self._positions[at] = offset

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused.difference_update(partitions)

    # --- positions ---

    def committed(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Position | None]:
        self.calls.append("committed")
        for _ in range(2):
            if not any(
                at in t.offsets for t in self.broker.transactions.values() if t.decided is None for at in partitions
            ):
                return {at: self.broker.offsets.get(at) for at in partitions}
            self.broker.when_waiting()
        raise LogLost("unstable offsets for ever")

    def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        self.calls.append("ends")
        return {at: len(self.broker.logs[at]) for at in partitions}

    def starts(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {at: self.broker.starts.get(at, 0) for at in partitions}

    def truncate(self, before: Mapping[TopicPartition, int]) -> Done:
        for at, offset in before.items():
            self.broker.starts[at] = max(offset, self.broker.starts.get(at, 0))
        return Done()

    def read(self, at: TopicPartition, start: int, target: int) -> Iterator[Records]:
        position = start
        while position < target:
            records = self._fetch(at, position)
            if records is None:
                yield Records(at, [], [], [], [], None, position, -1, undecided=True)
                self.broker.when_waiting()
                continue
            position = records.next_offset
            yield records

    # --- writing ---

    def writer(self, topic: str) -> Write:
        def write(partition: int, key: bytes | None, value: bytes | None, ms: int, headers: Headers | None) -> None:
            if self._transaction is not None:
                if self._transaction.decided is None:
                    self.broker.put(topic, key, value, partition, ms, headers, self._transaction.number)
            else:
                assert not self._bracketed, "a write outside the transaction"
                self._unflushed.append((topic, partition, key, value, ms, headers))

        return write

    def begin(self) -> None:
        assert self._transaction is None, "begin within a transaction"
        self._bracketed = True
        number = len(self.broker.transactions) + 1
        self._transaction = self.broker.transactions[number] = Transaction(number, self.member)

    def commit(self, positions: Mapping[TopicPartition, Position]) -> Outcome:
        transaction, self._transaction = self._transaction, None
        assert transaction is not None, "commit without begin"
        assert positions or not transaction.partitions, "a transaction that wrote carries no offsets"
        self._steps.reached(Step.OFFSETS_BEFORE)
        outcome, self.next_outcome = self.next_outcome, None
        if transaction.decided is not None:
            return Fenced("the transaction was aborted by its timeout")
        if self._session != self.broker.epochs[self.member]:
            self.broker.end(transaction, False)
            return Fenced("a newer session has this transactional id")
        if positions and self._generation != self.broker.generation:
            self.broker.end(transaction, False)
            return Fenced(f"generation {self._generation} is over, now {self.broker.generation}")
        transaction.offsets.update(positions)
        self._steps.reached(Step.OFFSETS_AFTER)
        self._steps.reached(Step.COMMIT_BEFORE)
        if outcome is not None and not isinstance(outcome, Unknown):
            self.broker.end(transaction, False)
            return outcome
        self.broker.end(transaction, True)
        self._steps.reached(Step.COMMIT_AFTER)
        return outcome or Done()

    def abort(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None and transaction.decided is None:
            self.broker.end(transaction, False)

    def flush(self) -> None:
        for topic, partition, key, value, ms, headers in self._unflushed:
            self.broker.put(topic, key, value, partition, ms, headers)
        self._unflushed.clear()

    def commit_offsets(self, positions: Mapping[TopicPartition, Position]) -> Outcome:
        if self._generation != self.broker.generation:
            return Fenced("generation over")
        self.broker.offsets.update(positions)
        return Done()

    def close(self) -> None:
        self.alive = False
