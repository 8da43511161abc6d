"""What it means to look at a log from outside: the common view of a Kafka cluster and of an embedded folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from semel.ports import Records, TopicPartition, Write

START, END = -2, -1  # as Kafka writes them, where an offset is asked for


@dataclass(frozen=True, slots=True)
class PartitionSeen:
    start: int
    end: int
    size: int | None  # bytes; None when the log does not say


@dataclass(frozen=True, slots=True)
class TopicSeen:
    name: str
    internal: bool
    partitions: Sequence[PartitionSeen]


class Writer(Protocol):
    def writer(self, topic: str) -> Write: ...
    def flush(self) -> None:
        """Returns when everything written is acknowledged; LogLost when something was not."""
        ...

    def close(self) -> None: ...


class Look(Protocol):
    """Looking changes nothing: no group is joined, no offset committed, no topic made by asking for it."""

    def topics(self) -> list[TopicSeen]:
        """All of them, by name."""
        ...

    def partitions(self, topic: str) -> int:
        """How many the topic has; UsageError when there is no such topic."""
        ...

    def since(self, partitions: Sequence[TopicPartition], timestamp_ms: int) -> Mapping[TopicPartition, int]:
        """The first offset at or after a time; END where there is none."""
        ...

    def records(
        self, starts: Mapping[TopicPartition, int], *, committed: bool = True, follow: bool = False
    ) -> Iterator[Records]:
        """From these offsets (or START, END) to the end of each partition as it is when it is reached; for a
        committed reader that is where the first undecided transaction begins. With `follow` for ever."""
        ...

    def create(self, topic: str, partitions: int) -> None:
        """Makes a topic, or leaves the one that is there."""
        ...

    def writer(self) -> Writer: ...
    def close(self) -> None: ...


def no_topic(url: str, topic: str) -> str:
    return f"{url}: there is no topic {topic!r}. `semel topics --on {url}` lists them, `semel write` makes one."


def no_offset(url: str, topic: str, partition: int, offset: int | None) -> str:
    return f"{topic}-{partition} has no offset {offset}. `semel topics {topic} --on {url}` shows what there is."
