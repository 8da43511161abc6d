"""Requests into an ASGI application without a server, and the application that most tests put behind the receiver."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from semel.receiver import Receiver, SQLiteKeys, connection, current
from semel.receiver.rules import Headers


class Got(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def answer(self) -> str:
        return self.headers.get("semel-answer", "")


class Gone(Exception):
    """The receiver's process has ended, as far as this request can tell."""


async def post(
    app: Any,
    body: bytes = b"{}",
    key: str | None = None,
    *,
    floor: str | None = None,
    path: str = "/hook",
    query: bytes = b"",
    method: str = "POST",
    headers: Headers = (),
    chunks: int = 1,
) -> Got:
    """One request. `key` is the header's value, quotes and all."""
    sent: list[tuple[bytes, bytes]] = [(name.lower(), value) for name, value in headers]
    if key is not None:
        sent.append((b"idempotency-key", key.encode("latin-1")))
    if floor is not None:
        sent.append((b"semel-floor", floor.encode("latin-1")))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": sent,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    size = max(1, -(-len(body) // chunks))
    parts = [body[n : n + size] for n in range(0, len(body), size)] or [b""]
    queue = [{"type": "http.request", "body": part, "more_body": n < len(parts) - 1} for n, part in enumerate(parts)]
    got: list[Any] = []

    async def receive() -> Any:
        return queue.pop(0) if queue else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        got.append(message)

    await app(scope, receive, send)
    assert got[0]["type"] == "http.response.start", got
    return Got(
        got[0]["status"],
        {name.decode(): value.decode("latin-1") for name, value in got[0]["headers"]},
        b"".join(part["body"] for part in got[1:]),
    )


async def respond(send: Any, status: int, body: bytes, headers: Headers = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers]})
    await send({"type": "http.response.body", "body": body})


class Counting:
    """Writes a row per run, in the receiver's transaction, and answers with the run's number. `status` and `do` say
    what else it does; `runs` counts how often it was entered."""

    def __init__(self, insert: str = "INSERT INTO effects (name) VALUES (?)") -> None:
        self.insert = insert
        self.runs = 0
        self.status = 201
        self.headers: Headers = ((b"content-type", b"application/json"), (b"location", b"/orders/1"))
        self.do: Callable[[], Any] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        self.runs += 1
        run = self.runs
        written = connection().execute(self.insert, (f"{current().sender}|{current().key}",))
        if hasattr(written, "__await__"):
            await written
        if self.do is not None:
            done = self.do()
            if hasattr(done, "__await__"):
                await done
        await respond(send, self.status, json.dumps({"run": run, "got": body.decode()}).encode(), self.headers)


def sqlite_receiver(path: Any, app: Any, **said: Any) -> Receiver:
    return Receiver(app, SQLiteKeys(path, **said.pop("keys", {})), **said)
