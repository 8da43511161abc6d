"""Where a delivery stands, and how a person moves it: pure, over the log, the sink's connection and the owners.

A position is in one of three places (`contract.PositionIn`): a row of the sink, the delivery topic with what the sink
says of itself, or the group's offsets. `standing` reads it and judges it as a delivery would when it claims; `move`
puts it elsewhere.

Invariants: what was not as `standing` saw it is not moved; whoever delivered until then is fenced, or there is nobody
(the group has no members, or refuses its offsets). Effects that shall come again get another incarnation, so another
identity, where the sink recognises repeats by one. The log is written before the sink, and a move that was interrupted
leaves a delivery that stops until the move is made again. At a sink that prepares, nothing is moved while anything of
the delivery is prepared: the record of the log that decides about it would be replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semel.contract import Identity, LogIdentity, PositionIn, Remembered, Settlement
from semel.errors import SemelError
from semel.ports import Done, Fenced, Log, NewTopic, NotDone, Outcome, Owner, Owners, Position, Sink, TopicPartition
from semel.sinks import cuts, group_position, origin, positions, refusals
from semel.sinks.agreement import agreed, alone, gone_back
from semel.sinks.cuts import Progress, Undecided
from semel.sinks.group_position import Stands
from semel.sinks.sink import Diverged, SinkError

COUNT_MAX = 100_000  # records are counted for a person up to here


class NotMoved(SemelError):
    """Nothing was moved, or not all; says which."""


@dataclass(frozen=True, slots=True)
class Place:
    """One partition of a delivery. Offsets are of the outbox."""

    at: TopicPartition
    start: int
    end: int  # of what is decided: an open transaction lies behind it
    position: int | None  # next to deliver; None: nothing was delivered yet
    incarnation: int
    waiting: int  # committed records at and after `position`, counted up to COUNT_MAX
    owner: str
    updated: str
    problem: str  # why a delivery would stop here; "" when it would go on
    refused: int = 0  # records of this outbox that the sink refused, and that are dead letters

    @property
    def lag(self) -> int:
        return max(0, self.end - (self.position or self.start))


@dataclass(frozen=True, slots=True)
class Standing:
    """A delivery as it was when it was looked at; `move` compares with it."""

    places: Sequence[Place]
    log: LogIdentity
    same_log: bool  # what is stored was stored of this topic; else its positions mean nothing here
    away: str  # why the sink could not be asked; "" when it was
    seen: Sequence[Remembered]  # by the sink
    progress: Mapping[int, Progress | None]  # by the delivery topic
    incarnation: int  # the highest anywhere
    told: Mapping[int, Stands | None]  # by the group's offsets, of a delivery by cuts over a sink that keeps nothing

    @property
    def problem(self) -> str:
        return next((place.problem for place in self.places if place.problem), "")


class Delivery:
    """One sink of one app on one log. `log` is a session in the group APP.SINK, of which it is no member."""

    def __init__(
        self, log: Log, sink: Sink[Any, Any], *, app: str, outbox: str, owners: Owners, connection: Any
    ) -> None:
        self._log, self._sink, self._owners, self._connection = log, sink, owners, connection
        self._app, self._outbox, self._topic = app, outbox, cuts.delivery_topic(outbox)
        self.kind = sink.contract.position
        if self.kind is not PositionIn.GROUP_OFFSETS and not hasattr(connection, "remembered"):
            raise SinkError(
                f"{sink.where}: this sink cannot be operated: its connection has no remembered() and move()."
            )

    # --- looking ----------------------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        log, known = self._log, self._log.topics()
        if self._outbox not in known:
            raise SinkError(
                f"{log.name}: there is no outbox {self._outbox}: nothing was written to this sink yet. Run the app."
            )
        here = LogIdentity(known[self._outbox].topic_id, known[self._outbox].partitions)
        partitions = [TopicPartition(self._outbox, p) for p in range(here.partitions)]
        told = self._told(partitions)  # first: a delivery that is at work tells of more than was read before
        progress = self._progress(known[self._topic].partitions if self._topic in known else 0)
        seen: Sequence[Remembered] = []
        away = ""
        if self.kind is not PositionIn.GROUP_OFFSETS:
            found = self._connection.remembered(self._app)
            seen, away = ((), found.reason) if isinstance(found, NotDone) else (found, "")
        stored = self._stored(partitions, seen, progress)
        runs = origin.runs(log, known)
        starts, ends = log.starts(partitions), log.ends(partitions)
        places = []
        for at in partitions:
            one = stored.get(at.partition)
            problem = ""
            if one is not None or starts[at] or told:
                problem = self._problem(at, one, here, seen, progress, runs, told)
            start = starts[at]
            from_ = start if one is None or one.log != here else min(max(one.position, start), ends[at])
            end, waiting = self._counted(at, from_, ends[at])
            places.append(
                Place(
                    at, start, end, None if one is None else one.position, one.incarnation if one else 1, waiting,
                    one.holder if one else "", one.updated if one else "", "" if away else problem,
                    self._refused(at.partition, here, progress.get(at.partition)),
                )
            )  # fmt: skip
        progressed = [one for one in progress.values() if one is not None]
        of_log = [*(one.log for one in seen), *(LogIdentity(one.topic_id, one.partitions) for one in progressed)]
        incarnations = [
            *(one.incarnation for one in (*seen, *stored.values())),
            *(one.incarnation for one in progressed),
            *(one.incarnation for one in told.values() if one is not None),
        ]
        same_log = self._group or all(one == here for one in of_log)
        return Standing(places, here, same_log, away, seen, progress, max(incarnations, default=1), told)

    def _refused(self, partition: int, here: LogIdentity, said: Progress | None) -> int:
        if self.kind is PositionIn.DELIVERY_TOPIC:
            return cuts.refused_in(said, here).total
        known = self._log.topics()
        if self._topic not in known or partition >= known[self._topic].partitions:
            return 0
        try:
            return refusals.read(self._log, TopicPartition(self._topic, partition), here).total
        except Undecided as why:
            raise NotMoved(f"{self._log.name}: {why}. Try again when it has ended (10 s).") from None

    @property
    def _alone(self) -> bool:
        """The sink keeps nothing of a delivery by cuts: the log alone tells where it is."""
        return self.kind is PositionIn.DELIVERY_TOPIC and getattr(self._connection, "keeps_nothing", False)

    def _told(self, partitions: Sequence[TopicPartition]) -> dict[int, Stands | None]:
        if not self._alone:
            return {}
        return {at.partition: group_position.said(one) for at, one in self._log.committed(partitions).items()}

    def _progress(self, count: int) -> dict[int, Progress | None]:
        if self.kind is PositionIn.SINK:
            return {}
        try:
            return {p: cuts.read_progress(self._log, TopicPartition(self._topic, p)) for p in range(count)}
        except Undecided as why:
            raise NotMoved(f"{self._log.name}: {why}. Try again when it has ended (10 s).") from None

    def _stored(
        self, partitions: Sequence[TopicPartition], seen: Sequence[Remembered], progress: Mapping[int, Progress | None]
    ) -> dict[int, Remembered]:
        """What a delivery would go on from, by partition."""
        if self.kind is PositionIn.SINK:
            return {one.partition: one for one in seen}
        sinks = {one.partition: one for one in seen}
        found = {}
        committed = self._log.committed(partitions) if self.kind is PositionIn.GROUP_OFFSETS else {}
        here = self._log.topics()[self._outbox]
        for at in partitions:
            said = progress.get(at.partition)
            if self.kind is PositionIn.GROUP_OFFSETS:
                place = group_position.read(committed[at], said, LogIdentity(here.topic_id, here.partitions))
                if place is None:
                    continue
                log = LogIdentity(here.topic_id, here.partitions)
                found[at.partition] = Remembered(at.partition, 0, place.incarnation, place.position, place.mark, log)
            elif said is not None:
                epoch = sinks[at.partition].epoch if at.partition in sinks else 0
                log = LogIdentity(said.topic_id, said.partitions)
                found[at.partition] = Remembered(
                    at.partition, epoch, said.incarnation, said.position, said.mark, log,
                    f"{self._app}.{self._sink.name}.{at.partition}",
                )  # fmt: skip
            elif at.partition in sinks and sinks[at.partition].position >= 0:  # -1: it cannot tell
                found[at.partition] = sinks[at.partition]
        return found

    def _problem(
        self,
        at: TopicPartition,
        one: Remembered | None,
        here: LogIdentity,
        seen: Sequence[Remembered],
        progress: Mapping[int, Progress | None],
        runs: Mapping[int, str],
        told: Mapping[int, Stands | None],
    ) -> str:
        """Why a claim would stop."""
        where = self._sink.where
        moves = [progress.get(p) for p in range(here.partitions)] if progress else []
        if any(one.unfinished for one in seen) or (self._group and group_position.interrupted(moves, here)):
            return positions.interrupted(where, self._sink.name)
        try:
            position, mark = (0, "") if one is None else (one.position, one.run)
            if one is not None and one.log != here:
                return (
                    f"{where}: the outbox was re-created or re-partitioned: the positions are of topic id "
                    f"{one.log.topic_id or 'unknown'} with {one.log.partitions} partitions, the outbox is "
                    f"{here.topic_id or 'unknown'} with {here.partitions}."
                )
            if self.kind is PositionIn.DELIVERY_TOPIC:
                sinks = {one.partition: one for one in seen}
                its, topics = sinks.get(at.partition), progress.get(at.partition)
                incarnation, reached = (its.incarnation, its.position) if its else (1, 0)
                if self._alone:
                    alone(self._sink, at, moves, told.get(at.partition), topics, here)
                    incarnation, reached = (topics.incarnation if topics else 1), -1
                said = agreed(self._log, self._sink, at, incarnation, reached, topics, here)
                position, mark = said.position, said.mark
            origin.validate(self._log, at, position, mark, runs, where)
        except Diverged as why:
            return str(why)
        return ""

    def _counted(self, at: TopicPartition, start: int, end: int) -> tuple[int, int]:
        """The end of what is decided, and how many committed records lie from `start` to there."""
        position, count = start, 0
        for records in self._log.read(at, start, end):
            count += sum(offset < end for offset in records.offsets)
            position = records.next_offset
            if records.undecided:
                return position, count
            if count > COUNT_MAX:
                break
        return end, count

    def count(self, at: TopicPartition, start: int, end: int) -> int:
        """Committed records in [start, end), up to COUNT_MAX."""
        return self._counted(at, start, end)[1] if start < end else 0

    def log_went_another_way(self, standing: Standing, place: Place) -> bool:
        """Its records may be others than those that were delivered from these offsets: nothing but the sink's rows
        tells which. Not where only the sink went back, or the log was truncated."""
        if not place.problem or place.position is None or not standing.same_log:
            return False
        said = standing.progress.get(place.at.partition)
        sink = next((one for one in standing.seen if one.partition == place.at.partition), None)
        if self._alone:
            return gone_back(standing.told.get(place.at.partition), said)
        if self.kind is PositionIn.DELIVERY_TOPIC and said is not None:
            return sink is not None and sink.position > said.position and sink.incarnation == said.incarnation
        return place.position >= place.start

    def runs(self, at: TopicPartition, most: int = 5) -> list[tuple[int, int]]:
        """Where the last runs (leader epochs) of this log begin in a partition: a log that was put back went on in a
        new one. Empty where the log does not tell."""
        offset, end = self._log.starts([at])[at], self._log.ends([at])[at]
        found: list[tuple[int, int]] = []
        while offset < end and (epoch := self._epoch(at, offset, end)) >= 0:
            found.append((epoch, offset))
            low, high = offset, end  # the run reaches past low, and not to high
            while high - low > 1:
                middle = (low + high) // 2
                if self._epoch(at, middle, end) == epoch:
                    low = middle
                else:
                    high = middle
            offset = high
        return found[-most:]

    def _epoch(self, at: TopicPartition, offset: int, end: int) -> int:
        """Of the first record at or after an offset; -1 where there is none."""
        for records in self._log.read(at, offset, end):
            if records.offsets or records.undecided:
                return records.first_epoch if records.offsets else -1
        return -1

    def under_way(self, standing: Standing) -> list[int]:
        """Partitions with a cut that was decided and is not done."""
        return [p for p, progress in standing.progress.items() if progress is not None and progress.cut is not None]

    # --- moving -----------------------------------------------------------------------------------------------------

    def renewed(self, standing: Standing, *, again: bool) -> bool:
        """Whether a move takes a new incarnation. `again`: what was delivered shall have its effect once more. A log
        that went another way gives old identities to other records."""
        if self._sink.contract.identity is Identity.NONE:
            return False
        if again or self.kind is PositionIn.DELIVERY_TOPIC or not standing.same_log:
            return True
        return any(self.log_went_another_way(standing, place) for place in standing.places)

    def move(
        self,
        standing: Standing,
        to: Mapping[TopicPartition, int],
        *,
        renew: bool,
        now_ms: int,
        delete: Callable[[Sequence[str]], None],
    ) -> int:
        """Every partition stands at `to` when this returns the incarnation; NotMoved says what became of it otherwise.
        Nobody delivers: the group has no members. `delete` removes a topic."""
        runs = origin.runs(self._log, self._log.topics())
        incarnation = standing.incarnation + renew
        marks = {at: origin.mark_before(self._log, at, position, runs) for at, position in to.items()}
        # Refused by the log while the group has members, who would go on under what they have read.
        probe = {at: Position(position) for at, position in to.items()}
        if self._group or self._alone:  # what it tells is kept: there it is looked at
            probe = {at: found for at, found in self._log.committed(list(to)).items() if found is not None}
        self._grouped(probe, "Nothing was moved.")
        there = [
            Remembered(at.partition, 0, incarnation, position, marks[at], standing.log) for at, position in to.items()
        ]
        if self.kind is PositionIn.SINK:
            known = self._log.topics()
            if self._topic in known and known[self._topic].partitions != len(to):
                delete([self._topic])  # what it says was refused is of another outbox
            self._judged(self._connection.move(self._app, standing.seen, self._beyond(standing, there)))
        elif self.kind is PositionIn.DELIVERY_TOPIC:
            self._decided(standing, there, now_ms, delete)
            self._judged(self._connection.move(self._app, standing.seen, there), "Make the same move again.")
            if self._alone:  # it is done; this only tells of it
                self._log.commit_offsets(
                    {at: group_position.written(position, marks[at], incarnation) for at, position in to.items()}
                )
        else:
            if renew:
                self._decided(standing, there, now_ms, delete)
            self._grouped(
                {at: group_position.written(position, marks[at], incarnation) for at, position in to.items()},
                "Make the same move again.",
            )
        return incarnation

    @property
    def _group(self) -> bool:
        return self.kind is PositionIn.GROUP_OFFSETS

    def _beyond(self, standing: Standing, there: Sequence[Remembered]) -> list[Remembered]:
        """With the rows of partitions that the outbox has no more: they must not speak of another log."""
        partitions = {one.partition for one in there}
        gone = [one.partition for one in standing.seen if one.partition not in partitions]
        return [*there, *(Remembered(p, 0, there[0].incarnation, 0, "", standing.log) for p in gone)]

    def _decided(
        self,
        standing: Standing,
        there: Sequence[Remembered],
        now_ms: int,
        delete: Callable[[Sequence[str]], None],
    ) -> None:
        """Into the delivery topic, under the ids of its owners: initialising them fences who delivered until now."""
        count = len(there)
        if self._topic in self._log.topics() and self._log.topics()[self._topic].partitions != count:
            delete([self._topic])
        self._log.create([NewTopic(self._topic, count, cuts.CONFIG)])
        owners: list[Owner] = []
        try:
            for one in there:
                owners.append(self._owners(f"{self._app}.{self._sink.name}.{one.partition}"))
                owners[-1].initialise()
                now = cuts.read_progress(self._log, TopicPartition(self._topic, one.partition))
                before = standing.progress.get(one.partition)
                # A former move of ours that was interrupted is made again: what it wrote is no other delivery's.
                if now != before and not (now is None and len(standing.progress) != count):
                    raise NotMoved(
                        f"{self._topic}-{one.partition} has changed meanwhile. Nothing was moved; look again."
                    )
            # From here on nobody decides: what is prepared now was prepared before, and what is prepared later is
            # never decided.
            self._settled()
            for owner, one in zip(owners, there, strict=True):
                log = one.log
                # Dead letters stay what they are, from wherever the log is delivered again.
                refused = cuts.refused_in(now, log)
                said = Progress(one.incarnation, log.topic_id, log.partitions, one.position, one.run, None, refused)
                self._judged(
                    owner.append(TopicPartition(self._topic, one.partition), cuts.encoded(said), now_ms),
                    "Partitions before it were moved, and the delivery stops until the same move is made again.",
                )
        finally:
            for owner in owners:
                owner.close()

    def _settled(self) -> None:
        """Nothing of this delivery is prepared; NotMoved otherwise."""
        left = self.prepared()
        if isinstance(left, NotDone):
            raise NotMoved(f"{left.reason}. Nothing was moved.")
        if left:
            raise NotMoved(
                f"{self._sink.where}: {', '.join(left[:5])}{' …' if len(left) > 5 else ''}: prepared, and not settled. "
                "What the log has decided about it would be forgotten by a move, so nothing was moved. `semel sink "
                f"drain APP.py {self._sink.name}` settles what this log knows of; what it does not know of a person "
                "commits or rolls back at the sink (docs/two-phase.md, By hand)."
            )

    def prepared(self) -> Sequence[str] | NotDone:
        """The names of what the sink holds prepared of this delivery."""
        if self._sink.contract.settlement is not Settlement.DECIDED:
            return ()
        found: Sequence[str] | NotDone = self._connection.left(self._app)
        return found

    def _grouped(self, positions: Mapping[TopicPartition, Position], then: str) -> None:
        if positions:
            self._judged(self._log.commit_offsets(positions), then)

    def _judged(self, outcome: Outcome, then: str = "Nothing was moved.") -> None:
        if isinstance(outcome, Done):
            return
        if isinstance(outcome, Fenced):
            raise NotMoved(f"{self._sink.where}: somebody else is at work ({outcome.reason}). {then}")
        if isinstance(outcome, NotDone):
            raise NotMoved(f"{outcome.reason}. {then}")
        raise NotMoved(
            f"{outcome.reason}. Nobody knows whether it was done, or only a part of it: look again, and make the same "
            "move again."
        )
