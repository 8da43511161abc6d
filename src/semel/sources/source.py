"""What every source shares: its errors, and how a row becomes a record of its topic.

Invariant: a row either becomes the key and the value that its topic's types describe, or is refused with a reason that
names what is wrong with it; nothing is filled in that the row and the type do not say.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import inspect as kinds

from semel.errors import SemelError
from semel.streams.serde import NotFinite, Serde, type_name

BUILTIN = (datetime, date, time, timedelta, Decimal, uuid.UUID, bytes)
VALUE_SHOWN_MAX = 200


class SourceError(SemelError):
    """What a person must settle at a source. Nothing was lost, and nothing goes on."""


class SourceDiverged(SourceError):
    """The source, or the log, is not the one that the position was taken in."""


class Refused(Exception):
    """Why a row is no record."""


def key_fields(key: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if key is None else (key,) if isinstance(key, str) else tuple(key)


class Coder:
    """Rows to records of one topic. A row is a mapping of field to value; of a topic of str or bytes it is the text."""

    def __init__(self, topic: Any, key: Sequence[str], *, text: bool = False) -> None:
        """`text`: every value of a row is text, as in CSV: numbers and dates are read out of it."""
        self._key_serde: Serde = topic.key_serde
        self._value_serde: Serde = topic.value_serde
        self._key = tuple(key)
        self._plain = self._value_serde.type in (str, bytes)
        self._lenient = text
        self._empty = _of_empty(self._value_serde.type) if text else {}
        self.of_str = self._value_serde.type is str
        self.stops: bool = topic.on_error == "stop"

    def record(self, row: Any, keyed: Any = None) -> tuple[bytes | None, bytes | None]:
        """Key and value as the log holds them. `keyed`: where the key is, if not in the row. Raises Refused."""
        try:
            if self._plain:
                value: object = row
            else:
                if self._empty and isinstance(row, dict):
                    row = {n: v for n, v in ((n, self._emptied(n, v)) for n, v in row.items()) if v is not MISSING}
                value = msgspec.convert(row, self._value_serde.type, strict=not self._lenient, builtin_types=BUILTIN)
            return self._key_of(row if keyed is None else keyed, value), self._value_serde.encode(value)
        except Refused:
            raise
        except (msgspec.MsgspecError, NotFinite, UnicodeError, TypeError, ValueError, OverflowError) as why:
            raise Refused(str(why)) from None

    def _emptied(self, name: str, value: Any) -> Any:
        return self._empty.get(name, value) if value == "" else value

    def _key_of(self, row: Any, value: object) -> bytes | None:
        if not self._key:
            return None
        if not isinstance(row, Mapping):
            raise Refused("a key is a field, and this row has none")
        parts = []
        for name in self._key:
            part = row[name] if name in row else getattr(value, name, None)  # a field's default is its value, too
            if part is None:
                raise Refused(f"the field {name!r} of the key is missing")
            parts.append(part)
        found = parts[0] if len(parts) == 1 else parts
        serde = self._key_serde
        if serde.type is str and not isinstance(found, str):
            found = str(found)  # a key is text by default: the number 7 is the text "7"
        key = msgspec.convert(found, serde.type, strict=False, builtin_types=BUILTIN)
        return serde.encode(key)


MISSING: Any = object()


def _of_empty(of: Any) -> dict[str, Any]:
    """What an empty cell means, per field: text stays empty; else None where the type takes it, else missing (its
    default, or a refusal that names the field)."""
    found: dict[str, Any] = {}
    for field in getattr(kinds.type_info(of), "fields", ()):
        members = field.type.types if isinstance(field.type, kinds.UnionType) else (field.type,)
        if any(isinstance(member, kinds.StrType | kinds.AnyType) for member in members):
            continue
        found[field.encode_name] = None if any(isinstance(member, kinds.NoneType) for member in members) else MISSING
    return found


def fields_of(of: Any) -> frozenset[str] | None:
    """The names of a type's fields; None where it has none that are fixed."""
    found = getattr(kinds.type_info(of), "fields", None)
    return None if found is None else frozenset(field.encode_name for field in found)


def key_complaint(where: str, key: Sequence[str], key_type: Any, value_type: Any) -> str:
    """Why a source with this key cannot fill a topic of these types; "" when it can."""
    if not key:
        return ""
    fields = None if value_type in (str, bytes) else fields_of(value_type)
    if value_type in (str, bytes):
        return f"{where}: key={', '.join(key)} names fields, and a value of {type_name(value_type)} has none."
    if fields is not None and (missing := [name for name in key if name not in fields]):
        return (
            f"{where}: key={', '.join(missing)} is no field of {type_name(value_type)} ({', '.join(sorted(fields))})."
        )
    if len(key) > 1 and key_type in (str, bytes):
        return f"{where}: a key of {len(key)} fields is a tuple; the topic's key is {type_name(key_type)}."
    return ""


def shown(row: Any) -> bytes:
    """A refused row as the dead letters keep it."""
    if isinstance(row, bytes):
        return row
    if isinstance(row, str):
        return row.encode("utf-8", "surrogateescape")
    try:
        return msgspec.json.encode(row, enc_hook=_hook)
    except (TypeError, ValueError, msgspec.MsgspecError):
        return repr(row).encode("utf-8", "backslashreplace")


def _hook(value: object) -> object:
    return base64.b64encode(value).decode() if isinstance(value, bytes | memoryview) else str(value)


def excerpt(row: bytes) -> str:
    text = row[: VALUE_SHOWN_MAX + 1].decode("utf-8", "backslashreplace")
    return text if len(text) <= VALUE_SHOWN_MAX else text[:VALUE_SHOWN_MAX] + "…"


def plain(topic: Any, value: bytes) -> Any:
    """A value of the topic as a source would hold it: fields and scalars."""
    return msgspec.to_builtins(topic.value_serde.decode(value), builtin_types=BUILTIN)
