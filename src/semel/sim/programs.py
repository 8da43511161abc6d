"""Programs without offsets: who fills the source, who writes in pairs, who reads all the time, who creates the topics.

Invariant: every value that any program writes is written by one send of one instance, so a value tells who and when.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from semel.broker import messages
from semel.client.caller import Caller, ask_metadata
from semel.client.consumer import Consumer, ConsumerConfig, Reset
from semel.client.effects import Died, Effect, Ended, Fetched, Initialised, MustAbort, Settled, Stuck, Told
from semel.client.producer import Producer, ProducerConfig
from semel.ports import Done, TopicPartition
from semel.record import Compression

from . import history as h
from .cluster import PARTITIONS
from .process import DELIVERY_TIMEOUT_MS, REQUEST_TIMEOUT_MS, TRANSACTION_TIMEOUT_MS, Line, Process, World, text_of

PENDING_MAX: Final = 6


def create_topics(world: World, topics: tuple[str, ...]) -> None:
    caller = Caller(request_timeout_ms=REQUEST_TIMEOUT_MS, timeout_ms=60_000)
    made: list[bool] = []

    def ask() -> None:
        process.do(caller, caller.ask(*_with_time(world, ask_metadata(topics)))[1])

    def told(effect: Effect) -> None:
        assert isinstance(effect, Told), effect
        found = effect.message
        if isinstance(found, messages.MetadataResponse) and all(t.error_code == 0 for t in found.topics):
            made.append(True)
        else:
            ask()

    process = Process(world, "admin", [caller], told)
    ask()
    world.scheduler.run_until(lambda: bool(made), 60_000, "topics are created")
    process.kill("its work is done")


def _with_time(world: World, question: tuple[object, Callable[[object], bool]]) -> tuple:  # type: ignore[type-arg]
    call, again = question
    return call, world.now_ms, again


class Feeder:
    """An idempotent producer that fills topic `in`, several batches in flight, until told to stop."""

    def __init__(self, world: World, line: Line[Feeder], instance: int) -> None:
        self.world = world
        self.line = line
        self.who = f"{line.name}.{instance}"
        self.stopped = False
        self._count = 0
        self._sent: dict[int, tuple[TopicPartition, tuple[str, ...]]] = {}
        self.producer = Producer(
            ProducerConfig(
                request_timeout_ms=REQUEST_TIMEOUT_MS,
                delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                compression=world.dice.choice(list(Compression)),
            )
        )
        self.process = Process(world, self.who, [self.producer], self._told)
        self.process.do(self.producer, self.producer.init(world.now_ms))

    @property
    def done(self) -> bool:
        return self.stopped and (not self.process.alive or self.producer.pending == 0)

    def stop(self) -> None:
        self.stopped = True

    def _told(self, effect: Effect) -> None:
        match effect:
            case Initialised():
                self._feed()
            case Settled(ticket, at, outcome, base_offset):
                _, values = self._sent.pop(ticket)
                text = text_of(outcome)
                self.world.add(h.Settled(self.world.now_ms, self.who, -1, at, values, text, base_offset))
            case Died(reason, _):
                self.process.kill(reason)
                self.line.succeed(self)

    def _feed(self) -> None:
        world = self.world
        if self.stopped or not self.process.alive:
            return
        world.scheduler.after(world.dice.randint(5, 60), self._feed)
        if self.producer.pending >= PENDING_MAX or self.process.paused:
            return
        at = TopicPartition("in", world.dice.randint(0, 1))
        values = tuple(f"{self._count + i}@{self.who}" for i in range(world.dice.randint(1, 3)))
        self._count += len(values)
        world.add(h.Wrote(world.now_ms, self.who, -1, at, values))
        ticket, effects = self.producer.send(at, [v.encode() for v in values], now_ms=world.now_ms)
        self._sent[ticket] = (at, values)
        self.process.do(self.producer, effects)


class Pairs:
    """A transactional producer that writes to both partitions of `pairs` in each transaction, and commits, aborts, or
    leaves it open; at times a second instance of the same id is started beside it."""

    def __init__(self, world: World, line: Line[Pairs], instance: int) -> None:
        self.world = world
        self.line = line
        self.who = f"{line.name}.{instance}"
        self.stopped = False
        self._txn = -1
        self._count = 0
        self._open = self._ending = self._aborts = False
        self._sent: dict[int, tuple[TopicPartition, tuple[str, ...]]] = {}
        self.producer = Producer(
            ProducerConfig(
                line.name,
                transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
                request_timeout_ms=REQUEST_TIMEOUT_MS,
                delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
                one_connection=world.dice.random() < 0.3,
            )
        )
        self.process = Process(world, self.who, [self.producer], self._told)
        self.process.do(self.producer, self.producer.init(world.now_ms))

    @property
    def done(self) -> bool:
        return not self.process.alive or (self.stopped and not self._open)

    def stop(self) -> None:
        self.stopped = True

    def _told(self, effect: Effect) -> None:
        world = self.world
        match effect:
            case Initialised():
                self._next()
            case Settled(ticket, at, outcome, base_offset):
                _, values = self._sent.pop(ticket)
                world.add(h.Settled(world.now_ms, self.who, self._txn, at, values, text_of(outcome), base_offset))
            case MustAbort():
                self._end(False)
            case Ended(commit, outcome):
                world.add(h.Ended(world.now_ms, self.who, self._txn, commit, text_of(outcome)))
                if not self.process.alive:
                    return
                self._ending = False
                if commit and not isinstance(outcome, Done):
                    self._end(False)
                    return
                self._open = False
                world.counts.transactions += commit
                world.counts.aborts += not commit
                world.scheduler.after(world.dice.randint(0, 20), self._next)
            case Died(reason, fenced):
                world.counts.fenced += fenced
                self.process.kill(reason)
                self.line.succeed(self)

    def die(self, why: str) -> None:
        if self.process.alive:
            self.world.counts.kills += 1
            self.process.kill(why)
            self.world.scheduler.after(self.world.dice.randint(1, 100), lambda: self.line.succeed(self))

    def _next(self) -> None:
        world = self.world
        if self.stopped or self._open or not self.process.alive:
            return
        if self.process.paused:
            world.scheduler.after(20, self._next)
            return
        self._open = True
        self._txn += 1
        self.producer.begin()
        for _ in range(world.dice.randint(1, 2)):
            for index in (0, 1):
                self._write(TopicPartition("pairs", index))
        world.scheduler.after(world.dice.randint(0, 12), self._decide)

    def _write(self, at: TopicPartition) -> None:
        if self.producer.state.value != "ongoing":
            return
        world = self.world
        values = tuple(f"{self._count + i}@{self.who}#{self._txn}" for i in range(world.dice.randint(1, 3)))
        self._count += len(values)
        world.add(h.Wrote(world.now_ms, self.who, self._txn, at, values))
        ticket, effects = self.producer.send(at, [v.encode() for v in values], now_ms=world.now_ms)
        self._sent[ticket] = (at, values)
        self.process.do(self.producer, effects)

    def _decide(self) -> None:
        world = self.world
        rolls, profile = world.rolls, world.profile
        if not self.process.alive or self._ending or not self._open:
            return
        if self.process.paused:
            world.scheduler.after(20, self._decide)
            return
        if rolls.happens(profile.leave_open, f"{self.who} leaves its transaction open"):
            world.scheduler.after(3 * TRANSACTION_TIMEOUT_MS, self._decide)
            return
        if rolls.happens(profile.pause, f"{self.who} stands still, another takes its id"):
            world.counts.zombies += 1
            world.scheduler.after(world.dice.randint(0, 100), lambda: self.line.succeed(self))
            pause_ms = world.dice.randint(100, 500)
            if world.dice.random() < 0.5:
                self._end(True)
                world.scheduler.after(world.dice.randint(0, 3), lambda: self.process.pause(pause_ms))
            else:
                self.process.pause(pause_ms)
                world.scheduler.after(pause_ms, self._decide)
            return
        if rolls.happens(profile.kill, f"{self.who} dies in its transaction"):
            self._end(True)
            world.scheduler.after(world.dice.randint(0, 6), lambda: self.die("killed"))
            return
        self._end(world.dice.random() >= profile.abort)

    def _end(self, commit: bool) -> None:
        """Asks for the end, unless that is underway; what was refused can only be aborted."""
        world, producer = self.world, self.producer
        state = producer.state.value
        if not self.process.alive or self._ending or state not in ("ongoing", "abortable"):
            return
        commit = commit and state == "ongoing"
        self._ending = True
        world.add(h.Ending(world.now_ms, self.who, self._txn, commit))
        self.process.do(producer, producer.commit(world.now_ms) if commit else producer.abort(world.now_ms))


class Reader:
    """Reads every partition from its start, at one isolation level, all the time."""

    def __init__(self, world: World, name: str, *, committed: bool) -> None:
        self.world = world
        self.name = name
        self.committed = committed
        self.consumer = Consumer(
            ConsumerConfig(
                committed=committed,
                reset=Reset.ERROR,
                max_wait_ms=150,
                partition_max_bytes=world.dice.choice([150, 1_000, 10_000]),
                request_timeout_ms=REQUEST_TIMEOUT_MS,
            )
        )
        self.positions = dict.fromkeys(PARTITIONS, 0)
        self.process = Process(world, name, [self.consumer], self._told)
        self.process.do(self.consumer, self.consumer.assign(dict.fromkeys(PARTITIONS, 0), world.now_ms))
        self._poll()

    def _told(self, effect: Effect) -> None:
        world = self.world
        if isinstance(effect, Stuck):
            raise AssertionError(f"{self.name} cannot read on in {effect.at}: {effect.reason}")
        assert isinstance(effect, Fetched), effect
        found = effect.records
        records = tuple(zip(found.offsets, [(v or b"").decode() for v in found.values], strict=True))
        start = self.positions[found.source]
        self.positions[found.source] = found.next_offset
        world.add(h.Read(world.now_ms, self.name, self.committed, found.source, start, found.next_offset, records))
        world.scheduler.after(world.dice.randint(0, 15), self._poll)

    def _poll(self) -> None:
        if self.process.alive:
            self.process.do(self.consumer, self.consumer.poll(self.world.now_ms))
