"""A consume-process-produce program over the three cores: what an application would do, without I/O.

One transaction per fetched batch: every record is copied with its origin, the offset goes with it. Whatever is unknown
ends in a new instance that starts from the committed offsets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

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
from semel.client.steps import GroupMetadata
from semel.ports import Done, Position, Records, TopicPartition
from semel.record import Compression

from .world import World

REQUEST_TIMEOUT_MS = 300


class Copier:
    """Reads `sources` (or what the group assigns), writes to topic `out`. `unanswered` counts what was not known."""

    def __init__(
        self,
        world: World,
        name: str,
        *,
        sources: Sequence[TopicPartition] = (),
        topics: Mapping[str, int] | None = None,
        group: str = "g",
        abort: float = 0.0,
        returns: bool = True,
        incarnation: int = 0,
    ) -> None:
        self.world = world
        self.name = name
        self.sources = sources
        self.topics = topics
        self.group = group
        self.abort = abort
        self.returns = returns
        self.incarnation = incarnation
        self.successor: Copier | None = None
        self.commits = self.aborts = 0
        self.alive = True
        self.fenced = False
        self._term = 0  # grows with each assignment; what was asked in an earlier one is not used
        self._asking = -1
        self._backlog: deque[Records] = deque()
        self._in_transaction = self._ending = self._doomed = False
        self._revoked = self._rewinding = False
        self._assigned: tuple[TopicPartition, ...] = ()
        self._ready = False
        compression = list(Compression)[world.dice.randrange(0, 5)]
        self.producer = Producer(
            ProducerConfig(
                name,
                transaction_timeout_ms=2_000,
                request_timeout_ms=REQUEST_TIMEOUT_MS,
                delivery_timeout_ms=5_000,
                compression=compression,
                one_connection=world.dice.random() < 0.5,
            )
        )
        reader = ConsumerConfig(
            reset=Reset.EARLIEST, max_wait_ms=100, partition_max_bytes=300, request_timeout_ms=REQUEST_TIMEOUT_MS
        )
        self.consumer = Consumer(reader)
        self.caller = Caller(request_timeout_ms=REQUEST_TIMEOUT_MS, timeout_ms=600_000)
        self.member: Member | None = None
        if topics is not None:
            config = MemberConfig(
                group,
                tuple(topics),
                session_timeout_ms=1_500,
                rebalance_timeout_ms=2_000,
                heartbeat_ms=200,
                request_timeout_ms=REQUEST_TIMEOUT_MS,
            )
            self.member = Member(config, topics)
        self._ends = {
            core: world.endpoint(core, self._told, f"{name}.{incarnation}.{type(core).__name__.lower()}")
            for core in (self.producer, self.consumer, self.caller, *([self.member] if self.member else []))
        }
        self._do(self.producer, self.producer.init(world.now_ms))

    def newest(self) -> Copier:
        return self if self.successor is None else self.successor.newest()

    def total(self, what: str) -> int:
        return int(getattr(self, what)) + (0 if self.successor is None else self.successor.total(what))

    def kill(self) -> None:
        self.alive = False
        for end in self._ends.values():
            self.world.kill(end)

    def restart(self, after_ms: int) -> None:
        """kill -9, and a new process under the same transactional id."""
        if not self.alive:
            return
        self.kill()
        self.world.at(after_ms, self._succeed)

    def _succeed(self) -> None:
        self.successor = Copier(
            self.world,
            self.name,
            sources=self.sources,
            topics=self.topics,
            group=self.group,
            abort=self.abort,
            incarnation=self.incarnation + 1,
        )

    def _do(self, core: Producer | Consumer | Caller | Member, effects: Sequence[Effect]) -> None:
        self.world.perform(self._ends[core], effects)

    def _told(self, effect: Effect) -> None:
        now_ms = self.world.now_ms
        if not self.alive:
            return
        match effect:
            case Initialised():
                self._ready = True
                if self.member is None:
                    self._start(tuple(self.sources))
                else:
                    self._do(self.member, self.member.join(now_ms))
            case Assigned(partitions):
                self._start(tuple(partitions))
            case Told(ticket, message) if ticket == self._asking:
                assert isinstance(message, messages.OffsetFetchResponse), message
                positions = committed_of(message)
                wanted = {at: None if (p := positions[at]) is None else p.offset for at in self._assigned}
                self._do(self.consumer, self.consumer.assign(wanted, now_ms))
                self._do(self.consumer, self.consumer.poll(now_ms))
            case Fetched(records):
                self._backlog.append(records)
                self._next()
            case Stuck(at, reason):
                raise AssertionError(f"{at}: {reason}")
            case MustAbort():
                self._abort()
            case Ended(True, outcome):
                self._ending = False
                if isinstance(outcome, Done):
                    self.commits += 1
                    self._over()
                elif self.producer.state.value == "abortable":
                    self._abort()
            case Ended(False, _):
                self.aborts += 1
                self._ending = False
                self._rewinding = True
                self._over()
            case Revoked():
                self._revoked = True
                if not self._in_transaction:
                    self._let_go()
            case Forfeited():
                self._drop()
                if self._in_transaction:
                    self._abort()
            case Died(_, fenced):
                self.fenced = fenced
                self.kill()
                if self.returns:
                    self.world.at(self.world.dice.randrange(1, 200), self._succeed)
            case Settled():
                pass

    # --- Reading --------------------------------------------------------------------------------------------------

    def _drop(self) -> None:
        self._assigned = ()
        self._asking = -1
        self._revoked = False
        self._backlog.clear()
        self._do(self.consumer, self.consumer.assign({}, self.world.now_ms))

    def _let_go(self) -> None:
        assert self.member is not None
        self._drop()
        self._do(self.member, self.member.rejoin(self.world.now_ms))

    def _start(self, partitions: tuple[TopicPartition, ...]) -> None:
        """From the committed offsets."""
        self._assigned = partitions
        self._backlog.clear()
        self._rewinding = False
        if self._in_transaction:  # of a former assignment: `_over` comes here again
            self._rewinding = True
            return
        self._do(self.consumer, self.consumer.assign({}, self.world.now_ms))
        if partitions:
            call, again = ask_committed(self.group, partitions)
            self._asking, effects = self.caller.ask(call, self.world.now_ms, again)
            self._do(self.caller, effects)

    # --- Writing --------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        if self._in_transaction or not self._backlog:
            return
        now_ms = self.world.now_ms
        records = self._backlog.popleft()
        if not records.values:
            self._poll()
            return
        self._in_transaction = True
        self.producer.begin()
        for partition in (0, 1):
            mine = [i for i, offset in enumerate(records.offsets) if offset % 2 == partition]
            if mine:
                values = [f"{records.source.partition}:{records.offsets[i]}".encode() for i in mine]
                _, effects = self.producer.send(TopicPartition("out", partition), values, now_ms=now_ms)
                self._do(self.producer, effects)
        if not self._in_transaction or not self.alive or self._ending:
            return
        if self.world.dice.random() < self.abort:
            self._abort()
            return
        # The metadata of now: if the generation has moved on, the coordinator must refuse it.
        group = GroupMetadata(self.group) if self.member is None else self.member.metadata
        self.producer.send_offsets(group, {records.source: Position(records.next_offset)})
        self._ending = True
        self._do(self.producer, self.producer.commit(now_ms))

    def _abort(self) -> None:
        """Unless the end is already decided."""
        if self.producer.state.value in ("ongoing", "abortable"):
            self._ending = True
            self._do(self.producer, self.producer.abort(self.world.now_ms))

    def _over(self) -> None:
        self._in_transaction = False
        if self._revoked:
            self._let_go()
        elif self._rewinding:
            self._start(self._assigned)
        elif self._backlog:
            self._next()
        else:
            self._poll()

    def _poll(self) -> None:
        if not self._backlog:
            self._do(self.consumer, self.consumer.poll(self.world.now_ms))
        else:
            self._next()
