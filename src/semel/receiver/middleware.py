"""`Receiver`: ASGI middleware under which a request with an Idempotency-Key has its effect once.

Invariant: the client is told an answer only when it is kept (final answers) or when nothing was done (all others). So
the application's answer is held back until the transaction has committed; what cannot be held is refused, not streamed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from semel.receiver import rules
from semel.receiver.keys import Held, Keys, KeysUnavailable, NotOurs
from semel.receiver.rules import Answer, DoneBelow, Kept, Problem, Replay, Sent

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

EXPIRES_S = 24 * 3600.0
BYTES_MAX = 1 << 20
PURGE_EVERY_S = 60.0
PURGED_MAX = 10_000
DROPPED_MAX = 64 << 20  # of a body that is too long; who sends more may find the connection reset

_log = logging.getLogger("semel.receiver")
_current: ContextVar[Current | None] = ContextVar("semel_receiver", default=None)


class Current:
    """The request being handled: in `request.state.semel`, and from `current()`."""

    def __init__(self, sent: Sent, connection: Any) -> None:
        self.sender, self.key, self.place = sent.sender, sent.key, sent.place
        self._connection = connection

    @property
    def connection(self) -> Any:
        """The transaction's connection. Write with it, and neither commit nor roll back: both are the receiver's."""
        if self._connection is None:
            raise RuntimeError(
                f"The request with the key {self.key} has been answered, and its transaction has ended. What shall "
                "commit with the key is written before the answer; a background task opens a connection of its own."
            )
        return self._connection


def current() -> Current:
    """The request that this task or thread handles."""
    found = _current.get()
    if found is None:
        raise RuntimeError(
            "No request with an Idempotency-Key is being handled here. Wrap the application in "
            "semel.receiver.Receiver, and see that `applies` includes this route."
        )
    return found


def connection() -> Any:
    """The connection of the current request's transaction. A dependency for FastAPI: `Depends(connection)`."""
    return current().connection


class Receiver:
    """`Receiver(app, keys)`, or `app.add_middleware(Receiver, keys=…)`.

    `applies`: which requests need a key; left out, every POST and PATCH. `client`: who the client is, from what the
    application has authenticated (the scope): keys and floors of one client mean nothing for another. `expires_s`:
    how long a key is kept; one of a sender that announces floors, at least until the floor has passed it. `final`:
    which statuses are results, to be kept. `documentation`: an address for problem bodies to link to."""

    def __init__(
        self,
        app: App,
        keys: Keys,
        *,
        applies: Callable[[Scope], bool] = lambda scope: scope["method"] in ("POST", "PATCH"),
        client: Callable[[Scope], str] = lambda scope: "",
        expires_s: float = EXPIRES_S,
        body_bytes_max: int = BYTES_MAX,
        answer_bytes_max: int = BYTES_MAX,
        final: Callable[[int], bool] = rules.is_final,
        documentation: str = "",
        purge_every_s: float = PURGE_EVERY_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._app, self._keys = app, keys
        self._applies, self._client, self._final = applies, client, final
        self._expires_ms = int(expires_s * 1000)
        self._body_max, self._answer_max = body_bytes_max, answer_bytes_max
        self._documentation = documentation
        self._now = now
        self._purge_every_s = purge_every_s
        self._purged_s = now()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._applies(scope):
            await self._app(scope, receive, send)
            return
        body = await self._body(scope, receive)
        if isinstance(body, Problem):
            await self._refuse(send, body)
        elif body is not None:
            await self._keyed(scope, body, receive, send)
            await self._purge()

    async def _body(self, scope: Scope, receive: Receive) -> bytes | Problem | None:
        """The whole body, since it is compared; None when the client has gone. One that is too long is read to its end
        and dropped: a server that closes with bytes unread resets the connection, and the client never sees the 413."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size <= self._body_max:
                parts.append(part)
            else:
                parts.clear()
            if size > self._body_max + DROPPED_MAX or not message.get("more_body", False):
                return b"".join(parts) if size <= self._body_max else rules.body_too_long(self._body_max)

    async def _keyed(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        path = scope.get("raw_path") or scope["path"].encode()
        target = path + (b"?" + scope["query_string"] if scope.get("query_string") else b"")
        where = f"{scope['method']} {scope['path']}"
        sent = rules.parse(scope["headers"], scope["method"], target, body, self._client(scope), where)
        if isinstance(sent, Problem):
            await self._refuse(send, sent)
            return
        now_ms = int(self._now() * 1000)
        try:
            held = await self._keys.begin(sent, now_ms)
        except KeysUnavailable as why:
            _log.warning("%s: %s", where, why)
            await self._refuse(send, rules.unavailable(self._keys.where))
            return
        if held is None:
            await self._refuse(send, rules.running(sent))
            return
        floor = None if sent.floor is None else max(held.floor, sent.floor)
        decided = rules.decide(sent, held.kept, held.floor, now_ms)
        match decided:
            case Problem():
                await held.rollback()
                await self._refuse(send, decided)
            case Replay(kept):
                await self._known(send, held, kept.answer, rules.about("replayed", floor, kept.expires_ms))
            case DoneBelow():
                await self._known(send, held, rules.done_answer(decided.floor), rules.about("done", floor, None))
            case _:
                handled = _Handled(self, sent, held, floor, where, send)
                await handled.run(self._app, scope, body, receive)

    async def _known(self, send: Send, held: Held, answer: Answer, about: list[tuple[bytes, bytes]]) -> None:
        """Answers what needs no handler; the floor that the request brought is kept all the same."""
        try:
            await held.commit(None)
        except (KeysUnavailable, NotOurs) as why:  # the floor comes again with the next request
            _log.warning("the floor of a replayed request was not kept: %s", why)
        await _answer(send, answer, about)

    async def _refuse(self, send: Send, problem: Problem) -> None:
        body = problem.body(self._documentation)
        await _answer(send, Answer(problem.status, tuple(problem.headers(self._documentation)), body), [])

    async def _purge(self) -> None:
        """Now and then, after an answer: expired keys go."""
        now_s = self._now()
        if now_s - self._purged_s < self._purge_every_s:
            return
        self._purged_s = now_s
        try:
            await self._keys.purge(int(now_s * 1000), PURGED_MAX)
        except KeysUnavailable as why:
            _log.warning("expired keys were not removed: %s", why)


class _Stop(Exception):
    """Ends a handler whose answer is not used. Frameworks may wrap it on its way."""


class _Handled:
    """One request that runs: its answer is collected, committed with its writes, and only then sent."""

    def __init__(self, receiver: Receiver, sent: Sent, held: Held, floor: int | None, where: str, send: Send) -> None:
        self._receiver, self._sent, self._held, self._floor = receiver, sent, held, floor
        self._where, self._send = where, send
        self._status = 0
        self._headers: rules.Headers = ()
        self._parts: list[bytes] = []
        self._size = 0
        self._ended = False
        self._stopped = False
        self._current = Current(sent, held.connection)

    async def run(self, app: App, scope: Scope, body: bytes, receive: Receive) -> None:
        inner = dict(scope)
        inner.setdefault("state", {})["semel"] = self._current
        # No extension may send past us: files by path, pushes, trailers.
        inner["extensions"] = {n: v for n, v in (scope.get("extensions") or {}).items() if n == "tls"}
        told = False

        async def receive_again() -> Message:
            nonlocal told
            if told:
                return await receive()  # waits until the client has gone
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        token = _current.set(self._current)
        try:
            await app(inner, receive_again, self._collect)
            if not self._ended:
                raise RuntimeError(f"{self._where}: the application has returned without a complete answer")
        except Exception:
            if not self._stopped:
                raise
        finally:
            _current.reset(token)
            if not self._ended:  # an exception, a cancellation: nothing has happened
                self._close()
                await self._held.rollback()

    def _close(self) -> None:
        self._ended = True
        self._current._connection = None

    async def _collect(self, message: Message) -> None:
        if self._ended:
            return
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self._parts.append(message.get("body", b""))
            self._size += len(self._parts[-1])
            if self._size > self._receiver._answer_max:
                self._close()
                self._stopped = True
                await self._held.rollback()
                await self._receiver._refuse(self._send, rules.answer_too_long(self._receiver._answer_max))
                raise _Stop
            if not message.get("more_body", False):
                await self._finish()

    async def _finish(self) -> None:
        """The answer is complete: keep it with what was written, then tell it."""
        self._close()
        answer = Answer(self._status, tuple((bytes(n), bytes(v)) for n, v in self._headers), b"".join(self._parts))
        if not self._receiver._final(answer.status):
            await self._held.rollback()
            await _answer(self._send, answer, rules.about("not-kept", self._floor, None))
            return
        # From the answer on: a handler may take longer than its key is kept.
        expires_ms = int(self._receiver._now() * 1000) + self._receiver._expires_ms
        kept = Kept(
            self._sent.fingerprint,
            Answer(answer.status, rules.keepable(answer.headers), answer.body),
            expires_ms,
            placed=self._sent.place is not None,
        )
        try:
            await self._held.commit(kept, undo=answer.status >= 400)
        except NotOurs as why:
            _log.error("%s: %s", self._where, why)
            await self._receiver._refuse(self._send, rules.transaction_ended(self._where))
        except KeysUnavailable as why:
            _log.warning("%s: %s", self._where, why)
            await self._receiver._refuse(self._send, rules.unavailable(self._receiver._keys.where))
        else:
            await _answer(self._send, answer, rules.about("first", self._floor, expires_ms))


async def _answer(send: Send, answer: Answer, about: list[tuple[bytes, bytes]]) -> None:
    headers = [(name, value) for name, value in answer.headers if name.lower() not in _LENGTHS]
    headers += [*about, (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


_LENGTHS = (b"content-length", b"transfer-encoding")
