"""A proxy that sees Kafka's frames: it can hold one request, cut the client off, and release the request later.

What a network does to a packet (delays it past the sender's time-out, while the sender goes on over another
connection) is done here on purpose and to one chosen request: FAULTS B1 and B26. The held request keeps its own
upstream connection, opened in the order in which the client connected, so that the broker sees exactly what it
would see from the network.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

ADD_OFFSETS_TO_TXN, END_TXN, TXN_OFFSET_COMMIT, INIT_PRODUCER_ID = 25, 26, 28, 22


@dataclass
class Held:
    """A request that has left the client and has not reached the broker."""

    frame: bytes
    upstream: socket.socket
    api_key: int
    correlation: int
    answered: threading.Event = field(default_factory=threading.Event)
    answer: bytes | None = None  # None once answered: the broker closed the connection instead

    def release(self, timeout_s: float = 10.0) -> bytes | None:
        """Sends it on its way; returns the broker's answer, or None when it closed the connection."""
        with contextlib.suppress(OSError):
            self.upstream.sendall(self.frame)
        assert self.answered.wait(timeout_s), "the broker neither answered the released request nor closed it"
        return self.answer


class Proxy:
    """Listens on a port of its own and forwards to `target` (set once the broker's port is known)."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.target: tuple[str, int] | None = None
        self.lock = threading.Lock()
        self.wanted: Callable[[int, bytes], bool] | None = None
        self.holding = threading.Event()
        self.held: Held | None = None
        self.requests: list[int] = []  # api keys in the order seen
        self.closing = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def hold_next(self, api_key: int, matches: Callable[[bytes], bool] = lambda frame: True) -> None:
        """The next request of this kind is held, and the client's connection is cut."""
        with self.lock:
            self.holding.clear()
            self.held = None
            self.wanted = lambda key, frame: key == api_key and matches(frame)

    def wait_held(self, timeout_s: float = 30.0) -> Held:
        assert self.holding.wait(timeout_s), "the request to hold was never sent"
        assert self.held is not None
        return self.held

    def close(self) -> None:
        self.closing = True
        self.listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self.closing:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                # Connected here, in the accepting thread: the broker accepts in the client's order.
                upstream = socket.create_connection(self.target)  # type: ignore[arg-type]
            except OSError:
                client.close()
                continue
            for s in (client, upstream):
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(self, client, upstream)
            threading.Thread(target=link.up, daemon=True).start()
            threading.Thread(target=link.down, daemon=True).start()


class _Link:
    """One client connection and its upstream twin."""

    def __init__(self, proxy: Proxy, client: socket.socket, upstream: socket.socket) -> None:
        self.proxy, self.client, self.upstream = proxy, client, upstream
        self.held: Held | None = None

    def up(self) -> None:
        try:
            while True:
                frame = _frame(self.client)
                if frame is None:
                    break
                key, _, correlation = struct.unpack_from(">hhi", frame, 4)
                with self.proxy.lock:
                    self.proxy.requests.append(key)
                    hold = self.proxy.wanted is not None and self.proxy.wanted(key, frame)
                    if hold:
                        self.proxy.wanted = None
                        self.held = Held(frame, self.upstream, key, correlation)
                        self.proxy.held = self.held
                if hold:
                    # The client sees its connection die and repeats the request on another one.
                    with contextlib.suppress(OSError):
                        self.client.shutdown(socket.SHUT_RDWR)
                    self.client.close()
                    self.proxy.holding.set()
                    return
                self.upstream.sendall(frame)
        except OSError:
            pass
        self._close()

    def down(self) -> None:
        try:
            while True:
                frame = _frame(self.upstream)
                if frame is None:
                    break
                if self.held is not None:
                    (correlation,) = struct.unpack_from(">i", frame, 4)
                    if correlation == self.held.correlation:
                        self.held.answer = frame
                        self.held.answered.set()
                    continue
                self.client.sendall(frame)
        except OSError:
            pass
        if self.held is not None:
            self.held.answered.set()
        self._close()

    def _close(self) -> None:
        if self.held is not None and not self.held.answered.is_set():
            return
        for s in (self.client, self.upstream):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()


def _frame(s: socket.socket) -> bytes | None:
    head = _exactly(s, 4)
    if head is None:
        return None
    body = _exactly(s, struct.unpack(">i", head)[0])
    return None if body is None else head + body


def _exactly(s: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        chunk = s.recv(min(size - len(parts), 1 << 20))
        if not chunk:
            return None
        parts += chunk
    return bytes(parts)
