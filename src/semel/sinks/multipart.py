"""S3 objects larger than one PUT: `MultipartObjects("s3://bucket/orders")`. Contract: TwoPhase.

Each cut of the outbox is one object, uploaded in parts, decided by a record of the log, and then completed:
`PREFIX/INCARNATION-PARTITION/INCARNATION-PARTITION-START-END-ATTEMPT.jsonl`. Nothing is opened here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from semel.contract import Contract, TwoPhase
from semel.ports import NoSteps, Steps, TwoPhaseConnection
from semel.sinks.declared import Declared
from semel.sinks.objects import Objects
from semel.sinks.sink import SinkError
from semel.sinks.two_phase import two_phase

CONTRACT = two_phase("an object store that has answered: always")


class MultipartObjects(Declared):
    """Objects below `url` (s3://BUCKET/PREFIX), a cut each, in parts of `part_bytes` (S3 wants 5 MiB at least, but of
    the last). The rest is as for `Objects`; credentials are `options=`, or the environment's AWS_… ."""

    def __init__(
        self,
        url: str,
        *,
        format: Literal["jsonl", "csv", "parquet"] = "jsonl",
        compression: Literal["gzip", "zstd"] | None = None,
        columns: Sequence[str] | None = None,
        value: Any = None,
        records: int = 1_000_000,
        bytes: int = 256 << 20,
        seconds: float = 60.0,
        part_bytes: int = 16 << 20,
        name: str | None = None,
        options: Mapping[str, str] | None = None,
        _suffix: str = "",
    ) -> None:
        self._given: dict[str, Any] = {"format": format, "compression": compression, "columns": columns, "value": value}
        self._given |= {"records": records, "bytes": bytes, "seconds": seconds, "options": options}
        self.plain = Objects(url, name=name, _suffix=_suffix, **self._given)
        self._name = self.plain.name
        if not self.plain.url.startswith(("s3://", "s3a://")) or "?" in self.plain.url:
            raise SinkError(f"{self.plain.where}: uploads in parts are S3's: s3://BUCKET/PREFIX.")
        if part_bytes < 5 << 20:
            raise SinkError(f"{self.plain.where}: part_bytes={part_bytes}: S3 wants 5 MiB (5242880) at least.")
        self.part_bytes = part_bytes
        self.rule = self.plain.rule
        self.shape = self.plain.shape
        bucket, _, prefix = self.plain.url.partition("://")[2].partition("/")
        self.bucket, self.prefix = bucket, prefix.strip("/")

    @property
    def where(self) -> str:
        return self.plain.where

    @property
    def kind(self) -> type[TwoPhase]:
        return TwoPhase

    @property
    def contract(self) -> Contract:
        return CONTRACT

    def encode_value(self, value: object) -> bytes:
        return self.plain.encode_value(value)

    def renamed(self, suffix: str) -> MultipartObjects:
        plain = self.plain
        return MultipartObjects(
            plain.original_url,
            name=plain.name,
            part_bytes=self.part_bytes,
            _suffix=plain.suffix + suffix,
            **self._given,
        )

    def open(self, steps: Steps | None = None) -> TwoPhaseConnection:
        from semel.sinks.multipart_connection import MultipartConnection

        return MultipartConnection(self, steps or NoSteps())

    def __repr__(self) -> str:
        return f"<{self.where}, {self.shape}, in parts>"
