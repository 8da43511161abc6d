"""Batches as Arrow tables, for the sinks that live in this process: DuckDB, Delta Lake, Iceberg.

A column is judged and written by the Arrow type that its system gives for it. Invariant: what such a column would
round, cut, shift or drop is refused with its record, before anything is handed over: Arrow and the systems behind it
convert readily, and would hold something else than was committed.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from semel.errors import UsageError
from semel.sinks.columns import Column, ColumnType, canonical_row, columns_of, read
from semel.sinks.rows import Convert, Delete, Shape, Upsert, Within, by_column, may_lack, offsets
from semel.sinks.schema import Dialect, Found
from semel.sinks.sink import EXACT, RowRefused, SinkError

try:
    import pyarrow as pa  # type: ignore[import-untyped]
except ImportError as missing:
    raise UsageError(
        "This sink writes through Arrow and needs the pyarrow package: pip install 'semel[duckdb]', 'semel[delta]' or "
        "'semel[iceberg]'"
    ) from missing

C = ColumnType

# How a type is called in messages and in what `created` makes; the systems' own words for them differ by little.
NAMED: Mapping[str, Any] = {
    "byte": pa.int8(),
    "short": pa.int16(),
    "integer": pa.int32(),
    "long": pa.int64(),
    "double": pa.float64(),
    "decimal(38,18)": pa.decimal128(38, 18),
    "boolean": pa.bool_(),
    "string": pa.string(),
    "timestamp with time zone": pa.timestamp("us", tz="UTC"),
    "timestamp": pa.timestamp("us"),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "interval": pa.duration("us"),
    "binary": pa.binary(),
}
CREATED: Mapping[ColumnType, str] = {
    C.INTEGER: "long",
    C.FLOAT: "double",
    C.DECIMAL: "decimal(38,18)",
    C.BOOLEAN: "boolean",
    C.TEXT: "string",
    C.TIMESTAMP: "timestamp with time zone",
    C.DATE: "date",
    C.TIME: "time",
    C.DURATION: "string",
    C.UUID: "string",
    C.BYTES: "binary",
    C.JSON: "string",
}
# `float` (32 bits) is not here: it would round. Nor are lists, maps and structs: a JSON value is one text.
HOLDS: Mapping[str, ColumnType] = {
    **dict.fromkeys(("byte", "short", "integer", "long"), C.INTEGER),
    "double": C.FLOAT,
    "decimal": C.DECIMAL,
    "boolean": C.BOOLEAN,
    "string": C.TEXT,
    "json": C.JSON,
    "uuid": C.UUID,
    "timestamp": C.TIMESTAMP,
    "timestamptz": C.TIMESTAMP,
    "date": C.DATE,
    "time": C.TIME,
    "interval": C.DURATION,
    "binary": C.BYTES,
}
ACCEPTS: Mapping[ColumnType, frozenset[ColumnType]] = {
    C.DECIMAL: frozenset((C.INTEGER, C.FLOAT)),
    C.TEXT: frozenset((C.DECIMAL, C.TIMESTAMP, C.DATE, C.TIME, C.DURATION, C.UUID, C.JSON)),
}
NO_KEY = frozenset(("double", "json", "interval"))
LONGEST = timedelta(microseconds=2**63 - 1)


def dialect(created: Mapping[ColumnType, str] | None = None, no_key: frozenset[str] = NO_KEY) -> Dialect:
    """The types of a system; `created` where it makes a column of another type than most do."""
    return Dialect({**CREATED, **(created or {})}, HOLDS, ACCEPTS, no_key, also={})


# --- a table that is there -------------------------------------------------------------------------------------------


def _described(kind: Any) -> tuple[str, str, int | None, int | None]:
    """(base, text, length, scale) of an Arrow type."""
    types = pa.types
    if types.is_decimal(kind):
        return "decimal", f"decimal({kind.precision},{kind.scale})", kind.precision, kind.scale
    # Nanoseconds are not here: they hold no year before 1677 and none after 2262.
    if types.is_timestamp(kind) and kind.unit != "ns":
        scale = {"s": 0, "ms": 3, "us": 6}[kind.unit]
        base, text = ("timestamptz", "timestamp with time zone") if kind.tz else ("timestamp", "timestamp")
        return base, text if scale == 6 else f"{text} of {scale} digits", None, scale if scale < 6 else None
    if types.is_time(kind) and kind.unit != "ns":
        scale = {"s": 0, "ms": 3, "us": 6}[kind.unit]
        return "time", "time" if scale == 6 else f"time of {scale} digits", None, scale if scale < 6 else None
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "string", "string", None, None
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return "binary", "binary", None, None
    if types.is_interval(kind) or types.is_duration(kind):
        return "interval", "interval", None, None
    named = next((name for name, one in NAMED.items() if one == kind), str(kind))
    return named, named, None, None


def found(schema: Any, declared: Mapping[str, Found] | None = None) -> list[Found]:
    """The columns of an Arrow schema; `declared`: what the system itself says of some of them."""
    columns = []
    for field in schema:
        if declared is not None and field.name in declared:
            columns.append(declared[field.name])
            continue
        base, text, length, scale = _described(field.type)
        columns.append(Found(field.name, text, base, not field.nullable, False, False, True, length, scale))
    return columns


def described(name: str, kind: Any, **said: Any) -> Found:
    """One column, with what the system says of it beyond its Arrow type."""
    base, text, length, scale = _described(kind)
    plain = Found(name, text, base, False, False, False, True, length, scale)
    return plain._replace(**said)


def written(kind: Any) -> Any:
    """The Arrow type in which a column of this one is handed over."""
    if pa.types.is_interval(kind):
        return pa.duration("us")
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    return kind


def schema_of(columns: Sequence[tuple[str, str]]) -> Any:
    """The Arrow schema of `schema.created`'s (name, type and constraints)."""
    ending = " NOT NULL"
    return pa.schema(
        [pa.field(name, NAMED[kind.removesuffix(ending)], nullable=not kind.endswith(ending)) for name, kind in columns]
    )


# --- values ----------------------------------------------------------------------------------------------------------


def converts(columns: Sequence[Column], there: Sequence[Found]) -> list[Convert]:
    """Per column, from a decoded JSON value to what Arrow takes; ValueError for what would not come back as it was
    committed."""
    by_name = {one.name: one for one in there}
    return [_convert(column.type, by_name[column.name]) for column in columns]


def _convert(column: ColumnType, there: Found) -> Convert:
    match there.base:
        case "byte" | "short" | "integer" | "long":
            return _integer(there)
        case "double":
            return _double
        case "decimal":
            return _decimal(there)
        case "timestamptz" | "timestamp" | "time" | "interval":
            return _seconds(there, column)
        case "date":
            return lambda value: read(C.DATE, value)
        case "binary":
            return lambda value: base64.b64decode(value, validate=True)
        case "uuid":
            return lambda value: str(read(C.UUID, value))
    return _json if column is C.JSON else bool if column is C.BOOLEAN else str


def _integer(there: Found) -> Convert:
    bits = {"byte": 8, "short": 16, "integer": 32, "long": 64}[there.base]
    said = f"it is out of the range of {there.type_text}, which has {bits} bits"
    return Within(-(1 << bits - 1), (1 << bits - 1) - 1, said)


def _double(value: float) -> float:
    if float(value) != value:
        raise ValueError("it would be rounded: double has 53 bits. Make the column a decimal")
    return float(value)


def _decimal(there: Found) -> Convert:
    length, scale = there.length or 38, there.scale or 0

    def decimal(value: Any) -> Decimal:
        number: Decimal = read(C.DECIMAL, value)
        if not number.is_finite():
            raise ValueError("it is not finite")
        number = number.normalize(EXACT)
        exponent = number.as_tuple().exponent
        assert isinstance(exponent, int)
        if number and -exponent > scale:
            raise ValueError(f"it would be rounded: {there.type_text} has {scale} digits behind the point")
        if number and number.adjusted() + 1 > length - scale:
            raise ValueError(f"{there.type_text} has {length - scale} digits before the point")
        return number

    return decimal


def _seconds(there: Found, column: ColumnType) -> Convert:
    scale = 6 if there.scale is None else there.scale

    def instant(value: str) -> Any:
        fraction = re.search(r"[.,](\d+)", value)
        if fraction is not None and len(fraction[1].rstrip("0")) > scale:
            raise ValueError(f"{there.type_text} has {scale} digits of a second, and would cut it. Round the value")
        at = read(column, value)
        if isinstance(at, timedelta):
            if abs(at) > LONGEST:
                raise ValueError("an interval of Arrow has 64 bits of microseconds")
            return at
        if at.tzinfo is not None and there.base != "timestamptz":
            raise ValueError(f"{there.type_text} would drop its zone. Make the column one with a zone, or a string")
        if at.tzinfo is None and there.base == "timestamptz":
            raise ValueError(f"it has no zone, {there.type_text} has one. Give it one, or make the column one without")
        return at if at.tzinfo is None else at.astimezone(UTC)  # raises where it is beyond the years 1 to 9999 there

    return instant


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


# --- a batch ---------------------------------------------------------------------------------------------------------


def require_values(shape: Shape, there: Sequence[Found], upserts: Sequence[Upsert]) -> None:
    """RowRefused for the first record that has no value for a column that wants one: said here, because these systems
    name no row."""
    wanted = {one.name for one in there if one.not_null and not one.filled}
    if not upserts:
        return
    for column, values in zip(shape.columns, by_column(upserts), strict=True):
        if column.name in wanted and may_lack(upserts, column) and None in values:
            offset = offsets(upserts)[values.index(None)]
            raise RowRefused(f"column {column.name!r} is NOT NULL, and its value is null", offset)


def table(shape: Shape, schema: Any, upserts: Sequence[Upsert], *, whole: bool = False) -> Any:
    """The rows as an Arrow table of the shape's columns, in the types of `schema`; `whole`: of all its columns, null
    where the shape has none."""
    count = len(upserts)
    held = dict(zip((c.name for c in shape.columns), by_column(upserts) if count else (), strict=False))
    fields = [field for field in schema if whole or field.name in {c.name for c in shape.columns}]
    fields = [pa.field(field.name, written(field.type), field.nullable) for field in fields]
    arrays = [pa.array(held.get(field.name, [None] * count), type=field.type) for field in fields]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def keys(shape: Shape, schema: Any, deletes: Sequence[Delete]) -> Any:
    """The keys of rows that go, as an Arrow table of the key's columns."""
    assert shape.key is not None
    fields = [pa.field(name, written(schema.field(name).type)) for name in shape.key]
    parts = list(zip(*(one.key for one in deletes))) if deletes else [()] * len(fields)
    arrays = [pa.array(part, type=field.type) for part, field in zip(parts, fields, strict=True)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def told(columns: Sequence[Column], rows: Any) -> list[bytes]:
    """What a system holds, as an Arrow table, each row in its canonical form."""
    wanted = rows.select([column.name for column in columns])
    return [canonical_row(columns, {c.name: _told(c, row[c.name]) for c in columns}) for row in wanted.to_pylist()]


def _told(column: Column, value: Any) -> Any:
    if value is None:
        return None
    if column.type is C.JSON and isinstance(value, str):
        return msgspec.json.decode(value)
    if column.type is C.DURATION and hasattr(value, "nanoseconds"):  # Arrow's interval: months, days, nanoseconds
        return timedelta(days=value.days + 30 * value.months, microseconds=value.nanoseconds // 1_000)
    return value


def wanted_columns(value_type: object, key: Sequence[str] | None, where: str) -> tuple[Column, ...] | None:
    """The columns of the values' type, None where it does not tell; SinkError when a key field is none of them."""
    columns = columns_of(value_type, where)
    for field in key or ():
        if columns is not None and field not in {column.name for column in columns}:
            raise SinkError(f"{where}: key {field!r} is no field of {value_type!r}.")
    return columns
