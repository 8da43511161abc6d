"""pgoutput, protocol version 1: the messages of Postgres' logical replication that carry changes, as plain data. Pure.

Source: "Logical Replication Message Formats" of the Postgres manual. Values are the text that the types' output
functions give, as bytes; None is null; `UNCHANGED` is a large value that the update did not touch:
it is not sent again.

Invariant: a message is read to its last byte, or refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final


class _Unchanged:
    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = _Unchanged()
Value = bytes | _Unchanged | None
Row = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    oid: int
    schema: str
    name: str
    columns: tuple[str, ...]
    types: tuple[int, ...]  # oids


@dataclass(frozen=True, slots=True)
class Changed:
    """One row. `before`: as it was, None for an insert; `after`: as it is, None for a delete."""

    relation: Relation
    before: Row | None
    after: Row | None
    known: bool = True  # False: an update or delete whose row as it was is not told whole (REPLICA IDENTITY not FULL)


@dataclass(frozen=True, slots=True)
class Transaction:
    end_lsn: int  # of its commit record's end: behind it the slot goes on
    changes: tuple[Changed, ...]
    at_us: int = 0  # when it was committed, by the server's clock, since 2000


class Malformed(Exception):
    """Not what the protocol says."""


class _Message:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple[int, ...]:
        form = "!" + form
        size = struct.calcsize(form)
        if self.at + size > len(self.data):
            raise Malformed(f"a message of {len(self.data)} bytes ends within a field at byte {self.at}")
        found = struct.unpack_from(form, self.data, self.at)
        self.at += size
        return found

    def kind(self) -> str:
        return chr(self.take("B")[0])

    def text(self) -> str:
        end = self.data.find(b"\0", self.at)
        if end < 0:
            raise Malformed(f"a text at byte {self.at} has no end")
        found = self.data[self.at : end].decode()
        self.at = end + 1
        return found

    def row(self) -> Row:
        found: list[Value] = []
        for _ in range(self.take("h")[0]):
            match self.kind():
                case "n":
                    found.append(None)
                case "u":
                    found.append(UNCHANGED)
                case "t":
                    size = self.take("i")[0]
                    if size < 0 or self.at + size > len(self.data):
                        raise Malformed(f"a value of {size} bytes at byte {self.at} does not end")
                    found.append(self.data[self.at : self.at + size])
                    self.at += size
                case other:
                    raise Malformed(f"a value of kind {other!r}")
        return tuple(found)

    def end(self) -> None:
        if self.at != len(self.data):
            raise Malformed(f"{len(self.data) - self.at} bytes are left of a message of {len(self.data)}")


class Decoder:
    """Messages in order, transactions out. Relations are told once per session of decoding and are remembered."""

    def __init__(self) -> None:
        self._relations: dict[int, Relation] = {}

    def transactions(self, messages: Iterable[bytes]) -> Iterator[Transaction]:
        open_changes: list[Changed] | None = None
        for data in messages:
            message = _Message(data)
            match message.kind():
                case "B":
                    message.take("qqi")
                    open_changes = []
                case "C":
                    _, _, end_lsn, at_us = message.take("Bqqq")
                    if open_changes is None:
                        raise Malformed("a commit without its beginning")
                    message.end()
                    yield Transaction(end_lsn, tuple(open_changes), at_us)
                    open_changes = None
                    continue
                case "R":
                    self._relation(message)
                case "I" | "U" | "D" as kind:
                    if open_changes is None:
                        raise Malformed("a change outside a transaction")
                    open_changes.append(self._changed(kind, message))
                case "Y" | "O" | "M" | "T":
                    continue  # a type, an origin, a message, a TRUNCATE (which the publication leaves out)
                case other:
                    raise Malformed(f"a message of kind {other!r}")
            message.end()
        if open_changes is not None:
            raise Malformed("a transaction without its commit")

    def _relation(self, message: _Message) -> None:
        oid = message.take("I")[0]
        schema, name = message.text(), message.text()
        message.kind()  # replica identity
        columns, types = [], []
        for _ in range(message.take("h")[0]):
            message.take("B")
            columns.append(message.text())
            types.append(message.take("Ii")[0])
        self._relations[oid] = Relation(oid, schema, name, tuple(columns), tuple(types))

    def _changed(self, kind: str, message: _Message) -> Changed:
        oid = message.take("I")[0]
        relation = self._relations.get(oid)
        if relation is None:
            raise Malformed(f"a change of a table ({oid}) that was not told")
        before = after = None
        part = message.kind()
        known = kind == "I" or part == "O"
        if part in "KO":
            before = message.row()
            if kind == "D":
                return Changed(relation, before, None, known)
            part = message.kind()
        if part != "N":
            raise Malformed(f"a row of kind {part!r}")
        after = message.row()
        if before is not None:
            after = tuple(old if new is UNCHANGED else new for old, new in zip(before, after, strict=True))
        return Changed(relation, before, after, known)
