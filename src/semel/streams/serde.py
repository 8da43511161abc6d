"""How keys and values become bytes: one serde per type, found when the topology is built.

- `str` is UTF-8 and `bytes` is itself: what every other Kafka client writes.
- Everything else is JSON through msgspec: dataclasses, Structs, NamedTuples, TypedDicts, dicts, lists, tuples, Enums,
  int, float, bool, Decimal (as text, nothing is lost), datetime, date, UUID. `int` and `float` are JSON too (`42`, not
  eight bytes), so that a person can read a topic.
- pickle is refused: bytes from a log are not code. So is any type msgspec cannot read back.

Invariant: decode(encode(x)) == x for every x of the type; a value of another type is refused, not written.
None is no value of any type: it travels as a null (a deletion), past the serde.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec

from semel.errors import SemelError

SCALARS: tuple[type, ...] = (str, bytes, int, float, bool, Decimal, datetime, date, time, timedelta, UUID)

# Types whose equal values always have equal bytes and whose hash is theirs: the rest is compared by bytes only.
IMMUTABLE: tuple[type, ...] = (str, bytes, int, float, bool, Decimal, datetime, date, time, timedelta, UUID, Enum)


class NoSerde(Exception):
    """Why a type cannot travel; the builder adds the place."""


class NotFinite(SemelError):
    """A value with a NaN or an infinity in it, which would come back as another."""


@dataclass(frozen=True, slots=True)
class Serde:
    """Both directions of one type. `check` is the class that a value must be an instance of; None: not checked."""

    type: Any
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    check: type | None

    @property
    def name(self) -> str:
        return type_name(self.type)


def type_name(of: Any) -> str:
    if of is None:
        return "?"
    if isinstance(of, type) and not typing.get_args(of):
        return of.__name__
    return str(of).replace("typing.", "")


def _encode_str(value: str) -> bytes:
    return value.encode()


def _decode_str(data: bytes) -> str:
    return str(data, "utf-8")


def _same(data: bytes) -> bytes:
    return data


_cache: dict[Any, Serde] = {}


def serde_of(of: Any) -> Serde:
    """The serde of a type; raises NoSerde saying why there is none."""
    try:
        found = _cache.get(of)
    except TypeError:
        raise NoSerde(f"{of!r} is not a type") from None
    if found is None:
        found = _cache[of] = _build(of)
    return found


def _build(of: Any) -> Serde:
    if of is str:
        return Serde(str, _encode_str, _decode_str, str)
    if of is bytes:
        return Serde(bytes, _same, bytes, bytes)
    if of is None or of is type(None):
        raise NoSerde("None is not a type of values: it stands for a deletion")
    if of is object or of is Any:
        raise NoSerde(f"{type_name(of)} says nothing about the bytes; name a type (bytes to take them as they are)")
    if getattr(of, "__module__", "") == "pickle" or getattr(of, "__name__", "") == "pickle":
        raise NoSerde("pickle is refused: reading it runs whatever the bytes say")
    try:
        info = msgspec.inspect.type_info(of)
        decoder = msgspec.json.Decoder(of)
    except (TypeError, NameError, AttributeError) as why:
        raise NoSerde(f"{type_name(of)} has no serde: {why}") from None
    strange = _strange(info, set())
    if strange:
        raise NoSerde(
            f"{type_name(of)} has no serde: {strange} is not a type that JSON can carry and give back. "
            "Use a dataclass, a msgspec Struct, a NamedTuple, a TypedDict or a plain type"
        )
    check = of if isinstance(of, type) and not typing.get_args(of) and not typing.is_typeddict(of) else None
    if check is float:
        check = None  # an int is a fine float
    encode = msgspec.json.Encoder(order="deterministic").encode
    return Serde(of, _finite(of, encode) if _may_be_float(info, set()) else encode, decoder.decode, check)


def _finite(of: Any, encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """JSON has no NaN and no infinities, and msgspec writes them as null: another value, or none, would be read."""

    def encoded(value: Any) -> bytes:
        data = encode(value)
        if b"null" in data and (found := not_finite(value)):
            raise NotFinite(f"{found} in a {type_name(of)} is no finite number; JSON has no such value: {value!r:.200}")
        return data

    return encoded


def not_finite(value: Any) -> str:
    """The first NaN or infinity in a value, with its place in it; "" when there is none."""
    return _not_finite(msgspec.to_builtins(value, builtin_types=(float,), str_keys=True), "")


def _not_finite(value: Any, place: str) -> str:
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{place}={value}" if place else str(value)
    if isinstance(value, dict):
        parts = [(f"{place}.{name}" if place else str(name), part) for name, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"{place}[{index}]", part) for index, part in enumerate(value)]
    else:
        return ""
    return next((found for name, part in parts if (found := _not_finite(part, name))), "")


def _may_be_float(info: Any, seen: set[int]) -> bool:
    if isinstance(info, msgspec.inspect.FloatType | msgspec.inspect.AnyType):
        return True
    if id(info) in seen:
        return False
    seen.add(id(info))
    return any(_may_be_float(child, seen) for child in _children(info))


def _strange(info: Any, seen: set[int]) -> str:
    """The first type inside that msgspec only knows as 'custom': it would encode or decode to something else."""
    if isinstance(info, msgspec.inspect.CustomType):
        return type_name(info.cls)
    if id(info) in seen:
        return ""
    seen.add(id(info))
    for child in _children(info):
        found = _strange(child, seen)
        if found:
            return found
    return ""


def _children(info: Any) -> list[Any]:
    children: list[Any] = []
    for name in ("item_type", "key_type", "value_type", "type"):
        child = getattr(info, name, None)
        if isinstance(child, msgspec.inspect.Type):
            children.append(child)
    for name in ("types", "item_types"):
        children.extend(getattr(info, name, None) or ())
    children.extend(field.type for field in getattr(info, "fields", ()) or ())
    return children


def hashable(of: Any) -> bool:
    """Whether values of the type can be keys of a dict."""
    origin = typing.get_origin(of) or of
    if not isinstance(origin, type):
        return False
    if issubclass(origin, tuple):
        return all(a is Ellipsis or hashable(a) for a in typing.get_args(of))
    return origin.__hash__ is not None


def immutable(value: Any) -> bool:
    """Whether a value can be handed out again and again without being changed by anyone."""
    if isinstance(value, IMMUTABLE) or value is None:
        return True
    if isinstance(value, tuple):
        return all(immutable(part) for part in value)
    if dataclasses.is_dataclass(value):
        frozen = getattr(type(value), "__dataclass_params__").frozen  # noqa: B009 (typeshed does not know it)
        return bool(frozen) and all(immutable(getattr(value, f.name)) for f in dataclasses.fields(value))
    if isinstance(value, msgspec.Struct):
        return value.__struct_config__.frozen and all(immutable(getattr(value, f)) for f in value.__struct_fields__)
    return isinstance(value, frozenset) and isinstance(value, collections.abc.Set) and all(map(immutable, value))
