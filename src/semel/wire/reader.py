"""Readers of requests and replies, compiled per (API, version) from kio's metadata.

A request becomes the class of `broker.requests` that has the fields of all versions (what a version lacks keeps the
default that stands for "not sent"), a reply the class of `broker.messages`. Tagged fields that the schema does not
know are skipped, as KIP-482 asks. kio's own native reader is not used: it raises KeyError for such a field, lets null
pass for an array that may not be null, and aborts the whole process on an array length that it cannot allocate:
twenty bytes from anyone would kill the broker.

Invariant: whatever the bytes are, the outcome is a message or MalformedFrame, and a reply used all of them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from struct import Struct, calcsize
from struct import error as StructError
from typing import Any, NoReturn
from uuid import UUID

from semel.wire.errors import MalformedFrame
from semel.wire.neutral import nested_class, reply_type, request_type
from semel.wire.schema import KioClass, SchemaField, fields_of
from semel.wire.writer import FIXED

Read = Callable[[bytes, int, int], tuple[Any, int]]  # data, position, end -> message, position after it

VARINT_BITS_MAX = 35


def _long_varint(first: int, data: bytes, at: int) -> tuple[int, int]:
    """The rest of a varint whose first byte had its highest bit set."""
    value = first & 0x7F
    for shift in range(7, VARINT_BITS_MAX, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedFrame(f"a varint of more than five bytes before byte {at}")


def skip_tags(data: bytes, at: int) -> int:
    """The position after a section of tagged fields of which none is known."""
    count, at = _varint(data, at)
    for _ in range(count):
        _, at = _varint(data, at)
        size, at = _varint(data, at)
        at += size
        if at > len(data):
            _short("a tagged field", size, at)
    return at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    first = data[at]
    return (first, at + 1) if first < 0x80 else _long_varint(first, data, at + 1)


def _short(what: str, size: int, at: int) -> NoReturn:
    raise MalformedFrame(f"{what} of {size} bytes ends after its frame (byte {at})")


def _null(what: str) -> NoReturn:
    raise MalformedFrame(f"{what} is null")


def _count(what: str, count: int, at: int) -> NoReturn:
    raise MalformedFrame(f"{what} counts {count} items, more than the frame has bytes after {at}")


def _uuid(value: bytes) -> UUID | None:
    return None if value == bytes(16) else UUID(bytes=value)


class _Source:
    """The lines of one compiled reader, with the constants they refer to."""

    def __init__(self, replies: bool) -> None:
        self.replies = replies
        self.lines: list[str] = []
        self.names: dict[str, Any] = {
            "long_varint": _long_varint,
            "varint": _varint,
            "short": _short,
            "null": _null,
            "too_many": _count,
            "uuid": _uuid,
            "timedelta": timedelta,
            "memoryview": memoryview,
        }
        self.indent = 1
        self.variables = 0
        self._format = ""
        self._targets: list[tuple[str, SchemaField]] = []

    def line(self, text: str) -> None:
        self.flush()
        self._emit(text)

    def _emit(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def variable(self) -> str:
        self.variables += 1
        return f"v{self.variables}"

    def constant(self, value: Any) -> str:
        name = f"c{len(self.names)}"
        self.names[name] = value
        return name

    def fixed(self, target: str, field: SchemaField) -> None:
        """Fields of fixed size gather until something else must be read: one unpack for all of them."""
        self._format += FIXED[field.kind]
        self._targets.append((target, field))

    def flush(self) -> None:
        if not self._targets:
            return
        targets, layout = self._targets, ">" + self._format
        self._format, self._targets = "", []
        unpack = self.constant(Struct(layout).unpack_from)
        self._emit(f"{', '.join(target for target, _ in targets)}, = {unpack}(data, at); at += {calcsize(layout)}")
        for target, field in targets:
            if field.kind == "uuid":
                self._emit(f"{target} = uuid({target})")
            elif field.kind.startswith("timedelta") and not self.replies:
                self._emit(f"{target} = timedelta(milliseconds={target})")

    def length(self, target: str, flexible: bool, code: str) -> None:
        """Into `target` a length as sent: -1 for null."""
        if flexible:
            self.line(f"{target} = data[at]; at += 1")
            self.line(f"if {target} > 127: {target}, at = long_varint({target}, data, at)")
            self.line(f"{target} -= 1")
        else:
            unpack = self.constant(Struct(">" + code).unpack_from)
            self.line(f"{target}, = {unpack}(data, at); at += {calcsize('>' + code)}")


def _field(source: _Source, field: SchemaField, target: str, into: Any, flexible: bool) -> None:
    if not field.array:
        _value(source, field, target, into, flexible, nullable=field.nullable and field.tag is None)
        return
    size, item = source.variable(), source.variable()
    source.length(size, flexible, "i")
    source.line(f"if {size} > end - at: too_many({field.name!r}, {size}, at)")  # each item has a byte at least
    source.line(f"if {size} < 0:")
    source.indent += 1
    source.line(f"{target} = None" if field.nullable else f"null({field.name!r})")
    source.indent -= 1
    source.line("else:")
    source.indent += 1
    source.line(f"{target} = []")
    source.line(f"for _ in range({size}):")
    source.indent += 1
    _value(source, field, item, into, flexible, nullable=False)
    source.line(f"{target}.append({item})")
    source.indent -= 1
    source.line(f"{target} = tuple({target})")
    source.indent -= 1


def _value(source: _Source, field: SchemaField, target: str, into: Any, flexible: bool, *, nullable: bool) -> None:
    """One value that is not an array."""
    if field.kind in FIXED:
        source.fixed(target, field)
    elif field.entity is None:
        _sized(source, field, target, flexible, nullable=nullable)
    elif nullable:
        source.line("at += 1")
        source.line(f"if data[at - 1] > 127: {target} = None")
        source.line("else:")
        source.indent += 1
        _entity(source, field.entity, target, into)
        source.indent -= 1
    else:
        _entity(source, field.entity, target, into)


def _sized(source: _Source, field: SchemaField, target: str, flexible: bool, *, nullable: bool) -> None:
    size = source.variable()
    source.length(size, flexible, "h" if field.kind == "string" else "i")
    source.line(f"if {size} < 0:")
    source.indent += 1
    source.line(f"{target} = None" if nullable else f"null({field.name!r})")
    source.indent -= 1
    source.line("else:")
    source.indent += 1
    source.line(f"{size} += at")
    source.line(f"if {size} > end: short({field.name!r}, {size} - at, {size})")
    match field.kind:
        case "string":
            source.line(f"{target} = data[at:{size}].decode()")
        case "records" if source.replies:
            source.line(f"{target} = (memoryview(data)[at:{size}],)")
        case "records":
            source.line(f"{target} = memoryview(data)[at:{size}]")
        case _:
            source.line(f"{target} = data[at:{size}]")
    source.line(f"at = {size}")
    source.indent -= 1


def _entity(source: _Source, entity: KioClass, target: str, into: Any) -> None:
    flexible = bool(entity.__flexible__)
    hints = typing.get_type_hints(into)
    wanted = {field.name for field in dataclasses.fields(into)}
    arguments: list[str] = []
    tagged: list[tuple[SchemaField, str, Any]] = []
    for field in fields_of(entity):
        local = source.variable()
        name = field.neutral_name if source.replies else field.name
        # A field that no handler reads has no place in the neutral class: it is read past.
        nested = (nested_class(hints[name]) if name in hints else field.entity) if field.entity is not None else None
        if name in wanted:
            arguments.append(f"{name}={local}")
        if field.tag is None:
            _field(source, field, local, nested, flexible)
        else:
            tagged.append((field, local, nested))
    if flexible:
        _tags(source, tagged, flexible)
    source.line(f"{target} = {source.constant(into)}({', '.join(arguments)})")


def _tags(source: _Source, tagged: list[tuple[SchemaField, str, Any]], flexible: bool) -> None:
    for field, local, nested in tagged:
        default = _neutral_default(field, nested, source.replies)
        source.line(f"{local} = {source.constant(default)}")
    count, tag, stop = source.variable(), source.variable(), source.variable()
    source.line(f"{count} = data[at]; at += 1")
    source.line(f"if {count}:")
    source.indent += 1
    source.line(f"if {count} > 127: {count}, at = long_varint({count}, data, at)")
    source.line(f"for _ in range({count}):")
    source.indent += 1
    source.line(f"{tag}, at = varint(data, at); {stop}, at = varint(data, at); {stop} += at")
    source.line(f"if {stop} > end: short('a tagged field', {stop} - at, {stop})")
    for field, local, nested in tagged:
        source.line(f"if {tag} == {field.tag}:")
        source.indent += 1
        _field(source, field, local, nested, flexible)
        source.flush()
        source.indent -= 1
    source.line(f"at = {stop}")
    source.indent -= 2


def _neutral_default(field: SchemaField, nested: Any, replies: bool) -> Any:
    default = field.default
    if field.entity is not None and not field.array and default is not None:
        inner = fields_of(field.entity)
        names = {part.name for part in dataclasses.fields(nested)}
        return nested(**{part.name: getattr(default, part.name) for part in inner if part.name in names})
    if isinstance(default, timedelta) and replies:
        return round(default.total_seconds() * 1000)
    return default


@cache
def _compiled(entity: KioClass, into: Any, replies: bool) -> Read:
    source = _Source(replies)
    _entity(source, entity, "message", into)
    source.line("return message, at")
    text = "def read(data, at, end):\n" + "\n".join(source.lines)
    exec(compile(text, f"<semel wire reader: {entity.__module__}>", "exec"), source.names)
    return source.names["read"]  # type: ignore[no-any-return]


def _read(entity: KioClass, into: Any, replies: bool, data: bytes, at: int) -> Any:
    try:
        message, at = _compiled(entity, into, replies)(data, at, len(data))
    except IndexError:
        raise MalformedFrame("the frame ends too early") from None
    except (StructError, ValueError, OverflowError) as error:  # cut off; not UTF-8; a time out of range
        raise MalformedFrame(str(error)) from None
    # Kafka's own parser ignores what follows a request, and a client in wide use sends it: librdkafka asks for all
    # topics (flexible Metadata) with a null array of four bytes where one is meant: three bytes follow its tags.
    if at != len(data) and replies:
        raise MalformedFrame(f"{len(data) - at} bytes are left over")
    return message


def read_request_body(entity: KioClass, data: bytes, at: int) -> Any:
    """The request at `at` as `broker.requests` has it. MalformedFrame says what is wrong."""
    return _read(entity, request_type(entity), False, data, at)


def read_reply_body(entity: KioClass, data: bytes, at: int) -> Any:
    """The reply at `at`, to the end of `data`, as `broker.messages` has it. MalformedFrame says what is wrong."""
    return _read(entity, reply_type(entity), True, data, at)
