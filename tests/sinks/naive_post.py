"""What people write first, for two more systems: a POST per record; an object per batch, cut and named by the clock.
The position is moved afterwards, elsewhere. Their contract is honest: at least once.

`naive.py` has the third: an INSERT per record.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Sequence
from typing import Any

import obstore
from obstore.store import S3Store

from semel.contract import Claim, DeliveryId, LogIdentity, Row, Weak
from semel.ports import Done, Outcome, Step
from semel.sinks.sink import encode_row
from tests.sinks.naive import CONTRACT


class NaivePost:
    """A POST per record; the answer is waited for, and that is all."""

    def __init__(self, url: str) -> None:
        self._url = url

    def send(self, rows: Sequence[Row]) -> None:
        for row in rows:
            urllib.request.urlopen(urllib.request.Request(self._url, data=row.value, method="POST")).close()


class NaiveObjects:
    """What has come by now becomes an object with the time in its name."""

    def __init__(self, store: S3Store, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    def send(self, rows: Sequence[Row]) -> None:
        data = b"\n".join(row.value or b"" for row in rows)
        obstore.put(self._store, f"{self._prefix}/{time.time_ns()}.jsonl", data)


class Naive:
    """A sink that sends a batch by the one or the other."""

    kind = Weak
    contract = CONTRACT
    key = None

    def __init__(self, name: str, sender: Any) -> None:
        self.name = self.where = name
        self._sender = sender

    def encode_key(self, value: object) -> bytes | None:
        return None

    def encode_deleted(self, key: object) -> bytes:
        return str(key).encode()

    def encode_value(self, value: object) -> bytes:
        return encode_row(value)

    def renamed(self, suffix: str) -> Naive:
        return Naive(self.name + suffix, self._sender)

    def open(self, steps: Any) -> NaiveConnection:
        return NaiveConnection(self._sender, steps)


class NaiveConnection:
    def __init__(self, sender: Any, steps: Any) -> None:
        self._sender, self._steps = sender, steps

    def prepare(self, value_type: object) -> Done:
        return Done()

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim:
        return Claim(delivery, 0, 1, 0, "", log)

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        self._steps.reached(Step.ROWS_BEFORE)
        self._sender.send(rows)
        self._steps.reached(Step.ROWS_AFTER)
        return Done()

    def notes(self) -> Sequence[str]:
        return ()

    def rows(self) -> Sequence[bytes]:
        raise NotImplementedError("read from outside")

    def canonical(self, value: bytes) -> bytes:
        return value

    def drop(self) -> None:
        return

    def close(self) -> None:
        return
