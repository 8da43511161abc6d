"""SQLite's types: which column holds which field, and values as the driver binds them.

SQLite stores what it is given, under the column's affinity. NUMERIC would turn decimals into floating point, so
decimals lie in TEXT, as do dates and times, in ISO 8601.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from semel.sinks.columns import Column, ColumnType
from semel.sinks.rows import Convert
from semel.sinks.schema import Dialect

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
SQLITE = Dialect(CREATED, HOLDS, ACCEPTS, no_key=frozenset(("REAL",)))


def base(declared: str) -> str:
    """The affinity of a declared type, as SQLite finds it (datatype3, 3.1); BOOLEAN apart from other NUMERIC ones.
    A type like DATETIME has NUMERIC affinity and keeps ISO 8601 text as it is."""
    text = declared.upper()
    if "INT" in text:
        return "INTEGER"
    if any(word in text for word in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    if "BLOB" in text:
        return "BLOB"
    if any(word in text for word in ("REAL", "FLOA", "DOUB")):
        return "REAL"
    if "BOOL" in text:
        return "BOOLEAN"
    return "TEXT" if any(word in text for word in ("DATE", "TIME")) else "NUMERIC"


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _bytes(value: str) -> bytes:
    return base64.b64decode(value, validate=True)


def _integer(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise ValueError("it does not fit SQLite's 64 bits")
    return value


def converts(columns: Sequence[Column]) -> list[Convert]:
    """Per column, from a decoded JSON value to what the driver binds."""
    special: Mapping[ColumnType, Convert] = {
        C.JSON: _json,
        C.BYTES: _bytes,
        C.BOOLEAN: int,
        C.FLOAT: float,
        C.INTEGER: _integer,
    }
    return [special.get(column.type, str) for column in columns]
