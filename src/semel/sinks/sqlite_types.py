"""SQLite's types: which column holds which field, and values as the driver binds them.

SQLite stores what it is given, under the column's affinity. NUMERIC turns whatever looks like a number into one ("007"
into 7, decimals into floating point), so decimals lie in TEXT, as do dates and times, in ISO 8601.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from semel.sinks.columns import Column, ColumnType
from semel.sinks.rows import Convert, Within
from semel.sinks.schema import Dialect, Found

C = ColumnType

CREATED: Mapping[ColumnType, str] = {
    C.INTEGER: "INTEGER",
    C.FLOAT: "REAL",
    C.DECIMAL: "TEXT",
    C.BOOLEAN: "BOOLEAN",
    C.TEXT: "TEXT",
    C.TIMESTAMP: "TEXT",
    C.DATE: "TEXT",
    C.TIME: "TEXT",
    C.DURATION: "TEXT",
    C.UUID: "TEXT",
    C.BYTES: "BLOB",
    C.JSON: "TEXT",
}
# By what `base` makes of the declared type.
HOLDS: Mapping[str, ColumnType] = {
    "INTEGER": C.INTEGER,
    "REAL": C.FLOAT,
    "BOOLEAN": C.BOOLEAN,
    "TEXT": C.TEXT,
    "BLOB": C.BYTES,
}
ACCEPTS: Mapping[ColumnType, frozenset[ColumnType]] = {
    C.INTEGER: frozenset((C.BOOLEAN,)),
    C.TEXT: frozenset((C.DECIMAL, C.TIMESTAMP, C.DATE, C.TIME, C.DURATION, C.UUID, C.JSON)),
}
# DATE and DATETIME have NUMERIC affinity too: what never looks like a number lies in them as it is.
ALSO: Mapping[str, frozenset[ColumnType]] = {
    "NUMERIC": frozenset((C.TIMESTAMP, C.DATE, C.TIME, C.DURATION, C.UUID)),
}
SQLITE = Dialect(CREATED, HOLDS, ACCEPTS, no_key=frozenset(("REAL",)), also=ALSO)


def base(declared: str) -> str:
    """The affinity of a declared type, as SQLite finds it (datatype3, 3.1); BOOLEAN apart from other NUMERIC ones."""
    text = declared.upper()
    if "INT" in text:
        return "INTEGER"
    if any(word in text for word in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    if "BLOB" in text:
        return "BLOB"
    if any(word in text for word in ("REAL", "FLOA", "DOUB")):
        return "REAL"
    return "BOOLEAN" if "BOOL" in text else "NUMERIC"


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _bytes(value: str) -> bytes:
    return base64.b64decode(value, validate=True)


_integer = Within(-(2**63), 2**63 - 1, "it does not fit SQLite's 64 bits")


def _float(value: float) -> float:
    if float(value) != value:
        raise ValueError("it would be rounded: REAL has 53 bits")
    return float(value)


def _kept(value: str) -> str:
    try:
        float(value)
    except ValueError:
        return value
    raise ValueError("it looks like a number, and the column would make one of it. It must be TEXT")


def converts(columns: Sequence[Column], found: Sequence[Found]) -> list[Convert]:
    """Per column, from a decoded JSON value to what the driver binds; ValueError for what the column would change."""
    special: Mapping[ColumnType, Convert] = {
        C.JSON: _json,
        C.BYTES: _bytes,
        C.BOOLEAN: int,
        C.FLOAT: _float,
        C.INTEGER: _integer,
    }
    numeric = {one.name for one in found if one.base == "NUMERIC"}
    return [_kept if column.name in numeric else special.get(column.type, str) for column in columns]
