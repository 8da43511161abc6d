"""An embedded folder as one who looks at it sees it. The folder is locked meanwhile, so nobody writes beside us.

Invariant: as `looking.Look` has it, and a folder that is no log is not made one by looking. (Opening it is a start of
the log like any other: transactions that the dead left open end.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from semel.broker import admin_requests, requests
from semel.errors import UsageError
from semel.host.embedded import EmbeddedLog
from semel.host.engine import Ask, Engine
from semel.host.looking import END, START, PartitionSeen, TopicSeen, no_offset, no_topic
from semel.ports import LogLost, NewTopic, Records, TopicPartition

LIST_OFFSETS, METADATA, LOG_DIRS = 2, 3, 35


class EmbeddedLook:
    """`make`: for writing; without it the folder must hold a log already."""

    def __init__(self, url: str, *, make: bool) -> None:
        folder = Path(url.removeprefix("embedded:"))
        if not make and not (folder / "format").exists():
            raise UsageError(f"{folder} holds no semel log. Give the folder of one: embedded:DIR.")
        self._engine = Engine(folder)
        self._connection = self._engine.connect()
        self.name = self._engine.name

    def _ask(self, api_key: int, version: int, message: Any) -> Any:
        return self._engine.ask(self._connection, Ask(api_key, version, message))

    def _metadata(self) -> list[Any]:
        found = self._ask(METADATA, 12, requests.MetadataRequest(None, allow_auto_topic_creation=False)).topics
        return sorted(found, key=lambda topic: topic.name)

    def topics(self) -> list[TopicSeen]:
        known = self._metadata()
        every = [TopicPartition(t.name, p.partition_index) for t in known for p in t.partitions]
        starts, ends = self._offsets(every, START), self._offsets(every, END)
        sizes: dict[TopicPartition, int] = {}
        for result in self._ask(LOG_DIRS, 1, admin_requests.DescribeLogDirsRequest(None)).results:
            for topic in result.topics:
                for p in topic.partitions:
                    sizes[TopicPartition(topic.name, p.partition_index)] = p.partition_size
        return [
            TopicSeen(
                t.name,
                t.is_internal,
                [
                    PartitionSeen(starts[at], ends[at], sizes.get(at))
                    for at in (TopicPartition(t.name, n) for n in range(len(t.partitions)))
                ],
            )
            for t in known
        ]

    def partitions(self, topic: str) -> int:
        for found in self._metadata():
            if found.name == topic:
                return len(found.partitions)
        raise UsageError(no_topic(self.name, topic))

    def _offsets(self, partitions: Sequence[TopicPartition], which: int) -> dict[TopicPartition, int]:
        found = {}
        for at in partitions:
            asked = requests.ListOffsetsTopic(at.topic, (requests.ListOffsetsPartition(at.partition, which),))
            answer = self._ask(LIST_OFFSETS, 7, requests.ListOffsetsRequest(-1, (asked,)))
            told = answer.topics[0].partitions[0]
            if told.error_code:
                raise LogLost(f"{self.name}: {self._engine.damage(*at) or f'{at}: error {told.error_code}'}")
            found[at] = told.offset
        return found

    def since(self, partitions: Sequence[TopicPartition], timestamp_ms: int) -> Mapping[TopicPartition, int]:
        return self._offsets(partitions, timestamp_ms)

    def records(
        self, starts: Mapping[TopicPartition, int], *, committed: bool = True, follow: bool = False
    ) -> Iterator[Records]:
        if follow:
            raise UsageError(f"{self.name}: --follow would wait for ever: nobody else can write while we read here.")
        log = EmbeddedLog(self._engine, isolation="read_committed" if committed else "read_uncommitted")
        for at, offset in starts.items():
            first, end = self._offsets([at], START)[at], self._offsets([at], END)[at]
            start = {START: first, END: end}.get(offset, offset)
            if not first <= start <= end:
                raise UsageError(no_offset(self.name, at.topic, at.partition, start))
            for records in log.read(at, start, end):
                if not records.offsets and records.next_offset == start:
                    break  # undecided from here on
                start = records.next_offset
                yield records
        log.close()

    def create(self, topic: str, partitions: int) -> None:
        if not any(found.name == topic for found in self._metadata()):
            log = EmbeddedLog(self._engine)
            log.create([NewTopic(topic, partitions)])
            log.close()

    def writer(self) -> EmbeddedLog:
        return EmbeddedLog(self._engine)

    def close(self) -> None:
        self._engine.close()
