"""Senders of the run's own, for `semel verify`: every request is repeated under its key until it is answered, some of
them once more than needed, and some answers are not listened to.

Invariant: a row that was added is sent until its request was answered finally.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from semel.sources.http_endpoint import HTTPEndpoint
from semel.sources.source import Coder

SENDERS = 8
SIZES = (1, 20, 5, 40)
TIMEOUT_S = 3.0
PAUSE_S = 0.05


class EndpointTrial:
    after_the_start = False

    def __init__(self, source: HTTPEndpoint, topic: Any) -> None:
        self._source, self._topic = source, topic
        self._plain = topic.value_serde.type in (str, bytes)
        self._rows: list[bytes] = []
        self._waiting: queue.Queue[tuple[int, bytes]] = queue.Queue()
        self._ended = threading.Event()
        self._numbers = itertools.count()
        self.refused: list[str] = []

    def prepare(self) -> None:
        for n in range(SENDERS):
            threading.Thread(target=self._send, name=f"verify-sends-{n}", daemon=True).start()

    def add(self, rows: Sequence[Any]) -> int:
        made = [
            r.encode() if isinstance(r, str) else r if isinstance(r, bytes) else msgspec.json.encode(r) for r in rows
        ]
        self._rows += made
        while made:
            number = next(self._numbers)
            count = 1 if self._plain else SIZES[number % len(SIZES)]  # records in one request
            some, made = made[:count], made[count:]
            self._waiting.put((number, some[0] if count == 1 else b"[" + b",".join(some) + b"]"))
        return len(rows)

    def _send(self) -> None:
        while not self._ended.is_set():
            try:
                number, body = self._waiting.get(timeout=0.2)
            except queue.Empty:
                continue
            left = 2 if number % 7 == 0 else 1  # some are repeated after their answer
            while left and not self._ended.is_set():
                status = self._once(number, body, listen=left > 1 or number % 5 != 0)
                if status == 200:
                    left -= 1
                elif 400 <= status < 500 and status not in (408, 409, 429):
                    self.refused.append(f"request {number} was answered {status}")
                    break
                elif status == 1:
                    number_again = number  # not listened to: asked again, to know
                    left = 1 if self._once(number_again, body, listen=True) != 200 else 0
                else:
                    time.sleep(PAUSE_S)

    def _once(self, number: int, body: bytes, *, listen: bool) -> int:
        """The status; 0: no answer; 1: it was not listened to."""
        host, port = self._source.address
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", self._source.path, body, {"Idempotency-Key": f'"verify-{number}"'})
            if not listen:
                return 1
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            with contextlib.suppress(OSError):
                connection.close()

    def rows(self) -> Sequence[tuple[bytes | None, bytes | None]]:
        coder = Coder(self._topic, self._source.key)
        return [
            coder.record((row.decode() if coder.of_str else row) if self._plain else msgspec.json.decode(row))
            for row in self._rows
        ]

    def drop(self) -> None:
        self._ended.set()
