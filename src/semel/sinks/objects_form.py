"""How the records of a cut become the bytes of one object: JSON lines, CSV or Parquet; gzip or zstd.

Invariant: the content is a function of the records alone; two objects of one cut have one fingerprint, whatever library
version packed them. No clock, no file name and no host goes into the bytes.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import cramjam
import msgspec

from semel.contract import Row, Rows
from semel.sinks.columns import Column, decode
from semel.sinks.sink import RowRefused, SinkError

ENDINGS = {"": "", "gzip": ".gz", "zstd": ".zst"}
GZIP_LEVEL, ZSTD_LEVEL = 6, 3


@dataclass(frozen=True, slots=True)
class Form:
    """`columns`: of CSV, in order. `schema`: of Parquet."""

    format: str
    compression: str
    columns: tuple[str, ...] = ()
    schema: tuple[Column, ...] = ()

    @property
    def ending(self) -> str:
        return ".parquet" if self.schema else f".{self.format}{ENDINGS[self.compression]}"

    def __str__(self) -> str:
        named = self.columns or [f"{column.name} {column.type}" for column in self.schema]
        return self.ending[1:] + (f" of {', '.join(named)}" if named else "")

    def content(self, rows: Sequence[Row]) -> bytes:
        """Raises RowRefused for a record that has no place in this format; for Parquet, `pack` does."""
        if self.format == "csv":
            return self._csv(rows)
        values = Rows.of(rows).values
        return b"\n".join([*(value or b"null" for value in values), b""])

    def _csv(self, rows: Sequence[Row]) -> bytes:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        names = frozenset(self.columns)
        for row in rows:
            try:
                fields = decode(row.value or b"null")
            except msgspec.MsgspecError as why:
                raise RowRefused(f"it is not a JSON object ({why})", row.offset) from None
            if not fields.keys() <= names:
                raise RowRefused(f"it has the field {min(fields.keys() - names)!r}, which is no column", row.offset)
            writer.writerow([_cell(fields.get(name)) for name in self.columns])
        return text.getvalue().encode()

    def pack(self, content: bytes, rows: Sequence[Row] | None = None) -> bytes:
        """`rows`: what the content was made of, to name the record that has no place."""
        if self.schema:
            from semel.sinks import objects_parquet

            if rows is None:
                rows = [Row(0, 0, None, line) for line in content.split(b"\n") if line]
            return objects_parquet.packed(self.schema, self.compression, rows, fingerprint(content))
        match self.compression:
            case "gzip":
                return gzip.compress(content, GZIP_LEVEL, mtime=0)
            case "zstd":
                return bytes(cramjam.zstd.compress(content, ZSTD_LEVEL))
        return content

    def unpack(self, body: bytes) -> bytes:
        match self.compression:
            case "gzip":
                return gzip.decompress(body)
            case "zstd":
                return bytes(cramjam.zstd.decompress(body))
        return body

    def fingerprint_in(self, body: bytes) -> str:
        """Of an object that is there; "" when it is none of this form."""
        if self.schema:
            from semel.sinks import objects_parquet

            return objects_parquet.fingerprint_in(body)
        try:
            return fingerprint(self.unpack(body))
        except (OSError, EOFError, ValueError, cramjam.DecompressionError):
            return ""

    def lines(self, body: bytes) -> Sequence[bytes]:
        """The records of an object, each as `line` gives it."""
        if self.schema:
            from semel.sinks import objects_parquet

            return objects_parquet.lines(body)
        content = self.unpack(body)
        if self.format == "csv":
            records = csv.DictReader(io.StringIO(content.decode(), newline=""))
            return [msgspec.json.encode(record) for record in records]
        return [self.line(line) for line in content.split(b"\n") if line]

    def line(self, value: bytes) -> bytes:
        """One record's value in a form that is equal for equal records."""
        if self.columns or self.schema:
            return self.lines(self.pack(self.content([Row(0, 0, None, value)])))[0]
        return msgspec.json.encode(msgspec.json.decode(value), order="sorted")


def fingerprint(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
    return msgspec.json.encode(value, order="sorted").decode()


def form_of(
    format: str, compression: str | None, columns: Sequence[str] | None, schema: Sequence[Column] | None, where: str
) -> Form:
    if format not in ("jsonl", "csv", "parquet"):
        raise SinkError(f"{where}: format={format!r}: wanted is 'jsonl', 'csv' or 'parquet'.")
    if (compression or "") not in ENDINGS:
        raise SinkError(f"{where}: compression={compression!r}: wanted is 'gzip', 'zstd' or None.")
    match format:
        case "csv":
            names = columns or [column.name for column in schema or ()]
            if not names:
                raise SinkError(
                    f"{where}: CSV wants its columns, in order: columns=('customer', 'total'), or value=TYPE."
                )
            return Form(format, compression or "", columns=tuple(names))
        case "parquet":
            if not schema:
                raise SinkError(f"{where}: Parquet wants the type of the values: value=TYPE, with named fields.")
            return Form(format, compression or "", schema=tuple(schema))
    return Form(format, compression or "")
