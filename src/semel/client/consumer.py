"""A reader of partitions, sans I/O: positions, list offsets, fetch at either isolation level. No group: see member.py.

The user assigns partitions with positions and calls `poll` whenever it can take more; what comes is `Fetched`, in
offset order for each partition. Invariants: a position moves only past what was handed over or is invisible for ever,
so a lost answer is fetched again and nothing is skipped; an answer to a fetch from before a seek is not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Final, NamedTuple

from semel.broker import messages, requests
from semel.broker.errors import Error
from semel.ports import Records, TopicPartition
from semel.record import CorruptBatch, parse_all

from . import codes
from .effects import Answer, Call, Effect, Event, Fetched, Lost, Stuck, Tick
from .flights import Flights, backoff_ms, earliest
from .steps import by_topic
from .visible import visible

LATEST: Final = -1  # ListOffsets' own timestamps
EARLIEST: Final = -2


class Reset(Enum):
    """Where to go when a partition has no position, or one that the log does not have."""

    EARLIEST = EARLIEST
    LATEST = LATEST
    ERROR = 0


@dataclass(frozen=True, slots=True)
class ConsumerConfig:
    committed: bool = True
    reset: Reset = Reset.ERROR
    max_wait_ms: int = 500
    min_bytes: int = 1
    max_bytes: int = 50 << 20
    partition_max_bytes: int = 1 << 20
    request_timeout_ms: int = 5_000


@dataclass(slots=True)
class _Partition:
    position: int | None  # None: to be asked for
    version: int  # grows with each seek: an answer to an older question is dropped
    paused: bool = False
    stuck: bool = False


class _Asked(NamedTuple):
    """What a request in flight was about: the version of each partition in it."""

    api_key: int
    versions: Mapping[TopicPartition, int]


class Consumer:
    def __init__(self, config: ConsumerConfig) -> None:
        self.config = config
        self._flights: Flights[_Asked] = Flights(config.request_timeout_ms)
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._version = 0
        self._wanted = False  # `poll` was called and nothing was handed over since
        self._attempts = 0
        self._again_at_ms = 0
        self._turn = 0  # which partition goes first in the next fetch

    # --- What the user asks ---------------------------------------------------------------------------------------

    def assign(self, positions: Mapping[TopicPartition, int | None], now_ms: int) -> list[Effect]:
        """These partitions and no others, from these positions; None: where `reset` says. Those that were assigned
        before start anew."""
        self._partitions = {}
        for at, position in positions.items():
            self._partitions[at] = _Partition(position, self._next_version())
        return self._advance(now_ms, [])

    def seek(self, at: TopicPartition, position: int | None, now_ms: int) -> list[Effect]:
        partition = self._partitions[at]
        partition.position = position
        partition.version = self._next_version()
        partition.stuck = False
        return self._advance(now_ms, [])

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        for at in partitions:
            self._partitions[at].paused = True
            self._partitions[at].version = self._next_version()

    def resume(self, partitions: Iterable[TopicPartition], now_ms: int) -> list[Effect]:
        for at in partitions:
            self._partitions[at].paused = False
        return self._advance(now_ms, [])

    def poll(self, now_ms: int) -> list[Effect]:
        """Ready for more: a fetch is under way until something was handed over, however often it is lost."""
        self._wanted = True
        return self._advance(now_ms, [])

    def close(self) -> list[Effect]:
        out: list[Effect] = []
        self._partitions = {}
        self._wanted = False
        self._flights.close(out)
        return out

    @property
    def positions(self) -> dict[TopicPartition, int | None]:
        """The next offset to hand over, per partition; None until it is known."""
        return {at: partition.position for at, partition in self._partitions.items()}

    # --- What the world says --------------------------------------------------------------------------------------

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        out: list[Effect] = []
        match event:
            case Answer(token, message):
                asked = self._flights.answered(token)
                if asked is not None and asked.api_key == codes.FETCH:
                    self._fetched(asked, message, now_ms, out)
                elif asked is not None:
                    self._listed(asked, message, now_ms, out)
            case Lost(connection):
                if self._flights.lost(connection):
                    self._later(now_ms)
            case Tick():
                pass
        if self._flights.overdue(now_ms, out):
            self._later(now_ms)
        return self._advance(now_ms, out)

    @property
    def wake_at_ms(self) -> int | None:
        waiting = not self._flights and self._next_call() is not None
        return earliest(self._flights.wake_at_ms, self._again_at_ms if waiting else None)

    # --- What is next ---------------------------------------------------------------------------------------------

    def _advance(self, now_ms: int, out: list[Effect]) -> list[Effect]:
        """One request at a time: positions that are not known first, then a fetch, if one is wanted."""
        if not self._flights and now_ms >= self._again_at_ms:
            following = self._next_call()
            if following is not None:
                call, asked = following
                self._flights.send(0, call, asked, now_ms, out, patience_ms=self.config.max_wait_ms)
        return out

    def _next_call(self) -> tuple[Call, _Asked] | None:
        live = {at: p for at, p in self._partitions.items() if not p.paused and not p.stuck}
        lacking = [at for at, partition in live.items() if partition.position is None]
        if lacking:
            versions = {at: live[at].version for at in lacking}
            return Call(codes.LIST_OFFSETS, codes.VERSIONS[codes.LIST_OFFSETS], self._list(lacking)), _Asked(
                codes.LIST_OFFSETS, versions
            )
        if not self._wanted or not live:
            return None
        # Whoever went first goes last, so that one full partition does not starve the others.
        order = list(live)
        turn = self._turn % len(order)
        order = order[turn:] + order[:turn]
        versions = {at: live[at].version for at in order}
        return Call(codes.FETCH, codes.VERSIONS[codes.FETCH], self._fetch(order)), _Asked(codes.FETCH, versions)

    def _list(self, partitions: list[TopicPartition]) -> requests.ListOffsetsRequest:
        assert self.config.reset is not Reset.ERROR, f"{partitions} have no position and reset is ERROR"
        return requests.ListOffsetsRequest(
            replica_id=-1,
            isolation_level=int(self.config.committed),
            topics=tuple(
                requests.ListOffsetsTopic(
                    topic,
                    tuple(requests.ListOffsetsPartition(at.partition, self.config.reset.value) for at in found),
                )
                for topic, found in by_topic(partitions).items()
            ),
        )

    def _fetch(self, order: list[TopicPartition]) -> requests.FetchRequest:
        config = self.config
        topics: dict[str, list[requests.FetchPartition]] = {}
        for at in order:
            position = self._partitions[at].position
            assert position is not None, at
            topics.setdefault(at.topic, []).append(
                requests.FetchPartition(at.partition, position, config.partition_max_bytes)
            )
        return requests.FetchRequest(
            max_wait=timedelta(milliseconds=config.max_wait_ms),
            min_bytes=config.min_bytes,
            max_bytes=config.max_bytes,
            isolation_level=int(config.committed),
            topics=tuple(requests.FetchTopic(topic, tuple(found)) for topic, found in topics.items()),
        )

    # --- Answers --------------------------------------------------------------------------------------------------

    def _current(self, asked: _Asked, at: TopicPartition) -> _Partition | None:
        """The partition, if it is still what was asked about."""
        partition = self._partitions.get(at)
        return partition if partition is not None and partition.version == asked.versions.get(at) else None

    def _listed(self, asked: _Asked, message: object, now_ms: int, out: list[Effect]) -> None:
        assert isinstance(message, messages.ListOffsetsResponse), message
        failed = False
        for topic in message.topics:
            for answer in topic.partitions:
                at = TopicPartition(topic.name, answer.partition_index)
                partition = self._current(asked, at)
                if partition is None:
                    continue
                if answer.error_code == Error.NONE:
                    partition.position = answer.offset
                elif _again(answer.error_code):
                    failed = True
                else:
                    partition.stuck = True
                    out.append(Stuck(at, f"ListOffsets was answered {codes.name_of(answer.error_code)}"))
        self._settle(failed, now_ms)

    def _fetched(self, asked: _Asked, message: object, now_ms: int, out: list[Effect]) -> None:
        assert isinstance(message, messages.FetchResponse), message
        failed = message.error_code != Error.NONE
        handed = False
        self._turn += 1
        for topic in message.responses:
            for answer in topic.partitions:
                at = TopicPartition(topic.topic, answer.partition_index)
                partition = self._current(asked, at)
                if partition is None or partition.position is None:
                    continue
                if answer.error_code == Error.NONE:
                    handed |= self._hand_over(at, partition, answer, out)
                elif answer.error_code == Error.OFFSET_OUT_OF_RANGE:
                    self._out_of_range(at, partition, out)
                elif _again(answer.error_code):
                    failed = True
                else:
                    partition.stuck = True
                    out.append(Stuck(at, f"Fetch was answered {codes.name_of(answer.error_code)}"))
        if handed:
            self._wanted = False
        self._settle(failed and not handed, now_ms)

    def _hand_over(
        self, at: TopicPartition, partition: _Partition, answer: messages.PartitionData, out: list[Effect]
    ) -> bool:
        assert partition.position is not None, at
        aborted = [(t.producer_id, t.first_offset) for t in answer.aborted_transactions or ()]
        try:
            batches = parse_all(b"".join(answer.records or ()), where=f"{at.topic}-{at.partition}", partial=True)
            seen = visible(batches, partition.position, aborted, committed=self.config.committed)
        except CorruptBatch as error:
            partition.stuck = True
            out.append(Stuck(at, str(error)))
            return False
        if seen.next_offset == partition.position:
            return False
        partition.position = seen.next_offset
        found = seen.columns
        records = Records(
            at,
            found.offsets,
            found.timestamps,
            found.keys,
            found.values,
            found.headers,
            seen.next_offset,
            seen.leader_epoch,
            seen.first_epoch,
        )
        out.append(Fetched(records, answer.high_watermark, answer.last_stable_offset))
        return True

    def _out_of_range(self, at: TopicPartition, partition: _Partition, out: list[Effect]) -> None:
        if self.config.reset is Reset.ERROR:
            partition.stuck = True
            out.append(Stuck(at, f"offset {partition.position} is not in the log, and no reset is allowed"))
        else:
            partition.position = None
            partition.version = self._next_version()

    def _settle(self, failed: bool, now_ms: int) -> None:
        if failed:
            self._later(now_ms)
        else:
            self._attempts = 0

    def _later(self, now_ms: int) -> None:
        self._attempts += 1
        self._again_at_ms = now_ms + backoff_ms(self._attempts)

    def _next_version(self) -> int:
        self._version += 1
        return self._version


def _again(code: int) -> bool:
    return code in codes.ELSEWHERE or code in (
        Error.UNKNOWN_TOPIC_OR_PARTITION,
        Error.FENCED_LEADER_EPOCH,
        Error.UNKNOWN_LEADER_EPOCH,
        78,  # OFFSET_NOT_AVAILABLE
    )
