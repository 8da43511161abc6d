"""The delivery: committed records of one outbox, partition by partition, into one sink.

Pure over `ports.Log`, the sink's connection and `ports.Steps`; the clock is an argument of `step`. A worker runs it in
a thread of its own with its own session in the group APP.SINK.

Invariant: what is written next begins where the sink's own position says, and only under a claim. Everything but Done
ends the claim, and the next one reads the position anew: so an unknown outcome, a lost connection and a superseded
owner take one path (FAULTS S8, S1). The group's offsets only tell others how far the delivery is; where the sink
cannot hold a position (a weak sink) they are the position.

Where records that the sink refuses become dead letters, a lane has a transactional id of the log, too (`refusals.py`).
The claim initialises it, reads what was written off, claims the sink, and writes that down; in this order, so that who
has read less can neither write off a record nor go on at the sink. A refusal ends the claim like anything but Done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

from semel.contract import (
    Accept,
    AtMostOnce,
    Atomicity,
    Claim,
    DeliveryId,
    LogIdentity,
    PositionIn,
    Row,
    Rows,
    cannot_leave_out,
)
from semel.ports import (
    Done,
    Fenced,
    Log,
    NewTopic,
    NoSteps,
    NotDone,
    Outcome,
    Owner,
    Owners,
    Position,
    Records,
    Sink,
    SinkConnection,
    Step,
    Steps,
    TopicInfo,
    TopicPartition,
    Unknown,
)
from semel.sinks import cuts, group_position, keep, origin, positions, refusals
from semel.sinks.cuts import Progress, Refusals, Rule, Undecided
from semel.sinks.pace import Pace, parted
from semel.sinks.sink import Diverged, RowRefused, SinkError
from semel.sinks.truncation import Truncation

BACKOFF_MS, BACKOFF_MAX_MS = 50, 1_000
FENCED_MS = 500  # the group tells a superseded owner that it is one within a heartbeat: time to hear it
REPEAT_MS = 10_000  # how often a trouble that lasts is said again
CHANGED_MS = 1_000  # … and one that has changed
IDLE_MS = 1_000  # a position past aborted records and markers only is written when nothing else was for this long
LAG_MS = 1_000  # how often the group's offsets follow


@dataclass(slots=True)
class _Lane:
    """One assigned partition."""

    at: TopicPartition
    claim: Claim | None = None  # None: reading is paused
    position: int = 0  # at the sink
    mark: str = ""  # of the last record delivered
    next: int = 0  # in the log; past `position` by what holds no visible record
    due_ms: int = 0  # when to claim next
    failures: int = 0
    written_ms: int = 0
    told: int = -1  # the group's offset
    moments: list[keep.Moment] | None = None  # None: not read yet
    waiting: list[Records] = field(default_factory=list)  # read, and not yet enough for a batch (`Sink.rule`)
    waiting_records: int = 0
    waiting_bytes: int = 0
    since_ms: int = 0  # when the first of them came
    held: bool = False  # what waits is enough: no more is read
    owner: Owner | None = None  # where refused records become dead letters
    refused: Refusals = field(default_factory=Refusals)  # as this owner has read it
    before: str = ""  # the mark of the last record below `position`


@dataclass(slots=True)
class _Trouble:
    text: str = ""
    said_ms: int = 0
    lanes: set[TopicPartition] = field(default_factory=set)


class Delivery:
    """`join`, then `step` again and again, then `close`. Raises SinkError (Diverged among them) and LogLost: nothing
    was lost, and nothing goes on without a person. `say` is given a sentence when a trouble begins, lasts and ends.

    `sole_owner`: this log has no other member (an embedded one). Being fenced then means that a copy of it is in use,
    and claiming again would only pass the sink back and forth between two logs that went different ways.

    `dead_letters`: the topic of records that the sink refuses; "": they stop the delivery. What was written off before
    is left out either way; it wants `owners`."""

    def __init__(
        self,
        log: Log,
        sink: Sink[Any, Any],
        *,
        app: str,
        outbox: str,
        value_type: object = None,
        accept: Accept | None = None,
        owners: Owners | None = None,
        dead_letters: str = "",
        sole_owner: bool = False,
        keep_ms: int | None = keep.DEFAULT_MS,
        steps: Steps | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._log, self._sink = log, sink
        self._app, self._outbox, self._value_type = app, outbox, value_type
        self._sole_owner = sole_owner
        assert owners is not None or not dead_letters, "dead letters want an owner in the log"
        self._owners, self._dead_letters = owners, dead_letters
        self._decisions = cuts.delivery_topic(outbox)
        self._by_log = bool(dead_letters)  # or by `join`, which finds that there were some
        self._at_most_once = isinstance(accept, AtMostOnce)
        self._remembers = sink.contract.position is PositionIn.SINK
        # A sink to which each batch is a file says when one is due; to others it is what a poll has brought.
        self._rule: Rule | None = getattr(sink, "rule", None)
        by_group = sink.contract.position is PositionIn.GROUP_OFFSETS
        self._pace = Pace() if by_group and self._rule is None else None
        self._idle_ms = IDLE_MS if self._rule is None else max(IDLE_MS, self._rule.ms)
        self._steps = steps or NoSteps()
        self._say = say
        self._connection = cast(SinkConnection, sink.open(self._steps))
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._known: Mapping[str, TopicInfo] = {}
        self._runs: Mapping[int, str] = {}
        self._looked_ms = -1
        self._told_moves: Sequence[Progress | None] = ()
        self._moved_ms = -1
        self._prepared = False
        self._trouble = _Trouble()
        self._now_ms = 0
        self._told_ms = 0
        self._truncation = Truncation(log, keep_ms, say)
        self.refused = 0  # records that this delivery has made dead letters

    def join(self) -> None:
        """Enters the group. The outbox exists and may lose nothing by itself."""
        origin.check_outbox(self._outbox, self._log.config(self._outbox))
        if self._dead_letters:
            partitions = self._log.topics()[self._outbox].partitions
            self._log.create([NewTopic(self._decisions, partitions, cuts.CONFIG)])
        elif self._owners is not None and not cannot_leave_out(self._sink.contract):
            self._by_log = self._decisions in self._log.topics()  # it had dead letters once, and may go back to them
        if self._by_log:
            cuts.check_delivery_topic(self._log, self._outbox)
        self._log.join([self._outbox], self)

    def close(self) -> None:
        """Lets go of the sink; the session is the caller's. What was read and not written is read again."""
        self._tell(self._lanes.values())
        for lane in self._lanes.values():
            _release(lane)
        self._connection.close()

    @property
    def partitions(self) -> int:
        """How many are assigned here."""
        return len(self._lanes)

    def lag(self) -> int:
        """Offsets between the sink's positions and the ends of the partitions assigned here; markers and aborted
        records count until they are passed."""
        ends = self._log.ends(list(self._lanes))
        return sum(max(0, ends[at] - lane.position) for at, lane in self._lanes.items())

    def waiting(self, most: int) -> int:
        """Committed records of the partitions assigned here that the sink has not taken, counted to a little past
        `most`. Of a partition that could not be claimed the group's offset tells where it stands."""
        stand = {at: lane.position if lane.claim else None for at, lane in self._lanes.items()}
        if unknown := [at for at, position in stand.items() if position is None]:
            found = self._log.committed(unknown)
            stand |= {at: known.offset for at in unknown if (known := found.get(at)) is not None}
        return origin.waiting(self._log, stand, most)

    def positions(self) -> Mapping[TopicPartition, int | None]:
        """Of the partitions assigned here, the next offset to deliver; None where no claim says it."""
        return {at: None if lane.claim is None else lane.position for at, lane in self._lanes.items()}

    # --- ports.Listener: called from within poll ----------------------------------------------------------------

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        # Claiming can take long, and a poll must not: nothing is read before the claim says from where.
        self._log.pause(partitions)
        self._lanes = {at: _Lane(at, due_ms=self._now_ms) for at in partitions}

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._tell([self._lanes[at] for at in partitions if at in self._lanes])
        self.lost(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        for at in partitions:
            if (lane := self._lanes.pop(at, None)) is not None:
                _release(lane)
            self._trouble.lanes.discard(at)

    # --- one turn ---------------------------------------------------------------------------------------------------

    def step(self, now_ms: int, wait_s: float = 0.1) -> int:
        """Reads what is there, at most `wait_s` later, and writes it. Returns how many records the sink took."""
        if self._pace is not None and any(lane.waiting for lane in self._lanes.values()):
            self._pace.took(now_ms - self._now_ms)
            wait_s = 0.0
        self._now_ms = now_ms
        waiting = [lane.due_ms for lane in self._lanes.values() if lane.claim is None]
        if waiting:
            wait_s = min(wait_s, max(0, min(waiting) - now_ms) / 1000)
        # Before claiming: the poll tells whether a partition is still ours.
        found: dict[TopicPartition, list[Records]] = {}
        for records in self._log.poll(wait_s):
            found.setdefault(records.source, []).append(records)
        delivered = 0
        for at, lane in list(self._lanes.items()):
            if lane.claim is None:
                if now_ms >= lane.due_ms:
                    self._claim(lane)
            elif (
                at in found or lane.waiting or (lane.next > lane.position and now_ms - lane.written_ms >= self._idle_ms)
            ):
                delivered += self._deliver(lane, self._due(lane, found.get(at, [])))
        if now_ms - self._told_ms >= LAG_MS and self._remembers:
            self._tell(self._lanes.values())
            self._told_ms = now_ms
        self._truncation.step(
            now_ms, [(lane.at, lane.moments or (), lane.position) for lane in self._lanes.values() if lane.claim]
        )
        return delivered

    # --- the claim --------------------------------------------------------------------------------------------------

    def _claim(self, lane: _Lane) -> None:
        if not self._prepared:
            prepared = self._connection.prepare(self._value_type)
            if isinstance(prepared, NotDone):
                return self._later(lane, prepared.reason)
            self._prepared = True
            for note in self._connection.notes():
                self._say(note)
        if self._looked_ms != self._now_ms:  # once for all partitions of a turn
            self._known, self._looked_ms = self._log.topics(), self._now_ms
            self._runs = origin.runs(self._log, self._known)
        known = self._known
        if self._outbox not in known:
            raise SinkError(
                f"{self._log.name}: the outbox {self._outbox} is gone; what it held and the sink had not yet taken is "
                "lost with it. Nothing more is delivered. Put the topic back; or start the app, which makes it anew, "
                f"and say where the sink goes on: `semel sink adopt APP.py {self._sink.name}`."
            )
        here = LogIdentity(known[self._outbox].topic_id, known[self._outbox].partitions)
        delivery = DeliveryId(self._app, self._sink.name, lane.at.partition)
        if self._by_log:
            # Before the sink is claimed: what a former owner could still write off is written off or aborted now.
            try:
                lane.refused = self._written_off(lane, here)
            except Undecided as why:
                return self._later(lane, str(why))
        if self._remembers:
            claim = self._connection.claim(delivery, here)
            if isinstance(claim, NotDone):
                return self._later(lane, claim.reason)
            origin.validate(self._log, lane.at, claim.position, claim.run, self._runs, self._sink.where)
            self._steps.reached(Step.CLAIM_AFTER)
        else:
            try:
                claim = self._group_claim(lane.at, delivery, here)
            except Undecided as why:
                return self._later(lane, str(why))
            self._steps.reached(Step.CLAIM_AFTER)
        if self._by_log and not self._still_owned(lane, here, claim):
            return None
        lane.claim, lane.mark, lane.before = claim, claim.run, claim.run
        lane.position = lane.next = claim.position
        lane.written_ms = self._now_ms
        self._log.seek(lane.at, lane.position)
        self._log.resume([lane.at])
        return None

    def _written_off(self, lane: _Lane, here: LogIdentity) -> Refusals:
        """Takes the lane's transactional id over, and reads what the log says was refused."""
        assert self._owners is not None
        if self._decisions not in self._known:
            raise SinkError(
                f"{self._log.name}: the topic {self._decisions} is gone, and with it which records are dead letters "
                "and must not be written. Nothing more is delivered. Put the topic back; or start the app, which makes "
                "it anew, if no such record can be delivered again."
            )
        if lane.owner is None:
            lane.owner = self._owners(f"{self._app}.{self._sink.name}.{lane.at.partition}")
        lane.owner.initialise()
        return refusals.read(self._log, TopicPartition(self._decisions, lane.at.partition), here)

    def _still_owned(self, lane: _Lane, here: LogIdentity, claim: Claim) -> bool:
        """Whether the log takes a record of ours after the claim at the sink. Else somebody has initialised the id
        since and may write off what we have not read: nothing is written under this claim."""
        assert lane.owner is not None
        at = TopicPartition(self._decisions, lane.at.partition)
        record = refusals.written(at, here, claim.epoch, lane.refused, self._now_ms)
        return self._concluded(lane, lane.owner.together([record]))

    def _concluded(self, lane: _Lane, outcome: Outcome) -> bool:
        match outcome:
            case Done():
                return True
            case Fenced(reason):
                self._steps.reached(Step.SINK_FENCED)
                self._later(lane, reason, FENCED_MS)
            case NotDone(reason) | Unknown(reason):
                self._later(lane, f"{self._log.name}: {self._decisions}: {reason}")
        return False

    def _group_claim(self, at: TopicPartition, delivery: DeliveryId, here: LogIdentity) -> Claim:
        """The sink holds no position: the group's offset is it, or what a person has decided since, or the start of the
        log."""
        said = self._moves(here)
        moved = said[at.partition] if at.partition < len(said) else None
        committed = self._log.committed([at])[at]
        self._lanes[at].moments = keep.parsed(group_position.moments_in(committed))
        stands = group_position.read(committed, moved, here)
        if stands is None:
            start = self._log.starts([at])[at]
            return Claim(delivery, epoch=0, incarnation=1, position=start, run="", log=here)
        position, mark, incarnation = stands
        origin.validate(self._log, at, position, mark, self._runs, self._sink.where)
        return Claim(delivery, epoch=0, incarnation=incarnation, position=position, run=mark, log=here)

    def _moves(self, here: LogIdentity) -> Sequence[Progress | None]:
        """What a person has decided, by partition; all of them, once a turn: a move that was interrupted has told some
        partitions and not others."""
        if self._moved_ms != self._now_ms:
            topic = cuts.delivery_topic(self._outbox)
            count = self._known[topic].partitions if topic in self._known else 0
            self._told_moves = [cuts.read_progress(self._log, TopicPartition(topic, p)) for p in range(count)]
            self._moved_ms = self._now_ms
        if group_position.interrupted(self._told_moves, here):
            raise Diverged(positions.interrupted(self._sink.where, self._sink.name))
        return self._told_moves

    def _ours(self, lane: _Lane) -> None:
        """The group's offset says whose outbox this is, also where the sink was never reached: records that wait for a
        sink which is renamed before it answers would be left behind without a word (`streams.layout.leftovers`)."""
        if lane.failures or lane.told >= 0:
            return
        if self._log.committed([lane.at])[lane.at] is None:
            self._log.commit_offsets({lane.at: Position(self._log.starts([lane.at])[lane.at])})
        lane.told = 0

    def _later(self, lane: _Lane, reason: str, at_least_ms: int = 0) -> None:
        """Ends the claim; another one is tried after a pause that grows."""
        if lane.claim is not None:
            self._log.pause([lane.at])
            lane.claim = None
            self._forget(lane)  # read again from the position
        else:
            self._ours(lane)
        pause_ms = min(BACKOFF_MS * 2 ** min(lane.failures, 10), BACKOFF_MAX_MS)
        lane.failures += 1
        lane.due_ms = self._now_ms + max(pause_ms, at_least_ms)
        first = not self._trouble.lanes
        self._trouble.lanes.add(lane.at)
        since_ms = self._now_ms - self._trouble.said_ms
        # One loss shows on every partition, each in words of its own: the first says it.
        if first or since_ms >= REPEAT_MS or (reason != self._trouble.text and since_ms >= CHANGED_MS):
            self._trouble.text, self._trouble.said_ms = reason, self._now_ms
            self._say(f"{reason}; nothing is lost, trying again")

    # --- a batch ----------------------------------------------------------------------------------------------------

    def _due(self, lane: _Lane, found: Sequence[Records]) -> Sequence[Records] | None:
        """What is to be written now; None while the sink's rule waits for more."""
        if self._pace is not None:
            lane.waiting, due = self._paced(lane, found)
            return due
        if self._rule is None:
            return found
        if not lane.waiting_records:
            lane.since_ms = self._now_ms
        lane.waiting.extend(found)
        lane.waiting_records += sum(len(records.offsets) for records in found)
        lane.waiting_bytes += sum(
            len(key or b"") + len(value or b"") for records in found for key, value in zip(records.keys, records.values)
        )
        enough = lane.waiting_records >= self._rule.records or lane.waiting_bytes >= self._rule.bytes
        if not enough and lane.waiting_records and self._now_ms - lane.since_ms < self._rule.ms:
            return None
        due = lane.waiting
        self._forget(lane)
        return due

    def _paced(self, lane: _Lane, found: Sequence[Records]) -> tuple[list[Records], list[Records]]:
        """What waits on, and what is written now. While something waits nothing more of the partition is read."""
        assert self._pace is not None
        due, rest = parted([*lane.waiting, *found], self._pace.records)
        if rest and not lane.held:
            self._log.pause([lane.at])
        elif lane.held and not rest:
            self._log.resume([lane.at])
        lane.held = bool(rest)
        return rest, due

    def _forget(self, lane: _Lane) -> None:
        lane.waiting, lane.waiting_records, lane.waiting_bytes, lane.held = [], 0, 0, False

    def _deliver(self, lane: _Lane, found: Sequence[Records] | None) -> int:
        claim = lane.claim
        assert claim is not None
        if found is None:
            return 0
        rows = _rows(found)
        assert not rows or rows.offsets[0] >= lane.next, f"{lane.at}: {rows.offsets[0]} came, {lane.next} was next"
        lane.next = max(chain([lane.next], (records.next_offset for records in found)))
        if rows:
            last = next(records for records in reversed(found) if records.offsets)
            lane.mark = origin.mark_of(last, self._run_id(last.leader_epoch))
        elif self._now_ms - lane.written_ms < self._idle_ms:
            return 0  # markers and aborted records: their offsets travel with the next rows
        else:
            lane.mark = lane.mark or origin.NOTHING
        assert lane.next > lane.position, (lane.next, lane.position)
        try:
            outcome = self._written(lane, claim, refusals.taken(rows, lane.refused, self._sink.where, lane.at))
        except RowRefused as why:
            self._refused(lane, claim, rows, why)
            return 0
        match outcome:
            case Done():
                lane.before = lane.mark
                lane.position, lane.written_ms, lane.failures = lane.next, self._now_ms, 0
                self._mended(lane)
                return len(rows)
            case Fenced(reason):
                self._steps.reached(Step.SINK_FENCED)
                if self._sole_owner:
                    raise SinkError(
                        f"{reason}. Another process has taken over the delivery of {lane.at.topic}, and "
                        f"{self._log.name} has one owner: is a copy of this folder in use? Nothing of ours was "
                        "written. End one of the two."
                    )
                self._later(lane, reason, FENCED_MS)
            case NotDone(reason) | Unknown(reason):
                self._later(lane, reason)
        return 0

    def _written(self, lane: _Lane, claim: Claim, rows: Sequence[Row]) -> Outcome:
        self._steps.reached(Step.BATCH_BEFORE)
        self._note(lane, lane.position)
        moments = keep.text(lane.moments or ())
        place = {lane.at: group_position.written(lane.next, lane.mark, claim.incarnation, moments)}
        if self._at_most_once and not self._remembers:
            moved = self._moved(place)
            if not isinstance(moved, Done):
                return moved
        outcome = self._connection.write(claim, lane.position, lane.next, lane.mark, rows)
        if isinstance(outcome, Done) and not self._remembers and not self._at_most_once:
            return self._moved(place)
        return outcome

    def _refused(self, lane: _Lane, claim: Claim, rows: Sequence[Row], why: RowRefused) -> None:
        """The record is a dead letter and written off, or the end. In one transaction of the log; the next claim reads
        it back, and goes on without the record."""
        if not self._dead_letters or why.doubt:
            each = self._sink.contract.atomicity is Atomicity.RECORD
            rest = (
                "It was not delivered; of what follows in its partition some may have been."
                if each
                else f"Of its partition nothing from offset {lane.position} on was delivered."
            )
            raise SinkError(
                f"{self._sink.where} refuses the record of {lane.at.topic}-{lane.at.partition} at offset {why.offset}: "
                f"{why}. {refusals.no_letter(why) if self._dead_letters else ''}{rest} Make the "
                f"{'receiver' if each else 'table'} take it, then start the app again: the delivery goes on at "
                f"{'that record' if each else f'offset {lane.position}'}."
            ) from None
        self._steps.reached(Step.REFUSE_BEFORE)
        assert lane.owner is not None
        refusal = refusals.Refused(lane.at, rows, why, lane.refused, lane.before, claim.incarnation)
        letter, more = refusals.written_off(self._log, self._dead_letters, self._sink, refusal)
        at = TopicPartition(self._decisions, lane.at.partition)
        behind = refusals.written(at, claim.log, claim.epoch, more, self._now_ms)
        if not self._concluded(lane, lane.owner.together([letter, behind])):
            return
        self._steps.reached(Step.REFUSE_AFTER)
        self.refused += 1
        self._say(refusals.said(self._dead_letters, self._sink.where, lane.at, why))
        self._log.pause([lane.at])
        lane.claim, lane.due_ms = None, self._now_ms
        self._forget(lane)

    def _moved(self, place: Mapping[TopicPartition, Position]) -> Outcome:
        """The position of a sink that can hold none."""
        self._steps.reached(Step.POSITION_BEFORE)
        moved = self._log.commit_offsets(place)
        if isinstance(moved, Done):
            self._steps.reached(Step.POSITION_AFTER)
        return moved

    def _run_id(self, epoch: int) -> str:
        if epoch not in self._runs and self._runs:  # the broker has started again since
            self._runs = origin.runs(self._log, self._log.topics())
        return self._runs.get(epoch, "")

    def _mended(self, lane: _Lane) -> None:
        if lane.at in self._trouble.lanes:
            self._trouble.lanes.discard(lane.at)
            if not self._trouble.lanes:
                self._trouble = _Trouble()
                self._say(f"{self._sink.where}: delivering again")

    def _tell(self, lanes: Any) -> None:
        """The group's offsets follow, for whoever watches the lag; the outcome does not matter."""
        if not self._remembers:
            return
        moved = [lane for lane in lanes if lane.claim is not None and lane.position > lane.told]
        if unread := [lane.at for lane in moved if lane.moments is None]:
            for at, position in self._log.committed(unread).items():
                self._lanes[at].moments = keep.parsed(group_position.moments_in(position))
        for lane in moved:
            self._note(lane, lane.position)
        if moved:
            self._log.commit_offsets(
                {lane.at: group_position.written(lane.position, "", 1, keep.text(lane.moments or ())) for lane in moved}
            )
        for lane in moved:
            lane.told = lane.position

    def _note(self, lane: _Lane, position: int) -> None:
        lane.moments = self._truncation.noted(lane.moments or (), self._now_ms, position)


def _rows(found: Sequence[Records]) -> Rows:
    """Of one partition, one after the other."""
    if len(found) == 1:
        (records,) = found
        return Rows(records.offsets, records.timestamps, records.keys, records.values)
    return Rows(
        list(chain.from_iterable(records.offsets for records in found)),
        list(chain.from_iterable(records.timestamps for records in found)),
        list(chain.from_iterable(records.keys for records in found)),
        list(chain.from_iterable(records.values for records in found)),
    )


def _release(lane: _Lane) -> None:
    if lane.owner is not None:
        lane.owner.close()
        lane.owner = None
