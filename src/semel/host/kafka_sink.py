"""One connection of one delivery to another Kafka cluster: claim, write, and what of it is read back.

Who initialised the transactional id APP.SINK.PARTITION at the target last owns the partition; each batch is one
transaction of that id with the records and the record of the position. Invariants: a position is read after the id was
initialised, up to the end of its partition as it is for a reader of everything (READ_UNCOMMITTED): the stable end lies
below it while anybody's transaction is open, and what is read there is an older position (FAULTS P1). What was not
committed for certain, or was written over a connection that failed, ends the claim (B1, S8): only a claim initialises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.host.cluster import ClusterLog
from semel.host.kafka_client import KafkaError, address
from semel.host.kafka_owner import KafkaOwner
from semel.ports import (
    Done,
    Fenced,
    LogLost,
    NewRecord,
    NewTopic,
    NotDone,
    Outcome,
    Step,
    Steps,
    TopicInfo,
    TopicPartition,
    Unknown,
)
from semel.sinks import positions
from semel.sinks.sink import Diverged, RowRefused, SinkError

if TYPE_CHECKING:
    from semel.sinks.kafka_topic import KafkaTopic

# Small segments: only those that are full are compacted, and a claim reads what is left.
POSITIONS = {"cleanup.policy": "compact", "segment.bytes": str(16 << 20)}
TAIL = 256  # offsets that are read first
MAX_BYTES = "max.message.bytes"
MAX_BYTES_DEFAULT = 1_048_588
BATCH_BYTES = 1_000_000
OVERHEAD_BYTES = 100  # of a batch of one record, besides key and value
LINGER_MS = 5
FOR_EVER = (1 << 63) - 1
CLIENT_BYTES = 1_000_000_000  # the client's own limit stands aside: the topic's is the one that counts

Answer = TypeVar("Answer")


class Record(msgspec.Struct, frozen=True):
    """The position of one partition, as the positions topic holds it under `key_of`."""

    epoch: int  # counts claims
    incarnation: int
    position: int
    run: str
    topic_id: str  # of the outbox, as its count of partitions: what `position` is a position in
    partitions: int
    target: str  # id of the topic that holds the records below `position`
    holder: str


class Undecided(Exception):
    """Somebody's transaction stays open in the positions topic."""


@dataclass(slots=True)
class _Lane:
    """One partition that this connection has claimed."""

    owner: KafkaOwner
    bytes_max: int  # what its batches are made for
    record: Record | None = None  # as it was read or written last under this ownership
    sure: bool = False  # that `record` is what a reader finds: no batch is under way or unknown
    fenced: str = ""


def key_of(app: str, sink: str, partition: int) -> bytes:
    return msgspec.json.encode([app, sink, partition])


class KafkaTopicConnection:
    """See `ports.SinkConnection`."""

    def __init__(self, sink: KafkaTopic, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        settings = dict(address(sink.url).settings) | sink.options
        self._url = f"kafka://{urlsplit(sink.url).netloc}?{urlencode(settings)}"
        # Below the hand-over time: a claim asks several things.
        self._at = replace(address(self._url), patience_s=self._patience_s)
        self._made: ClusterLog | None = None
        self._lanes: dict[DeliveryId, _Lane] = {}
        self._places: dict[DeliveryId, TopicPartition] = {}  # where their positions lie
        self._bytes_max = MAX_BYTES_DEFAULT
        self._times_ms = (-FOR_EVER, FOR_EVER)  # of records, from now: what the topic takes
        self._keyed_only = False  # a compacted topic takes no record without a key
        self._target = ""  # the topic's id
        self._notes: list[str] = []

    def _patience_s(self) -> float:
        return self._sink.hand_over_s / 2

    @property
    def _log(self) -> ClusterLog:
        if self._made is None:
            self._made = ClusterLog(self._url, patience_s=self._patience_s)
        return self._made

    def _trying(self, what: Callable[[], Answer]) -> Answer | NotDone:
        """A cluster that is away is NotDone; what only a person can mend is raised."""
        try:
            return what()
        except LogLost as why:
            return NotDone(f"{self._sink.where}: {why}")
        except Undecided as why:
            return NotDone(f"{self._sink.where}: {why}")

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.owner.close()
        self._lanes.clear()
        if self._made is not None:
            self._made.close()
            self._made = None

    # --- the topic ------------------------------------------------------------------------------------------------

    def prepare(self, value_type: object) -> Done | NotDone:
        outcome = self._trying(self._prepare)
        return outcome if isinstance(outcome, NotDone) else Done()

    def _prepare(self) -> Mapping[str, TopicInfo]:
        """The topic is there, and its settings are known. Returns the topics of the cluster."""
        sink, log = self._sink, self._log
        known = log.topics()
        if sink.topic not in known:
            log.create([NewTopic(sink.topic, sink.partitions or -1)])
            known = log.topics()
        found = known.get(sink.topic)
        if found is None:
            raise LogLost(f"the topic {sink.topic} was made and is not to be seen yet")
        if sink.partitions not in (None, found.partitions):
            raise SinkError(
                f"{sink.where} has {found.partitions} partitions, the program says partitions={sink.partitions}. Keys "
                "would lie elsewhere than the program's author thinks: say what is there, or leave it out."
            )
        config = log.config(sink.topic)
        self._target = found.topic_id
        self._bytes_max = int(config.get(MAX_BYTES, MAX_BYTES_DEFAULT))
        self._keyed_only = "compact" in config.get("cleanup.policy", "")
        before, after = (int(config.get(f"message.timestamp.{side}.max.ms", FOR_EVER)) for side in ("before", "after"))
        self._times_ms = (-before, after)
        self._notes = list(self._weaknesses(config))
        return known

    def _weaknesses(self, config: Mapping[str, str]) -> Iterator[str]:
        where, topic = self._sink.where, self._sink.topic
        copies, least = self._log.replicas(topic), int(config.get("min.insync.replicas", "1"))
        if copies < 2:
            yield (
                f"{where} has one replica: what it acknowledged survives kill -9 of its broker, and a power cut only "
                "where the broker syncs before it answers (`semel broker` at durability=fsync; Apache Kafka does not)."
            )
        elif least < 2:
            yield (
                f"{where} has min.insync.replicas={least}: a record that one broker alone held can be acknowledged and "
                "lost with it. Set it to 2, also for the cluster's __transaction_state and for semel's positions topic."
            )
        if config.get("unclean.leader.election.enable") == "true":
            yield f"{where} has unclean.leader.election.enable=true: who lacks what was acknowledged may come to lead."
        if config.get("message.timestamp.type") == "LogAppendTime":
            yield f"{where} has message.timestamp.type=LogAppendTime: records get the time of their delivery."

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    # --- positions ------------------------------------------------------------------------------------------------

    def _place(self, app: str, partition: int, known: Mapping[str, TopicInfo]) -> TopicPartition:
        """Where the positions of this partition lie. A topic made for fewer partitions holds several in one."""
        topic = self._sink.positions_topic(app)
        return TopicPartition(topic, partition % known[topic].partitions)

    def _read(self, at: TopicPartition, key: bytes, *, decided_only: bool = False) -> Record | None:
        """The last record of this key up to the end of the partition, READ_UNCOMMITTED, or with `decided_only` up to
        the first open transaction. The caller has initialised the id, if what it reads is to count."""
        first, end = self._log.starts([at])[at], self._end(at)
        back = TAIL
        while True:
            # The last one counts, and is near the end; there is one for every batch until the topic is compacted.
            start = max(first, end - back)
            last = self._last(at, key, start, end, decided_only)
            if last is not None or start == first:
                return last
            back *= 16

    def _end(self, at: TopicPartition) -> int:
        return self._log.ends([at])[at]

    def _last(self, at: TopicPartition, key: bytes, start: int, end: int, decided_only: bool) -> Record | None:
        last: bytes | None = None
        until = time.monotonic() + self._sink.hand_over_s
        for records in self._log.read(at, start, end):
            for found, value in zip(records.keys, records.values, strict=True):
                last = value if found == key else last
            if records.undecided and decided_only:
                break
            if records.undecided and time.monotonic() > until:
                raise Undecided(
                    f"a transaction is open in {at.topic}-{at.partition} at {records.next_offset} that is not of this "
                    "delivery; the position behind it is not known before it ends"
                )
        if last is None:
            return None
        try:
            return msgspec.json.decode(last, type=Record)
        except msgspec.MsgspecError as why:
            raise Diverged(
                f"{self._sink.where}: what {at.topic}-{at.partition} says was not written by semel ({why}). Nothing "
                "was delivered. Put the former record back."
            ) from None

    def _all(
        self, app: str, known: Mapping[str, TopicInfo], count: int, *, decided_only: bool = True
    ) -> dict[int, Record]:
        """What is remembered of each partition, of `count` or more of them."""
        name = self._sink.positions_topic(app)
        if name not in known:
            return {}
        found: dict[int, Record] = {}
        partition, count = 0, max(count, known[name].partitions)
        while partition < count:
            key = key_of(app, self._sink.name, partition)
            record = self._read(self._place(app, partition, known), key, decided_only=decided_only)
            if record is not None:
                found[partition] = record
                count = max(count, record.partitions)
            partition += 1
        return found

    def _same_log(self, delivery: DeliveryId, log: LogIdentity, found: Mapping[int, Record]) -> None:
        stored = [positions.Stored(p, record.topic_id, record.partitions) for p, record in found.items()]
        positions.same_log(delivery, log, stored, self._sink.where)

    # --- the claim ------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        return self._trying(lambda: self._claim(delivery, log))

    def _claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        known = self._prepare()
        name = self._sink.positions_topic(delivery.app)
        if name not in known:
            self._log.create([NewTopic(name, log.partitions, POSITIONS)])
            known = self._log.topics()
        policy = self._log.config(name).get("cleanup.policy", "compact")
        if policy != "compact":
            raise SinkError(
                f"{self._sink.where}: {name} has cleanup.policy={policy}: it could forget where the delivery is. Set "
                "cleanup.policy=compact."
            )
        at, key = self._place(delivery.app, delivery.partition, known), _key(delivery)
        # Before anybody is fenced: whose outbox is not this delivery's has nothing to claim here.
        said = self._read(at, key, decided_only=True)
        others = {delivery.partition: said} if said else self._all(delivery.app, known, log.partitions)
        self._same_log(delivery, log, others)
        incarnation = max((record.incarnation for record in others.values()), default=1)
        lane = self._lanes.get(delivery)
        if lane is None or lane.bytes_max != self._bytes_max:
            if lane is not None:
                lane.owner.close()
            lane = self._lanes[delivery] = _Lane(self._owner(delivery), self._bytes_max)
        self._places[delivery] = at
        lane.sure, lane.fenced = False, ""
        said = self._taken_over(lane, at, key)
        if said is not None:
            self._same_log(delivery, log, {delivery.partition: said})
            self._same_target(delivery, said)
        now = Record(
            epoch=1 if said is None else said.epoch + 1,
            incarnation=incarnation if said is None else said.incarnation,
            position=0 if said is None else said.position,
            run="" if said is None else said.run,
            topic_id=log.topic_id,
            partitions=log.partitions,
            target=self._target,
            holder=positions.here(),
        )
        outcome = lane.owner.append(at, [(key, msgspec.json.encode(now))], _now_ms())
        if not isinstance(outcome, Done):
            return NotDone(f"{self._sink.where}: partition {delivery.partition} could not be claimed: {outcome.reason}")
        lane.record, lane.sure = now, True
        return Claim(delivery, now.epoch, now.incarnation, now.position, now.run, log)

    def _owner(self, delivery: DeliveryId) -> KafkaOwner:
        sink = self._sink
        more = {
            "linger.ms": LINGER_MS,
            "batch.size": max(1, min(BATCH_BYTES, self._bytes_max - OVERHEAD_BYTES)),
            "message.max.bytes": CLIENT_BYTES,
        }
        transactional_id = f"{delivery.app}.{sink.name}.{delivery.partition}{sink.suffix}"
        return KafkaOwner(self._at, transactional_id, more=more)

    def _taken_over(self, lane: _Lane, at: TopicPartition, key: bytes) -> Record | None:
        """The id first, then the position: what a former owner left open has ended, and it can commit nothing more."""
        lane.owner.initialise()
        lane.record = self._read(at, key)
        return lane.record

    def _same_target(self, delivery: DeliveryId, said: Record) -> None:
        if said.position and self._target and said.target and said.target != self._target:
            raise Diverged(
                f"{self._sink.where} was deleted and made anew: its id is {self._target}, what was delivered up to "
                f"offset {said.position} of partition {delivery.partition} lay in {said.target} and would be missing "
                f"for good. Have it filled from the start of the outbox: `semel sink rewind APP.py {delivery.sink} "
                f"--to-start`; or, if the former records are not wanted, let what is at the sink stand: `semel sink "
                f"adopt APP.py {delivery.sink} --at sink`."
            )

    # --- a batch --------------------------------------------------------------------------------------------------

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        assert start < end, (start, end)
        where, lane = self._sink.where, self._lanes.get(claim.delivery)
        if lane is None or lane.record is None:
            return NotDone(f"{where}: the connection of the claim is gone")
        said = lane.record
        if not lane.fenced and not lane.sure:
            return NotDone(f"{where}: the batch before was not acknowledged; the position is read again")
        if lane.fenced or (claim.epoch, start) != (said.epoch, said.position):
            there = lane.fenced or f"epoch {said.epoch}, position {said.position}, held by {said.holder}"
            return Fenced(f"{where}: {there}; ours was epoch {claim.epoch}, position {start}")
        self._look_at(rows)
        now = msgspec.structs.replace(said, position=end, run=run)
        lane.sure = False
        try:
            outcome = self._committed(lane, claim.delivery, now, rows)
        except LogLost as why:
            outcome = Unknown(f"{where}: {why}")
        if isinstance(outcome, Done):
            # After a lost connection the id is initialised anew, which only a claim may do.
            lane.record, lane.sure = now, lane.owner.good
        elif isinstance(outcome, Fenced):
            lane.fenced = self._told(claim.delivery) or outcome.reason
            outcome = Fenced(f"{where}: {lane.fenced}; ours was epoch {claim.epoch}, position {start}")
        return outcome

    def _committed(self, lane: _Lane, delivery: DeliveryId, now: Record, rows: Sequence[Row]) -> Outcome:
        owner, reached = lane.owner, self._steps.reached
        position = NewRecord(*self._places[delivery], _key(delivery), msgspec.json.encode(now), _now_ms())
        reached(Step.ROWS_BEFORE)
        sent = owner.hand_over(self._sink.topic, rows)
        if isinstance(sent, Done):
            reached(Step.ROWS_AFTER)
            reached(Step.POSITION_BEFORE)
            sent = owner.send([position])
        if not isinstance(sent, Done):
            self._refused(owner, rows)
            return _at(self._sink.where, sent)
        reached(Step.POSITION_AFTER)
        reached(Step.SINK_BEFORE)
        outcome = owner.commit()
        if isinstance(outcome, Done):
            reached(Step.SINK_AFTER)
        return _at(self._sink.where, outcome)

    def _look_at(self, rows: Sequence[Row]) -> None:
        """Raises RowRefused for the first record that the topic will not take, as far as it says so. No statement per
        record where all is well."""
        most, keys = self._bytes_max - OVERHEAD_BYTES, [row.key for row in rows]
        largest = max(map(len, filter(None, keys)), default=0)
        largest += max((len(row.value) for row in rows if row.value is not None), default=0)
        if largest > most:
            sizes = ((row, len(row.key or b"") + len(row.value or b"")) for row in rows)
            for row, size in sizes:
                if size > most:
                    what = f"it has {size:,} bytes; {MAX_BYTES} of {self._sink.topic} is {self._bytes_max:,}"
                    raise RowRefused(what, row.offset)
        if self._keyed_only and None in keys:
            raise RowRefused(f"it has no key, and {self._sink.topic} is compacted", rows[keys.index(None)].offset)

    def _refused(self, owner: KafkaOwner, rows: Sequence[Row]) -> None:
        """Raises RowRefused when the broker refused a record that it will never take, and it can be told which one. Of
        a record that is none the broker names it; of one from another time it names the whole batch."""
        named = {m.key(): m.error() for m in owner.untaken}
        codes = {error.code() for error in named.values() if error is not None}
        if codes == {KafkaError.INVALID_RECORD}:
            untaken = {(m.key(), m.value()) for m in owner.untaken}
            bad = next((row for row in rows if (row.key, row.value) in untaken), None)
        elif codes == {KafkaError.INVALID_TIMESTAMP}:
            first, last = (_now_ms() + ms for ms in self._times_ms)
            bad = next((row for row in rows if not first <= row.timestamp_ms <= last), None)
        else:
            return
        if bad is not None:
            error = named.get(bad.key) or next(iter(named.values()))
            assert error is not None
            raise RowRefused(f"{error.str()} (its time is {bad.timestamp_ms} ms)", bad.offset)

    def _told(self, delivery: DeliveryId) -> str:
        """Who owns the partition now, for people; "" where nobody can say."""
        try:
            said = self._read(self._places[delivery], _key(delivery), decided_only=True)
        except (LogLost, Diverged):
            return ""
        return "" if said is None else f"epoch {said.epoch}, position {said.position}, held by {said.holder}"

    # --- for `semel sink` -----------------------------------------------------------------------------------------

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        return self._trying(lambda: self._remembered(self._all(app, self._log.topics(), 1)))

    def _remembered(self, found: Mapping[int, Record]) -> list[Remembered]:
        return [
            Remembered(
                partition, said.epoch, said.incarnation, said.position, said.run,
                LogIdentity(said.topic_id, said.partitions), said.holder,
            )
            for partition, said in sorted(found.items())
        ]  # fmt: skip

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        return self._trying(lambda: self._move(app, seen, to))

    def _move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        """Fences every owner, looks again, and writes all positions in one transaction."""
        known, name = self._prepare(), self._sink.positions_topic(app)
        if name not in known:
            self._log.create([NewTopic(name, to[0].log.partitions, POSITIONS)])
            known = self._log.topics()
        affected = sorted({one.partition for one in (*seen, *to)})
        owners = {p: self._owner(DeliveryId(app, self._sink.name, p)) for p in affected}
        try:
            for owner in owners.values():
                owner.initialise()
            before = self._all(app, known, 1 + affected[-1], decided_only=False)
            if changed := positions.changed(seen, self._remembered(before)):
                return Fenced(f"{self._sink.where}: {changed}")
            records = []
            for one in to:
                epoch = before[one.partition].epoch if one.partition in before else 0
                now = Record(
                    epoch + 1, one.incarnation, one.position, one.run, one.log.topic_id, one.log.partitions,
                    self._target, positions.OPERATOR,
                )  # fmt: skip
                key = key_of(app, self._sink.name, one.partition)
                at = self._place(app, one.partition, known)
                records.append(NewRecord(*at, key, msgspec.json.encode(now), _now_ms()))
            first = owners[affected[0]]
            sent = first.send(records)
            return _at(self._sink.where, first.commit() if isinstance(sent, Done) else sent)
        finally:
            for owner in owners.values():
                owner.close()

    # --- for semel verify -----------------------------------------------------------------------------------------

    def entries(self) -> Iterator[tuple[bytes | None, bytes | None]]:
        """Every committed record of the topic, (key, value), partition by partition in order. Raises Diverged where a
        transaction stays open: what lies behind it is hidden from its readers."""
        log = self._log
        found = [TopicPartition(self._sink.topic, p) for p in range(log.topics()[self._sink.topic].partitions)]
        starts, ends = log.starts(found), log.ends(found)
        until = time.monotonic() + 3 * self._sink.hand_over_s
        for at in found:
            for records in log.read(at, starts[at], ends[at]):
                yield from zip(records.keys, records.values, strict=True)
                if records.undecided and time.monotonic() > until:
                    raise Diverged(
                        f"{self._sink.where}: a transaction is left open at {at.partition}@{records.next_offset}"
                    )

    def rows(self) -> Sequence[bytes]:
        last: dict[bytes, bytes | None] = {}
        bare = []
        for key, value in self.entries():
            if key is not None:
                last[key] = value
            elif value is not None:
                bare.append(value)
        return [self.canonical(value) for value in (*last.values(), *bare) if value is not None]

    def canonical(self, value: bytes) -> bytes:
        try:
            return msgspec.json.encode(msgspec.json.decode(value), order="sorted")
        except msgspec.MsgspecError:
            return value

    def drop(self) -> None:
        sink = self._sink
        if not sink.suffix:
            raise SinkError(f"{sink.where}: semel removes only topics that it has named itself.")
        known = self._log.topics()
        own = [name for name in known if name.startswith("semel-") and name.endswith(f"-{sink.name}{sink.ending}")]
        self._log.delete([*(name for name in (sink.topic,) if name in known), *own])


def _key(delivery: DeliveryId) -> bytes:
    return key_of(delivery.app, delivery.sink, delivery.partition)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _at(where: str, outcome: Outcome) -> Outcome:
    return outcome if isinstance(outcome, Done) else replace(outcome, reason=f"{where}: {outcome.reason}")
