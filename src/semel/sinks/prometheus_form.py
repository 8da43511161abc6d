"""Records as samples, and samples as the bytes of a remote-write request (1.0: protobuf, snappy).

    WriteRequest { repeated TimeSeries timeseries = 1 }
    TimeSeries   { repeated Label labels = 1 (sorted by name), repeated Sample samples = 2 (sorted by stamp) }
    Label        { string name = 1, string value = 2 }      Sample { double value = 1, int64 timestamp = 2 (ms) }

Invariant: what a sample is follows from its record alone, so a record that comes again is the same sample. What
Prometheus would drop or change without a word (a label that is no label, an empty one, a number that no float is) is
refused by the record's offset.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import cramjam
import msgspec

from semel.contract import Row
from semel.sinks.columns import decode
from semel.sinks.sink import RowRefused

METRIC, LABEL = r"[a-zA-Z_:][a-zA-Z0-9_:]*", r"[a-zA-Z_][a-zA-Z0-9_]*"
NAME = "__name__"
STAMP_MIN, STAMP_MAX = -(1 << 62), 1 << 62

Series = tuple[tuple[str, str], ...]  # labels, the name among them, sorted


class Sample(NamedTuple):
    offset: int
    series: Series
    at_ms: int
    value: float


class Form(NamedTuple):
    """How records become samples of one metric."""

    metric: str
    value: str
    labels: Sequence[str]
    at: str | None
    constant: Mapping[str, str]


def samples_of(form: Form, rows: Sequence[Row]) -> list[Sample]:
    """In the order of the records. Raises RowRefused: also where two of them are at one stamp of one series with
    different values: one of them would be refused, and which one would be chance."""
    made: list[Sample] = []
    held: dict[tuple[Series, int], float] = {}
    known: dict[tuple[str, ...], Series] = {}
    for row in rows:
        if row.value is None:
            raise RowRefused(
                "it has no value: a sample cannot be taken back, and stale markers are not sent", row.offset
            )
        try:
            fields = decode(row.value)
        except msgspec.DecodeError as why:
            raise RowRefused(f"it is not a JSON object ({why})", row.offset) from None
        texts = tuple(_text(fields.get(label), label, row.offset) for label in form.labels)
        if (series := known.get(texts)) is None:
            named = {NAME: form.metric, **form.constant, **dict(zip(form.labels, texts, strict=True))}
            series = known[texts] = tuple(sorted(named.items()))
        at_ms = row.timestamp_ms if form.at is None else _stamp(fields.get(form.at), form.at, row.offset)
        value = _number(fields.get(form.value), form.value, row.offset)
        if held.setdefault((series, at_ms), value) != value:
            raise RowRefused(
                f"its series has another value at {at_ms} ms already ({held[series, at_ms]!r}, and now {value!r}): one "
                "value per stamp is kept",
                row.offset,
            )
        made.append(Sample(row.offset, series, at_ms, value))
    return made


def _text(value: Any, label: str, offset: int) -> str:
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise RowRefused(f"its label {label!r} is {value!r:.60}; wanted is a text or a whole number", offset)
    if not value:
        raise RowRefused(f"its label {label!r} is empty, which to Prometheus is no label: another series", offset)
    return value


def _number(value: Any, field: str, offset: int) -> float:
    if type(value) not in (int, float):
        raise RowRefused(
            f"its value {field!r} is {value!r:.60}; wanted is a number (NaN and stale markers are not sent)", offset
        )
    try:
        number = float(value)
    except OverflowError:
        number = 0.0
    if type(value) is int and int(number) != value:
        raise RowRefused(f"its value {field!r} is {value}, which no float is: it would be rounded", offset)
    return number


def _stamp(value: Any, field: str, offset: int) -> int:
    if type(value) is int and STAMP_MIN < value < STAMP_MAX:
        return value
    if isinstance(value, str):
        try:
            at = msgspec.convert(value, datetime)
        except msgspec.ValidationError:
            at = datetime.min
        if at.tzinfo is not None:
            micros = (at - _EPOCH) // _MICRO
            if micros % 1000 == 0:
                return micros // 1000
            raise RowRefused(f"its time {field!r} is {value}: a stamp has whole milliseconds", offset)
    raise RowRefused(
        f"its time {field!r} is {value!r:.60}; wanted is a time with a zone, or whole milliseconds", offset
    )


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_MICRO = datetime.resolution


def by_series(samples: Iterable[Sample]) -> dict[Series, list[Sample]]:
    """Each series' samples by their stamp: Prometheus refuses a request in which they are not."""
    found: dict[Series, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.series, []).append(sample)
    for series in found.values():
        series.sort(key=lambda sample: sample.at_ms)
    return found


# --- protobuf ---------------------------------------------------------------------------------------------------------


def encoded(samples: Iterable[Sample]) -> bytes:
    """A WriteRequest, compressed."""
    parts = []
    for series, held in by_series(samples).items():
        body = b"".join(_field(1, _field(1, name.encode()) + _field(2, text.encode())) for name, text in series)
        body += b"".join(
            _field(2, b"\x09" + _double(sample.value) + b"\x10" + _varint(sample.at_ms & (1 << 64) - 1))
            for sample in held
        )
        parts.append(_field(1, body))
    return bytes(cramjam.snappy.compress_raw(b"".join(parts)))


_double = struct.Struct("<d").pack


def _field(number: int, body: bytes) -> bytes:
    """Of wire type 2: with its length before it."""
    return bytes((number << 3 | 2,)) + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)
