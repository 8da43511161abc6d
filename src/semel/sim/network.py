"""The network between clients and the broker, in memory: connections without holes, as TCP's.

A connection keeps its order in both directions. It is delayed; it is cut (what was sent before may still arrive, or
not, and the answer does not); it falls silent (nothing comes back, what is sent arrives late or never, and nobody is
told); or a request on it is kept back until its sender, who has given up the connection and repeated the request on
another, is within its next transaction (FAULTS B1, B26). Connections are accepted in the order in which they were
opened. Invariant: a request arrives once, or never; what arrives twice was sent twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Final, Protocol

from semel.broker import messages, requests
from semel.broker.events import ConnectionClosed, Reply, Request
from semel.client import codes
from semel.client.effects import Answer, Close, Effect, Event, Lost, Open, Send, Tick
from semel.ports import Buffer, Random, TopicPartition
from semel.record import encode, headers_only

from . import history as h
from .cluster import Cluster
from .faults import Profile, Rolls
from .scheduler import Scheduler

# What of a transaction is kept back, and when it is let go: once this of its sender's next transaction has arrived.
_HELD_UNTIL: Final = {
    codes.END_TXN: (codes.ADD_PARTITIONS_TO_TXN, codes.PRODUCE, codes.TXN_OFFSET_COMMIT),
    codes.TXN_OFFSET_COMMIT: (codes.TXN_OFFSET_COMMIT, codes.PRODUCE),
    codes.ADD_PARTITIONS_TO_TXN: (codes.END_TXN, codes.ADD_PARTITIONS_TO_TXN),
    codes.ADD_OFFSETS_TO_TXN: (codes.END_TXN,),
    codes.PRODUCE: (codes.END_TXN, codes.ADD_PARTITIONS_TO_TXN),
}
_HELD_OFTEN: Final = {codes.END_TXN: 1.0, codes.TXN_OFFSET_COMMIT: 1.0}


class Core(Protocol):
    def handle(self, event: Event, now_ms: int) -> list[Effect]: ...
    @property
    def wake_at_ms(self) -> int | None: ...


@dataclass(slots=True, eq=False)
class Connection:
    number: int  # the broker's, and its accept number
    owner: Endpoint
    client_number: int
    client_open: bool = True
    silent: bool = False
    broken: bool = False
    held: bool = False
    last_in_ms: int = 0
    last_out_ms: int = 0


@dataclass(slots=True, eq=False)
class Endpoint:
    """One client core on the network. While it is paused, what happens to it waits."""

    core: Core
    told: Callable[[Effect], None]
    name: str
    alive: bool = True
    paused: bool = False
    inbox: list[Event] = field(default_factory=list)
    connections: dict[int, Connection] = field(default_factory=dict)
    wake_at_ms: int | None = None


@dataclass(slots=True, eq=False)
class _Held:
    connection: Connection
    send: Send
    repeated: bool = False


class Network:
    def __init__(
        self, scheduler: Scheduler, history: h.History, cluster: Cluster, profile: Profile, rolls: Rolls, dice: Random
    ) -> None:
        self.scheduler = scheduler
        self.history = history
        self.cluster = cluster
        self.profile = profile
        self.rolls = rolls
        self.dice = dice
        self.released = 0  # requests that were kept back and let go
        self.closed_by_broker = 0
        self._connections: dict[int, Connection] = {}  # those that the broker knows
        self._asked: dict[tuple[int, int], Request] = {}
        self._held: list[_Held] = []
        self._forged: dict[int, tuple[TopicPartition, int]] = {}  # by connection: place, first sequence
        self._next_connection = 0
        cluster.released = self._leave
        cluster.fell = self._fall

    # --- Clients

    def perform(self, endpoint: Endpoint, effects: Iterable[Effect]) -> None:
        if not endpoint.alive:
            return
        for effect in effects:
            match effect:
                case Open(number):
                    self._open(endpoint, number)
                case Send():
                    connection = endpoint.connections.get(effect.connection)
                    if connection is not None:  # else its loss is on its way
                        self._send(connection, effect)
                case Close(number):
                    closing = endpoint.connections.pop(number, None)
                    if closing is not None:
                        self._close(closing)
                case _:
                    endpoint.told(effect)
        wake = endpoint.core.wake_at_ms
        if wake is not None and (endpoint.wake_at_ms is None or wake < endpoint.wake_at_ms):
            endpoint.wake_at_ms = wake
            scheduler = self.scheduler
            scheduler.after(max(0, wake - scheduler.now_ms), lambda: self._tick(endpoint, wake))

    def deliver(self, endpoint: Endpoint, event: Event) -> None:
        if endpoint.paused:
            endpoint.inbox.append(event)
        elif endpoint.alive:
            self.perform(endpoint, endpoint.core.handle(event, self.scheduler.now_ms))

    def resume(self, endpoint: Endpoint) -> None:
        """It goes on with what has come in the meantime; only then does it look at the clock."""
        endpoint.paused = False
        waiting, endpoint.inbox = endpoint.inbox, []
        for event in (*waiting, Tick()):
            self.deliver(endpoint, event)

    def kill(self, endpoint: Endpoint) -> None:
        """Its process is gone; what it has sent may still arrive."""
        endpoint.alive = False
        for connection in endpoint.connections.values():
            self._close(connection)
        endpoint.connections.clear()

    def _tick(self, endpoint: Endpoint, due_ms: int) -> None:
        if endpoint.wake_at_ms == due_ms:
            endpoint.wake_at_ms = None
            self.deliver(endpoint, Tick())

    # --- To the broker

    def _open(self, endpoint: Endpoint, number: int) -> None:
        self._next_connection += 1
        connection = Connection(self._next_connection, endpoint, number)
        endpoint.connections[number] = connection
        if self.cluster.node is None:
            self._lost(connection, 1)
        else:
            self._connections[connection.number] = connection

    def _send(self, connection: Connection, send: Send) -> None:
        profile, dice, scheduler = self.profile, self.dice, self.scheduler
        name = connection.owner.name
        if connection.held:
            return  # behind what is kept back, on a connection that the client will give up
        api_key = send.call.api_key
        if (
            api_key in _HELD_UNTIL
            and not connection.silent
            and connection.number in self._connections
            and not any(held.connection.owner is connection.owner for held in self._held)
            and self.rolls.happens(
                profile.hold * _HELD_OFTEN.get(api_key, 0.2), f"{name} #{connection.number}: API {api_key} kept back"
            )
        ):
            connection.silent = connection.held = True
            self._held.append(_Held(connection, send))
            return
        if self.rolls.happens(profile.silence, f"{name} #{connection.number}: silent"):
            connection.silent = True
            connection.broken |= dice.random() < 0.3
        delay = dice.randint(0, profile.late_ms if connection.silent else profile.slow_ms)
        at_ms = connection.last_in_ms = max(connection.last_in_ms, scheduler.now_ms + delay)
        if connection.broken:
            return  # neither this nor anything after it arrives
        scheduler.after(at_ms - scheduler.now_ms, lambda: self._arrive(connection, send))
        if self.rolls.happens(profile.cut, f"{name} #{connection.number}: cut"):
            connection.broken = True
            self._lost(connection, dice.randint(0, 2 * profile.slow_ms))

    def _arrive(self, connection: Connection, send: Send) -> None:
        if self.cluster.node is None or self._connections.get(connection.number) is not connection:
            return
        call, number, name = send.call, connection.number, connection.owner.name
        self.history.add(h.Arrived(self.scheduler.now_ms, name, number, call.message))
        request = Request(number, send.token, call.message, call.api_key, call.version, number, "sim", "/")
        self._asked[number, send.token] = request
        self.cluster.step(request)
        self._let_go(connection.owner, send)

    def _let_go(self, endpoint: Endpoint, arrived: Send) -> None:
        """Releases what was kept back of this client, if it is now where that hurts."""
        for held in self._held:
            if held.connection.owner is not endpoint or held.send is arrived:
                continue
            api_key = arrived.call.api_key
            if api_key == held.send.call.api_key and not held.repeated:
                held.repeated = True
            elif held.repeated and api_key in _HELD_UNTIL[held.send.call.api_key] and self.dice.random() < 0.7:
                self._held.remove(held)
                self.released += 1
                self.scheduler.after(self.dice.randint(0, 2), partial(self._late, held))
                return

    def _late(self, held: _Held) -> None:
        self._arrive(held.connection, held.send)
        self.scheduler.after(1, lambda: self._gone(held.connection))

    # --- From the broker

    def _leave(self, replies: Iterable[Reply]) -> None:
        now_ms = self.scheduler.now_ms
        for reply in replies:
            if reply.connection in self._forged:
                self._refused(reply)
                continue
            connection = self._connections.get(reply.connection)
            request = self._asked.pop((reply.connection, reply.token), None)
            if connection is None or request is None:
                continue
            message = None if reply.close else reply.message
            self.history.add(h.Left(now_ms, connection.owner.name, connection.number, message))
            if reply.close:
                self.closed_by_broker += 1
                self._lost(connection, self.dice.randint(0, self.profile.slow_ms))
                self.scheduler.after(0, partial(self._gone, connection))
                continue
            self._promise(connection.owner.name, request, message)
            if connection.silent or connection.broken or message is None:
                continue
            delay = self.dice.randint(0, self.profile.slow_ms)
            at_ms = connection.last_out_ms = max(connection.last_out_ms, now_ms + delay)
            answer = Answer(reply.token, message)
            self.scheduler.after(at_ms - now_ms, partial(self._answer, connection, answer))

    def _promise(self, who: str, request: Request, message: object) -> None:
        """What the reply says that must hold from now on."""
        now_ms, add = self.scheduler.now_ms, self.history.add
        match message:
            case messages.ProduceResponse():
                sent = {(t.name, p.index): p.records for t in request.message.topic_data for p in t.partition_data}
                for topic in message.responses:
                    for found in topic.partition_responses:
                        if found.error_code == 0:
                            count = headers_only(sent[topic.name, found.index]).count
                            at = TopicPartition(topic.name, found.index)
                            add(h.Acked(now_ms, who, at, found.base_offset, count))
                            if self.rolls.happens(self.profile.forge, f"{who}: sequences used again"):
                                self._forge(at, sent[topic.name, found.index])
            case messages.FetchResponse():
                for fetched in message.responses:
                    for part in fetched.partitions:
                        if part.error_code == 0:
                            at = TopicPartition(fetched.topic, part.partition_index)
                            add(h.Marks(now_ms, at, part.high_watermark, part.last_stable_offset))
            case messages.InitProducerIdResponse(_, 0, producer_id, epoch):
                name = request.message.transactional_id or ""
                add(h.Epoch(now_ms, name, producer_id, epoch, self.cluster.ends()))
            case messages.OffsetFetchResponse(_, _, topics, 0):
                told = {
                    TopicPartition(group_topic.name, p.partition_index): p.committed_offset
                    for group_topic in topics
                    for p in group_topic.partitions
                    if p.error_code == 0 and p.committed_offset >= 0
                }
                add(h.Offsets(now_ms, told))

    # --- Other bytes under used sequences

    def _forge(self, at: TopicPartition, data: Buffer) -> None:
        """A client that has lost its memory sends them, soon."""
        used = headers_only(data)
        forged = encode(
            [b"forged"] * used.count,
            producer_id=used.producer_id,
            producer_epoch=used.producer_epoch,
            base_sequence=used.base_sequence,
            transactional=used.is_transactional,
        )
        partition = requests.TopicProduceData(at.topic, (requests.PartitionProduceData(at.partition, forged),))
        message = requests.ProduceRequest(None, -1, timedelta(seconds=1), (partition,))

        def send() -> None:
            self._next_connection += 1
            number = self._next_connection
            self._forged[number] = at, used.base_sequence
            self.history.add(h.Arrived(self.scheduler.now_ms, "forger", number, message))
            self.cluster.step(Request(number, 0, message, codes.PRODUCE, codes.VERSIONS[codes.PRODUCE], number))

        self.scheduler.after(self.dice.randint(0, 200), send)

    def _refused(self, reply: Reply) -> None:
        at, base_sequence = self._forged.pop(reply.connection)
        assert isinstance(reply.message, messages.ProduceResponse), reply
        code = reply.message.responses[0].partition_responses[0].error_code
        self.history.add(h.Forged(self.scheduler.now_ms, at, base_sequence, int(code)))
        self.scheduler.after(0, lambda: self.cluster.step(ConnectionClosed(reply.connection)))

    def _answer(self, connection: Connection, answer: Answer) -> None:
        if connection.client_open:
            self.deliver(connection.owner, answer)

    # --- Ends

    def _lost(self, connection: Connection, delay_ms: int) -> None:
        """The client hears that the connection is gone."""

        def tell() -> None:
            if connection.client_open:
                connection.client_open = False
                connection.owner.connections.pop(connection.client_number, None)
                self._close(connection)
                self.deliver(connection.owner, Lost(connection.client_number))

        self.scheduler.after(delay_ms, tell)

    def _close(self, connection: Connection) -> None:
        """The broker hears of it after everything that was sent before."""
        connection.client_open = False
        if not connection.held:  # else its end is behind what is kept back
            now_ms = self.scheduler.now_ms
            self.scheduler.after(max(0, connection.last_in_ms - now_ms) + 1, lambda: self._gone(connection))

    def _gone(self, connection: Connection) -> None:
        if self._connections.pop(connection.number, None) is not None:
            self.cluster.step(ConnectionClosed(connection.number))

    def _fall(self) -> None:
        """The broker is down: every connection is gone, and what is underway to it."""
        for connection in self._connections.values():
            self._lost(connection, self.dice.randint(1, 10))
        self._connections.clear()
        self._asked.clear()
        self._held.clear()
        self._forged.clear()
