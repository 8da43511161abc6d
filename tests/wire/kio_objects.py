"""Random kio objects, and the neutral twin of each in broker.messages."""

from __future__ import annotations

import datetime
import random
import typing
from typing import Any
from uuid import UUID

from kio.schema.errors import ErrorCode
from kio.static.primitive import i32Timedelta

from semel.broker import admin_messages, messages
from semel.wire.schema import KioClass, SchemaField, fields_of

INTEGERS = {"int8": 7, "int16": 15, "int32": 31, "int64": 63}
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def scalar(field: SchemaField, dice: random.Random) -> Any:
    kind = field.kind
    if kind in INTEGERS:
        return dice.choice((0, 1, -1, 2 ** INTEGERS[kind] - 1, -(2 ** INTEGERS[kind]), dice.randrange(100)))
    if kind == "uint16":
        return dice.randrange(2**16)
    if kind == "bool":
        return dice.random() < 0.5
    if kind == "error_code":
        return dice.choice(list(ErrorCode))
    if kind == "string":
        return dice.choice(("", "a", "größer ✓", "x" * 126, "x" * 127, "x" * 300))
    if kind in ("bytes", "records"):
        return dice.choice((b"", b"\x00", b"y" * 127, dice.randbytes(20_000)))
    if kind == "uuid":
        return dice.choice((None, UUID(int=dice.getrandbits(128))))
    if kind == "timedelta_i32":
        return i32Timedelta.parse(datetime.timedelta(milliseconds=dice.randrange(2**31)))
    if kind == "timedelta_i64":
        return datetime.timedelta(milliseconds=dice.randrange(2**31))
    if kind == "datetime_i64":
        return EPOCH + datetime.timedelta(milliseconds=dice.randrange(2**40))
    raise AssertionError(kind)


def random_kio(entity: KioClass, dice: random.Random) -> Any:
    values = {}
    for field in fields_of(entity):
        null = field.nullable and field.kind != "uuid" and field.tag is None and dice.random() < 0.25
        if null and not (field.array and field.kind == "string"):
            values[field.name] = None
        elif field.tag is not None and dice.random() < 0.4:
            values[field.name] = field.default
        else:

            def one(field: SchemaField = field) -> Any:
                return random_kio(field.entity, dice) if field.entity is not None else scalar(field, dice)

            values[field.name] = tuple(one() for _ in range(dice.randrange(4))) if field.array else one()
    return entity(**values)


def neutral_class(entity: KioClass) -> type[Any]:
    """Of a whole reply."""
    name = entity.__name__
    return getattr(messages, name, None) or getattr(admin_messages, name)


def neutral(kio_object: Any, into: type[Any]) -> Any:
    """The same content as the broker would build it."""
    hints = typing.get_type_hints(into)
    values = {}
    for field in fields_of(type(kio_object)):
        value = getattr(kio_object, field.name)
        if field.entity is not None:
            nested = nested_class(hints[field.name])
            if value is not None:
                value = tuple(neutral(item, nested) for item in value) if field.array else neutral(value, nested)
        elif field.kind.startswith("timedelta"):
            value = round(value.total_seconds() * 1000)
        elif field.kind == "datetime_i64":
            value = -1 if value is None else round(value.timestamp() * 1000)
        elif field.kind == "records" and value is not None:
            value = [value[:7], memoryview(value)[7:]] if len(value) > 7 else [value]
        elif field.kind == "error_code":
            value = int(value)
        values[field.neutral_name] = value
    return into(**values)


def nested_class(hint: Any) -> type[Any]:
    """The dataclass inside Sequence[X], X | None, …"""
    arguments = typing.get_args(hint)
    if not arguments:
        return hint  # type: ignore[no-any-return]
    return next(nested_class(argument) for argument in arguments if argument is not type(None))
