"""What all sinks share: the errors of a sink, and how values become keys and bytes on their way out.

Invariant: two values whose key fields the sink holds for equal have equal `encode_key` bytes, so all writes of one
sink key lie in one partition of the outbox, in one order (FAULTS S15). The reverse need not hold: sharing a
partition harms nobody.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Context, Decimal
from typing import Any, cast

import msgspec

from semel.errors import SemelError
from semel.ports import Sink, SinkConnection

__all__ = ["Diverged", "RowRefused", "Sink", "SinkConnection", "SinkError", "encode_key", "encode_parts", "encode_row"]


def or_adopt(sink: str) -> str:
    """The other choice where a position does not fit the log, as every message of it ends."""
    return (
        f"say from where this log is delivered: `semel sink adopt APP.py {sink}` tells what each choice would skip or "
        "repeat, and does nothing without --yes."
    )


class SinkError(SemelError):
    """The sink cannot be used as declared; what, where, what next."""


class Diverged(SinkError):
    """The sink's position is not a position in this log. Never repaired by resetting: a person decides."""


class Ahead(Diverged):
    """The sink holds more than its owner has read as decided. Who was overtaken between reading and asking sees that
    too: only who has read the same again, after initialising the transactional id again, believes it."""


class RowRefused(SinkError):
    """The sink will never take this record (FAULTS S11). `doubt`: why it may be another one that it refuses, or this
    one for a while only: such a record is never a dead letter."""

    def __init__(self, message: str, offset: int, doubt: str = "") -> None:
        super().__init__(message)
        self.offset = offset
        self.doubt = doubt


def key_fields(key: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """`key=` as users write it: one field, several, or none."""
    if key is None:
        return None
    fields = (key,) if isinstance(key, str) else tuple(key)
    if not fields or len(set(fields)) != len(fields) or not all(fields):
        raise SinkError(f"key={key!r}: name one field of the value or several different ones, or leave it out.")
    return fields


EXACT = Context(prec=200_000)  # the default context would round to 28 digits, and make one key of two
_encode = msgspec.json.Encoder().encode


def canonical_part(part: object) -> object:
    """One field of a key, so that what a database holds for equal is equal here."""
    match part:
        case enum.Enum():
            return canonical_part(part.value)
        case bool() | int() | str() | bytes():
            return part
        case float():
            return int(part) if part.is_integer() else part
        case Decimal() if part.is_finite():
            whole = part.adjusted() < 100 and part == part.to_integral_value()
            return int(part) if whole else str(part.normalize(EXACT))
        case datetime() if part.tzinfo is not None:
            return part.astimezone(UTC)
    return part


def encode_parts(fields: Sequence[str], parts: Sequence[object]) -> bytes:
    """The key as a JSON array, one element per field."""
    for field, part in zip(fields, parts, strict=True):
        if part is None or (isinstance(part, float) and not math.isfinite(part)):
            raise SinkError(f"the key field {field!r} is {part}: a row cannot be identified by it.")
    return _encode([canonical_part(part) for part in parts])


def encode_key(fields: tuple[str, ...], value: object) -> bytes:
    """The key bytes of a value: its fields `fields`, in this order."""
    return encode_parts(fields, [field_of(value, field) for field in fields])


def encode_deleted(fields: tuple[str, ...] | None, key: object, where: str) -> bytes:
    """The sink key of a delete, whose value cannot tell it: the stream's key is the sink's, field by field."""
    if fields is None:
        raise SinkError(f"{where}: a value None deletes a row, but the sink was declared without key=.")
    parts = key if isinstance(key, tuple | list) else (key,)
    if len(parts) != len(fields):
        raise SinkError(f"{where}: a delete for the key {key!r} does not say the fields {', '.join(fields)}.")
    return encode_parts(fields, parts)


def field_of(value: object, field: str) -> object:
    """A field of a value with named fields, under the name that it is encoded with."""
    if isinstance(value, dict):
        if field in value:
            return value[field]
    else:
        struct_names = getattr(type(value), "__struct_encode_fields__", None)
        if struct_names is not None and field in struct_names:  # Struct(rename=…): the column has the encoded name
            return getattr(value, type(value).__struct_fields__[struct_names.index(field)])  # type: ignore[attr-defined]
        try:
            return getattr(value, field)
        except AttributeError:
            pass
    raise SinkError(f"key {field!r}: {type(value).__name__} has no such field.")


def encode_row(value: object) -> bytes:
    """A value with named fields (dataclass, Struct, NamedTuple, TypedDict, dict) as a JSON object."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = cast("Callable[[], dict[str, Any]]", value._asdict)()
    try:
        data = _encode(value)
    except (TypeError, ValueError, OverflowError) as why:
        raise SinkError(f"a {type(value).__name__} cannot be written as a row: {why}.") from None
    if data[:1] != b"{":
        raise SinkError(
            f"a {type(value).__name__} is not a row: a table wants values with named fields. "
            "Map it to a dataclass, a msgspec Struct or a dict first."
        )
    # msgspec writes NaN and the infinities as null: another value would arrive. Only then is it worth a look.
    if b"null" in data and (found := _not_finite(msgspec.to_builtins(value, builtin_types=(float,)))):
        raise SinkError(f"the field {found!r} is not a finite number; JSON, in which rows travel, has no such value.")
    return data


def _not_finite(value: object, path: str = "") -> str:
    """The path of the first NaN or infinity in it, or ""."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else path
    if isinstance(value, dict):
        return next((p for k, v in value.items() if (p := _not_finite(v, f"{path}.{k}" if path else str(k)))), "")
    if isinstance(value, list | tuple):
        return next((p for i, v in enumerate(value) if (p := _not_finite(v, f"{path}[{i}]"))), "")
    return ""
