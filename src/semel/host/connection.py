"""One client's connection: frames in, requests to the server, answers out in the order of the requests.

Invariant: the n-th answer on the wire belongs to the n-th request that wants one, whenever each became ready. What a
client may leave unanswered or unread is bounded: past the bound its requests wait in its own socket.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from semel.ports import Buffer
from semel.wire.errors import UnsupportedRequest, WireError
from semel.wire.frames import Frames
from semel.wire.incoming import Incoming, read_request
from semel.wire.versions import API_VERSIONS, UNSUPPORTED_VERSION, api_name, api_versions
from semel.wire.writer import Parts, write_reply

logger = logging.getLogger("semel.server")

OUTSTANDING_BYTES_MAX = 128 << 20  # of requests that are not answered; above this the socket is not read
OUTSTANDING_REQUESTS_MAX = 1_000
UNSENT_BYTES_MAX = 16 << 20  # of answers that have not left; one more answer may be on top


class Owner(Protocol):
    """What a connection asks of its server."""

    frame_bytes_max: int

    def opened(self, connection: Connection) -> int: ...
    def request(self, connection: Connection, token: int, incoming: Incoming) -> None: ...
    def closed(self, connection: Connection) -> None: ...
    def handled(self) -> frozenset[int] | None: ...


class Waiting:
    """A request that is not answered on the wire yet."""

    __slots__ = ("api_key", "correlation_id", "parts", "size", "version")

    def __init__(self, api_key: int, version: int, correlation_id: int, size: int) -> None:
        self.api_key = api_key
        self.version = version
        self.correlation_id = correlation_id
        self.size = size
        self.parts: Parts | None = None  # the answer, once there is one; [] for one that sends nothing


class Connection(asyncio.BufferedProtocol):
    """Created as the connection is accepted: `number` counts in that order (DESIGN, The broker)."""

    def __init__(self, owner: Owner, number: int) -> None:
        self.number = number
        self.peer = ""
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._frames = Frames(owner.frame_bytes_max)
        self._waiting: dict[int, Waiting] = {}
        self._order: deque[int] = deque()
        self._next_token = 0
        self._outstanding = 0
        self._unread = False  # the client does not read: its transport's buffer is full
        self._paused = False
        self._out: list[Buffer] = []
        self._out_bytes = 0
        self._gone = False

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)
        peer = transport.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}" if peer else "?"
        self.host = str(peer[0]) if peer else ""
        self._owner.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._frames.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._frames.received(nbytes)
        self._process()

    def eof_received(self) -> bool:
        return False  # a client that has closed its side reads no answers: close ours

    def pause_writing(self) -> None:
        self._unread = True
        self._pace()

    def resume_writing(self) -> None:
        self._unread = False
        self._pace()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._waiting.clear()
        self._order.clear()
        self._out.clear()
        self._owner.closed(self)

    # requests in

    def _received(self, frame: bytes) -> None:
        try:
            incoming = read_request(frame)
        except UnsupportedRequest as error:
            if error.api_key != API_VERSIONS:
                raise
            # A newer client asks with its newest version and learns what we speak from a reply in version 0 (KIP-511).
            token = self._expect(API_VERSIONS, 0, error.correlation_id, len(frame))
            self.answer(token, api_versions(0, self._owner.handled(), UNSUPPORTED_VERSION))
            self.flush()
            return
        token = self._expect(incoming.api_key, incoming.version, incoming.correlation_id, len(frame))
        if incoming.api_key == API_VERSIONS:
            self.answer(token, api_versions(incoming.version, self._owner.handled()))
            self.flush()
        else:
            self._owner.request(self, token, incoming)

    def _expect(self, api_key: int, version: int, correlation_id: int, size: int) -> int:
        token = self._next_token
        self._next_token += 1
        self._waiting[token] = Waiting(api_key, version, correlation_id, size)
        self._order.append(token)
        self._outstanding += size
        return token

    def _too_much(self) -> bool:
        return (
            self._unread
            or self._out_bytes > UNSENT_BYTES_MAX
            or self._outstanding > OUTSTANDING_BYTES_MAX
            or len(self._order) > OUTSTANDING_REQUESTS_MAX
        )

    def _process(self) -> None:
        """Takes the requests that have come, as long as there is not too much of them open."""
        try:
            while not self._gone and not self._too_much():
                frame = self._frames.next()
                if frame is None:
                    break
                self._received(frame)
        except WireError as error:
            self.close(str(error))
        self._pace()

    def _pace(self) -> None:
        """Reads or not, by what is outstanding and what the client leaves unread."""
        if self._transport is None or self._gone or self._transport.is_closing():
            return
        too_much = self._too_much()
        if too_much and not self._paused:
            self._transport.pause_reading()
        elif self._paused and not too_much:
            self._transport.resume_reading()
            asyncio.get_running_loop().call_soon(self._process)  # what had come before the pause
        self._paused = too_much

    # answers out

    def answer(self, token: int, message: Any) -> None:
        """Notes the answer of a request (None: there is none to send). It leaves with `flush`, in its turn."""
        waiting = self._waiting.get(token)
        if waiting is None:
            return  # the connection went away meanwhile
        if message is None:
            waiting.parts = []
        else:
            try:
                waiting.parts = write_reply(waiting.api_key, waiting.version, waiting.correlation_id, message)
            except Exception:
                # Our own mistake; the client must not wait for ever for an answer that cannot be written.
                logger.exception("the reply to %s version %d", api_name(waiting.api_key), waiting.version)
                self.close("a reply could not be written (see above)")
                return
        order, waits = self._order, self._waiting
        while order and (parts := waits[order[0]].parts) is not None:
            self._outstanding -= waits.pop(order.popleft()).size
            self._out.extend(parts)
            self._out_bytes += sum(map(len, parts))

    def flush(self) -> None:
        """Sends what is ready."""
        if self._out:
            out, self._out, self._out_bytes = self._out, [], 0
            if self._transport is not None and not self._transport.is_closing():
                self._transport.writelines(out)
                if self._transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
                    # Python 3.12.1 and 3.13.0 do not look at the limit in writelines: setting it makes them.
                    self._transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)
        if self._paused:
            self._pace()

    def close(self, reason: str = "") -> None:
        """Ends the connection; what was answered before still leaves."""
        if self._gone:
            return
        self._gone = True
        if reason:
            logger.warning("connection %d from %s closed: %s", self.number, self.peer, reason)
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Ends it at once: nothing that has not left yet leaves."""
        self._gone = True
        self._out.clear()
        if self._transport is not None:
            self._transport.abort()


def factory(owner: Owner) -> Callable[[], Connection]:
    """Numbers connections in the order in which they are accepted: asyncio makes the protocol object then."""
    count = 0

    def make() -> Connection:
        nonlocal count
        count += 1
        return Connection(owner, count)

    return make
