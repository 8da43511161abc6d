"""Postgres' types: which column holds which field, and values as its types read them in text."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from semel.sinks.columns import Column, ColumnType, read
from semel.sinks.rows import Convert
from semel.sinks.schema import Dialect, Found
from semel.sinks.sink import EXACT

C = ColumnType

CREATED: Mapping[ColumnType, str] = {
    C.INTEGER: "bigint",
    C.FLOAT: "double precision",
    C.DECIMAL: "numeric",
    C.BOOLEAN: "boolean",
    C.TEXT: "text",
    C.TIMESTAMP: "timestamptz",
    C.DATE: "date",
    C.TIME: "time",
    C.DURATION: "interval",
    C.UUID: "uuid",
    C.BYTES: "bytea",
    C.JSON: "jsonb",
}

# What a column of a Postgres type holds. `real` is not here: it would round what was committed.
HOLDS: Mapping[str, ColumnType] = {
    "int2": C.INTEGER,
    "int4": C.INTEGER,
    "int8": C.INTEGER,
    "float8": C.FLOAT,
    "numeric": C.DECIMAL,
    "bool": C.BOOLEAN,
    "text": C.TEXT,
    "varchar": C.TEXT,
    "bpchar": C.TEXT,
    "citext": C.TEXT,
    "enum": C.TEXT,
    "timestamptz": C.TIMESTAMP,
    "timestamp": C.TIMESTAMP,
    "date": C.DATE,
    "time": C.TIME,
    "timetz": C.TIME,
    "interval": C.DURATION,
    "uuid": C.UUID,
    "bytea": C.BYTES,
    "jsonb": C.JSON,
    "json": C.JSON,
}
# The fields that fit a column besides those of its own type.
ACCEPTS: Mapping[ColumnType, frozenset[ColumnType]] = {
    C.DECIMAL: frozenset((C.INTEGER, C.FLOAT)),
    C.TEXT: frozenset((C.UUID, C.DATE)),
}
# Values that these hold for equal are written differently: two of them could lie in two partitions (FAULTS S15).
NO_KEY = frozenset(("bpchar", "citext", "json", "jsonb", "timetz", "interval"))

POSTGRES = Dialect(CREATED, HOLDS, ACCEPTS, NO_KEY, also={})
MICROSECONDS = 6


def found(
    name: str, type_text: str, base: str, limited: str, not_null: bool, filled: bool, generated: bool, determined: bool
) -> Found:
    """A column as the catalog tells it; `limited`: its type with its modifiers, of a domain the one it stands for."""
    said = re.search(r"\((-?\d+)(?:,(-?\d+))?\)", limited)
    length, scale = (None, None) if said is None else (int(said[1]), int(said[2] or 0))
    if limited.startswith("interval "):
        base = limited  # `interval day` drops what is smaller than a day: nothing that semel writes
    elif base in ("timestamptz", "timestamp", "time", "timetz", "interval"):
        length, scale = None, None if length is None or length >= MICROSECONDS else length
    elif base != "numeric":
        scale = None
    return Found(name, type_text, base, not_null, filled, generated, determined, length, scale)


# --- values as Postgres reads them in text ------------------------------------------------------------------------


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _bytea(value: str) -> str:
    return "\\x" + base64.b64decode(value, validate=True).hex()


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _float8(value: float) -> str:
    if float(value) != value:
        raise ValueError("it would be rounded: double precision has 53 bits. Make the column numeric")
    return repr(value)


def _numeric(there: Found) -> Convert:
    def text(value: Any) -> str:
        number = read(C.DECIMAL, value)
        digits = -number.normalize(EXACT).as_tuple().exponent if number.is_finite() and number else 0
        if there.scale is not None and number and digits > there.scale:
            raise ValueError(f"{there.type_text} would round it. Alter the column to numeric, or round the value")
        return str(value)

    return text


def _characters(there: Found) -> Convert:
    """varchar(n) cuts blanks off the end of what is too long, char(n) fills up with them."""

    def text(value: str) -> str:
        if there.length is not None and len(value) > there.length:
            raise ValueError(f"it has {len(value)} characters, {there.type_text} fewer. Alter the column to text")
        if there.length is not None and there.base == "bpchar" and len(value) < there.length:
            raise ValueError(f"{there.type_text} would fill it up with blanks. Alter the column to text")
        return value

    return text


def _seconds(there: Found, column: ColumnType) -> Convert:
    scale = MICROSECONDS if there.scale is None else there.scale

    def text(value: str) -> str:
        at = read(column, value)
        fraction = re.search(r"\.(\d+)", value)
        if fraction is not None and len(fraction[1].rstrip("0")) > scale:
            mend = "Round the value" if there.scale is None else f"Alter the column to {there.base}, or round the value"
            raise ValueError(f"{there.type_text} has {scale} digits of a second, and would round it. {mend}")
        if isinstance(at, timedelta):  # not every server reads the sign in front of ISO 8601
            sign, at = ("-", -at) if at < timedelta(0) else ("", at)
            return f"{sign}{at.days} days {sign}{at.seconds}.{at.microseconds:06d} seconds"
        if at.tzinfo is not None and not there.base.endswith("tz"):
            raise ValueError(f"{there.type_text} would drop its zone. Alter the column to {there.base}tz")
        if at.tzinfo is None and there.base.endswith("tz"):
            raise ValueError(
                f"it has no zone, {there.base} has one. Give it one, or alter the column to {there.base[:-2]}"
            )
        return value

    return text


def _date(value: str) -> str:
    read(C.DATE, value)
    return value


def converts(columns: Sequence[Column], found: Sequence[Found]) -> list[Convert]:
    """Per column, from a decoded JSON value to the text that its type reads; ValueError for what it would not hold as
    it was committed. Postgres rounds, cuts and drops without a word."""
    there = {one.name: one for one in found}
    return [_convert(column.type, there[column.name]) for column in columns]


def _convert(column: ColumnType, there: Found) -> Convert:
    match there.base:
        case "float8":
            return _float8
        case "numeric":
            return _numeric(there)
        case "varchar" | "bpchar" if there.length is not None:
            return _characters(there)
        case "timestamptz" | "timestamp" | "time" | "timetz" | "interval":
            return _seconds(there, column)
        case "date":
            return _date
    special: Mapping[ColumnType, Convert] = {C.JSON: _json, C.BYTES: _bytea, C.BOOLEAN: _bool}
    return special.get(column, str)
