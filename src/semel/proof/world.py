"""The log and the sinks of one run, as verify sees them from outside: filled, watched, read back, removed.

Invariant: only topics, groups and tables that carry the run's prefix are ever written or removed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from confluent_kafka import Consumer, KafkaException
from confluent_kafka import TopicPartition as At
from confluent_kafka.admin import AdminClient

from semel.host.cluster import ClusterLog
from semel.host.kafka_columns import columns, ends_of, split
from semel.ports import (
    Connection,
    Headers,
    Log,
    LogLost,
    NewTopic,
    NoSteps,
    Records,
    Sink,
    TopicPartition,
)
from semel.proof.feeding import Feeding
from semel.proof.processes import ProofError
from semel.sources.positions import ENDING as POSITIONS_ENDING
from semel.sources.positions import GROUP_ENDING
from semel.streams import graph as g
from semel.verify.oracle import Committed, Row, input_record, origin_of, refused_of
from semel.verify.workload import Given

PARTITIONS = 4
SETTLE_S = 90.0  # without any progress
SETTLE_MAX_S = 900.0
BEHIND_MAX = 5_000  # records that a slow sink has before it: no more input until it has got on
LOOK_BEHIND_S = 1.0
ASK_EVERY_S = 0.3
RECORDS_PER_S = 250
READ_MAX = 10_000
ANSWER_S = 3.0


class World:
    """One run's corner of a Kafka-protocol log. `prefix` begins every name."""

    def __init__(self, url: str, prefix: str, graph: g.Graph, partitions: int = PARTITIONS) -> None:
        self.url, self.prefix, self.graph = url, prefix, graph
        self.partitions = partitions
        self.log = ClusterLog(url, group=prefix + graph.app)
        self.sources = {n.topic.name: n.topic for n in graph.nodes if isinstance(n, g.Read)}
        self.feeding = Feeding(graph, prefix, self._begun)
        self._with_position: set[str] = set()
        self.waiting: deque[tuple[str, Given]] = deque()
        self._input: list[tuple[str, Given]] = []
        self.fed = 0
        self.given: dict[str, Counter[bytes]] = {}  # by topic: what was fed, to be found there again
        self.rounds = 1  # how often the input was let through, the last time perhaps in part
        self.slice = 1
        self.history: dict[str, list[int]] = {}
        self._writers: dict[str, Callable[..., None]] = {}
        self._fed_at = 0.0
        self._stood: dict[str, int] = {}  # by group: its positions, summed, when last asked
        self._behind = 0  # records and markers in front of the deliveries
        self._askers: dict[tuple[str, bool], Consumer] = {}  # by group and whether they wait for open transactions
        self._asking = threading.Lock()
        self._watching: threading.Thread | None = None
        self._ended = threading.Event()
        self._group_sources: list[TopicPartition] = []
        self._reader = Reader(url)

    # --- input ---

    def prepare(self, workload: Mapping[str, list[Given]], slices: int) -> None:
        """Creates the source topics; the input waits, to be let through in about `slices` slices."""
        # Kept for ever: retention goes by the records' own time, and theirs may be years ago.
        config = {"retention.ms": "-1"}
        wanted = {**self.graph.topics, **self.sources}
        self.log.create(
            [NewTopic(self.prefix + name, t.partitions or self.partitions, config) for name, t in wanted.items()]
        )
        self._writers = {name: self.log.writer(self.prefix + name) for name in self.sources}
        self.feeding.prepare()
        # Interleaved, so that every slice has some of each topic.
        queues = [deque((name, one) for one in given) for name, given in workload.items()]
        while any(queues):
            for queue in queues:
                for _ in range(min(50, len(queue))):
                    self._input.append(queue.popleft())
        self.waiting.extend(self._input)
        self.slice = max(1, len(self.waiting) // max(1, slices))

    def feed(self, count: int | None = None) -> None:
        """The next slice of input. When all of it has been let through it begins again: the storm goes on until it
        has had its kills, and a kill while nothing moves proves nothing."""
        if not self.waiting:
            self.waiting.extend(self._input)
            self.rounds += 1
        for _ in range(min(count or self.slice, len(self.waiting))):
            name, one = self.waiting.popleft()
            self.fed += 1
            if name in self.feeding.topics:
                self.feeding.put(name, one)
                continue
            self._writers[name](-1, one.key, one.value, one.timestamp, None)
            self.given.setdefault(name, Counter())[input_record(one.key, one.value)] += 1

    def trickle(self) -> None:
        """Lets through what is due at RECORDS_PER_S: input moves all the time, whoever is down. Unless a sink has more
        in front of it than it can take before the end."""
        now = time.monotonic()
        if self._behind > BEHIND_MAX:
            self._fed_at = now
            return
        due = int((now - self._fed_at) * RECORDS_PER_S) if self._fed_at else 1
        if due > 0:
            self.feed(min(due, RECORDS_PER_S))
            self._fed_at = now

    def finish(self, *, everything: bool) -> None:
        """Lets the rest of the input through, if the storm did not need all of it; of what was only made up, a bit."""
        if everything and self.rounds == 1:
            self.feed(len(self.waiting))
        else:
            self.feed(RECORDS_PER_S)
        self.feeding.end()

    # --- watching ---

    def group_sources(self) -> list[TopicPartition]:
        """Every partition that a task reads, once the topics are there."""
        if not self._group_sources:
            topics = self.log.topics()
            names = [self.prefix + name for sub in self.graph.subtopologies for name in sub.sources]
            if not all(name in topics for name in names):
                return []
            self._group_sources = [TopicPartition(n, p) for n in names for p in range(topics[n].partitions)]
        return self._group_sources

    def watch(self) -> None:
        """From now on, in a thread, notes the committed positions: they must never go back (B14)."""

        def look() -> None:
            looked = 0.0
            while not self._ended.wait(ASK_EVERY_S):
                if time.monotonic() - looked > LOOK_BEHIND_S:
                    with contextlib.suppress(KafkaException):  # the broker is down for a moment
                        self._behind = self._look_behind()
                    looked = time.monotonic()
                with contextlib.suppress(LogLost):
                    for at, offset in self.positions().items():
                        if offset > 0:
                            self.history.setdefault(f"{at.topic}-{at.partition}", []).append(offset)

        self._watching = threading.Thread(target=look, name="verify-watches", daemon=True)
        self._watching.start()

    def positions(self) -> dict[TopicPartition, int]:
        """The group's committed positions as they are now, without waiting for open transactions; 0: none yet."""
        try:
            return self._committed(self.prefix + self.graph.app, self.group_sources(), stable=False)
        except (KafkaException, FutureTimeout, LogLost):
            return {}  # the broker is down for a moment

    def _look_behind(self) -> int:
        """By the group offsets of the deliveries, which are at most a second late."""
        behind = 0
        for write in self.graph.writes():
            if write.sink is None:
                continue
            group, name = f"{self.prefix}{self.graph.app}.{write.sink.name}", self.prefix + write.outbox
            asker = self._asker(group, stable=False)
            known = asker.list_topics(name, ANSWER_S).topics[name].partitions
            positions = self._committed(group, [TopicPartition(name, p) for p in known], stable=False)
            for p in known:
                low, high = asker.get_watermark_offsets(At(name, p), ANSWER_S)
                behind += max(0, high - max(low, positions.get(TopicPartition(name, p), 0)))
        return behind

    def _committed(
        self, group: str, partitions: Sequence[TopicPartition], *, stable: bool
    ) -> dict[TopicPartition, int]:
        """A group's positions, 0 where there is none. Not by an AdminClient: asked for a group's offsets while brokers
        are killed, librdkafka 2.16.1 ends the process (an assertion of its own, or SIGSEGV)."""
        if not partitions:
            return {}
        answers = self._asker(group, stable=stable).committed(
            [At(at.topic, at.partition) for at in partitions], ANSWER_S
        )
        return {TopicPartition(a.topic, a.partition): max(a.offset, 0) for a in answers if a.error is None}

    def _asker(self, group: str, *, stable: bool) -> Consumer:
        with self._asking:
            asker = self._askers.get((group, stable))
            if asker is None:
                asker = self._askers[group, stable] = Consumer(
                    {
                        "bootstrap.servers": self.url.removeprefix("kafka://"),
                        "group.id": group,
                        "isolation.level": "read_committed" if stable else "read_uncommitted",  # require_stable
                        "metadata.recovery.strategy": "none",
                        "reconnect.backoff.max.ms": 500,
                        "log_level": 0,
                    }
                )
            return asker

    def passed(self, before: Mapping[TopicPartition, int]) -> tuple[bool, bool]:
        """Whether of one topic, or of all, every partition with input behind `before` was committed further since:
        each worker has some of each topic, so whoever owned any of them then has a successor that has committed."""
        now = self.positions()
        if not before or not now:
            return False, False
        ends = self.log.ends(list(before))
        waiting: dict[str, list[bool]] = {}
        for at, position in before.items():
            if ends[at] > position + 1:
                waiting.setdefault(at.topic, []).append(now.get(at, 0) > position)
        went = [all(topic) for topic in waiting.values()]
        return any(went), bool(went) and all(went)

    def settled(self, give_up_s: float = SETTLE_S, alive: Callable[[], None] = lambda: None) -> bool:
        """Waits until everything fed is processed and delivered; False when nothing got on for that long, or it takes
        much too long. (A slow sink that gets on is slow.)"""
        self.log.flush()
        began = moved_at = time.monotonic()
        stood = dict(self._stood)
        while time.monotonic() < min(moved_at + give_up_s, began + SETTLE_MAX_S):
            alive()
            if self.feeding.waiting:
                self.feeding.end()  # what had to wait for a first position
            if self._stood != stood:
                stood, moved_at = dict(self._stood), time.monotonic()
            if not self._ingested():
                time.sleep(0.3)
                continue
            groups = [(self.prefix + self.graph.app, self.group_sources())]
            groups += [(f"{self.prefix}{self.graph.app}.{sink}", self._outbox(sink)) for sink in self.graph.sinks]
            with contextlib.suppress(KafkaException, FutureTimeout):  # positions not stable yet, a broker starting
                if all(self._reached(group, partitions) for group, partitions in groups):
                    return True
            time.sleep(0.2)
        return False

    def _begun(self, name: str) -> bool:
        """Whether a position of this topic's source is committed; what is undecided is not waited for."""
        if name not in self._with_position:
            at = TopicPartition(f"{self.prefix}{name}{POSITIONS_ENDING}", 0)
            with contextlib.suppress(KafkaException, LogLost):  # not made yet, a broker that is down for a moment
                # Of a read_committed consumer the high watermark is the last stable offset.
                asker = self._asker(at.topic, stable=True)
                _, decided = asker.get_watermark_offsets(At(at.topic, at.partition), ANSWER_S)
                if decided > 0 and self._reader.read({at: (0, decided)})[at]:
                    self._with_position.add(name)
        return name in self._with_position

    def _ingested(self) -> bool:
        """Whether the sources' topics hold as many records as were put into the sources."""
        topics = self.log.topics()
        for name, count in self.feeding.added.items():
            full = self.prefix + name
            partitions = [TopicPartition(full, p) for p in range(topics[full].partitions)]
            ends = self.log.ends(partitions)
            found = self._reader.read({at: (0, ends[at]) for at in partitions})
            if sum(map(len, found.values())) < count:
                return False
        return True

    def _reached(self, group: str, partitions: list[TopicPartition]) -> bool:
        """Whether no committed record lies at or beyond the group's positions. A delivery's are a lag metric, which is
        what is wanted here."""
        if not partitions:
            return False
        ends, positions = self.log.ends(partitions), self._committed(group, partitions, stable=True)
        if positions.keys() != set(partitions):
            return False
        self._stood[group] = sum(positions.values())
        return not any(self._reader.read({at: (positions[at], ends[at]) for at in partitions}).values())

    def outboxes(self) -> int:
        """How many partitions the outboxes of all sinks have."""
        return sum(len(self._outbox(sink)) for sink in self.graph.sinks)

    def _outbox(self, sink: str) -> list[TopicPartition]:
        name = self.prefix + next(w.outbox for w in self.graph.writes() if w.sink is not None and w.sink.name == sink)
        info = self.log.topics().get(name)
        return [TopicPartition(name, p) for p in range(info.partitions if info else 0)]

    # --- reading back ---

    def committed(self) -> Committed:
        """Everything committed in every topic of the run, and the group's positions."""
        return read_back(self.log, self.graph, self.prefix, self.group_sources(), self._reader.read)

    # --- leaving ---

    def remove(self) -> None:
        """Deletes the run's topics and groups."""
        admin = AdminClient(
            {
                "bootstrap.servers": self.url.removeprefix("kafka://"),
                "metadata.recovery.strategy": "none",
                "log_level": 0,
            }
        )
        names = [name for name in self.log.topics() if name.startswith(self.prefix)]
        if names:
            for future in admin.delete_topics(names).values():
                _quietly(future)
        groups = [f"{self.prefix}{name}{GROUP_ENDING}" for name in self.feeding.topics]
        groups += [self.prefix + self.graph.app, *(f"{self.prefix}{self.graph.app}.{s}" for s in self.graph.sinks)]
        for future in admin.delete_consumer_groups(groups).values():
            _quietly(future)

    def close(self) -> None:
        self._ended.set()
        if self._watching is not None:
            self._watching.join()
        for asker in self._askers.values():
            asker.close()
        self._reader.close()
        self.log.close()


Spans = Mapping[TopicPartition, tuple[int, int]]  # from, to


class Reader:
    """Committed records by a plain client, all partitions at once; nothing of semel's own way of reading is in it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._made: Consumer | None = None

    def read(self, spans: Spans) -> dict[TopicPartition, list[Row]]:
        """What a read_committed reader sees between the offsets. Waits for transactions that are open in between."""
        found: dict[TopicPartition, list[Row]] = {at: [] for at in spans}
        left = {at for at, (start, end) in spans.items() if start < end}
        if not left:
            return found
        if self._made is None:
            self._made = Consumer(
                {"bootstrap.servers": self._url.removeprefix("kafka://"), "group.id": "semel-verify-reads",
                 "isolation.level": "read_committed", "enable.partition.eof": True, "auto.offset.reset": "error",
                 "enable.auto.commit": False, "fetch.wait.max.ms": 50, "log_level": 0,
                 "allow.auto.create.topics": False}
            )  # fmt: skip
        consumer, deadline = self._made, time.monotonic() + SETTLE_S
        consumer.assign([At(at.topic, at.partition, spans[at][0]) for at in left])
        try:
            while left:
                messages, events = split(consumer.consume(READ_MAX, 0.2))
                for records in columns(messages):
                    found[records.source] += _rows(records)
                    if records.next_offset >= spans[records.source][1]:
                        left.discard(records.source)
                left -= {at for at, end in ends_of(events).items() if end >= spans[at][1]}
                if time.monotonic() > deadline:
                    raise ProofError(f"{', '.join(sorted({at.topic for at in left}))} cannot be read to the end.")
        finally:
            consumer.unassign()
        return found

    def close(self) -> None:
        if self._made is not None:
            self._made.close()


def read_back(
    log: Log,
    graph: g.Graph,
    prefix: str,
    group_sources: Sequence[TopicPartition],
    read: Callable[[Spans], Mapping[TopicPartition, list[Row]]] | None = None,
) -> Committed:
    """What a read_committed reader sees in every topic of the run, and the group's positions."""
    found = Committed()
    wanted = {*graph.topics, *graph.internal, g.internal_name(graph.app, "", g.InternalKind.ORDER)}
    topics = log.topics()
    infos = [topics[prefix + name] for name in sorted(wanted) if prefix + name in topics]
    partitions = [TopicPartition(info.name, p) for info in infos for p in range(info.partitions)]
    ends = log.ends(partitions)

    def one_by_one(spans: Spans) -> dict[TopicPartition, list[Row]]:
        return {at: [r for records in log.read(at, start, end) for r in _rows(records)]
                for at, (start, end) in spans.items()}  # fmt: skip

    for at, rows in (read or one_by_one)({at: (0, ends[at]) for at in partitions}).items():
        plain = TopicPartition(at.topic.removeprefix(prefix), at.partition)
        found.records[plain] = rows
        # Behind the last record only markers and aborted records can lie.
        found.ends[plain] = rows[-1].offset + 1 if rows else 0
    for at, position in log.committed(group_sources).items():
        if position is not None:
            plain = TopicPartition(at.topic.removeprefix(prefix), at.partition)
            found.positions[plain] = place_of(found.records.get(plain, []), position.offset, ends.get(at, 0))
    return found


def place_of(rows: Sequence[Row], position: int, end: int) -> int:
    """A position past markers and aborted records is the same place as right after the last record below it. One
    beyond the end of the log is no place in it: it would skip records yet to come, and stays what it is."""
    if position > end:
        return position
    below = [row.offset for row in rows if row.offset < position]
    return below[-1] + 1 if below else 0


def _quietly(future: Any) -> None:
    # What cannot be removed (never created, still in use for a moment) is the run's own and harms nobody.
    try:
        future.result(10)
    except Exception as why:
        del why


def _rows(records: Records) -> list[Row]:
    headers: Sequence[Headers | None] = records.headers or [None] * len(records.offsets)
    return [
        Row(o, t, k, v, origin_of(h), refused_of(h))
        for o, t, k, v, h in zip(
            records.offsets, records.timestamps, records.keys, records.values, headers, strict=True
        )
    ]


def sink_connections(graph: g.Graph, prefix: str) -> dict[str, tuple[Sink[Any, Any], Connection]]:
    """The run's own tables: each sink renamed by the prefix, as the workers do it."""
    found: dict[str, tuple[Sink[Any, Any], Connection]] = {}
    for name, sink in graph.sinks.items():
        own = sink.renamed(prefix)
        found[name] = (own, own.open(NoSteps()))
    return found
