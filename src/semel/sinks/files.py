"""Files in a folder: `Files("/data/orders")`. Contract: TwoPhase.

Each cut of the outbox is one file, written under a temporary name, decided by a record of the log, and then renamed:
`FOLDER/INCARNATION-PARTITION/INCARNATION-PARTITION-START-END.jsonl`. Nothing is opened here; `files_connection.py` does
the work, and needs no library.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from semel.contract import Contract, TwoPhase
from semel.ports import NoSteps, Steps, TwoPhaseConnection
from semel.sinks.columns import columns_of
from semel.sinks.cuts import Rule
from semel.sinks.declared import Declared
from semel.sinks.objects_form import Form, form_of
from semel.sinks.sink import SinkError, encode_row
from semel.sinks.two_phase import two_phase

CONTRACT = two_phase(
    "power cut: each file, its name and its folder are synced, on a local file system with honest syncs"
)


class Files(Declared):
    """Files below `folder`, a cut each. A cut is due at `records` records, `bytes` bytes of keys and values, or
    `seconds` after its first record. `format`, `compression`, `columns` and `value` are those of `Objects`."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        format: Literal["jsonl", "csv", "parquet"] = "jsonl",
        compression: Literal["gzip", "zstd"] | None = None,
        columns: Sequence[str] | None = None,
        value: Any = None,
        records: int = 10_000,
        bytes: int = 8 << 20,
        seconds: float = 10.0,
        name: str | None = None,
        _suffix: str = "",
    ) -> None:
        self._given: dict[str, Any] = {"format": format, "compression": compression, "columns": columns, "value": value}
        self._given |= {"records": records, "bytes": bytes, "seconds": seconds}
        self._original, self.suffix = os.fspath(folder).rstrip("/"), _suffix
        if not self._original or "://" in self._original:
            raise SinkError(f"Files in {self._original!r}: wanted is a folder's path. For a URL there is Objects(…).")
        self.folder = Path(self._original + _suffix).absolute()
        if records < 1 or bytes < 1 or seconds <= 0:
            raise SinkError(f"{self.where}: records, bytes and seconds of a cut are above 0.")
        schema = None if format == "jsonl" else columns_of(value, self.where)
        self.shape: Form = form_of(format, compression, columns, schema, self.where)
        self.rule = Rule(records, bytes, round(seconds * 1000))
        self._name = name or re.sub(r"[^a-zA-Z0-9._-]+", "-", self._original.rpartition("/")[2]) or "files"

    @property
    def where(self) -> str:
        return f"files in {self._original}{self.suffix}"

    @property
    def kind(self) -> type[TwoPhase]:
        return TwoPhase

    @property
    def contract(self) -> Contract:
        return CONTRACT

    def encode_value(self, value: object) -> bytes:
        if self.shape.format != "jsonl":
            return encode_row(value)
        try:
            return msgspec.json.encode(value)
        except (TypeError, ValueError, OverflowError) as why:
            raise SinkError(f"{self.where}: a {type(value).__name__} cannot be written as JSON: {why}.") from None

    def renamed(self, suffix: str) -> Files:
        return Files(self._original, name=self._name, _suffix=self.suffix + suffix, **self._given)

    def open(self, steps: Steps | None = None) -> TwoPhaseConnection:
        from semel.sinks.files_connection import FilesConnection

        return FilesConnection(self, steps or NoSteps())

    def complete(self) -> Sequence[Path]:
        """For readers: the files that are there under their own names, partition by partition, each in order. What is
        listed is whole and will not change."""
        from semel.sinks.files_connection import complete

        return complete(self.folder)

    def __repr__(self) -> str:
        return f"<{self.where}, {self.shape}>"
