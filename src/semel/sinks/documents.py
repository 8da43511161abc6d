"""A batch of outbox records as documents: for stores that keep one value under one name and have no columns.

Invariant: a document's id is a function of its record's key and names no other key, and its fields are what was
committed, field by field; so what a store holds under an id was written from one partition, in one order (FAULTS S15).
A record that does not fit is refused by its offset, before the store sees any of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple, cast

import msgspec

from semel.contract import Row, Rows
from semel.sinks.columns import FITS, Column, ColumnType, canonical, canonical_row, columns_of, decode, read
from semel.sinks.rows import WRITTEN_ONE_WAY, Shape, as_it_is, key_of, last_per_key, written_as_said
from semel.sinks.sink import RowRefused, SinkError

OWN = "semel:"  # ids that begin so are documents of semel's own


class Document(NamedTuple):
    offset: int
    id: str
    names: tuple[str, ...]  # of the key's fields
    parts: bytes  # the record's key
    value: bytes  # as committed, JSON; b"" where it goes away

    @property
    def key(self) -> Mapping[str, Any]:
        """The key's fields."""
        return dict(zip(self.names, msgspec.json.decode(self.parts, type=list[Any]), strict=True))

    @property
    def fields(self) -> Mapping[str, Any] | None:
        """As committed; None: the document goes away."""
        return decode(self.value) if self.value else None


class Ready(Sequence[Document]):
    """Documents by column, all of them writes; whoever looks at one gets it as a Document."""

    def __init__(self, ids: Sequence[str], names: tuple[str, ...], rows: Rows) -> None:
        self.ids, self.rows = ids, rows
        self.keys, self.values = cast("Sequence[bytes]", rows.keys), cast("Sequence[bytes]", rows.values)
        self._names = names

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: Any) -> Any:
        return list(self)[at]

    def __iter__(self) -> Iterator[Document]:
        return map(Document, self.rows.offsets, self.ids, repeat(self._names), self.keys, self.values)


@dataclass(frozen=True, slots=True)
class Documents:
    """What the documents of one sink are. `columns` None: the type of the values is not known; then every part of a key
    is a text (5 and "5" would be one id and two keys), and nothing is known of the other fields."""

    where: str
    key: tuple[str, ...]
    columns: Sequence[Column] | None
    taken: Callable[[str], str]  # why a field cannot have this name here, "" where it can

    def batch(self, rows: Sequence[Row]) -> Sequence[Document]:
        """Each key once: its last record decides."""
        last = last_per_key(rows)
        if self.columns is None:
            return [self._free(row) for row in last]
        shape = Shape(self.columns, [_checking(column) for column in self.columns], self.key, self.where)
        if last and (found := self._at_once(shape, last)) is not None:
            return found
        names = frozenset(column.name for column in self.columns)
        return [_checked(shape, names, row) for row in last]

    def _at_once(self, shape: Shape, rows: Rows) -> Sequence[Document] | None:
        """Of rows whose keys are one text each; None where one of them is to be looked at by itself."""
        if not all(rows.values):
            return None
        found = written_as_said(shape, rows)  # none of them lacks what its type wants
        if found is None or shape.columns[shape.key_places[0]].type is not ColumnType.TEXT:
            return None
        return Ready(cast("Sequence[str]", found[shape.key_places[0]]), self.key, rows)

    def canonical(self, fields: Mapping[str, Any]) -> bytes:
        """A document's fields as bytes that are equal exactly when they are."""
        if self.columns is not None:
            return canonical_row(self.columns, fields)
        return msgspec.json.encode({k: v for k, v in fields.items() if v is not None}, order="sorted")

    def _free(self, row: Row) -> Document:
        parts = msgspec.json.decode(row.key or b"[]", type=list[Any])
        if len(parts) != len(self.key):
            raise RowRefused(f"its key has {len(parts)} parts, the sink's has {len(self.key)}", row.offset)
        for part in parts:
            if not isinstance(part, str):
                raise RowRefused(
                    f"its key has {part!r:.60}, which is no text, and the type of the values is not known: 5 and '5' "
                    "would be one document. Say the type of the values (value=TYPE)",
                    row.offset,
                )
        key = dict(zip(self.key, parts, strict=True))
        if row.value is None:
            return Document(row.offset, id_of(parts), self.key, row.key or b"[]", b"")
        fields = _decoded(row)
        for name in fields:
            if why := self.taken(name):
                raise RowRefused(f"its field {name!r} {why}", row.offset)
        for name, part in key.items():
            if fields.get(name) != part:
                raise RowRefused(f"its field {name!r} is {fields.get(name)!r:.60}, and {part!r:.60} in its key",
                                 row.offset)  # fmt: skip
        return Document(row.offset, id_of(parts), self.key, row.key or b"[]", row.value)


def _checked(shape: Shape, names: frozenset[str], row: Row) -> Document:
    parts = [part for part, _ in key_of(shape, row)]
    assert shape.key is not None and row.key is not None
    if row.value is None:
        return Document(row.offset, id_of(parts), shape.key, row.key, b"")
    fields = _decoded(row)
    if not fields.keys() <= names:
        extra = sorted(fields.keys() - names)
        raise RowRefused(f"it has the field {extra[0]!r}, which the type of the values has not", row.offset)
    for column, check in zip(shape.columns, shape.converts, strict=True):
        value = fields.get(column.name)
        if value is None:
            if not column.nullable:
                raise RowRefused(f"its field {column.name!r} is null, and is never None by its type", row.offset)
        elif type(value) not in FITS[column.type]:
            raise RowRefused(f"its field {column.name!r} holds {column.type}, and is {value!r:.60}", row.offset)
        else:
            try:
                check(value)
            except (ValueError, TypeError, OverflowError) as why:
                raise RowRefused(f"its field {column.name!r} is {value!r:.60}: {why}", row.offset) from None
    for place, part in zip(shape.key_places, parts, strict=True):
        column = shape.columns[place]
        said = fields.get(column.name)
        if said != part and canonical(column.type, said) != canonical(column.type, part):
            raise RowRefused(f"its field {column.name!r} is {said!r:.60}, and {part!r:.60} in its key", row.offset)
    return Document(row.offset, id_of(parts), shape.key, row.key, row.value)


def documents_of(value_type: object, where: str, key: tuple[str, ...], taken: Callable[[str], str]) -> Documents:
    """By the type of the values."""
    columns = columns_of(value_type, where)
    for column in columns or ():
        if why := taken(column.name):
            raise SinkError(f"{where}: the field {column.name!r} {why}. Rename it.")
    if columns is not None:
        by_name = {column.name: column for column in columns}
        for field in key:
            if field not in by_name:
                raise SinkError(f"{where}: key {field!r} is no field of {value_type!r}.")
            if by_name[field].type is ColumnType.JSON:
                raise SinkError(f"{where}: key {field!r} is no single value. Name a text, a number, a date or a uuid.")
    return Documents(where, key, columns, taken)


def id_of(parts: Sequence[Any]) -> str:
    """A key as one text: of one part, that part; of several, joined by colons, with those within escaped."""
    texts = [part if isinstance(part, str) else msgspec.json.encode(part).decode() for part in parts]
    if len(texts) == 1:
        return texts[0]
    return ":".join(text.replace("\\", "\\\\").replace(":", "\\:") for text in texts)


def _decoded(row: Row) -> dict[str, Any]:
    try:
        return dict(decode(row.value or b""))
    except (msgspec.DecodeError, UnicodeDecodeError) as why:
        raise RowRefused(f"it is not a JSON object ({why})", row.offset) from None


def _checking(column: Column) -> Callable[[Any], object]:
    """Raises ValueError where a value is none of its column's type."""
    if column.type in WRITTEN_ONE_WAY or column.type is ColumnType.FLOAT:
        return as_it_is

    def check(value: Any) -> object:
        read(column.type, value)
        return value

    return check


def own_name(name: str) -> str:
    """For `Documents.taken`: fields that semel keeps in a document beside the value's."""
    return "begins with semel_, as semel's own do" if name.startswith("semel_") else ""


def own_id(document: Document) -> None:
    """For stores that keep semel's own documents among the others."""
    if document.id.startswith(OWN):
        raise RowRefused(f"its key begins with {OWN}, as the ids of semel's own documents do", document.offset)
