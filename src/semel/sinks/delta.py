"""A Delta table as a sink: `DeltaLake("s3://bucket/totals", key="customer")`. Contract: Transactional.

Nothing here needs the client library; `delta_connection.py` does the work.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from semel.contract import Contract, Transactional
from semel.errors import UsageError
from semel.ports import NoSteps, SinkConnection, Steps
from semel.sinks.cuts import Rule
from semel.sinks.declared import Declared
from semel.sinks.positions import transactional
from semel.sinks.sink import SinkError, key_fields

CONTRACT = transactional(
    "an object store that has answered: always. A local folder: the end of processes, not a power cut, nothing in it "
    "is synced"
)

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "file", "memory")
UNSAFE = ("aws_s3_allow_unsafe_rename", "allow_unsafe_rename")
CONDITIONAL = ("aws_conditional_put", "conditional_put")


class DeltaLake(Declared):
    """A Delta table below `url`: a folder's path, s3://BUCKET/PREFIX, gs://…, az://….

    With `key`, a row per key that the last value replaces, and a value None deletes; without, every value is appended.
    `value` is the type of the values where the topology cannot tell it. A batch is written once `records` records are
    there, or `seconds` after its first one: each is a commit and a file. `options` are the store's settings and
    credentials (deltalake's storage_options: region, endpoint, access_key_id, …)."""

    def __init__(
        self,
        url: str | os.PathLike[str],
        *,
        key: str | Sequence[str] | None = None,
        name: str | None = None,
        value: Any = None,
        records: int = 10_000,
        seconds: float = 10.0,
        options: Mapping[str, str] | None = None,
        _suffix: str = "",
    ) -> None:
        self.original_url, self.suffix = os.fspath(url).rstrip("/"), _suffix
        scheme, colon, _ = self.original_url.partition("://")
        if not self.original_url or (colon and scheme not in SCHEMES) or scheme == "memory":
            raise SinkError(f"{self.where!r}: wanted is a folder's path, or a URL with {', '.join(SCHEMES[:-1])}.")
        if re.search(r"[?#]|://[^/]*@", self.original_url):
            raise SinkError(f"{self.where}: credentials and settings go into options=, not into the URL.")
        if records < 1 or seconds < 0:
            raise SinkError(f"{self.where}: records is above 0, seconds not below.")
        self.options = dict(options or {})
        for option, said in self.options.items():
            unsafe = option.lower() in UNSAFE and said.lower() not in ("", "0", "false")
            if unsafe or (option.lower() in CONDITIONAL and said.lower() in ("disabled", "none")):
                raise SinkError(
                    f"{self.where}: with {option}={said} two writers could commit the same version, and one of the two "
                    "would be lost without a word. Leave it out: the store must refuse the second (conditional put)."
                )
        self.value_type = value
        self.rule = Rule(records=records, ms=int(seconds * 1000))
        self._records, self._seconds = records, seconds
        self._key = key_fields(key)
        self._name = name or re.sub(r"[^a-zA-Z0-9._-]+", "-", self.original_url.rpartition("/")[2]) or "delta"

    @property
    def url(self) -> str:
        return self.original_url + self.suffix

    @property
    def where(self) -> str:
        return "Delta table " + re.sub(r"[?#].*", "", re.sub(r"^([\w+.-]+://)[^/@]*@", r"\1", self.url))

    @property
    def kind(self) -> type[Transactional]:
        return Transactional

    @property
    def contract(self) -> Contract:
        return CONTRACT

    def renamed(self, suffix: str) -> DeltaLake:
        return DeltaLake(
            self.original_url,
            key=self._key,
            name=self._name,
            value=self.value_type,
            records=self._records,
            seconds=self._seconds,
            options=self.options,
            _suffix=self.suffix + suffix,
        )

    def open(self, steps: Steps | None = None) -> SinkConnection:
        try:
            from semel.sinks.delta_connection import DeltaConnection
        except ModuleNotFoundError as missing:
            if (missing.name or "").partition(".")[0] not in ("deltalake", "pyarrow"):
                raise
            raise UsageError(
                f"{self.where} needs deltalake and pyarrow, which are not installed here: pip install 'semel[delta]'"
            ) from None
        return DeltaConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, key={self._key}>"
