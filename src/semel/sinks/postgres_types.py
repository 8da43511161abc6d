"""Postgres' types: which column holds which field, and values as its types read them in text."""

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

POSTGRES = Dialect(CREATED, HOLDS, ACCEPTS, NO_KEY)


def limits(type_text: str) -> Mapping[str, Any]:
    """What of `Found` the modifiers of a type say: numeric(9,2), timestamp(3) with time zone, varchar(20). Beyond them
    Postgres rounds, or cuts blanks off, and says nothing."""
    name, _, rest = type_text.partition("(")
    said = [int(part) for part in rest.partition(")")[0].split(",") if part.strip().lstrip("-").isdigit()]
    if name == "numeric" and said:
        return {"length": said[0], "scale": said[1] if len(said) > 1 else 0}
    if name.startswith(("timestamp", "time", "interval")):
        return {"scale": said[0]} if said else {}
    if name in ("character varying", "character"):
        return {"length": said[0] if said else None, "pads": name == "character"}
    return {}


# --- values as Postgres reads them in text ------------------------------------------------------------------------


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _bytea(value: str) -> str:
    return "\\x" + base64.b64decode(value, validate=True).hex()


def _bool(value: bool) -> str:
    return "true" if value else "false"


def converts(columns: Sequence[Column]) -> list[Convert]:
    """Per column, from a decoded JSON value to the text that its type reads."""
    special: Mapping[ColumnType, Convert] = {C.JSON: _json, C.BYTES: _bytea, C.BOOLEAN: _bool, C.FLOAT: repr}
    return [special.get(column.type, str) for column in columns]
