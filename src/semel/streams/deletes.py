"""Deletions at a keyed sink: the row is named by the stream's key, which stands for the sink's key fields one by one.

Invariant: a part of the key has the type of its field. Another type is written another way (1 and "1"), which is
another key of the outbox, in another partition: the delete and the writes of its row would have no order among each
other (FAULTS S15). Where the program tells, it is refused when it is built; else with the record, by the task that
knows the types, or by the sink, which knows its columns.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec

from semel.ports import Sink
from semel.streams import graph as g
from semel.streams.infer import is_lambda, make_up, without_none
from semel.streams.place import GraphError

_KINDS = (bool, int, float, str, bytes, Decimal, datetime, date, time, timedelta, UUID)
# Written alike where they are equal: both have whole numbers as such.
_ALIKE = (frozenset((int, float)), frozenset((int, Decimal)))

Kind = type | None  # how values of a type are written in a key; None: not told


def check(node: g.Write, nodes: Sequence[g.Node]) -> None:
    """Refuses a write of values that may be None, as far as the program tells, under keys of another type."""
    sink = node.sink
    if sink is None or sink.key is None or node.key is None:
        return
    wanted = field_kinds(sink, node.value)
    parts = typing.get_args(node.key) if typing.get_origin(node.key) is tuple else (node.key,)
    if len(parts) != len(wanted):
        return  # a delete of it is refused by the sink itself, by its record
    for field, of, part in zip(sink.key, wanted, parts, strict=True):
        if not _alike(of, kind(part)) and _may_be_none(nodes, node.upstream[0]):
            assert of is not None
            raise GraphError(
                node.place,
                f"sink {sink.name!r}: a value None deletes the row of the stream's key, and that is of type "
                f"{getattr(part, '__name__', part)}, the field {field!r} of type {of.__name__}: written in two ways, a "
                "delete could overtake the write before it. Give them one type: key_by that of the field, or make the "
                "field that of the key.",
            )


def deletion(sink: Sink[Any, Any], value: Any, wrong: Callable[[str, str, Any], Any]) -> Callable[[Any], bytes]:
    """`sink.encode_deleted` behind a look at the key; `wrong(what, wanted, part)` raises."""
    wanted = () if sink.key is None else field_kinds(sink, value)
    if not any(wanted):
        return sink.encode_deleted

    def deleted(key: Any) -> bytes:
        parts = key if isinstance(key, tuple | list) else (key,)
        for field, of, part in zip(sink.key or (), wanted, parts):
            if part is not None and not _alike(of, kind(type(part))):
                wrong(f"a delete at sink {sink.name}, for the key field {field!r},", of.__name__ if of else "", part)
        return sink.encode_deleted(key)

    return deleted


def field_kinds(sink: Sink[Any, Any], value: Any) -> tuple[Kind, ...]:
    """The kind of each key field of the sink."""
    fields = sink.key or ()
    of = without_none(getattr(sink, "value_type", None) or value)
    try:
        hints = typing.get_type_hints(of)
        names = {field.encode_name: field.name for field in getattr(msgspec.inspect.type_info(of), "fields", ())}
    except (TypeError, NameError, AttributeError):
        return (None,) * len(fields)
    return tuple(kind(hints.get(names.get(field, field))) for field in fields)


def kind(of: Any) -> Kind:
    of = without_none(of)
    of = getattr(of, "__supertype__", of)
    origin = typing.get_origin(of)
    if origin is typing.Annotated or origin in (typing.Required, typing.NotRequired):
        return kind(typing.get_args(of)[0])
    if origin is typing.Literal:
        return _one({type(value) for value in typing.get_args(of)})
    if not isinstance(of, type) or of is types.NoneType:
        return None
    if issubclass(of, Enum):
        return _one({type(member.value) for member in of})
    return next((known for known in _KINDS if issubclass(of, known)), None)


def _one(kinds: set[type]) -> Kind:
    return kind(kinds.pop()) if len(kinds) == 1 else None


def _alike(one: Kind, other: Kind) -> bool:
    return one is None or other is None or one is other or frozenset((one, other)) in _ALIKE


def _may_be_none(nodes: Sequence[g.Node], id: int) -> bool:
    """Whether the program tells that None can arrive here: by an annotation, or by a lambda that passes it on."""
    node = nodes[id]
    match node:
        case g.Fold(function=f) | g.Map(function=f) if (said := _returns(f)) is not None:
            return _has_none(said)
        case g.FlatMap(function=f) if (said := _returns(f)) is not None:
            return any(map(_has_none, typing.get_args(said)[:1]))
        case g.Map(function=f, with_key=with_key) if is_lambda(f) and _may_be_none(nodes, node.upstream[0]):
            return _answer(f, *((make_up(str),) if with_key else ()), None) is None
        case g.Filter(function=f) if is_lambda(f) and _may_be_none(nodes, node.upstream[0]):
            return _answer(f, None) is True
        case g.KeyBy() | g.Repartition() | g.Changes() | g.Merge() | g.Fold(kind=g.FoldKind.DISTINCT):
            return any(_may_be_none(nodes, above) for above in node.upstream)
    return False


def _returns(f: Any) -> Any:
    """The annotation of what a function returns; None where there is none."""
    try:
        return f if isinstance(f, type) else typing.get_type_hints(f).get("return")
    except (NameError, TypeError, AttributeError):
        return None


def _has_none(of: Any) -> bool:
    return without_none(of) is not of or of is types.NoneType


def _answer(f: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return f(*arguments)
    except Exception:  # it does not take None: then none comes, as far as can be told
        return False
