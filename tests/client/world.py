"""A small world for two real cores back to back: clients, a broker node with an in-memory disk, a network between.

One seed, one history. The network keeps a connection's order, in both directions, as TCP does; it delays, cuts (what
was sent before the cut may still arrive, or not), and falls silent (what was sent arrives late or never, and the client
is not told). Connections are accepted in the order in which a client opens them (DESIGN, The broker).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from semel.broker.config import Config
from semel.broker.events import ConnectionClosed, Reply, Request
from semel.broker.events import Tick as BrokerTick
from semel.broker.messages import FetchResponse
from semel.broker.node import Node
from semel.client.effects import Answer, Close, Effect, Event, Lost, Open, Send, Tick
from semel.record import crc32c
from semel.sim.disk import Disk


class Core(Protocol):
    def handle(self, event: Event, now_ms: int) -> list[Effect]: ...
    @property
    def wake_at_ms(self) -> int | None: ...


@dataclass(slots=True)
class Faults:
    """Chances per request."""

    cut: float = 0.0  # the connection breaks after the request was sent
    silence: float = 0.0  # from here on nothing comes back, and what is sent arrives late
    slow_ms: int = 3  # delays are drawn up to here
    late_ms: int = 400  # what arrives late arrives within this


@dataclass(slots=True, eq=False)
class Connection:
    number: int  # the broker's
    owner: Endpoint
    client_number: int
    accepted: int
    run: int  # of the broker it was opened to
    client_open: bool = True
    silent: bool = False
    broken: bool = False
    held: bool = False
    last_in_ms: int = 0  # order in either direction
    last_out_ms: int = 0


@dataclass(eq=False)
class Endpoint:
    """One client core and what it is told."""

    core: Core
    told: Callable[[Effect], None]
    name: str
    alive: bool = True
    connections: dict[int, Connection] = field(default_factory=dict)
    wake_at_ms: int | None = None


def shown(message: object) -> str:
    """As text that depends on nothing but its content."""
    if not isinstance(message, FetchResponse):
        return str(message)
    found = [
        (topic.topic, p.partition_index, p.error_code, p.last_stable_offset, crc32c(b"".join(p.records or ())))
        for topic in message.responses
        for p in topic.partitions
    ]
    return f"FetchResponse({found})"


class World:
    def __init__(self, seed: int, config: Config | None = None, faults: Faults | None = None) -> None:
        self.dice = random.Random(seed)
        self.config = config or Config()
        self.faults = faults or Faults()
        self.now_ms = 1_000_000
        self.disk = Disk(self.dice)
        self.node: Node | None = None
        self.history: list[str] = []
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._connections: dict[int, Connection] = {}  # those that the broker knows
        self._requests: dict[tuple[int, int], tuple[Connection, int]] = {}
        self._next_connection = 0
        self._run = 0
        self._syncing = False
        self._wake_at_ms: int | None = None
        self.hold: Callable[[Send], bool] | None = None  # requests to keep back, one after the other
        self.held: list[Callable[[], None]] = []
        self.requests = 0
        self.closed_by_broker = 0
        self.start()

    # --- Time -----------------------------------------------------------------------------------------------------

    def at(self, delay_ms: int, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (self.now_ms + delay_ms, self._sequence, action))

    def run_until(self, done: Callable[[], bool], limit_ms: int = 3_600_000) -> None:
        end_ms = self.now_ms + limit_ms
        while not done():
            assert self._queue, f"nothing more will happen, at {self.now_ms}"
            at_ms, _, action = heapq.heappop(self._queue)
            assert at_ms <= end_ms, f"not done within {limit_ms} ms"
            self.now_ms = at_ms
            action()

    # --- The broker -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._run += 1
        self.node = Node(self.disk, self.config, now_ms=self.now_ms, random=self.dice)
        self.history.append(f"{self.now_ms} broker run {self._run}")
        self._after_step([])

    def crash(self, down_ms: int, *, power: bool = True) -> None:
        """The broker dies, loses what was not synced (with `power`), and comes back."""
        if self.node is None:
            return
        self.history.append(f"{self.now_ms} broker crash")
        self.node = None
        self._syncing = False
        self._wake_at_ms = None
        self.disk = self.disk.crash() if power else self.disk.killed()
        for connection in list(self._connections.values()):
            self._lost(connection, self.dice.randrange(1, 20))
        self._connections.clear()
        self._requests.clear()
        self.at(down_ms, self.start)

    def _after_step(self, replies: Iterable[Reply]) -> None:
        for reply in replies:
            self._reply(reply)
        node = self.node
        assert node is not None
        if node.unsynced and not self._syncing:
            self._syncing = True
            run = self._run
            self.at(self.dice.randrange(0, 3), lambda: self._sync(run))
        wake = node.wake_at_ms
        if wake is not None and (self._wake_at_ms is None or wake < self._wake_at_ms):
            self._wake_at_ms = wake
            run = self._run
            self.at(max(0, wake - self.now_ms), lambda: self._tick_broker(run, wake))

    def _sync(self, run: int) -> None:
        if self.node is None or run != self._run:
            return
        self._syncing = False
        self.node.write()
        self._after_step(self.node.synced(self.node.sync(), self.now_ms))

    def _tick_broker(self, run: int, due_ms: int) -> None:
        if self.node is None or run != self._run or self._wake_at_ms != due_ms:
            return
        self._wake_at_ms = None
        self._after_step(self.node.step(BrokerTick(), self.now_ms))

    # --- The network ----------------------------------------------------------------------------------------------

    def endpoint(self, core: Core, told: Callable[[Effect], None], name: str) -> Endpoint:
        return Endpoint(core, told, name)

    def perform(self, endpoint: Endpoint, effects: Iterable[Effect]) -> None:
        if not endpoint.alive:
            return
        for effect in effects:
            match effect:
                case Open(number):
                    self._open(endpoint, number)
                case Send():
                    self._send(endpoint.connections[effect.connection], effect)
                case Close(number):
                    self._close(endpoint.connections.pop(number))
                case _:
                    self.history.append(f"{self.now_ms} {endpoint.name}: {effect}")
                    endpoint.told(effect)
        wake = endpoint.core.wake_at_ms
        if wake is not None and (endpoint.wake_at_ms is None or wake < endpoint.wake_at_ms):
            endpoint.wake_at_ms = wake
            self.at(max(0, wake - self.now_ms), lambda: self._tick(endpoint, wake))

    def kill(self, endpoint: Endpoint) -> None:
        """The client's process is gone; what it has sent may still arrive."""
        endpoint.alive = False
        for connection in endpoint.connections.values():
            self._close(connection)
        endpoint.connections.clear()

    def _tick(self, endpoint: Endpoint, due_ms: int) -> None:
        if endpoint.wake_at_ms == due_ms:
            endpoint.wake_at_ms = None
            if endpoint.alive:
                self.perform(endpoint, endpoint.core.handle(Tick(), self.now_ms))

    def _open(self, endpoint: Endpoint, number: int) -> None:
        self._next_connection += 1
        connection = Connection(self._next_connection, endpoint, number, self._next_connection, self._run)
        endpoint.connections[number] = connection
        if self.node is None:
            self._lost(connection, 1)
        else:
            self._connections[connection.number] = connection

    def _send(self, connection: Connection, send: Send) -> None:
        dice, faults = self.dice, self.faults
        if self.hold is not None and self.hold(send):
            # Everything behind it on its connection waits with it; here nothing is.
            connection.silent = connection.held = True
            self.held.append(lambda: self._arrive(connection, send))
            return
        assert not connection.held, "a held connection is given up, not used"
        if dice.random() < faults.silence:
            connection.silent = True
        delay = dice.randrange(0, faults.late_ms if connection.silent else faults.slow_ms)
        at_ms = connection.last_in_ms = max(connection.last_in_ms, self.now_ms + delay)
        if connection.silent and dice.random() < 0.3:
            connection.broken = True
        if connection.broken:
            return  # neither this nor anything after it arrives: a connection has no holes
        self.at(at_ms - self.now_ms, lambda: self._arrive(connection, send))
        if dice.random() < faults.cut:
            self._lost(connection, dice.randrange(0, 2 * faults.slow_ms))

    def _arrive(self, connection: Connection, send: Send) -> None:
        if self.node is None or self._connections.get(connection.number) is not connection:
            return
        self.requests += 1
        call = send.call
        self.history.append(f"{self.now_ms} {connection.owner.name} #{connection.accepted}: {call.message}")
        self._requests[connection.number, send.token] = (connection, send.token)
        request = Request(
            connection.number, send.token, call.message, call.api_key, call.version, connection.accepted, "test", "/"
        )
        self._after_step(self.node.step(request, self.now_ms))

    def _reply(self, reply: Reply) -> None:
        connection, token = self._requests.pop((reply.connection, reply.token))
        self.history.append(f"{self.now_ms} to {connection.owner.name} #{connection.accepted}: {shown(reply.message)}")
        if reply.close:
            self.closed_by_broker += 1
            self._gone(connection)
            self._lost(connection, self.dice.randrange(0, self.faults.slow_ms))
            return
        if connection.silent or reply.message is None:
            return
        delay = self.dice.randrange(0, self.faults.slow_ms)
        at_ms = connection.last_out_ms = max(connection.last_out_ms, self.now_ms + delay)
        self.at(at_ms - self.now_ms, lambda: self._answer(connection, Answer(token, reply.message)))

    def _answer(self, connection: Connection, answer: Answer) -> None:
        endpoint = connection.owner
        if connection.client_open and endpoint.alive:
            self.perform(endpoint, endpoint.core.handle(answer, self.now_ms))

    def _lost(self, connection: Connection, delay_ms: int) -> None:
        def tell() -> None:
            if not connection.client_open:
                return
            endpoint = connection.owner
            connection.client_open = False
            endpoint.connections.pop(connection.client_number, None)
            self._close(connection)
            if endpoint.alive:
                lost = Lost(connection.client_number)
                self.perform(endpoint, endpoint.core.handle(lost, self.now_ms))

        self.at(delay_ms, tell)

    def _close(self, connection: Connection) -> None:
        """The broker hears of it after everything that was sent before."""
        connection.client_open = False
        if connection.held:
            return  # the end of the connection is behind what is held
        self.at(max(0, connection.last_in_ms - self.now_ms) + 1, lambda: self._gone(connection))

    def _gone(self, connection: Connection) -> None:
        if self._connections.pop(connection.number, None) is not None and self.node is not None:
            self._after_step(self.node.step(ConnectionClosed(connection.number), self.now_ms))
