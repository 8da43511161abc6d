"""The delivery for sinks that hold no position: cuts are decided once, written down in the log, then sent.

Pure over `ports.Log`, `ports.Owner`, the sink's connection and `ports.Steps`; the clock is an argument of `step`. A
partition of the outbox is owned by who initialised the transactional id APP.SINK.PARTITION last. What it decides is a
record of the delivery topic (`cuts.py`), in a transaction of that one partition.

Invariants: no byte of a cut leaves before the cut is committed; between initialising the id and the next claim no
decision rests on anything but what the delivery topic said then, and what this owner has committed since; a superseded
owner can decide nothing, and what it still sends is the same bytes under the same names. An unknown, refused or failed
transaction ends the claim, and the next one initialises and reads again (FAULTS S3, S8). A failure of the sink does
not: the same cut is sent again, because it is the same cut whoever sends it. At a sink that prepares (`two_phase.py`) a
failure before the decision ends the claim, too: what is prepared is settled, and prepared anew under another number;
after the decision the same commit is asked for again.

A record that the sink refuses was not written, so its cut can be sent without it, once that is a record of the delivery
topic (`refusals.py`): the claim ends, and the next owner sends the same cut, less what is written off.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from msgspec.structs import replace

from semel.contract import Claim, DeliveryId, LogIdentity, Row, Rows, Settlement
from semel.ports import (
    Done,
    Fenced,
    Log,
    NewRecord,
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
    TwoPhaseConnection,
    Unknown,
)
from semel.sinks import cuts, group_position, keep, origin, refusals, two_phase
from semel.sinks.agreement import CHOICE, agreed, alone, not_past_the_end, same_topic
from semel.sinks.cuts import Cut, Progress, Rule, Undecided
from semel.sinks.sink import Ahead, Diverged, RowRefused, SinkError
from semel.sinks.trouble import Trouble, pause_ms
from semel.sinks.truncation import Truncation
from semel.sinks.window import Memory

FENCED_MS = 500  # the group tells a superseded owner that it is one within a heartbeat: time to hear it
LAG_MS = 1_000  # how often the group's offsets follow
DRAINING_MS = 200  # a cut of what is left in an outbox is due so long after its first record


@dataclass(slots=True)
class _Lane:
    """One assigned partition."""

    at: TopicPartition
    decisions: TopicPartition  # its partition of the delivery topic
    owner: Owner | None = None
    progress: Progress | None = None  # as this owner has read or committed it; None: not claimed, reading is paused
    claim: Claim | None = None
    doubtful: bool = False  # the cut that is under way may have been sent, and nobody here knows its end
    rows: Rows = field(default_factory=lambda: Rows([], [], [], []))  # read, and not yet in a cut that is done
    epochs: list[int] = field(default_factory=list)  # of each row; -1: not known
    weight: int = 0
    first_ms: int = 0  # when the first of them came
    next: int = 0  # in the log: past the rows, and past what holds no visible record
    due_ms: int = 0  # when to claim or send next
    failures: int = 0
    told: int = -1  # the group's offset
    moments: list[keep.Moment] | None = None  # None: not read yet
    ahead: tuple[Progress | None] | None = None  # what was read when the sink held more
    strange: tuple[Progress | None] | None = None  # what was read when the sink knew of something later (TwoPhase)

    def empty(self, next: int) -> None:
        self.rows = Rows([], [], [], [])
        self.epochs.clear()
        self.weight, self.next = 0, next


class CutDelivery:
    """`join`, then `step` again and again, then `close`. Raises SinkError (Diverged among them) and LogLost: nothing
    was lost, and nothing goes on without a person. `say` is given a sentence when a trouble begins, lasts and ends.

    The sink may say `rule` (cuts.Rule: when a cut is due) and `form` (a word for how it writes a cut: a cut that is
    under way is not finished in another one). Its connection's `claim` gives the incarnation that the sink keeps, and
    as `position` the end of what the sink itself knows to hold, -1 where it cannot tell; `write` may be called again
    with the same cut, by this owner or another, and must then change nothing.

    `sole_owner`: this log has no other member (an embedded one). Being fenced by the sink then means that a copy of it
    is in use, and claiming again would only pass the sink back and forth between two logs that went different ways.
    `rule` instead of the sink's: who drains an outbox waits for nothing more to come. `dead_letters`: the topic of
    records that the sink refuses; "": they stop the delivery."""

    def __init__(
        self,
        log: Log,
        sink: Sink[Any, Any],
        *,
        owners: Owners,
        app: str,
        outbox: str,
        value_type: object = None,
        sole_owner: bool = False,
        rule: Rule | None = None,
        dead_letters: str = "",
        keep_ms: int | None = keep.DEFAULT_MS,
        steps: Steps | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._log, self._sink, self._owners = log, sink, owners
        self._app, self._outbox, self._value_type = app, outbox, value_type
        self._sole_owner, self._dead_letters = sole_owner, dead_letters
        self._topic = cuts.delivery_topic(outbox)
        self._rule: Rule = rule or getattr(sink, "rule", None) or Rule()
        self._form: str = getattr(sink, "form", "")
        self._steps = steps or NoSteps()
        self._say = say
        self._decides = sink.contract.settlement is Settlement.DECIDED
        self._connection: SinkConnection | TwoPhaseConnection = sink.open(self._steps)
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._known: Mapping[str, TopicInfo] = {}
        self._runs: Mapping[int, str] = {}
        self._looked_ms = self._said_ms = -1
        self._said: Sequence[Progress | None] = ()
        self._prepared = False
        self._memory = Memory(sink, self._connection)
        self._trouble = Trouble(sink.where, say)
        self._now_ms = 0
        self._told_ms = 0
        self._truncation = Truncation(log, keep_ms, say)
        self.refused = 0  # records that this delivery has made dead letters

    def join(self) -> None:
        """Enters the group. The outbox exists and may lose nothing by itself; the delivery topic is created."""
        origin.check_outbox(self._outbox, self._log.config(self._outbox))
        self._log.create([NewTopic(self._topic, self._log.topics()[self._outbox].partitions, cuts.CONFIG)])
        cuts.check_delivery_topic(self._log, self._outbox)
        self._log.join([self._outbox], self)

    def close(self) -> None:
        """Lets go of the sink and of the ids; the session is the caller's. What was read and is in no cut is read
        again; a cut that is under way is finished by the next owner."""
        self._tell()
        for lane in self._lanes.values():
            _release(lane)
        self._connection.close()

    @property
    def partitions(self) -> int:
        """How many are assigned here."""
        return len(self._lanes)

    def lag(self) -> int:
        """Offsets between the positions and the ends of the partitions assigned here; markers and aborted records
        count until they are passed."""
        ends = self._log.ends(list(self._lanes))
        return sum(max(0, ends[at] - _passed(lane)) for at, lane in self._lanes.items())

    def waiting(self, most: int) -> int:
        """Committed records of the partitions assigned here that the sink has not taken, counted to a little past
        `most`. Of a partition that could not be claimed the group's offset tells where it stands."""
        stand = {at: lane.progress.position if lane.progress else None for at, lane in self._lanes.items()}
        if unknown := [at for at, position in stand.items() if position is None]:
            found = self._log.committed(unknown)
            stand |= {at: known.offset for at in unknown if (known := found.get(at)) is not None}
        return origin.waiting(self._log, stand, most)

    def positions(self) -> Mapping[TopicPartition, int | None]:
        """Of the partitions assigned here, the next offset to deliver; None where no claim says it."""
        return {at: lane.progress.position if lane.progress else None for at, lane in self._lanes.items()}

    # --- ports.Listener: called from within poll ----------------------------------------------------------------

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        # Claiming can take long, and a poll must not: nothing is read before the claim says from where.
        self._log.pause(partitions)
        self._lanes = {
            at: _Lane(at, TopicPartition(self._topic, at.partition), due_ms=self._now_ms) for at in partitions
        }

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._tell()
        self.lost(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        for at in partitions:
            if (lane := self._lanes.pop(at, None)) is not None:
                _release(lane)
                self._trouble.dropped(at)

    # --- a turn -----------------------------------------------------------------------------------------------------

    def step(self, now_ms: int, wait_s: float) -> int:
        """Polls once (at most `wait_s`), decides and sends what is due; the number of records delivered."""
        self._now_ms = now_ms
        for records in self._log.poll(wait_s):
            lane = self._lanes.get(records.source)
            if lane is not None and lane.progress is not None:
                self._take(lane, records)
        delivered = 0
        for lane in list(self._lanes.values()):
            if lane.progress is None and now_ms >= lane.due_ms:
                self._claim(lane)
            while self._one_cut(lane):
                delivered += self._send(lane)
        if now_ms - self._told_ms >= LAG_MS:
            self._tell()
            self._told_ms = now_ms
        # Up to the position: the records of a cut that is under way must be there to be sent again.
        self._truncation.step(
            now_ms,
            [
                (lane.at, lane.moments or (), lane.progress.position)
                for lane in self._lanes.values()
                if lane.progress is not None
            ],
        )
        return delivered

    def _take(self, lane: _Lane, records: Records) -> None:
        if records.offsets:
            assert records.offsets[0] >= lane.next, f"{lane.at}: {records.offsets[0]} came, {lane.next} was next"
            lane.first_ms = lane.first_ms if lane.rows else self._now_ms
            # Of a record between two epochs nobody tells which is its own.
            epoch = records.leader_epoch if records.first_epoch == records.leader_epoch else -1
            rows = Rows(records.offsets, records.timestamps, records.keys, records.values)
            lane.rows.extend(rows)
            lane.epochs += [epoch] * len(rows)
            lane.epochs[-1] = records.leader_epoch
            lane.weight += sum(cuts.weights(rows))
        lane.next = max(lane.next, records.next_offset)

    def _one_cut(self, lane: _Lane) -> bool:
        """Whether a cut of this lane is decided and can be sent now. Decides one when it is due."""
        if lane.progress is None or self._now_ms < lane.due_ms:
            return False
        if lane.progress.cut is not None:
            return lane.next >= lane.progress.cut.end  # else it is being read again
        rule = self._rule
        if not lane.rows or not (
            len(lane.rows) >= rule.records or lane.weight >= rule.bytes or self._now_ms - lane.first_ms >= rule.ms
        ):
            return False
        return self._decide(lane, lane.progress)

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
        for topic in (self._outbox, self._topic):
            if topic not in self._known:
                raise SinkError(
                    f"{self._log.name}: the topic {topic} is gone, and with it what the sink had not yet taken, or how "
                    "far it was. Nothing more is delivered. Put the topic back; or start the app, which makes it anew, "
                    f"and say where the sink goes on: `semel sink adopt APP.py {self._sink.name}`."
                )
        here = LogIdentity(self._known[self._outbox].topic_id, self._known[self._outbox].partitions)
        delivery = DeliveryId(self._app, self._sink.name, lane.at.partition)
        if lane.owner is None:
            lane.owner = self._owners(f"{self._app}.{self._sink.name}.{lane.at.partition}")
        # In this order: what a former owner could still decide is decided or aborted when it is read, and the sink is
        # asked when all that it may hold was decided.
        lane.owner.initialise()
        try:
            found = cuts.read_progress(self._log, lane.decisions)
        except Undecided as why:
            return self._later(lane, str(why))
        if self._decides:
            claim = self._settled(lane, delivery, found, here)
        else:
            claim = cast(SinkConnection, self._connection).claim(delivery, here)
        if isinstance(claim, NotDone):
            return self._later(lane, claim.reason)
        if not claim.incarnation:  # the sink keeps none
            said = self._said_of_all(here)
            alone(self._sink, lane.at, said, group_position.said(self._log.committed([lane.at])[lane.at]), found, here)
            claim = dataclasses.replace(claim, incarnation=found.incarnation if found else 1)
        try:
            if self._decides:
                progress = two_phase.resumed(claim, found, here, self._place(lane))
            else:
                progress = self._agreed(lane, claim, found, here)
        except Ahead:
            if lane.ahead == (found,):
                raise
            lane.ahead = (found,)
            return self._later(lane, f"{self._place(lane)}: it holds more than was decided when that was read")
        lane.ahead = None
        origin.validate(self._log, lane.at, progress.position, progress.mark, self._runs, self._sink.where)
        self._steps.reached(Step.CLAIM_AFTER)
        if found is not None and progress.cut != found.cut and not self._written_down(lane, progress):
            return None
        lane.claim, lane.progress, lane.doubtful = claim, progress, progress.cut is not None
        lane.empty(progress.position)
        self._log.seek(lane.at, progress.position)
        self._log.resume([lane.at])
        return None

    def _place(self, lane: _Lane) -> str:
        return f"{self._sink.where}, partition {lane.at.partition}"

    def _settled(self, lane: _Lane, delivery: DeliveryId, found: Progress | None, here: LogIdentity) -> Claim | NotDone:
        """At a sink that prepares: what former owners left is settled by what the log says, if it is the log of theirs.
        First, so that nothing of theirs is in the way of the claim."""
        other: Diverged | None = None
        if found is not None:
            try:
                same_topic(self._place(lane), self._outbox, found, here)
                origin.validate(self._log, lane.at, found.position, found.mark, self._runs, self._sink.where)
                not_past_the_end(self._place(lane), self._log, lane.at, found)
            except Diverged as why:
                other = why
        in_doubt = other is None and found is not None and found.cut is not None
        if in_doubt:
            self._steps.reached(Step.SETTLE_BEFORE)
        take_over = cast(TwoPhaseConnection, self._connection).take_over
        # Of another log nothing is settled: whatever is prepared is later than what this one knows.
        claim = take_over(delivery, here, *two_phase.latest(found if other is None else None))
        if other is not None and not (isinstance(claim, Claim) and found and claim.incarnation > found.incarnation):
            raise other  # else a person has begun anew
        if isinstance(claim, Fenced):
            self._steps.reached(Step.SINK_FENCED)
            if lane.strange == (found,):
                raise two_phase.stranger(claim.reason, self._place(lane))
            lane.strange = (found,)
            return NotDone(claim.reason)
        if isinstance(claim, Claim):
            lane.strange = None
            if in_doubt:
                self._steps.reached(Step.SETTLE_AFTER)
        return claim

    def _said_of_all(self, here: LogIdentity) -> Sequence[Progress | None]:
        """What the delivery topic says of each partition; once for all claims of a turn."""
        if self._said_ms != self._now_ms:
            partitions = [TopicPartition(self._topic, p) for p in range(here.partitions)]
            self._said = [cuts.read_progress(self._log, at, beside=True) for at in partitions]
            self._said_ms = self._now_ms
        return self._said

    def _agreed(self, lane: _Lane, claim: Claim, found: Progress | None, here: LogIdentity) -> Progress:
        return agreed(self._log, self._sink, lane.at, claim.incarnation, claim.position, found, here)

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
        if lane.progress is not None:
            self._log.pause([lane.at])
            lane.progress = lane.claim = None
            lane.empty(0)
        else:
            self._ours(lane)
        self._retry(lane, reason, at_least_ms)

    def _retry(self, lane: _Lane, reason: str, at_least_ms: int = 0) -> None:
        lane.due_ms = self._now_ms + max(pause_ms(lane.failures), at_least_ms)
        lane.failures += 1
        self._trouble.met(lane.at, reason, self._now_ms)

    # --- a cut ------------------------------------------------------------------------------------------------------

    def _decide(self, lane: _Lane, progress: Progress) -> bool:
        self._steps.reached(Step.BATCH_BEFORE)
        begun = self._memory.begun(self._now_ms)
        if isinstance(begun, NotDone):
            self._later(lane, begun.reason)
            return False
        count = cuts.length(lane.rows, self._rule)
        last, epoch = lane.rows[count - 1], lane.epochs[count - 1]
        cut = Cut(
            start=progress.position,
            end=lane.next if count == len(lane.rows) else last.offset + 1,
            records=count,
            attempt=1,
            mark=origin.mark_of_row(last, epoch, self._run_id(epoch)),
            form=self._form,
            at_ms=begun[0],
            seen=begun[1],
        )
        self._steps.reached(Step.CUT_BEFORE)
        if not self._written_down(lane, replace(progress, cut=cut)):
            return False
        self._steps.reached(Step.CUT_AFTER)
        lane.doubtful = False
        return True

    def _written_down(self, lane: _Lane, progress: Progress) -> bool:
        return self._concluded(lane, progress, self._append(lane, progress))

    def _append(self, lane: _Lane, progress: Progress) -> Outcome:
        assert lane.owner is not None
        return lane.owner.append(lane.decisions, cuts.encoded(progress), self._now_ms)

    def _concluded(self, lane: _Lane, progress: Progress, outcome: Outcome) -> bool:
        match outcome:
            case Done():
                lane.progress = progress
                return True
            case Fenced(reason):
                self._steps.reached(Step.SINK_FENCED)
                self._later(lane, reason, FENCED_MS)
            case NotDone(reason) | Unknown(reason):
                self._later(lane, f"{self._log.name}: {self._topic}: {reason}")
        return False

    def _send(self, lane: _Lane) -> int:
        progress, claim = lane.progress, lane.claim
        assert progress is not None and progress.cut is not None and claim is not None
        cut = progress.cut
        count = bisect_left(lane.rows.offsets, cut.end)
        rows = lane.rows[:count]
        self._check_same(lane, cut, rows)
        sent = refusals.taken(rows, progress.refused, self._sink.where, lane.at)
        if lane.doubtful and not self._still_told(lane, cut, again=False):
            return 0
        self._memory.remind(cut)
        try:
            if self._decides:
                if not cut.decided and not self._prepare(lane, progress, claim, sent):
                    return 0
                progress = lane.progress or progress
                self._steps.reached(Step.SINK_BEFORE)
                outcome = cast(TwoPhaseConnection, self._connection).commit_cut(claim, two_phase.attempt_of(cut))
            else:
                self._steps.reached(Step.SINK_BEFORE)
                write = cast(SinkConnection, self._connection).write
                outcome = write(claim, cut.start, cut.end, cut.mark, sent)
        except RowRefused as why:
            self._refused(lane, progress, rows, why)
            return 0
        match outcome:
            case NotDone(reason) | Unknown(reason):
                lane.doubtful = lane.doubtful or isinstance(outcome, Unknown)
                self._log.pause([lane.at])
                self._retry(lane, reason)
                return 0
            case Fenced(reason):
                self._fenced(lane, reason)
                return 0
        if lane.doubtful and not self._still_told(lane, cut, again=True):
            return 0
        self._steps.reached(Step.SINK_AFTER)
        self._steps.reached(Step.POSITION_BEFORE)
        if not self._written_down(lane, replace(progress, position=cut.end, mark=cut.mark, cut=None)):
            return 0
        self._steps.reached(Step.POSITION_AFTER)
        lane.rows = lane.rows[count:]
        del lane.epochs[:count]
        lane.weight = sum(cuts.weights(lane.rows))
        lane.first_ms = self._now_ms
        if lane.failures:
            lane.failures = 0
            self._log.resume([lane.at])
        self._trouble.mended(lane.at)
        return count

    def _refused(self, lane: _Lane, progress: Progress, rows: Sequence[Row], why: RowRefused) -> None:
        """The record is a dead letter and written off, in one transaction of the log; or the end."""
        where = self._sink.where
        if not self._dead_letters or why.doubt:
            raise SinkError(
                f"{where} refuses the record of {lane.at.topic}-{lane.at.partition} at offset {why.offset}: {why}. "
                f"{refusals.no_letter(why) if self._dead_letters else ''}Neither it nor what follows in its partition "
                "was delivered. Make the sink take it, then start the app again: it goes on at that record's cut."
            ) from None
        self._steps.reached(Step.REFUSE_BEFORE)
        assert lane.owner is not None
        refusal = refusals.Refused(lane.at, rows, why, progress.refused, progress.mark, progress.incarnation)
        letter, more = refusals.written_off(self._log, self._dead_letters, self._sink, refusal)
        without = replace(progress, refused=more)
        behind = [NewRecord(*lane.decisions, key, value, self._now_ms) for key, value in cuts.encoded(without)]
        if not self._concluded(lane, without, lane.owner.together([letter, *behind])):
            return
        self._steps.reached(Step.REFUSE_AFTER)
        self.refused += 1
        self._say(refusals.said(self._dead_letters, where, lane.at, why))
        self._log.pause([lane.at])
        lane.progress = lane.claim = None
        lane.empty(0)
        lane.due_ms = self._now_ms

    def _still_told(self, lane: _Lane, cut: Cut, *, again: bool) -> bool:
        """Whether a sink with a window still tells what it has seen of a cut that may have been sent before."""
        asked = self._memory.check(cut, self._now_ms, lane.at.partition, again)
        if asked is not None:
            self._log.pause([lane.at])
            self._retry(lane, asked.reason)
        return asked is None

    def _prepare(self, lane: _Lane, progress: Progress, claim: Claim, rows: Sequence[Row]) -> bool:
        """The sink holds the cut prepared, and the log has decided that it shall be committed. False: the claim has
        ended; the next one settles what is there."""
        assert progress.cut is not None
        attempt = two_phase.attempt_of(progress.cut)
        connection = cast(TwoPhaseConnection, self._connection)
        match connection.prepare_cut(claim, attempt, progress.cut.mark, rows):
            case NotDone(reason) | Unknown(reason):
                self._later(lane, reason)
                return False
            case Fenced(reason):
                self._fenced(lane, reason)
                return False
        self._steps.reached(Step.DECIDE_BEFORE)
        outcome = self._append(lane, two_phase.decided(progress))
        if isinstance(outcome, NotDone | Fenced):
            # The log refused it, so this number will never be decided: nobody else has it.
            connection.abandon(claim, attempt)
        if not self._concluded(lane, two_phase.decided(progress), outcome):
            return False
        self._steps.reached(Step.DECIDE_AFTER)
        return True

    def _fenced(self, lane: _Lane, reason: str) -> None:
        self._steps.reached(Step.SINK_FENCED)
        if self._sole_owner:
            raise SinkError(
                f"{reason}. Another process has taken over the delivery of {lane.at.topic}, and "
                f"{self._log.name} has one owner: is a copy of this folder in use? End one of the two."
            )
        self._later(lane, reason, FENCED_MS)

    def _check_same(self, lane: _Lane, cut: Cut, rows: Sequence[Row]) -> None:
        """The records of a cut are those that it was decided of."""
        wanted = origin.parsed(cut.mark)
        found = origin.parsed(origin.mark_of_row(rows[-1], -1, "")) if rows else None
        same = wanted and found and (wanted.offset, wanted.checksum) == (found.offset, found.checksum)
        if not same or len(rows) != cut.records:
            raise Diverged(
                f"{self._sink.where}: the cut [{cut.start}, {cut.end}) of {lane.at.topic}-{lane.at.partition} was "
                f"decided of {cut.records} records, and the log holds other ones there now ({len(rows)}): it went back "
                f"and went on. {CHOICE}"
            )

    def _run_id(self, epoch: int) -> str:
        if epoch not in self._runs and self._runs and epoch >= 0:  # the broker has started again since
            self._runs = origin.runs(self._log, self._log.topics())
        return self._runs.get(epoch, "")

    def _tell(self) -> None:
        """The group's offsets follow, for whoever watches the lag, and for `agreement.alone`; the outcome does not
        matter."""
        moved = {
            at: said
            for at, lane in self._lanes.items()
            if (said := lane.progress) is not None and said.position > lane.told
        }
        if unread := [at for at in moved if self._lanes[at].moments is None]:
            for at, committed in self._log.committed(unread).items():
                self._lanes[at].moments = keep.parsed(group_position.moments_in(committed))
        told = {}
        for at, said in moved.items():
            moments = self._truncation.noted(self._lanes[at].moments or (), self._now_ms, said.position)
            self._lanes[at].moments = moments
            told[at] = group_position.written(said.position, said.mark, said.incarnation, keep.text(moments))
        if told:
            self._log.commit_offsets(told)
        for at, said in moved.items():
            self._lanes[at].told = said.position


def _passed(lane: _Lane) -> int:
    if lane.progress is None:
        return 0
    return lane.progress.position if lane.rows or lane.progress.cut is not None else lane.next


def _release(lane: _Lane) -> None:
    if lane.owner is not None:
        lane.owner.close()
        lane.owner = None
