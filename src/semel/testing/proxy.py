"""A proxy for any protocol over TCP that cuts: everything, or a request that is seen going by, before or after it had
its effect. An answer that is lost after the effect is what tells an unknown outcome from a failure (FAULTS S8)."""

from __future__ import annotations

import contextlib
import socket
import threading


class TcpProxy:
    """Listens on `port`, forwards to 127.0.0.1:`target`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._silent: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._needle = b""
        self._forward = False
        self._frozen = False
        self._awaited: set[socket.socket] = set()  # clients that lose their next answer
        self._await = False
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_request(self, needle: bytes) -> None:
        """The next request with these bytes never arrives: both ends see a lost connection."""
        self._await = False
        self._needle, self._forward = needle, False

    def lose_answer(self, needle: bytes) -> None:
        """The next request with these bytes arrives and has its effect; its answer does not come back."""
        self._await = False
        self._needle, self._forward = needle, True

    def lose_answer_when_it_comes(self, needle: bytes) -> None:
        """As `lose_answer`, of a request that comes in many pieces: all of it goes on, and the connection is cut when
        the answer begins."""
        self._needle, self._forward = needle, True
        self._await = True

    def freeze(self, needle: bytes) -> None:
        """The next request with these bytes arrives; nothing comes back, and nothing more goes on, but the connection
        stays open."""
        self._needle, self._forward = needle, True
        self._frozen = True

    def calm(self) -> None:
        """Whatever was to be lost next goes through."""
        self._needle = b""

    def cut(self) -> None:
        """Closes every connection; new ones are accepted."""
        with self._lock:
            gone, self._open = self._open, set()
        for one in gone:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            threading.Thread(target=self._requests, args=(client, server), daemon=True).start()
            threading.Thread(target=self._answers, args=(server, client), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        while data := _received(client):
            if self._needle and self._needle in data:
                self._needle = b""
                self.cuts += 1
                if self._frozen:
                    self._frozen = False
                    with self._lock:
                        self._silent.add(client)
                    server.sendall(data)
                    return
                if self._await:
                    self._await = False
                    with self._lock:
                        self._awaited.add(client)
                    server.sendall(data)
                    continue
                if self._forward:
                    with self._lock:
                        self._open.discard(client)
                    # The answer is awaited by `_answers`, which finds the client gone.
                    client.shutdown(socket.SHUT_RDWR)
                    with contextlib.suppress(OSError):
                        server.sendall(data)
                    return
                break
            with contextlib.suppress(OSError):
                server.sendall(data)
        self._closed(client, server)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        while data := _received(server):
            if client in self._silent:
                continue
            if client in self._awaited:
                self._awaited.discard(client)
                break
            try:
                client.sendall(data)
            except OSError:
                break
        self._closed(server, client)

    def _closed(self, *ends: socket.socket) -> None:
        with self._lock:
            self._open -= set(ends)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(65536)
    except OSError:
        return b""
