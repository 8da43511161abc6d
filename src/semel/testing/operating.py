"""Trials of what a person does to a delivery (`semel sink adopt`, `rewind`): over a log in memory, at the real sink.

Each trial runs whole deliveries, looks as the command does, moves, and compares what is there with the effects that the
records then had. Invariant: a move is one of three things, and the trial can tell which: it is done, nothing of it is,
or the delivery stops until it is made again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from semel.contract import Attempt, Claim, DeliveryId, Fence, Identity, PositionIn, Remembered, Row, Settlement
from semel.ports import Done, Fenced, Owner, Step, TopicPartition
from semel.sinks.cut_delivery import CutDelivery
from semel.sinks.delivery import Delivery
from semel.sinks.operate import Delivery as Operated
from semel.sinks.operate import NotMoved, Standing
from semel.sinks.sink import SinkError
from semel.testing.outbox import OutboxLog
from semel.testing.subject import RUN, Counting, Crashed, Entry, NotTried, Refused, Stand

APP = "kit"
PARTITIONS = 2
TURN_MS, TURNS_MAX = 60_000, 40
NO_METHODS = (
    "its connection has no remembered() and move() (ports.Operated): `semel sink adopt` and `rewind` refuse it, so a "
    "position at this sink can only be changed by hand"
)

Targets = Mapping[TopicPartition, int]


class Operating:
    """The outbox of one stand, the deliveries that run over it, and the effects that its records have had."""

    def __init__(self, stand: Stand) -> None:
        self.stand, self.sink = stand, stand.sink
        connection: Any = self.sink.open(Counting())
        lacks = not (hasattr(connection, "remembered") and hasattr(connection, "move"))
        connection.close()
        if self.kind is not PositionIn.GROUP_OFFSETS and lacks:
            raise NotTried(NO_METHODS)
        self.log = OutboxLog()
        self.outbox = f"{APP}-{self.sink.name}-outbox"
        self.log.create(self.outbox, PARTITIONS, {"retention.ms": "-1", "cleanup.policy": "delete"})
        self.at = [TopicPartition(self.outbox, partition) for partition in range(PARTITIONS)]
        self.effects: list[Row] = []  # in the order in which they were to be had
        self.now_ms = int(time.time() * 1000)  # a connection with a window compares what it is told with its own clock
        self._count = 0

    @property
    def kind(self) -> PositionIn:
        return self.stand.contract.position

    # --- the log ----------------------------------------------------------------------------------------------------

    def put(self, count: int, other: int = 0) -> None:
        """Records, seven keys in turn, each with a number of its own: the lower keys' in partition 0."""
        for _ in range(count):
            id = self._count % 7
            row = self.stand.row(0, f"k{id}", self._count + other)
            self.log.append(self.outbox, id % PARTITIONS, row.key, row.value)
            self._count += 1

    def ends(self) -> dict[TopicPartition, int]:
        return dict(self.log.session().ends(self.at))

    def records(self, since: Targets, until: Targets) -> list[Row]:
        found = []
        for at in self.at:
            stored = self.log.topics[at.topic].partitions[at.partition]
            for offset in range(since[at], until[at]):
                if stored[offset].visible:
                    found.append(Row(offset, 1_000, stored[offset].key, stored[offset].value))
        return found

    # --- deliveries -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def delivering(self, said: list[str], steps: Counting | None = None) -> Iterator[Any]:
        """A delivery that has joined. It says what it has to say into `said`."""
        session = self.log.session(f"{APP}.{self.sink.name}")
        more: dict[str, Any] = {"app": APP, "outbox": self.outbox, "value_type": Entry, "keep_ms": None}
        more |= {"steps": steps or Counting(), "say": said.append}
        if self.kind is PositionIn.DELIVERY_TOPIC:
            delivery: Any = CutDelivery(session, self.sink, owners=self.log.owner, **more)
        else:
            delivery = Delivery(session, self.sink, **more)
        try:
            delivery.join()
            session.assign(self.outbox, *range(PARTITIONS))
            yield delivery
        finally:
            delivery.close()
            session.close()

    def turned(self, delivery: Any) -> int:
        self.now_ms += TURN_MS
        return int(delivery.step(self.now_ms, 0))

    def ended(self, delivery: Any) -> bool:
        return delivery.partitions == PARTITIONS and not delivery.waiting(1) and not delivery.lag()

    def deliver(self, when: str) -> int:
        """One delivery from its claim until nothing is left; how many records the sink took. Raises what stops it."""
        said: list[str] = []
        count = 0
        with self.delivering(said) as delivery:
            for _ in range(TURNS_MAX):
                count += self.turned(delivery)
                if self.ended(delivery):
                    return count
        self.stand.require(False, f"{when}, a delivery did not come to the end of its outbox: {'; '.join(said[-2:])}")
        return count

    def had(self, when: str, rows: list[Row]) -> None:
        """These have their effect (again) by this delivery. Where a record names its effect for good (a sample), what
        comes again is there already: then it is the delivery that tells that it came."""
        count = self.deliver(when)
        if self.stand.contract.identity is Identity.SAMPLE:
            self.stand.require(count == len(rows), f"{when}, {count} records were delivered, and {len(rows)} should be")
            rows = [row for row in rows if row not in self.effects]
        self.effects += rows
        self.stand.holds(when, self.effects)

    # --- a person ---------------------------------------------------------------------------------------------------

    def looked(self, connection: Any = None, owners: Any = None) -> tuple[Operated, Standing]:
        """As the command does: no preparation, no claim. Without a connection it is a look only."""
        own: Any = self.sink.open(Counting()) if connection is None else None
        delivery = Operated(
            self.log.session(f"{APP}.{self.sink.name}"),
            self.sink,
            app=APP,
            outbox=self.outbox,
            owners=owners or self.log.owner,
            connection=connection or own,
        )
        try:
            standing = delivery.standing()
        finally:
            if own is not None:
                own.close()
        self.stand.require(not standing.away, f"a sink that serves could not be asked: {standing.away}")
        return delivery, standing

    def stands(self) -> dict[TopicPartition, int | None]:
        return {place.at: place.position for place in self.looked()[1].places}

    def moved(self, delivery: Operated, standing: Standing, to: Targets, *, again: bool) -> int:
        renew = delivery.renewed(standing, again=again)
        return delivery.move(standing, to, renew=renew, now_ms=self.now_ms, delete=self._delete)

    def _delete(self, topics: Any) -> None:
        for topic in topics:
            del self.log.topics[topic]

    def move(self, when: str, to: Targets, *, again: bool, problem: bool = False) -> None:
        """Look, move, and look again: it stands there, under the next incarnation where one was taken, and whoever had
        claimed it is fenced."""
        connection: Any = self.sink.open(Counting())
        try:
            delivery, before = self.looked(connection)
            if problem:
                self.stand.require(bool(before.problem), f"{when}: a delivery would go on, and must not")
            renew = delivery.renewed(before, again=again)
            self.moved(delivery, before, to, again=again)
            _, after = self.looked(connection)
        finally:
            connection.close()
        stands = {place.at: place.position for place in after.places}
        self.stand.require(stands == dict(to), f"{when}, it stands at {stands}, and was moved to {dict(to)}")
        self.stand.require(not after.problem, f"{when}, a delivery would stop: {after.problem}")
        wanted = before.incarnation + renew
        self.stand.require(
            after.incarnation == wanted,
            f"{when}, the incarnation is {after.incarnation}, it was {before.incarnation}"
            + (": what comes again would be taken for a repeat" if renew else ""),
        )
        self._fenced(when, before.seen, after.seen)

    def _fenced(self, when: str, before: Any, after: Any) -> None:
        """By the sink's own words: a higher epoch, or one of the next incarnation."""
        now: dict[int, Remembered] = {one.partition: one for one in after}
        for one in before:
            then = now.get(one.partition)
            if then is not None and one.epoch > 0:
                self.stand.require(
                    (then.incarnation, then.epoch) > (one.incarnation, one.epoch),
                    f"{when}, partition {one.partition} has epoch {then.epoch} of incarnation {then.incarnation}, as "
                    "before: who has claimed it is not fenced",
                )


def _back(targets: Targets, by: int) -> dict[TopicPartition, int]:
    return {at: max(0, offset - by) for at, offset in targets.items()}


# --- the trials ------------------------------------------------------------------------------------------------------


def operated(stand: Stand) -> None:
    """A person moves the position: rewound to an offset and to the start, adopted at the end and at an offset, and
    after a log that went back (S12). What comes again has its effect again, what was skipped has none."""
    o = Operating(stand)
    o.put(14)
    first = o.ends()
    start = dict.fromkeys(o.at, 0)
    o.had("after a first delivery", o.records(start, first))
    for when, to in (("after a rewind to an offset", _back(first, 2)), ("after a rewind to the start", start)):
        o.move(when, to, again=True)
        o.had(when, o.records(to, first))
    o.put(7)
    skipped = o.ends()
    o.move("after an adoption of the end", skipped, again=False)
    o.had("after an adoption of the end", [])
    o.put(7)
    o.move("after an adoption of an offset", _back(o.ends(), 1), again=False)
    copied, fork = o.log.copy(), o.ends()
    o.had("after an adoption of an offset", o.records(_back(fork, 1), fork))
    o.put(7)
    o.had("after going on", o.records(fork, o.ends()))
    # Other records come under the offsets of those: without another identity they would be taken for repeats.
    o.log.put_back(copied)
    o.put(14, other=1_000)
    o.move("after the log went back", fork, again=False, problem=True)
    o.had("after the log went back", o.records(fork, o.ends()))


def outmoved(stand: Stand) -> None:
    """A living owner (S1): what has moved since a person looked is not moved, and who had claimed it before a move is
    refused after it."""
    o = Operating(stand)
    if o.kind is PositionIn.GROUP_OFFSETS:
        raise NotTried("the position is in the group's offsets, which the log refuses to a person while anybody lives")
    o.put(8)
    start = dict.fromkeys(o.at, 0)
    o.had("after a first delivery", o.records(start, o.ends()))
    connection: Any = o.sink.open(Counting())
    try:
        delivery, standing = o.looked(connection)
        before = o.ends()
        o.put(7)
        o.had("while a person looks", o.records(before, o.ends()))
        try:
            o.moved(delivery, standing, start, again=True)
        except NotMoved:
            pass
        else:
            stand.require(False, "what was delivered while a person looked is moved as if it had not been")
    finally:
        connection.close()
    stood = o.stands()
    stand.require(stood == o.ends(), f"a move that was refused left it at {stood}")
    if o.kind is PositionIn.DELIVERY_TOPIC:
        _under_a_living_delivery(o)
    # The sink itself refuses, where it keeps something to refuse by.
    if stand.contract.fence is not Fence.NONE and (o.kind is PositionIn.SINK or o.looked()[1].seen):
        _under_a_living_owner(o)


def _under_a_living_delivery(o: Operating) -> None:
    """It has claimed, and its position is moved to where it stands: the log refuses its next decision, and by then not
    a byte of it has left. What it delivers afterwards it has claimed anew."""
    stand, steps, former = o.stand, Counting(), o.ends()
    said: list[str] = []
    with o.delivering(said, steps) as delivery:
        for _ in range(TURNS_MAX):
            o.turned(delivery)
            if o.ended(delivery):
                break
        stand.require(steps.hits[Step.CLAIM_AFTER] == PARTITIONS, f"a living delivery has not claimed: {said[-2:]}")
        o.put(7)
        o.move("under a living delivery", former, again=False)
        for _ in range(TURNS_MAX):  # until its next cuts are due
            count = o.turned(delivery)
            if count or steps.hits[Step.SINK_FENCED]:
                break
        stand.require(
            steps.hits[Step.SINK_FENCED] == PARTITIONS and not count,
            f"a delivery that had claimed before the move goes on after it: {count} records",
        )
        stand.holds("after a living delivery was fenced", o.effects)
    o.had("after the move under a living delivery", o.records(former, o.ends()))


def _under_a_living_owner(o: Operating) -> None:
    """It has claimed, and the position is moved to where it stands: nothing but the epoch tells."""
    stand, at, former = o.stand, o.at[0], o.ends()
    owner: Any = o.sink.open(Counting())
    try:
        stand.require(owner.prepare(Entry) == Done(), "prepare is not done on a system that serves")
        claim = _claimed(o, owner, former[at])
        o.put(7)
        o.move("under a living owner", former, again=False)
        start, end = former[at], former[at] + 1
        row = o.records({**o.ends(), at: start}, {**o.ends(), at: end})
        if stand.contract.settlement is Settlement.DECIDED:
            outcome = owner.prepare_cut(claim, Attempt(start, 2, end), RUN, row)
        else:
            outcome = owner.write(replace(claim, position=start), start, end, RUN, row)
        stand.require(
            isinstance(outcome, Fenced), f"an owner that had claimed before the move goes on after it: {outcome}"
        )
    finally:
        owner.close()
    o.had("after the move under a living owner", o.records(former, o.ends()))


def unsettled(stand: Stand) -> None:
    """What is prepared (S4): a move would forget what the log has decided about it, so nothing is moved before it is
    settled; and what a superseded owner prepares while the position is moved is rolled back, because nobody decides it
    any more."""
    if stand.contract.settlement is not Settlement.DECIDED:
        raise NotTried("it prepares nothing")
    o = Operating(stand)
    o.put(8)
    o.had("after a first delivery", o.records(dict.fromkeys(o.at, 0), o.ends()))
    for raced in (False, True):
        at, former = o.at[0], o.ends()
        owner: Any = o.sink.open(Counting())
        connection: Any = o.sink.open(Counting())
        try:
            stand.require(owner.prepare(Entry) == Done(), "prepare is not done on a system that serves")
            claim = _claimed(o, owner, former[at])
            o.put(7)
            attempt = Attempt(former[at], 2, former[at] + 1)
            row = o.records({**o.ends(), at: attempt.start}, {**o.ends(), at: attempt.end})
            outcome = owner.prepare_cut(claim, attempt, RUN, row)
            stand.require(outcome == Done(), f"a cut that nothing hinders is not prepared: {outcome}")
            delivery, standing = o.looked(_Raced(connection) if raced else connection)
            try:
                o.moved(delivery, standing, former, again=False)
            except NotMoved as why:
                stand.require(not raced, f"what was prepared while the position is moved is in its way: {why}")
                stand.require(o.stands() == former, "a move was refused, and has moved")
                stand.require(bool(_prepared(o)), "a move was refused, and has settled what is prepared")
                owner.abandon(claim, attempt)
            else:
                stand.require(raced, "what is prepared, and not settled, is forgotten by a move")
            stand.require(not (left := _prepared(o)), f"left prepared: {left}")
        finally:
            owner.close()
            connection.close()
        if not raced:
            o.move("after what was prepared was settled", former, again=False)
        o.had("after a move with something prepared", o.records(former, o.ends()))


def _prepared(o: Operating) -> list[str]:
    """By a connection of its own: a sink may have ended the owner's."""
    connection: Any = o.sink.open(Counting())
    try:
        return list(connection.in_doubt())
    finally:
        connection.close()


class _Raced:
    """A connection that sees nothing prepared before the move: it was prepared a moment later."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def left(self, app: str) -> tuple[str, ...]:
        return ()


def _claimed(o: Operating, owner: Any, position: int) -> Claim:
    log = o.looked()[1].log
    delivery = DeliveryId(APP, o.sink.name, 0)
    if o.stand.contract.settlement is Settlement.DECIDED:
        claim = owner.take_over(delivery, log, Attempt(position, 0, position), False)
    else:
        claim = owner.claim(delivery, log)
    if not isinstance(claim, Claim):
        raise Refused(f"{o.stand.trial}: a claim that nobody is in the way of is not done: {claim}")
    return claim


def interrupted(stand: Stand) -> None:
    """A move that ends at each of its steps (S10): it is done, or nothing of it is, or the delivery stops until the
    same move is made again; then it is done."""
    o = Operating(stand)
    o.put(8)
    o.had("after a first delivery", o.records(dict.fromkeys(o.at, 0), o.ends()))
    counting = _End("nowhere")
    _one_move(o, counting)
    ends = [_End("in the log", number) for number in range(1, counting.appends + 1)]
    if o.kind is not PositionIn.GROUP_OFFSETS:
        ends.append(_End("before the sink"))
        ends += [_End("in the sink", number) for number in range(1, counting.parts + 1)]
        ends.append(_End("after the sink"))
    if not ends:
        raise NotTried("a move of this delivery is one step of the log")
    for end in ends:
        _one_move(o, end)


class _End:
    """Where a person's process ends in its move: before or after the sink's part, in the log before its n-th record,
    in the sink after its n-th part; nowhere. It counts what there is."""

    def __init__(self, place: str, number: int = 0) -> None:
        self._place, self._number = place, number
        self.parts = self.appends = 0

    def __str__(self) -> str:
        return f"{self._place}{f' ({self._number})' if self._number else ''}"

    @property
    def nowhere(self) -> bool:
        return self._place == "nowhere"

    def reached(self, step: Step) -> None:
        if step is Step.MOVE_PART:
            self.parts += 1
            self.here("in the sink", self.parts)

    def appending(self) -> None:
        self.appends += 1
        self.here("in the log", self.appends)

    def here(self, place: str, number: int = 0) -> None:
        if (place, number) == (self._place, self._number):
            raise Crashed(Step.MOVE_PART)


class _Moving:
    """A connection under whose move the process ends."""

    def __init__(self, connection: Any, end: _End) -> None:
        self._connection, self._end = connection, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def move(self, *words: Any) -> Any:
        self._end.here("before the sink")
        outcome = self._connection.move(*words)
        self._end.here("after the sink")
        return outcome


class _Appending:
    """An owner under whose record the process ends."""

    def __init__(self, owner: Owner, end: _End) -> None:
        self._owner, self._end = owner, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._owner, name)

    def append(self, *words: Any) -> Any:
        self._end.appending()
        return self._owner.append(*words)


def _one_move(o: Operating, end: _End) -> None:
    """New records are delivered; a rewind by one record per partition ends there, and is made again where it was not
    done."""
    stand, when, before = o.stand, f"after a move that ends {end}", o.ends()
    o.put(7)
    o.had("before a move", o.records(before, o.ends()))
    ends = o.ends()
    to = _back(ends, 1)

    def owners(transactional_id: str) -> Any:
        return _Appending(o.log.owner(transactional_id), end)

    connection: Any = o.sink.open(end)
    ended = False
    try:
        delivery, standing = o.looked(_Moving(connection, end), owners)
        o.moved(delivery, standing, to, again=True)
    except Crashed:
        ended = True
    finally:
        connection.close()
    stand.require(ended != end.nowhere, f"{when}: it did not end there")
    _, after = o.looked()
    stands = {place.at: place.position for place in after.places}
    done = stands == to and not after.problem
    stand.require(
        done or stands == ends or bool(after.problem),
        f"{when}, a part of it is done, and a delivery would go on: {stands}",
    )
    if after.problem:
        try:
            o.deliver(when)
        except SinkError:
            stand.holds(f"{when}, while it stops", o.effects)
        else:
            stand.require(False, f"{when}, a delivery goes on, and the command says that it would stop")
    elif not done:
        o.had(f"{when}, which has done nothing", [])
    if not done:
        o.move(f"{when}, made again", to, again=True)
    o.had(f"{when}, made again", o.records(to, ends))
