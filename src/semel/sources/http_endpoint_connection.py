"""The endpoint itself: threads that take requests in and wait, and the ingest's thread, which alone decides.

Invariant: a request is answered 200 after the transaction with its records and its key was committed, and never before;
one whose transaction ended otherwise is answered 503, *unknown*, and its sender asks again with the same key. A request
is refused (400, 409, 411, 413, 422) only when nothing of it was done.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from semel.ports import Done, NotDone
from semel.receiver import rules
from semel.receiver.rules import Answer, DoneBelow, Problem, Replay, Sent
from semel.source_ports import Portion, SourceRow
from semel.sources.http_endpoint import HTTPEndpoint
from semel.sources.http_endpoint_keys import TakenKeys, answer_of
from semel.sources.source import Coder, Refused

LOOK_S = 0.05  # how long a read waits for a request
WAIT_S = 30.0  # how long a request waits for its transaction
READ_S = 30.0  # how long a client may take to send one
WAITING_MAX = 2_000  # requests at once; more are told to come again
PURGE_EVERY_MS = 10_000
DROPPED_BYTES_MAX = 64 << 20  # of a body that is too long; who sends more finds the connection reset


class _Waiting:
    """One request, from its thread to the ingest's and back."""

    __slots__ = ("answer", "done", "headers", "records", "sent")

    def __init__(self, sent: Sent, records: Sequence[tuple[bytes | None, bytes | None]]) -> None:
        self.sent, self.records = sent, records
        self.done = threading.Event()
        self.answer: Answer | Problem | None = None
        self.headers: list[tuple[bytes, bytes]] = []

    def reply(self, answer: Answer | Problem, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self.answer, self.headers = answer, list(headers)
        self.done.set()


class EndpointConnection:
    def __init__(self, source: HTTPEndpoint, topic: Any) -> None:
        self.source = source
        self._topic = topic
        self.coder = Coder(topic, source.key)
        self.requests: queue.Queue[_Waiting] = queue.Queue(WAITING_MAX)
        self._keys = TakenKeys({}, 0)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._portion: list[_Waiting] = []  # in the transaction that is open
        self._changes: dict[str, bytes | None] = {}
        self._purged_ms = 0
        self._taken = 0
        self.closed = False

    def claim(self, positions: Mapping[str, bytes]) -> Done | NotDone:
        self._keys = TakenKeys(positions, round(self.source.keep_s * 1000))
        try:
            self._server = _Server(self)
        except OSError as why:
            return NotDone(f"{self.source.where} cannot be listened at: {why.strerror or why}")
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="semel-endpoint", daemon=True
        )
        self._thread.start()
        return Done()

    def read(self, records_max: int) -> Portion | NotDone:
        now_ms = int(time.time() * 1000)
        rows: list[SourceRow] = []
        self._portion, self._changes = [], {}
        inside: set[tuple[str, str]] = set()
        while len(rows) < records_max:
            try:
                # Everything that waits goes into one transaction; only for the first of it is waited.
                waiting = self.requests.get_nowait() if rows else self.requests.get(timeout=LOOK_S)
            except queue.Empty:
                break
            sent = waiting.sent
            if (sent.sender, sent.key) in inside:
                waiting.reply(rules.running(sent))
                continue
            match self._keys.decide(sent, now_ms):
                case Problem() as refused:
                    waiting.reply(refused)
                case Replay(kept):
                    waiting.reply(kept.answer, rules.about("replayed", self._keys.floor(sent), kept.expires_ms))
                case DoneBelow(floor):
                    waiting.reply(rules.done_answer(floor), rules.about("done", floor, None))
                case _:
                    inside.add((sent.sender, sent.key))
                    rows += [SourceRow(f"request {sent.key}", key, value) for key, value in waiting.records]
                    self._changes |= self._keys.taken(sent, len(waiting.records), now_ms)
                    self._portion.append(waiting)
        if now_ms - self._purged_ms >= PURGE_EVERY_MS:
            self._purged_ms = now_ms
            self._changes |= self._keys.forgotten(now_ms)
        return Portion(rows, dict(self._changes), idle_ms=0)

    def committed(self) -> None:
        self._keys.committed(self._changes)
        expires_ms = int(time.time() * 1000 + self.source.keep_s * 1000)
        for waiting in self._portion:
            self._taken += 1
            headers = rules.about("first", self._keys.floor(waiting.sent), expires_ms)
            waiting.reply(answer_of(len(waiting.records)), headers)
        self._portion, self._changes = [], {}

    def exhausted(self) -> bool:
        return False

    def progress(self) -> str:
        return f"{self._taken:,} requests taken, {len(self._keys):,} keys kept"

    def close(self) -> None:
        """Nobody listens any more; who waits is told that the outcome is not known."""
        self.closed = True
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for waiting in self._portion:
            waiting.reply(rules.unavailable(self.source.where))
        self._portion = []
        while True:
            try:
                self.requests.get_nowait().reply(rules.unavailable(self.source.where))
            except queue.Empty:
                return

    def records_of(self, body: bytes) -> Sequence[tuple[bytes | None, bytes | None]]:
        """The records in a body. Raises Refused."""
        if self.coder.of_str or self._topic.value_serde.type is bytes:
            try:
                return [self.coder.record(body.decode() if self.coder.of_str else body)]
            except UnicodeDecodeError as why:
                raise Refused(str(why)) from None
        try:
            found = msgspec.json.decode(body)
        except msgspec.MsgspecError as why:
            raise Refused(str(why)) from None
        return [self.coder.record(one) for one in (found if isinstance(found, list) else [found])]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A successor listens while a predecessor that was stopped has not let go; who is not the owner commits nothing.
    allow_reuse_port = True
    request_queue_size = 256

    def __init__(self, connection: EndpointConnection) -> None:
        self.connection = connection
        super().__init__(connection.source.address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = READ_S
    server: _Server

    def do_POST(self) -> None:
        connection = self.server.connection
        source = connection.source
        length = self.headers.get("content-length", "")
        if not length.isdigit():
            self.close_connection = True
            return self._reply(_problem("length-required", 411, "Content-Length is missing", "Send one."), [])
        if int(length) > source.body_bytes_max:
            self.close_connection = True
            self._reply(rules.body_too_long(source.body_bytes_max), [])
            return self._drop(int(length))
        body = self.rfile.read(int(length))
        if self.path.partition("?")[0] != source.path:
            return self._reply(_problem("no-such-path", 404, "There is nothing here", f"POST to {source.path}."), [])
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        sent = rules.parse(headers, "POST", self.path.encode("latin-1"), body, "", f"POST {source.path}")
        if isinstance(sent, Problem):
            return self._reply(sent, [])
        try:
            records = connection.records_of(body)
        except Refused as why:
            problem = _problem("no-record", 400, "The body is no record of this topic", f"{why}. Mend it.")
            return self._reply(problem, [])
        if connection.closed:  # another one owns the lane by now: the client finds it over another connection
            self.close_connection = True
            return self._reply(rules.unavailable(source.where), [])
        waiting = _Waiting(sent, records)
        try:
            connection.requests.put_nowait(waiting)
        except queue.Full:
            return self._reply(rules.unavailable(source.where), [])
        if not waiting.done.wait(WAIT_S) or waiting.answer is None:
            return self._reply(rules.unavailable(source.where), [])
        return self._reply(waiting.answer, waiting.headers)

    def _reply(self, answer: Answer | Problem, headers: Sequence[tuple[bytes, bytes]]) -> None:
        if isinstance(answer, Problem):
            all_headers, body = [*answer.headers(""), *headers], answer.body("")
        else:
            all_headers, body = [*answer.headers, *headers], answer.body
        self.send_response(answer.status)
        for name, value in all_headers:
            self.send_header(name.decode("latin-1"), value.decode("latin-1"))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _drop(self, length: int) -> None:
        """Reads what a refused sender still sends: closed with bytes unread, a connection is reset, its answer lost."""
        left = min(length, DROPPED_BYTES_MAX)
        while left > 0 and (read := self.rfile.read(min(left, 1 << 16))):
            left -= len(read)

    def version_string(self) -> str:
        return "semel"

    def log_message(self, format: str, *args: Any) -> None:
        """Not a line per request."""


def _problem(name: str, status: int, title: str, then: str) -> Problem:
    return Problem(name, status, title, "Nothing was done.", then)
