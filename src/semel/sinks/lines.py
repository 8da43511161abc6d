"""A file, or standard output, as a sink: one JSON line per record. Contract: AtLeastOnce.

A plain file remembers no position together with its lines, and fences nobody: a crash between the lines and the group's
offset writes them again. So `write(Lines(…))` wants `accept=`.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from semel.contract import (
    Atomicity,
    Claim,
    Contract,
    DeliveryId,
    Fence,
    Guarantee,
    Identity,
    LogIdentity,
    Resolution,
    Row,
    Weak,
)
from semel.ports import Done, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks.sink import SinkError, encode_deleted

CONTRACT = Contract(
    name="AtLeastOnce",
    guarantee=Guarantee.AT_LEAST_ONCE,
    identity=Identity.NONE,
    atomicity=Atomicity.NONE,
    remembers_position=False,
    fence=Fence.NONE,
    resolution=Resolution.NONE,
    durability="a file: each batch is synced; standard output: nothing survives",
)


class Lines:
    """Appends to the file at `path`; without one, to standard output."""

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, name: str | None = None, _suffix: str = ""
    ) -> None:
        self.path = None if path is None else Path(path)
        self.suffix = _suffix
        self._name = name or ("stdout" if self.path is None else self.path.stem)

    @property
    def file(self) -> Path | None:
        return None if self.path is None else self.path.with_name(self.path.name + self.suffix)

    @property
    def name(self) -> str:
        return self._name

    @property
    def where(self) -> str:
        return "standard output" if self.file is None else f"lines of {self.file}"

    @property
    def kind(self) -> type[Weak]:
        return Weak

    @property
    def contract(self) -> Contract:
        return CONTRACT

    @property
    def key(self) -> tuple[str, ...] | None:
        return None

    def encode_key(self, value: object) -> bytes | None:
        return None

    def encode_deleted(self, key: object) -> bytes:
        return encode_deleted(None, key, self.where)

    def encode_value(self, value: object) -> bytes:
        try:
            return msgspec.json.encode(value)
        except (TypeError, ValueError, OverflowError) as why:
            raise SinkError(f"{self.where}: a {type(value).__name__} cannot be written as JSON: {why}.") from None

    def renamed(self, suffix: str) -> Lines:
        return Lines(self.path, name=self._name, _suffix=self.suffix + suffix)

    def open(self, steps: Steps) -> LinesConnection:
        return LinesConnection(self, steps)

    def __repr__(self) -> str:
        return f"<{self.where}>"


class LinesConnection:
    """See `ports.SinkConnection`. Its claim fences nobody; the group's offsets are the position."""

    def __init__(self, sink: Lines, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._file: IO[Any] | None = None

    def prepare(self, value_type: object) -> Done | NotDone:
        if self._sink.file is not None and self._file is None:
            try:
                self._file = self._sink.file.open("ab")
            except OSError as why:
                raise SinkError(f"{self._sink.where}: {why.strerror}. Name a file that can be written.") from None
        return Done()

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        return Claim(delivery, epoch=0, incarnation=1, position=0, run="", log=log)

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        lines = b"".join((row.value or b"null") + b"\n" for row in rows)
        self._steps.reached(Step.ROWS_BEFORE)
        try:
            if self._file is None:
                sys.stdout.write(lines.decode())
                sys.stdout.flush()
            else:
                self._file.write(lines)
                self._file.flush()
                os.fsync(self._file.fileno())
        except OSError as why:
            self.close()
            return Unknown(f"{self._sink.where}: {why}; some of the batch may be there")
        self._steps.reached(Step.ROWS_AFTER)
        return Done()

    def notes(self) -> Sequence[str]:
        return ()

    def rows(self) -> Sequence[bytes]:
        file = self._sink.file
        lines = [] if file is None or not file.exists() else file.read_bytes().splitlines()
        return list(Counter(map(self.canonical, lines)).elements())

    def canonical(self, value: bytes) -> bytes:
        return msgspec.json.encode(msgspec.json.decode(value), order="sorted")

    def drop(self) -> None:
        if not self._sink.suffix or self._sink.file is None:
            raise SinkError(f"{self._sink.where}: semel removes only files that it has named itself.")
        self._sink.file.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
