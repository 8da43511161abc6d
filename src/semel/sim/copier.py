"""A consume-process-produce program over the four cores of a client: what an application would do, without I/O.

One transaction per fetched batch: every record of `in` is copied to `out` under its origin, its offset goes with it.
Whatever is unknown ends in a new instance that starts from the committed offsets. Two of these share a group; they die,
stand still past their session while the other takes over, and come back in the middle of a transaction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from semel.broker import messages
from semel.client.caller import Caller, ask_committed, committed_of
from semel.client.consumer import Consumer, ConsumerConfig, Reset
from semel.client.effects import (
    Assigned,
    Died,
    Effect,
    Ended,
    Fetched,
    Forfeited,
    Initialised,
    MustAbort,
    Revoked,
    Settled,
    Stuck,
    Told,
)
from semel.client.member import Member, MemberConfig
from semel.client.producer import Producer, ProducerConfig
from semel.ports import Done, Position, Records, TopicPartition
from semel.record import Compression

from . import history as h
from .cluster import GROUP
from .process import (
    DELIVERY_TIMEOUT_MS,
    REQUEST_TIMEOUT_MS,
    SESSION_MS,
    TRANSACTION_TIMEOUT_MS,
    Line,
    Process,
    World,
    text_of,
)


class Copier:
    def __init__(self, world: World, line: Line[Copier], instance: int) -> None:
        self.world = world
        self.line = line
        self.who = f"{line.name}.{instance}"
        self._asking = -1
        self._backlog: deque[Records] = deque()
        self._in_transaction = self._ending = False
        self._revoked = self._rewinding = False
        self._assigned: tuple[TopicPartition, ...] = ()
        self._txn = -1
        self._sent: dict[int, tuple[str, ...]] = {}
        dice = world.dice
        self.producer = Producer(
            ProducerConfig(
                line.name,
                transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
                request_timeout_ms=REQUEST_TIMEOUT_MS,
                delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                compression=dice.choice(list(Compression)),
                one_connection=dice.random() < 0.3,
            )
        )
        self.consumer = Consumer(
            ConsumerConfig(
                reset=Reset.EARLIEST, max_wait_ms=100, partition_max_bytes=300, request_timeout_ms=REQUEST_TIMEOUT_MS
            )
        )
        self.caller = Caller(request_timeout_ms=REQUEST_TIMEOUT_MS, timeout_ms=600_000)
        self.member = Member(
            MemberConfig(
                GROUP,
                ("in",),
                instance_id=line.name if world.profile.static else None,
                session_timeout_ms=SESSION_MS,
                rebalance_timeout_ms=200,
                heartbeat_ms=40,
                request_timeout_ms=REQUEST_TIMEOUT_MS,
            ),
            {"in": 2},
        )
        self.process = Process(world, self.who, [self.producer, self.consumer, self.caller, self.member], self._told)
        self.process.do(self.producer, self.producer.init(world.now_ms))

    def _told(self, effect: Effect) -> None:
        world, now_ms = self.world, self.world.now_ms
        match effect:
            case Initialised():
                self.process.do(self.member, self.member.join(now_ms))
            case Assigned(partitions, generation):
                world.add(h.Given(now_ms, self.who, generation, tuple(partitions)))
                owners = world.counts.owners
                for at in partitions:
                    world.counts.hand_overs += owners.get(at.partition, self.line.name) != self.line.name
                    owners[at.partition] = self.line.name
                self._start(tuple(partitions))
            case Told(ticket, message) if ticket == self._asking:
                self._positions(message)
            case Fetched(records):
                self._backlog.append(records)
                self._next()
            case Stuck(at, reason):
                raise AssertionError(f"{self.who} cannot read on in {at}: {reason}")
            case Settled(ticket, at, outcome, base_offset):
                values = self._sent.pop(ticket)
                world.add(h.Settled(now_ms, self.who, self._txn, at, values, text_of(outcome), base_offset))
            case MustAbort():
                self._abort()
            case Ended(commit, outcome):
                self._ended(commit, outcome)
            case Revoked():
                self._revoked = True
                if not self._in_transaction:
                    self._let_go()
            case Forfeited():
                self._drop()
                if self._in_transaction:
                    self._abort()
            case Died(reason, fenced):
                world.counts.fenced += fenced
                self.process.kill(reason)
                world.scheduler.after(world.dice.randint(1, 100), lambda: self.line.succeed(self))

    def die(self, why: str) -> None:
        if self.process.alive:
            self.world.counts.kills += 1
            self.process.kill(why)
            self.world.scheduler.after(self.world.dice.randint(1, 300), lambda: self.line.succeed(self))

    # --- Reading --------------------------------------------------------------------------------------------------

    def _drop(self) -> None:
        self._assigned = ()
        self._asking = -1
        self._revoked = False
        self._backlog.clear()
        self.process.do(self.consumer, self.consumer.assign({}, self.world.now_ms))

    def _let_go(self) -> None:
        self._drop()
        self.process.do(self.member, self.member.rejoin(self.world.now_ms))

    def _start(self, partitions: tuple[TopicPartition, ...]) -> None:
        """From the committed offsets."""
        self._assigned = partitions
        self._backlog.clear()
        self._rewinding = False
        if self._in_transaction:  # of a former assignment: `_over` comes here again
            self._rewinding = True
            return
        self.process.do(self.consumer, self.consumer.assign({}, self.world.now_ms))
        if partitions:
            call, again = ask_committed(GROUP, partitions)
            self._asking, effects = self.caller.ask(call, self.world.now_ms, again)
            self.process.do(self.caller, effects)

    def _positions(self, message: object) -> None:
        assert isinstance(message, messages.OffsetFetchResponse), message
        found = committed_of(message)
        wanted = {at: 0 if (p := found[at]) is None else p.offset for at in self._assigned}
        now_ms = self.world.now_ms
        self.process.do(self.consumer, self.consumer.assign(wanted, now_ms))
        self.process.do(self.consumer, self.consumer.poll(now_ms))

    def _poll(self) -> None:
        if self._backlog:
            self._next()
        else:
            self.process.do(self.consumer, self.consumer.poll(self.world.now_ms))

    # --- Writing --------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        if self._in_transaction or not self._backlog:
            return
        world = self.world
        records = self._backlog.popleft()
        if not records.values:
            self._poll()
            return
        self._in_transaction = True
        self._txn += 1
        self.producer.begin()
        for partition in (0, 1):
            mine = [offset for offset in records.offsets if offset % 2 == partition]
            if mine:
                self._write(TopicPartition("out", partition), records.source, mine)
        if not self._in_transaction or not self.process.alive or self._ending:
            return
        if world.dice.random() < world.profile.abort:
            self._abort()
            return
        # The metadata of now: if the generation has moved on, the coordinator must refuse it.
        positions = {records.source: Position(records.next_offset)}
        self.producer.send_offsets(self.member.metadata, positions)
        self._trouble()
        world.scheduler.after(world.dice.randint(0, 5), self._commit_of(self._txn))

    def _write(self, at: TopicPartition, source: TopicPartition, offsets: Sequence[int]) -> None:
        world = self.world
        values = tuple(f"{source.partition}:{offset}@{self.who}#{self._txn}" for offset in offsets)
        world.add(h.Wrote(world.now_ms, self.who, self._txn, at, values))
        ticket, effects = self.producer.send(at, [value.encode() for value in values], now_ms=world.now_ms)
        self._sent[ticket] = values
        self.process.do(self.producer, effects)

    def _trouble(self) -> None:
        """Something may happen to this process within the transaction that has begun."""
        world = self.world
        rolls, profile, dice = world.rolls, world.profile, world.dice
        if rolls.happens(profile.pause, f"{self.who} stands still past its session"):
            pause_ms = dice.randint(SESSION_MS, 3 * SESSION_MS)
            slow = self.member if dice.random() < 0.6 else None
            world.counts.zombies += 1
            world.scheduler.after(dice.randint(0, 20), lambda: self.process.pause(pause_ms, slow, 60))
        elif rolls.happens(profile.kill, f"{self.who} dies in its transaction"):
            world.scheduler.after(dice.randint(0, 25), lambda: self.die("killed"))

    def _commit_of(self, txn: int) -> Callable[[], None]:
        return lambda: self._commit(txn)

    def _commit(self, txn: int) -> None:
        if not self.process.alive or txn != self._txn or self._ending or not self._in_transaction:
            return
        if self.process.paused:
            self.world.scheduler.after(20, self._commit_of(txn))
            return
        if self.producer.state.value == "ongoing":
            self._ending = True
            self.world.add(h.Ending(self.world.now_ms, self.who, txn, True))
            self.process.do(self.producer, self.producer.commit(self.world.now_ms))

    def _abort(self) -> None:
        """Unless the end is already decided."""
        if not self._ending and self.producer.state.value in ("ongoing", "abortable"):
            self._ending = True
            self.world.add(h.Ending(self.world.now_ms, self.who, self._txn, False))
            self.process.do(self.producer, self.producer.abort(self.world.now_ms))

    def _ended(self, commit: bool, outcome: object) -> None:
        world = self.world
        world.add(h.Ended(world.now_ms, self.who, self._txn, commit, text_of(outcome)))
        self._ending = False
        if commit and isinstance(outcome, Done):
            world.counts.transactions += 1
            self._over()
        elif commit:
            self._abort()
        else:
            world.counts.aborts += 1
            self._rewinding = True
            self._over()

    def _over(self) -> None:
        self._in_transaction = False
        if self._revoked:
            self._let_go()
        elif self._rewinding:
            self._start(self._assigned)
        else:
            self._poll()
