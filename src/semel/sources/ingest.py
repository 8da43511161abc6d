"""The ingest: takes a source's records into the log, and where the source is read to, in one transaction.

Pure over `ports.Log`, `ports.Ingestor`, the source's connection and `ports.Steps`; the clock is an argument of `step`.
A source has lanes; a lane is owned by who initialised the transactional id TOPIC.ingest.LANE last. Which member of a
group works on which lane is decided by the group (TOPIC.ingest, over the positions' partitions); the fence is the id.

Invariants: a record and the position behind it are committed together; between initialising the id and the next claim
nothing is read but from the positions that were committed then, and what this owner has committed since; a superseded
ingest can commit nothing. An unknown, refused or failed transaction ends the claim: the next one initialises, reads the
positions again and goes on from there, whatever became of that transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semel.ports import (
    Done,
    Fenced,
    Headers,
    Ingestor,
    Ingestors,
    Log,
    NewRecord,
    NewTopic,
    NoSteps,
    NotDone,
    Outcome,
    Records,
    Step,
    Steps,
    TopicPartition,
    Unknown,
)
from semel.record.murmur2 import partition_for
from semel.sinks.trouble import Trouble, pause_ms
from semel.source_ports import Portion, Source, SourceConnection, SourceRow
from semel.sources import positions
from semel.sources.source import SourceDiverged, SourceError

RECORDS_MAX = 5_000  # of one transaction
FENCED_MS = 500  # the group tells a superseded member that it is one within a heartbeat: time to hear it
PARTITIONS_NEW = 4


@dataclass(slots=True)
class _Lane:
    at: TopicPartition  # its partition of the positions
    topic_id: str = ""  # of the topic that is fed, as the claim found it
    owner: Ingestor | None = None
    connection: SourceConnection | None = None  # None: not claimed
    due_ms: int = 0
    failures: int = 0
    exhausted: bool = False


class Ingest:
    """`prepare`, `join`, then `step` again and again, then `close`. Raises SourceError and LogLost: nothing was lost,
    and nothing goes on without a person. `say` is given a sentence when a trouble begins, lasts and ends.

    `name`: of the topic on the log. `follow`: the source is read for ever; else until `finished`. `begin`: the topic
    may hold records of others already."""

    def __init__(
        self,
        log: Log,
        source: Source,
        topic: Any,
        *,
        owners: Ingestors,
        name: str = "",
        follow: bool = True,
        begin: bool = False,
        records_max: int = RECORDS_MAX,
        steps: Steps | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._log, self._source, self._declared, self._owners = log, source, topic, owners
        self._topic: str = name or topic.name
        self._positions = self._topic + positions.ENDING
        self._refused = self._topic + positions.REFUSED_ENDING
        self._follow, self._begin = follow, begin
        self._records_max = records_max
        self._steps = steps or NoSteps()
        self._trouble = Trouble(source.where, say, "reading")
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._partitions = 0
        self._spread = 0
        self._now_ms = 0
        self._busy = False
        self.records = 0  # committed by this ingest
        self.refused = 0  # of them, in the dead letters

    def prepare(self) -> None:
        """Makes what is missing. A topic that holds records while nothing tells where the source was read to is
        somebody else's, or its positions were deleted: refused, unless told to begin."""
        known = self._log.topics()
        if self._topic in known and self._positions not in known and not self._begin:
            everywhere = [TopicPartition(self._topic, p) for p in range(known[self._topic].partitions)]
            starts, ends = self._log.starts(everywhere), self._log.ends(everywhere)
            if any(ends[at] > starts[at] for at in everywhere):
                raise SourceError(
                    f"{self._log.name}: {self._topic} holds records, and there is no {self._positions} to tell which "
                    f"of them are of {self._source.where}. If none is: `semel ingest APP.py --begin {self._topic}`. If "
                    "that topic was deleted: put it back, or read into another topic."
                )
        # In this order: an ingest that ends in between finds an empty topic without positions, and begins.
        # Kept for ever by default: retention would delete what no app has read yet.
        partitions = self._declared.partitions or PARTITIONS_NEW
        self._log.create([NewTopic(self._topic, partitions, {"retention.ms": "-1"})])
        self._log.create([NewTopic(self._positions, self._source.lanes, positions.CONFIG)])
        if self._declared.on_error == "dead-letter":
            self._log.create([NewTopic(self._refused, 1, {"retention.ms": "-1"})])
        positions.check(self._log, self._topic, self._source.lanes)
        self._partitions = self._log.topics()[self._topic].partitions

    def join(self) -> None:
        """Enters the group."""
        self._log.join([self._positions], self)

    def close(self) -> None:
        """Lets go of the source and of the ids; the session is the caller's. What is in no commit is read again."""
        for lane in self._lanes.values():
            _release(lane)
        self._lanes.clear()

    def finished(self) -> bool:
        """Whether everything was read that was there, of the lanes that this member has; False while it has none."""
        return bool(self._lanes) and all(lane.exhausted for lane in self._lanes.values())

    @property
    def lanes(self) -> int:
        return len(self._lanes)

    def progress(self) -> str:
        told = [lane.connection.progress() for lane in self._lanes.values() if lane.connection is not None]
        return "; ".join(filter(None, told))

    # --- ports.Listener: called from within poll ----------------------------------------------------------------

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self._log.pause(partitions)  # they are read once, at a claim, and not as a member
        self._lanes = {at: _Lane(at, due_ms=self._now_ms) for at in partitions}

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.lost(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        for at in partitions:
            if (lane := self._lanes.pop(at, None)) is not None:
                _release(lane)
                self._trouble.dropped(at)

    # --- a turn -----------------------------------------------------------------------------------------------------

    def step(self, now_ms: int, wait_s: float) -> int:
        """Claims, reads and commits what is due; 0 when there was nothing. Waits at most `wait_s` when the turn
        before had nothing."""
        self._now_ms = now_ms
        polled: Sequence[Records] = self._log.poll(0.0 if self._busy else wait_s)
        assert not any(records.offsets for records in polled), "positions are not read as a member"
        count = 0
        for lane in list(self._lanes.values()):
            if now_ms < lane.due_ms:
                continue
            if lane.connection is None:
                self._claim(lane)
            if lane.connection is not None and now_ms >= lane.due_ms:
                count += self._one(lane, lane.connection)
        self._busy = count > 0
        return count

    def _claim(self, lane: _Lane) -> None:
        known = self._log.topics()
        for topic in (self._topic, self._positions):
            if topic not in known:
                raise SourceError(
                    f"{self._log.name}: the topic {topic} is gone, and with it what {self._source.where} was read "
                    "into, or how far. Nothing more is read. Put the topic back."
                )
        lane.topic_id = known[self._topic].topic_id
        if lane.owner is None:
            id = f"{self._topic}{positions.GROUP_ENDING}.{lane.at.partition}"
            lane.owner = self._owners(id, self._source.transaction_ms)
        # In this order: what a former owner could still commit is decided or aborted when the positions are read.
        lane.owner.initialise()
        try:
            found = positions.read(self._log, lane.at, self._topic, lane.topic_id, self._source.contract.name)
        except positions.Undecided as why:
            return self._later(lane, str(why))
        connection = self._source.open(self._declared, lane.at.partition, self._follow)
        try:
            claimed = connection.claim(found)
        except SourceError as why:
            connection.close()
            if isinstance(why, SourceDiverged) and (newer := self._overtaken(lane, found)):
                self._steps.reached(Step.SOURCE_FENCED)
                return self._later(lane, newer, FENCED_MS)
            raise
        if isinstance(claimed, NotDone):
            connection.close()
            return self._later(lane, claimed.reason)
        lane.connection = connection
        self._steps.reached(Step.INGEST_CLAIM)
        return None

    def _overtaken(self, lane: _Lane, found: Mapping[str, bytes]) -> str:
        """What differs from the log may be ahead of what we have read there: another owner has taken the lane over
        since and has read on, and its source has let go of that. What a source lets go of is in the log before."""
        try:
            now = positions.read(self._log, lane.at, self._topic, lane.topic_id, self._source.contract.name)
        except positions.Undecided as why:
            return str(why)
        if now == found:
            return ""
        return f"{self._source.where}: another ingest has taken over and read on"

    def _later(self, lane: _Lane, reason: str, at_least_ms: int = 0) -> None:
        """Ends the claim; another one is tried after a pause that grows."""
        if lane.connection is not None:
            lane.connection.close()
            lane.connection = None
        self._retry(lane, reason, at_least_ms)

    def _retry(self, lane: _Lane, reason: str, at_least_ms: int = 0) -> None:
        lane.due_ms = self._now_ms + max(pause_ms(lane.failures), at_least_ms)
        lane.failures += 1
        lane.exhausted = False
        self._trouble.met(lane.at, reason, self._now_ms)

    def _one(self, lane: _Lane, connection: SourceConnection) -> int:
        portion = connection.read(self._records_max)
        if isinstance(portion, NotDone):
            self._retry(lane, portion.reason)
            return 0
        if not portion.positions and portion.complete:
            lane.due_ms = self._now_ms + portion.idle_ms
            lane.exhausted = connection.exhausted()
            self._went_well(lane)
            return 0
        lane.exhausted = False
        self._steps.reached(Step.INGEST_READ)
        assert lane.owner is not None
        match self._committed(lane, lane.owner, portion):
            case Done() if not portion.complete:
                return len(portion.rows) or 1
            case Done():
                self._steps.reached(Step.INGEST_COMMIT)
                connection.committed()
                self._went_well(lane)
                self.records += len(portion.rows)
                self.refused += sum(1 for row in portion.rows if row.refused)
                return len(portion.rows) or 1
            case Fenced(reason):
                self._steps.reached(Step.SOURCE_FENCED)
                self._later(lane, reason, FENCED_MS)
            case NotDone(reason) | Unknown(reason):
                self._later(lane, f"{self._log.name}: {self._topic}: {reason}")
        return 0

    def _committed(self, lane: _Lane, owner: Ingestor, portion: Portion) -> Outcome:
        """One transaction: the records, then the positions behind them. Of a portion that is not complete the records
        only, and it stays open."""
        if portion.rows:
            sent = owner.send([self._record(row) for row in portion.rows])
            if not isinstance(sent, Done):
                return sent
        self._steps.reached(Step.INGEST_RECORDS)
        if not portion.complete:
            return Done()
        behind = [
            NewRecord(
                *lane.at,
                at.encode(),
                None if value is None else positions.encoded(lane.topic_id, self._source.contract.name, value),
                self._now_ms,
            )
            for at, value in portion.positions.items()
        ]
        sent = owner.send(behind)
        if not isinstance(sent, Done):
            return sent
        self._steps.reached(Step.INGEST_POSITION)
        return owner.commit()

    def _record(self, row: SourceRow) -> NewRecord:
        if row.refused:
            headers: Headers = [("semel-reason", row.refused.encode()), ("semel-place", row.place.encode())]
            return NewRecord(self._refused, 0, row.key, row.value, self._now_ms, headers)
        if row.key is None:
            self._spread = (self._spread + 1) % self._partitions
            partition = self._spread
        else:
            partition = partition_for(row.key, self._partitions)
        return NewRecord(self._topic, partition, row.key, row.value, self._now_ms)

    def _went_well(self, lane: _Lane) -> None:
        lane.failures = 0
        self._trouble.mended(lane.at)


def _release(lane: _Lane) -> None:
    if lane.connection is not None:
        lane.connection.close()
        lane.connection = None
    if lane.owner is not None:
        lane.owner.close()
        lane.owner = None
