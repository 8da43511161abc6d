"""The columns of a value: which fields it has, of which kind, and how a JSON field becomes a column's value.

Types are parsed once, when a sink is prepared; per batch only `Decode` runs, column knowledge in hand.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec
from msgspec import inspect

from semel.sinks.sink import EXACT, SinkError, canonical_part


class ColumnType(StrEnum):
    """What kinds of fields a row can have; each sink maps them to types of its own."""

    INTEGER = "integer"
    FLOAT = "float"
    DECIMAL = "decimal"
    BOOLEAN = "boolean"
    TEXT = "text"
    TIMESTAMP = "timestamp"
    DATE = "date"
    TIME = "time"
    DURATION = "duration"
    UUID = "uuid"
    BYTES = "bytes"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: ColumnType
    nullable: bool


_TYPES: Sequence[tuple[type[inspect.Type], ColumnType]] = (
    (inspect.BoolType, ColumnType.BOOLEAN),
    (inspect.IntType, ColumnType.INTEGER),
    (inspect.FloatType, ColumnType.FLOAT),
    (inspect.DecimalType, ColumnType.DECIMAL),
    (inspect.StrType, ColumnType.TEXT),
    (inspect.DateTimeType, ColumnType.TIMESTAMP),
    (inspect.DateType, ColumnType.DATE),
    (inspect.TimeType, ColumnType.TIME),
    (inspect.TimeDeltaType, ColumnType.DURATION),
    (inspect.UUIDType, ColumnType.UUID),
    (inspect.BytesType, ColumnType.BYTES),
    (inspect.ByteArrayType, ColumnType.BYTES),
    (inspect.MemoryViewType, ColumnType.BYTES),
)


def columns_of(value_type: object, where: str) -> tuple[Column, ...] | None:
    """The columns that values of this type have; None when the type does not tell (a dict, an unknown type)."""
    if value_type is None or value_type is Any or value_type is object:
        return None
    try:
        info = inspect.type_info(value_type)
    except (TypeError, NameError) as why:
        raise SinkError(f"{where}: the type {value_type!r} cannot be taken apart into columns: {why}.") from None
    known, _ = _without_none(info)
    match known:
        case inspect.StructType(fields=fields, array_like=False, tag=None):
            pass
        case inspect.DataclassType(fields=fields) | inspect.TypedDictType(fields=fields):
            pass
        case inspect.NamedTupleType(fields=fields):
            pass
        case inspect.DictType() | inspect.AnyType():
            return None
        case _:
            raise SinkError(
                f"{where} wants values with named fields (a dataclass, a msgspec Struct without tag, a TypedDict, a "
                f"dict), not {getattr(value_type, '__name__', value_type)}. Map them to one first."
            )
    return tuple(Column(field.encode_name, *_column_type(field.type)) for field in fields)


def _without_none(info: inspect.Type) -> tuple[inspect.Type, bool]:
    if isinstance(info, inspect.NoneType):
        return info, True
    if not isinstance(info, inspect.UnionType):
        return info, False
    rest = [one for one in info.types if not isinstance(one, inspect.NoneType)]
    nullable = len(rest) < len(info.types)
    return (rest[0], nullable) if len(rest) == 1 else (inspect.UnionType(tuple(rest)), nullable)


def _column_type(info: inspect.Type) -> tuple[ColumnType, bool]:
    known, nullable = _without_none(info)
    if isinstance(known, inspect.EnumType):
        values = [member.value for member in known.cls]
        return ColumnType.INTEGER if all(isinstance(v, int) for v in values) else ColumnType.TEXT, nullable
    if isinstance(known, inspect.LiteralType):
        return (ColumnType.INTEGER if all(isinstance(v, int) for v in known.values) else ColumnType.TEXT), nullable
    for kind, column in _TYPES:
        if isinstance(known, kind):
            return column, nullable
    return ColumnType.JSON, nullable or isinstance(known, inspect.AnyType)


# --- from JSON to what a database driver takes ---------------------------------------------------------------------


# A database would convert some other values silently, and then hold something else than what was committed.
FITS: Mapping[ColumnType, frozenset[type]] = {
    ColumnType.INTEGER: frozenset((int,)),
    ColumnType.FLOAT: frozenset((int, float)),
    ColumnType.DECIMAL: frozenset((int, float, str)),
    ColumnType.BOOLEAN: frozenset((bool,)),
    ColumnType.JSON: frozenset((bool, int, float, str, list, dict)),
    **dict.fromkeys(
        (
            ColumnType.TEXT,
            ColumnType.TIMESTAMP,
            ColumnType.DATE,
            ColumnType.TIME,
            ColumnType.DURATION,
            ColumnType.UUID,
            ColumnType.BYTES,
        ),
        frozenset((str,)),
    ),
}


def canonical(column: ColumnType, value: Any) -> object:
    """A value in a form in which what the database holds for equal is equal: for the reduction of a batch by
    key, and for comparing rows with the log. Takes what a driver returns and what JSON decodes to."""
    if value is None:
        return None
    try:
        match column:
            case ColumnType.INTEGER:
                return int(value)
            case ColumnType.FLOAT:
                return float(value) + 0.0  # -0.0 and 0.0 are one number
            case ColumnType.DECIMAL:
                number = Decimal(str(value))
                return str(number.normalize(EXACT)) if number else "0"
            case ColumnType.BOOLEAN:
                return bool(value)
            case ColumnType.TIMESTAMP:
                at = value if isinstance(value, datetime) else _timestamp(value)
                return (at.astimezone(UTC) if at.tzinfo is not None else at).isoformat()
            case ColumnType.UUID:
                return str(UUID(str(value)))
            case ColumnType.BYTES:
                return value if isinstance(value, str) else base64.b64encode(value).decode()
            case ColumnType.TEXT:
                return str(value)
            case ColumnType.JSON:
                return value
            case ColumnType.DURATION | ColumnType.DATE | ColumnType.TIME:
                return msgspec.to_builtins(read(column, value) if isinstance(value, str) else value)
    except (ValueError, InvalidOperation):
        return str(value)


def _timestamp(text: str) -> datetime:
    # A row's timestamp was written by msgspec (RFC 3339, up to nanoseconds); fromisoformat on 3.11 takes microseconds.
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text).replace("Z", "+00:00"))


_READ: Mapping[ColumnType, type] = {
    ColumnType.TIMESTAMP: datetime,
    ColumnType.DATE: date,
    ColumnType.TIME: time,
    ColumnType.DURATION: timedelta,
    ColumnType.UUID: UUID,
    ColumnType.BYTES: bytes,
}


def read(column: ColumnType, value: Any) -> Any:
    """What a JSON value stands for in a column of this type; ValueError where it stands for nothing. Strict: databases
    read 'now', '20130101' and '0x1F' too, and hold something else than was committed."""
    try:
        if column is ColumnType.DECIMAL:
            return Decimal(str(value))
        return msgspec.convert(value, _READ[column]) if column in _READ else value
    except (msgspec.ValidationError, InvalidOperation):
        raise ValueError(f"it is no {column}") from None


def key_part(column: ColumnType, part: Any) -> object:
    """A part of a key as `encode_key` writes it for values of the column's type: what the column holds for equal is
    equal here. ValueError where it is no value of that type."""
    return msgspec.to_builtins(canonical_part(read(column, part)))


Decode = Callable[[bytes], Mapping[str, Any]]
decode: Decode = msgspec.json.Decoder(dict[str, Any]).decode


def canonical_row(columns: Sequence[Column], values: Mapping[str, Any]) -> bytes:
    """One row as bytes that are equal exactly when the rows are."""
    return msgspec.json.encode(
        {column.name: _exactly(column.type, values.get(column.name)) for column in columns}, order="sorted"
    )


def _exactly(column: ColumnType, value: Any) -> object:
    """As `canonical`; but a whole number that no float is stays itself, or two of them would be compared as equal."""
    if column is ColumnType.FLOAT and (type(value) is int or (isinstance(value, Decimal) and _is_whole(value))):
        try:
            inexact = float(value) != value
        except OverflowError:
            inexact = True
        if inexact:
            return str(int(value))
    return canonical(column, value)


def _is_whole(value: Decimal) -> bool:
    return value.is_finite() and value == value.to_integral_value()
