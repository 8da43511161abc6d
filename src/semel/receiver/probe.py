"""Requests for the conformance test, each sent once and written down with its answer.

Invariant: nothing is sent twice that a rule did not send twice: a connection per request, no retries, no redirects.
"""

from __future__ import annotations

import http.client
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from semel.errors import UsageError

R = TypeVar("R")

SHOWN_MAX = 400  # characters of a body that are written down


class CannotTell(Exception):
    """Neither holds nor fails: the endpoint does not answer, or does not do what a rule needs."""


@dataclass(frozen=True, slots=True)
class Reply:
    status: int  # 0: none came
    headers: Mapping[str, str] = field(default_factory=dict)  # lower-case names; several of one name: joined
    body: bytes = b""
    why: str = ""  # none came

    def __str__(self) -> str:
        if not self.status:
            return f"no answer: {self.why}"
        named = [f"{name}: {value}" for name, value in self.headers.items() if name in SHOWN]
        text = self.body[:SHOWN_MAX].decode(errors="replace")
        return "\n".join([str(self.status), *named, *([text] if text else [])])


SHOWN = (
    *("content-type", "link", "location", "retry-after"),
    *("semel-answer", "semel-floor", "semel-key-expires", "check-run"),
)


@dataclass(frozen=True, slots=True)
class Exchange:
    request: str
    reply: Reply


class Probe:
    """One rule's requests to the endpoint. Thread-safe."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, timeout_s: float = 10.0) -> None:
        self._url = urlsplit(url)
        if self._url.scheme not in ("http", "https") or not self._url.hostname:
            raise UsageError(f"{url}: an address like http://127.0.0.1:8000/check is wanted.")
        self._headers = dict(headers or {})
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self.exchanges: list[Exchange] = []

    def name(self) -> str:
        """A new name, for an effect, a key or a sender."""
        return f"check-{secrets.token_hex(8)}"

    def post(
        self,
        effect: str,
        key: str | Sequence[str] | None,
        *,
        floor: str | None = None,
        query: str = "",
        timeout_s: float | None = None,
        **controls: object,
    ) -> Reply:
        """A POST of `{"effect": …}`. `key` is the header's value as it is sent, several make several headers;
        `controls` become headers Check-…, which tell the endpoint what to do."""
        keys = [] if key is None else [key] if isinstance(key, str) else list(key)
        headers = [("Idempotency-Key", value) for value in keys]
        headers += [("Semel-Floor", floor)] if floor is not None else []
        headers += [(f"Check-{name.replace('_', '-').title()}", str(value)) for name, value in controls.items()]
        return self._send("POST", headers, json.dumps({"effect": effect}).encode(), query, timeout_s)

    def effects(self, effect: str) -> int:
        """How often this effect is there."""
        reply = self._send("GET", [], b"", f"effect={quote(effect)}", None)
        try:
            found = json.loads(reply.body)["effects"]
        except (ValueError, KeyError, TypeError):
            found = None
        if reply.status != 200 or not isinstance(found, int):
            raise CannotTell(
                f'GET {self._url.geturl()}?effect=… shall answer 200 and {{"effects": N}}; it answered: '
                f"{str(reply)[:200]}. docs/receiver.md shows the endpoint that the test needs."
            )
        return found

    def at_once(self, calls: Sequence[Callable[[], R]]) -> list[R]:
        """Each call in a thread of its own, all started together."""
        ready = threading.Barrier(len(calls))
        results: list[Any] = [None] * len(calls)

        def work(n: int) -> None:
            ready.wait()
            try:
                results[n] = calls[n]()
            except BaseException as why:
                results[n] = why

        threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(len(calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    def started(self, call: Callable[[], R]) -> Callable[[], R]:
        """Runs `call` beside us; what is returned waits for its result."""
        results: list[R] = []
        thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
        thread.start()

        def wait() -> R:
            thread.join()
            return results[0]

        return wait

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def now_s(self) -> float:
        return time.monotonic()

    def wait_until_served(self, seconds: float) -> None:
        """Returns when the endpoint answers a GET; CannotTell when it does not."""
        deadline = time.monotonic() + seconds
        while True:
            reply = self._send("GET", [], b"", "effect=none", 1.0, noted=False)
            if reply.status == 200:
                return
            if time.monotonic() > deadline:
                raise CannotTell(f"{self._url.geturl()} does not serve: {reply.why or reply.status}")
            time.sleep(0.05)

    def _send(
        self,
        method: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        query: str,
        timeout_s: float | None,
        *,
        noted: bool = True,
    ) -> Reply:
        target = self._url.path or "/"
        together = "&".join(part for part in (self._url.query, query) if part)
        target += f"?{together}" if together else ""
        every = [*self._headers.items(), *headers, ("Connection", "close")]
        if method == "POST":
            every += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        reply = self._exchange(method, target, every, body, timeout_s or self._timeout_s)
        if noted:
            shown = [f"{name}: {value}" for name, value in headers]
            text = "\n".join([f"{method} {target}", *shown, *([body.decode()] if body else [])])
            with self._lock:
                self.exchanges.append(Exchange(text, reply))
        return reply

    def _exchange(
        self, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes, timeout_s: float
    ) -> Reply:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        assert self._url.hostname is not None
        connection = kind(self._url.hostname, self._url.port, timeout=timeout_s)
        try:
            connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value.encode("latin-1"))
            connection.endheaders(body or None)
            response = connection.getresponse()
            found: dict[str, str] = {}
            for name, value in response.getheaders():
                lower = name.lower()
                found[lower] = f"{found[lower]}, {value}" if lower in found else value
            return Reply(response.status, found, response.read())
        except (OSError, http.client.HTTPException) as why:
            return Reply(0, why=f"{type(why).__name__}: {why}" if str(why) else type(why).__name__)
        finally:
            connection.close()
