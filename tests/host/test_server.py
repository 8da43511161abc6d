"""The server around a scripted node: order of answers, one sync for many, nothing after a failure."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from semel.broker import messages
from semel.broker.config import FSYNC, OS, Config
from semel.broker.events import ConnectionClosed, Event, Reply, Request, Tick
from semel.host.server import Server, ServerFailed
from semel.wire.incoming import HEADER

HEARTBEAT, FIND_COORDINATOR = 12, 10


class ScriptedNode:
    """Answers FindCoordinator at once and Heartbeat once a sync has covered it, as Node would."""

    handled: frozenset[int] | None = None

    def __init__(self, durability: str = FSYNC) -> None:
        self.config = Config(durability=durability)
        self.appended = 0
        self.written = 0
        self.durable = 0
        self.held: list[tuple[int, Reply]] = []
        self.wake_at_ms: int | None = None
        self.checkpoint_due = False
        self.untold: list[str] = []
        self.syncs = 0
        self.ticks = 0
        self.checkpoints = 0
        self.closed: list[int] = []
        self.gate = threading.Event()  # a sync waits for it
        self.gate.set()
        self.sync_error: OSError | None = None
        self.write_error: OSError | None = None
        self.step_error: Exception | None = None

    def step(self, event: Event, now_ms: int) -> list[Reply]:
        if self.step_error is not None:
            raise self.step_error
        if isinstance(event, ConnectionClosed):
            self.closed.append(event.connection)
            return []
        if isinstance(event, Tick):
            self.ticks += 1
            self.wake_at_ms = None
            return []
        assert isinstance(event, Request)
        if event.api_key == FIND_COORDINATOR:
            return [Reply(event.connection, event.token, messages.FindCoordinatorResponse(), waits=False)]
        self.appended += 1
        self.held.append((self.appended, Reply(event.connection, event.token, messages.HeartbeatResponse())))
        return []

    def write(self) -> int:
        if self.write_error is not None:
            raise self.write_error
        self.written = self.appended
        return self.written

    @property
    def unsynced(self) -> bool:
        return (self.durable if self.config.durability == FSYNC else self.written) < self.appended

    def sync(self) -> int:
        covered = self.written
        assert self.gate.wait(30)
        if self.sync_error is not None:
            raise self.sync_error
        self.syncs += 1
        return covered

    def synced(self, position: int, now_ms: int) -> list[Reply]:
        self.durable = position
        free = [reply for at, reply in self.held if at <= position]
        self.held = [(at, reply) for at, reply in self.held if at > position]
        return free

    def checkpoint(self) -> None:
        self.checkpoints += 1
        self.checkpoint_due = False


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, api_key: int, correlation_id: int, version: int = 0, body: bytes | None = None) -> None:
        if body is None:
            body = b"\x00\x01g" if api_key == FIND_COORDINATOR else b"\x00\x01g\x00\x00\x00\x01\x00\x01m"
        frame = HEADER.pack(api_key, version, correlation_id, -1) + body
        self.writer.write(len(frame).to_bytes(4) + frame)

    async def answer(self) -> int:
        """The correlation id of the next answer."""
        return int.from_bytes((await self.frame())[:4])

    async def frame(self) -> bytes:
        size = int.from_bytes(await self.reader.readexactly(4))
        return await self.reader.readexactly(size)


Script = Callable[[ScriptedNode, Callable[[], Awaitable[Client]], Server], Awaitable[None]]


def serve(script: Script, node: ScriptedNode | None = None) -> ScriptedNode:
    """Runs the script against a server, then stops it."""
    scripted = node or ScriptedNode()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        address: asyncio.Future[tuple[str, int]] = loop.create_future()
        server = Server(scripted, Path(), lambda: 1_000)  # type: ignore[arg-type]
        bound = socket.create_server(("127.0.0.1", 0))
        serving = loop.create_task(server.run(bound, lambda host, port: address.set_result((host, port))))
        host, port = await address

        async def connect() -> Client:
            return Client(*await asyncio.open_connection(host, port))

        try:
            await asyncio.wait_for(script(scripted, connect, server), 30)
        finally:
            server.stop("the script is over")
            await asyncio.wait_for(serving, 30)

    asyncio.run(run())
    return scripted


def test_answers_leave_in_the_order_of_the_requests() -> None:
    """The answer to a request that needs no sync waits for the one before it on its connection, not on others."""

    async def script(node: ScriptedNode, connect: Any, server: Server) -> None:
        node.gate.clear()
        one, two = await connect(), await connect()
        one.send(HEARTBEAT, 1)
        one.send(FIND_COORDINATOR, 2)
        two.send(FIND_COORDINATOR, 3)
        assert await two.answer() == 3
        assert len(one.reader._buffer) == 0  # type: ignore[attr-defined]
        node.gate.set()
        assert [await one.answer(), await one.answer()] == [1, 2]

    serve(script)


def test_one_sync_serves_all_who_came_during_the_one_before() -> None:
    """Group commit: however many wait, two syncs are enough."""

    async def script(node: ScriptedNode, connect: Any, server: Server) -> None:
        node.gate.clear()
        clients = [await connect() for _ in range(20)]
        clients[0].send(HEARTBEAT, 100)
        for client in clients[1:]:
            client.send(HEARTBEAT, 101)
            client.send(FIND_COORDINATOR, 102)
        probe = await connect()
        while node.appended < 20:  # each round trip is a turn of the loop
            probe.send(FIND_COORDINATOR, 1)
            await probe.answer()
        node.gate.set()
        for client in clients:
            assert await client.answer() in (100, 101)
        assert node.syncs <= 2

    serve(script)


def test_without_syncs_written_is_durable() -> None:
    """At durability=os nothing waits for a thread, and the answers come with the write."""

    async def script(node: ScriptedNode, connect: Any, server: Server) -> None:
        client = await connect()
        for number in range(5):
            client.send(HEARTBEAT, number)
            assert await client.answer() == number

    assert serve(script, ScriptedNode(OS)).durable == 5


def test_a_checkpoint_comes_in_its_turn_under_load() -> None:
    """It needs no idle moment, and what it made durable is answered."""

    async def script(node: ScriptedNode, connect: Any, server: Server) -> None:
        client = await connect()
        node.checkpoint_due = True
        for number in range(20):
            client.send(HEARTBEAT, number)
        assert [await client.answer() for _ in range(20)] == list(range(20))
        assert node.checkpoints == 1

    serve(script)


@pytest.mark.parametrize("where", ["sync", "write", "step"])
def test_after_a_failure_nothing_is_answered(where: str) -> None:
    """A failed sync, write or step ends the server before any answer that depends on it."""

    async def script(node: ScriptedNode, connect: Any, server: Server) -> None:
        error = OSError(errno.ENOSPC, "No space left on device")
        client = await connect()
        client.send(FIND_COORDINATOR, 1)
        assert await client.answer() == 1
        if where == "sync":
            node.sync_error = error
        elif where == "write":
            node.write_error = error
        else:
            node.step_error = error
        client.send(HEARTBEAT, 2)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.answer()

    with pytest.raises(ServerFailed, match=r"the disk is full.*Free space"):
        serve(script)


def test_a_bug_of_ours_ends_the_server(caplog: pytest.LogCaptureFixture) -> None:
    """A broken invariant is not answered over: the log has the traceback, the user a sentence."""

    async def script(node: ScriptedNode, connect: Any, server: Server) -> None:
        node.step_error = AssertionError("7 is not 8")
        client = await connect()
        client.send(HEARTBEAT, 2)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.answer()

    with pytest.raises(ServerFailed, match="AssertionError: 7 is not 8"):
        serve(script)
    assert "bug" in caplog.text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "is this a Kafka client"),
        (b"\x00\x00\x00\x05\x00\x00\x00\x00\x00", "shorter than its header"),
        (b"\x00\x00\x00\x0a" + HEADER.pack(0, 2, 1, -1), "Produce version 2 is not served, 3 to 11 are"),
        (b"\x00\x00\x00\x0a" + HEADER.pack(4, 0, 1, -1), "API key 4 is not served"),
        (b"\x00\x00\x00\x0a" + HEADER.pack(12, 0, 1, -1), "Heartbeat version 0"),
    ],
)
def test_bytes_that_cannot_be_served_close_the_connection(
    data: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With one logged line, no traceback; what was answered before still leaves, others are not touched."""

    async def script(node: ScriptedNode, connect: Any, server: Server) -> None:
        bad, good = await connect(), await connect()
        bad.send(FIND_COORDINATOR, 1)
        bad.writer.write(data)
        assert await bad.answer() == 1
        assert await bad.reader.read() == b""
        good.send(FIND_COORDINATOR, 5)
        assert await good.answer() == 5

    serve(script)
    assert reason in caplog.text
    assert "Traceback" not in caplog.text


def test_a_newer_api_versions_is_answered_in_version_0() -> None:
    """UNSUPPORTED_VERSION and the versions there are, and the connection goes on (KIP-511)."""

    async def script(node: ScriptedNode, connect: Any, server: Server) -> None:
        client = await connect()
        client.send(18, 7, version=5, body=b"\x00")
        frame = await client.frame()
        assert frame[:6] == b"\x00\x00\x00\x07\x00\x23"
        keys = int.from_bytes(frame[6:10])
        assert len(frame) == 10 + 6 * keys
        client.send(FIND_COORDINATOR, 8)
        assert await client.answer() == 8

    serve(script)


def test_the_node_is_woken_when_it_asked_to_be() -> None:
    """And told when a connection is gone."""

    async def script(node: ScriptedNode, connect: Any, server: Server) -> None:
        node.wake_at_ms = 1_001
        client = await connect()
        client.send(FIND_COORDINATOR, 1)
        await client.answer()
        while not node.ticks:
            client.send(FIND_COORDINATOR, 2)
            await client.answer()
        client.writer.close()
        probe = await connect()
        while not node.closed:
            probe.send(FIND_COORDINATOR, 3)
            await probe.answer()
        assert node.closed == [1]

    serve(script)


def test_stopping_syncs_and_checkpoints() -> None:
    """The last answers leave, and the next start finds a checkpoint."""
    held: list[Client] = []

    async def script(node: ScriptedNode, connect: Any, server: Server) -> None:
        client = await connect()
        client.send(HEARTBEAT, 1)
        while not node.appended:
            await asyncio.sleep(0)
        held.append(client)

    node = serve(script)
    assert node.checkpoints == 1
    assert node.durable == 1


def test_large_answers_are_not_piled_up_for_a_client_that_does_not_read() -> None:
    """One read of the socket can bring a thousand requests for a megabyte each: they are stepped as they are sent."""

    class Generous(ScriptedNode):
        def step(self, event: Event, now_ms: int) -> list[Reply]:
            if not isinstance(event, Request):
                return []
            self.appended += 1
            chunk = messages.PartitionData(records=[bytes(1 << 20)])
            topic = messages.FetchableTopicResponse(topic="t", partitions=[chunk])
            return [Reply(event.connection, event.token, messages.FetchResponse(responses=[topic]), waits=False)]

        def write(self) -> int:
            self.durable = self.written = self.appended
            return self.written

    async def script(node: ScriptedNode, connect: Any, server: Server) -> None:
        client = await connect()
        count = 200
        for number in range(count):
            body = b"\xff\xff\xff\xff" + bytes(13) + bytes(4)  # Fetch 4: replica, wait, min, max, isolation, no topics
            client.send(1, number, version=4, body=body)
        probe = await connect()
        before = -1
        while before != node.appended:  # until it takes no more
            before = node.appended
            probe.send(18, 1)
            await probe.frame()
        assert node.appended < 60
        assert [await client.answer() for _ in range(count)] == list(range(count))

    serve(script, Generous())


def test_a_client_that_does_not_read_is_not_read() -> None:
    """Its requests wait in its own socket: memory stays bounded, and once it reads, every answer comes, in order."""

    async def script(node: ScriptedNode, connect: Any, server: Server) -> None:
        node.gate.clear()
        client = await connect()
        count = 5_000
        for number in range(count):
            client.send(HEARTBEAT, number)
        probe = await connect()
        before = -1
        while before != node.appended:  # until it takes no more
            before = node.appended
            for _ in range(5):
                probe.send(FIND_COORDINATOR, 1)
                await probe.answer()
        assert 1_000 <= node.appended < count
        node.gate.set()
        assert [await client.answer() for _ in range(count)] == list(range(count))

    serve(script)
