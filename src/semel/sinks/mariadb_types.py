"""MariaDB's types: which column holds which field, and values as the driver writes them into a statement.

MariaDB converts readily: a decimal compared with a text is compared as floating point, digits that do not fit are cut
with a note. So values are given as literals of their own type, and what a column would change is refused before.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from semel.sinks.columns import Column, ColumnType
from semel.sinks.rows import Convert
from semel.sinks.schema import Dialect

C = ColumnType

KEY_TEXT = "varchar(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"  # an index wants a length
CREATED: Mapping[ColumnType, str] = {
    C.INTEGER: "bigint",
    C.FLOAT: "double",
    C.DECIMAL: "decimal(65,30)",
    C.BOOLEAN: "boolean",
    C.TEXT: "longtext",
    C.TIMESTAMP: "datetime(6)",
    C.DATE: "date",
    C.TIME: "time(6)",
    C.DURATION: "varchar(64)",
    C.UUID: "uuid",
    C.BYTES: "longblob",
    C.JSON: "json",
}
# `float` is not here: it would round. `binary(n)` would pad, `enum` takes a number for a place in its list.
HOLDS: Mapping[str, ColumnType] = {
    **dict.fromkeys(("tinyint", "smallint", "mediumint", "int", "bigint"), C.INTEGER),
    "tinyint(1)": C.BOOLEAN,
    "double": C.FLOAT,
    "decimal": C.DECIMAL,
    **dict.fromkeys(("varchar", "char", "tinytext", "text", "mediumtext", "longtext"), C.TEXT),
    **dict.fromkeys(("datetime", "timestamp"), C.TIMESTAMP),
    "date": C.DATE,
    "time": C.TIME,
    **dict.fromkeys(("varbinary", "tinyblob", "blob", "mediumblob", "longblob"), C.BYTES),
    "uuid": C.UUID,
}
ACCEPTS: Mapping[ColumnType, frozenset[ColumnType]] = {
    C.BOOLEAN: frozenset((C.INTEGER,)),
    C.INTEGER: frozenset((C.BOOLEAN,)),
    C.DECIMAL: frozenset((C.INTEGER, C.FLOAT)),
    C.TEXT: frozenset((C.UUID, C.DATE, C.DURATION, C.JSON)),
}
MARIADB = Dialect(CREATED, HOLDS, ACCEPTS, no_key=frozenset(("char",)))

# Collations that hold only equal bytes for equal. utf8mb4_bin does not: it pads, and 'a' is 'a ' to it.
DISTINCT = ("_nopad_bin", "_0900_bin")


def key_type(column: Column) -> str:
    """The type of a column of the key that semel creates."""
    if column.type in (C.TEXT, C.DURATION):
        return KEY_TEXT
    return {C.BYTES: "varbinary(255)"}.get(column.type, CREATED[column.type])


# --- values ----------------------------------------------------------------------------------------------------------


def utc(value: str) -> datetime:
    """A datetime column has no time zone: what has one is written in UTC."""
    at = datetime.fromisoformat(value.replace("Z", "+00:00"))
    return at.astimezone(UTC).replace(tzinfo=None) if at.tzinfo is not None else at


def _datetime(value: str) -> str:
    return utc(value).isoformat(" ")


def _time(value: str) -> str:
    if value[-1:] == "Z" or "+" in value or "-" in value:
        raise ValueError("a time with a time zone")
    return value


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _bytes(value: str) -> bytes:
    return base64.b64decode(value, validate=True)


def _decimal(value: object) -> Decimal:
    return Decimal(str(value))


def converts(columns: Sequence[Column]) -> list[Convert]:
    """Per column, from a decoded JSON value to what the driver makes a literal of."""
    special: Mapping[ColumnType, Convert] = {
        C.INTEGER: int,
        C.FLOAT: float,
        C.DECIMAL: _decimal,
        C.BOOLEAN: int,
        C.TIMESTAMP: _datetime,
        C.TIME: _time,
        C.JSON: _json,
        C.BYTES: _bytes,
    }
    return [special.get(column.type, str) for column in columns]


def told(column: Column, value: Any) -> Any:
    """A value that the driver has read, as `columns.canonical` knows its kind."""
    if value is None:
        return None
    match column.type:
        case C.TIME if isinstance(value, timedelta):
            return (datetime.min + value).time().isoformat()
        case C.JSON if isinstance(value, str):
            return msgspec.json.decode(value)
        case _:
            return value


def committed(column: Column, value: Any) -> Any:
    """A committed value in the form in which the database tells it: timestamps without a time zone, in UTC."""
    return utc(value) if column.type is C.TIMESTAMP and isinstance(value, str) else value
