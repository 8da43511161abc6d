"""ClickHouse's types: which column holds which field, and values as the client takes them.

ClickHouse wraps, saturates and fills up without a word: 256 in a UInt8 is 0, a year 3000 in a Date is 2149, nothing in
a column that is not Nullable is 0 or "". So what a column would change is refused here, before the client sees it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from semel.sinks.columns import Column, ColumnType
from semel.sinks.rows import Convert
from semel.sinks.schema import Dialect, Found
from semel.sinks.sink import EXACT

C = ColumnType

CREATED: Mapping[ColumnType, str] = {
    C.INTEGER: "Int64",
    C.FLOAT: "Float64",
    C.DECIMAL: "Decimal(76, 30)",
    C.BOOLEAN: "Bool",
    C.TEXT: "String",
    C.TIMESTAMP: "DateTime64(6, 'UTC')",
    C.DATE: "Date32",
    C.TIME: "String",
    C.DURATION: "String",
    C.UUID: "UUID",
    C.BYTES: "String",
    C.JSON: "String",
}
INTEGERS = {
    **{f"Int{n}": (-(1 << (n - 1)), (1 << (n - 1)) - 1) for n in (8, 16, 32, 64, 128, 256)},
    **{f"UInt{n}": (0, (1 << n) - 1) for n in (8, 16, 32, 64, 128, 256)},
}
# Float32 is not here: it would round. FixedString would pad, an Enum take numbers for its members.
HOLDS: Mapping[str, ColumnType] = {
    **dict.fromkeys(INTEGERS, C.INTEGER),
    "Float64": C.FLOAT,
    "Decimal": C.DECIMAL,
    "Bool": C.BOOLEAN,
    "String": C.TEXT,
    "DateTime": C.TIMESTAMP,
    "DateTime64": C.TIMESTAMP,
    "Date": C.DATE,
    "Date32": C.DATE,
    "UUID": C.UUID,
}
ACCEPTS: Mapping[ColumnType, frozenset[ColumnType]] = {
    C.BOOLEAN: frozenset(),
    C.INTEGER: frozenset((C.BOOLEAN,)),
    C.DECIMAL: frozenset((C.INTEGER, C.FLOAT)),
    C.TEXT: frozenset((C.UUID, C.DATE, C.TIME, C.DURATION, C.JSON, C.BYTES)),
}
CLICKHOUSE = Dialect(CREATED, HOLDS, ACCEPTS, no_key=frozenset(), also={})


def created_type(column: Column) -> str:
    kind = CREATED[column.type]
    return f"Nullable({kind})" if column.nullable else kind


class Kind(NamedTuple):
    """A type as system.columns prints it, taken apart."""

    base: str
    nullable: bool
    digits: int | None  # of a Decimal
    scale: int | None  # behind the point: of a Decimal, of a second


def kind_of(text: str) -> Kind:
    nullable = False
    while found := re.fullmatch(r"(Nullable|LowCardinality)\((.*)\)", text):
        nullable = nullable or found[1] == "Nullable"
        text = found[2]
    if found := re.fullmatch(r"Decimal\((\d+), (\d+)\)", text):
        return Kind("Decimal", nullable, int(found[1]), int(found[2]))
    if found := re.fullmatch(r"DateTime64\((\d+)(, .*)?\)", text):
        return Kind("DateTime64", nullable, None, int(found[1]))
    if re.fullmatch(r"DateTime(\(.*\))?", text):
        return Kind("DateTime", nullable, None, 0)
    return Kind(text, nullable, None, None)


# --- values ----------------------------------------------------------------------------------------------------------

DATES = {"Date": (date(1970, 1, 1), date(2149, 6, 6)), "Date32": (date(1900, 1, 1), date(2299, 12, 31))}
TIMES = {
    "DateTime": (datetime(1970, 1, 1, tzinfo=UTC), datetime(2106, 2, 7, 6, 28, 15, tzinfo=UTC)),
    "DateTime64": (datetime(1900, 1, 1, tzinfo=UTC), datetime(2262, 4, 11, tzinfo=UTC)),  # nanoseconds end there
}


def _timestamp(there: Kind) -> Convert:
    first, last = TIMES[there.base]
    scale = there.scale or 0

    def convert(value: Any) -> datetime:
        found = re.search(r"\.(\d+)", value)
        if found is not None and len(found[1].rstrip("0")) > min(scale, 6):
            raise ValueError(f"it would be rounded: {there.base} has {min(scale, 6)} digits of a second here")
        at = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", value).replace("Z", "+00:00"))
        # Without a zone it is written as UTC; the table's own zone would be anybody's guess.
        at = at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)
        if not first <= at <= last:
            raise ValueError(f"{there.base} holds {first:%Y} to {last:%Y}")
        return at

    return convert


def _date(there: Kind) -> Convert:
    first, last = DATES[there.base]

    def convert(value: Any) -> date:
        at = msgspec.convert(value, date)
        if not first <= at <= last:
            raise ValueError(f"{there.base} holds {first} to {last}")
        return at

    return convert


def _integer(there: Kind) -> Convert:
    low, high = INTEGERS[there.base]

    def convert(value: Any) -> int:
        if not low <= value <= high:
            raise ValueError(f"{there.base} holds {low} to {high}")
        return int(value)

    return convert


def _decimal(there: Kind) -> Convert:
    scale, digits = there.scale or 0, there.digits or 0

    def convert(value: Any) -> Decimal:
        number = Decimal(str(value))
        plain = number.normalize(EXACT)
        exponent = plain.as_tuple().exponent
        if not isinstance(exponent, int):
            raise ValueError("it is not finite")
        if plain and -exponent > scale:
            raise ValueError(f"it would be rounded: {scale} digits are behind the point")
        if plain and plain.adjusted() + 1 > digits - scale:
            raise ValueError(f"{digits - scale} digits are before the point")
        return number

    return convert


def _float(value: Any) -> float:
    number = float(value)
    if isinstance(value, int) and int(number) != value:
        raise ValueError("no float is this number")
    return number


def _checked(kind: ColumnType) -> Convert:
    """A text that is a date, a time, a duration, and stays a text."""
    wanted: Mapping[ColumnType, Any] = {C.DATE: date}
    if kind not in wanted:
        return str

    def convert(value: Any) -> str:
        msgspec.convert(value, wanted[kind])
        return str(value)

    return convert


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _bytes(value: str) -> bytes:
    return base64.b64decode(value, validate=True)


def converts(columns: Sequence[Column], found: Sequence[Found]) -> list[Convert]:
    """Per column, from a decoded JSON value to what the client takes; ValueError for what would not come back."""
    kinds = {column.name: kind_of(column.type_text) for column in found}
    return [_convert(column, kinds[column.name]) for column in columns]


def _convert(column: Column, there: Kind) -> Convert:
    if there.base in INTEGERS:
        return _integer(there)
    if there.base in TIMES:
        return _timestamp(there)
    if there.base in DATES:
        return _date(there)
    if there.base == "Decimal":
        return _decimal(there)
    plain: Mapping[ColumnType, Convert] = {
        C.FLOAT: _float,
        C.BOOLEAN: bool,
        C.UUID: UUID if there.base == "UUID" else str,
        C.JSON: _json,
        C.BYTES: _bytes,
        C.DATE: _checked(C.DATE),
    }
    return plain.get(column.type, str)


def told(column: Column, value: Any) -> Any:
    """A value that the client has read (texts as bytes), as `columns.canonical` knows its kind."""
    if value is None:
        return None
    if isinstance(value, bytes) and column.type is not C.BYTES:
        value = value.decode()
    if column.type is C.JSON and isinstance(value, str):
        return msgspec.json.decode(value)
    if column.type is C.TIMESTAMP and isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value


def committed(column: Column, value: Any) -> Any:
    """A committed value in the form in which the table tells it: timestamps in UTC."""
    if column.type is C.TIMESTAMP and isinstance(value, str):
        at = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", value).replace("Z", "+00:00"))
        return at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return value
