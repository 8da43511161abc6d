"""A batch of outbox records as parameters of a database driver: reduced to the last one per key, in column order.

A batch that is as it should be goes column by column (`_at_once`), with types checked while it is decoded; anything out
of the ordinary goes row by row, which says what it is. Both give the same parameters.

Invariant: the key columns of a row are written from the record's key, not from its value, so what one key is has one
definition (`encode_key`), for writes and deletes alike; and a key that is not written as its column's type is written
is refused, or one row could have two keys in two partitions (FAULTS S15). A record that does not fit is refused by its
offset, and nothing of its batch is there: what the database had taken of it by then (COPY runs ahead) is rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import is_
from typing import Any, NamedTuple, Union

import msgspec
from msgspec.structs import astuple

from semel.contract import Row, Rows
from semel.sinks.columns import FITS, Column, ColumnType, canonical, decode, key_part
from semel.sinks.sink import RowRefused

Convert = Callable[[Any], object]
Parameters = tuple[object, ...]

WRITTEN_ONE_WAY = (ColumnType.TEXT, ColumnType.INTEGER, ColumnType.BOOLEAN, ColumnType.JSON)
AS_SAID = (ColumnType.TEXT, ColumnType.INTEGER)  # no convert of these puts in what the value has not
_TEXTS = frozenset((str,))
PIECE_ROWS = 1_000  # small enough that the other side has work soon, large enough that a part costs nothing by itself
_parts = msgspec.json.Decoder(list[Any]).decode


class Upsert(NamedTuple):
    offset: int
    values: Parameters  # in the order of the columns


class Upserts(Sequence[Upsert]):
    """The writes of a batch that went column by column; what wants rows makes them. `plain`: of each column, whether
    none of its values is None or holds what JSON escapes (a quote, a backslash, a character below the blank)."""

    def __init__(
        self,
        offsets: Sequence[int],
        columns: Sequence[Sequence[object]],
        plain: Sequence[bool],
        rows: Sequence[Parameters] | None,  # where they are at hand
    ) -> None:
        self.offsets, self.columns, self.plain, self.rows = offsets, columns, plain, rows

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, at: Any) -> Any:
        return list(self)[at]

    def __iter__(self) -> Iterator[Upsert]:
        return map(Upsert, self.offsets, by_row(self))


def by_row(upserts: Sequence[Upsert]) -> Iterable[Parameters]:
    """What a driver's executemany takes."""
    if not isinstance(upserts, Upserts):
        return [one.values for one in upserts]
    return zip(*upserts.columns) if upserts.rows is None else upserts.rows


def by_column(upserts: Sequence[Upsert]) -> Sequence[Sequence[object]]:
    """The values of each column, in the order of the rows."""
    return upserts.columns if isinstance(upserts, Upserts) else list(zip(*(one.values for one in upserts)))


def offsets(upserts: Sequence[Upsert]) -> Sequence[int]:
    return upserts.offsets if isinstance(upserts, Upserts) else [one.offset for one in upserts]


def may_lack(upserts: Sequence[Upsert], column: Column) -> bool:
    """Whether there can be a None among the values of this column; a batch that went column by column has none where
    its type has none."""
    return column.nullable or not isinstance(upserts, Upserts)


class Delete(NamedTuple):
    offset: int
    key: Parameters  # in the order of the key fields


@dataclass(frozen=True, slots=True)
class Within:
    """A convert of whole numbers, which stay what they are. A column of them is looked at by its ends."""

    least: int
    most: int
    otherwise: str  # what the error says

    def __call__(self, value: int) -> int:
        if not self.least <= value <= self.most:
            raise ValueError(self.otherwise)
        return value


@dataclass(frozen=True, slots=True)
class Shape:
    """How records become rows of one table."""

    columns: Sequence[Column]
    converts: Sequence[Convert]  # per column, for values that are not None
    key: tuple[str, ...] | None
    where: str

    @property
    def key_places(self) -> tuple[int, ...]:
        names = [column.name for column in self.columns]
        return tuple(names.index(name) for name in self.key or ())


def split(shape: Shape, rows: Sequence[Row]) -> tuple[Sequence[Upsert], list[Delete]]:
    """The writes and the deletes of a batch, each key at most once when there is a key: its last record decides."""
    begun = begin(shape, rows)
    return _written(shape, begun.rows), begun.deletes


class Begun(NamedTuple):
    """A batch whose deletes are known, and whose writes are still to be looked at: `pieces` does so a part at a time,
    while the part before it is on its way."""

    shape: Shape
    rows: Sequence[Row]  # those that are writes, each key once
    deletes: list[Delete]

    def pieces(self) -> Iterator[Sequence[Upsert]]:
        """Raises RowRefused in between: whoever takes them must be able to take back what he did with the first."""
        for at in range(0, len(self.rows), PIECE_ROWS):
            yield _written(self.shape, self.rows[at : at + PIECE_ROWS])


def begin(shape: Shape, rows: Sequence[Row]) -> Begun:
    batch = last_per_key(rows) if shape.key is not None else Rows.of(rows)
    if all(batch.values):
        return Begun(shape, batch, [])
    written = batch.at([at for at, value in enumerate(batch.values) if value is not None])
    try:
        deletes = [
            Delete(row.offset, tuple(held for _, held in key_of(shape, row))) for row in batch if row.value is None
        ]
    except RowRefused:
        one_by_one(shape, batch)  # the first that does not fit is named, and it may be a write
        raise
    return Begun(shape, written, deletes)


def last_per_key(rows: Sequence[Row]) -> Rows:
    """Each key once, with its last record, in the order in which the keys came."""
    batch = Rows.of(rows)
    last = dict(zip(batch.keys, range(len(batch))))
    return batch if len(last) == len(batch) else batch.at(list(last.values()))


def _written(shape: Shape, rows: Sequence[Row]) -> Sequence[Upsert]:
    upserts = _at_once(shape, Rows.of(rows)) if rows else None
    return one_by_one(shape, rows)[0] if upserts is None else upserts


def one_by_one(shape: Shape, rows: Sequence[Row]) -> tuple[list[Upsert], list[Delete]]:
    """As `split`, of rows whose keys differ; it finds the record that does not fit, and says why."""
    upserts: list[Upsert] = []
    deletes: list[Delete] = []
    names = frozenset(column.name for column in shape.columns)
    layout = [(c.name, FITS[c.type], convert, c) for c, convert in zip(shape.columns, shape.converts, strict=True)]
    places = shape.key_places
    for row in rows:
        if row.value is None:
            deletes.append(Delete(row.offset, tuple(held for _, held in key_of(shape, row))))
            continue
        try:
            fields = decode(row.value)
        except msgspec.DecodeError as why:
            raise RowRefused(f"it is not a JSON object ({why})", row.offset) from None
        if not fields.keys() <= names:
            extra = sorted(fields.keys() - names)
            raise RowRefused(f"it has the field {extra[0]!r}, which the table has no column for", row.offset)
        values: list[object] = []
        for name, fits, convert, column in layout:
            value = fields.get(name)
            if value is None:
                values.append(None)
            elif type(value) not in fits:
                raise RowRefused(f"column {name!r} holds {column.type}, its value is {value!r:.60}", row.offset)
            else:
                values.append(_converted(convert, value, name, row.offset))
        if shape.key is not None:
            for place, (part, held) in zip(places, key_of(shape, row), strict=True):
                name, _, _, column = layout[place]
                said = fields.get(name)
                if said != part and canonical(column.type, said) != canonical(column.type, part):
                    raise RowRefused(f"its field {name!r} is {said!r:.60}, and {part!r:.60} in its key", row.offset)
                values[place] = held
        upserts.append(Upsert(row.offset, tuple(values)))
    return upserts, deletes


class _Layout(NamedTuple):
    """What is known of a shape before the first batch."""

    value: Callable[[bytes], Any]  # of a record's value, refusing other fields and other types
    key: Callable[[bytes], tuple[Any, ...]]  # of a record's key


@lru_cache(maxsize=256)
def _layout(columns: tuple[Column, ...], key: tuple[str, ...] | None) -> _Layout:
    kinds = [
        Any if c.type is ColumnType.JSON and c.nullable else Union[tuple(FITS[c.type])]  # noqa: UP007
        for c in columns
    ]
    named = {f"f{place}": column.name for place, column in enumerate(columns)}
    # Of a column that is not nullable a value is wanted: so nobody looks for None among them afterwards.
    fields: list[Any] = [
        (f, Union[kind, None], None) if column.nullable else (f, kind)  # noqa: UP007
        for f, kind, column in zip(named, kinds, columns)
    ]
    row = msgspec.defstruct("Row", fields, rename=named, forbid_unknown_fields=True, gc=False, kw_only=True)
    places = [[c.name for c in columns].index(name) for name in key or ()]
    parts: Any = tuple.__class_getitem__(tuple(kinds[place] for place in places))
    return _Layout(msgspec.json.Decoder(row).decode, msgspec.json.Decoder(parts).decode)


def _at_once(shape: Shape, rows: Rows) -> Upserts | None:
    """The writes of a batch, column by column; None where one of them is to be looked at by itself."""
    layout = _layout(tuple(shape.columns), shape.key)
    try:
        decoded = _decoded(layout, rows)
        said = list(zip(*decoded))
        held = list(map(_column, shape.columns, shape.converts, said))
        if shape.key is not None and not _keys_are(shape, said, rows):
            keys = [layout.key(key or b"") for key in rows.keys]
            for at, place in enumerate(shape.key_places):
                parts = tuple(key[at] for key in keys)
                column = shape.columns[place]
                if parts != said[place] or column.type is ColumnType.JSON:  # 1, 1.0 and True are equal
                    return None
                if column.type not in WRITTEN_ONE_WAY:
                    for part in parts:
                        wanted = key_part(column.type, part)
                        if wanted != part or type(wanted) is not type(part):
                            return None
                    held[place] = _column(column, shape.converts[place], parts)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError):
        return None
    same = all(map(is_, held, said))
    plain = b"\\" not in b"".join(rows.values)  # type: ignore[arg-type]
    kept = [plain and not column.nullable and column.type in AS_SAID for column in shape.columns]
    return Upserts(rows.offsets, held, kept, decoded if same else None)


def _decoded(layout: _Layout, rows: Rows) -> list[tuple[Any, ...]]:
    """The fields of each value, in the order of the columns."""
    return list(map(astuple, map(layout.value, rows.values)))  # type: ignore[arg-type]


def as_it_is(value: Any) -> object:
    """A convert that changes nothing, and finds nothing to refuse."""
    return value


def written_as_said(shape: Shape, rows: Rows) -> Sequence[Sequence[object]] | None:
    """The values of each column, where all rows fit and each key is one text or whole number that is, byte for byte,
    what `encode_key` makes of its field; None says nothing."""
    try:
        said = list(zip(*_decoded(_layout(tuple(shape.columns), None), rows)))
        for column, convert, values in zip(shape.columns, shape.converts, said, strict=True):
            _column(column, convert, values)
        return said if _keys_are(shape, said, rows) else None
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError):
        return None


def _keys_are(shape: Shape, said: Sequence[Sequence[Any]], rows: Rows) -> bool:
    """Whether each key is, byte for byte, what `encode_key` writes for the value's field: then it needs no look at its
    parts. Asked of one text or whole number only, which is most keys; False says nothing."""
    if len(shape.key_places) != 1:
        return False
    (place,) = shape.key_places
    match shape.columns[place].type:
        case ColumnType.TEXT:
            whole = "".join(said[place])  # TypeError: one is None
            # What JSON escapes, and the break between two keys, is in none of them.
            if '"' in whole or "\\" in whole or not whole.isprintable():
                return False
            text = '["' + '"]\n["'.join(said[place]) + '"]'
        case ColumnType.INTEGER:
            if None in said[place]:
                return False
            text = "[" + "]\n[".join(map(str, said[place])) + "]"
        case _:
            return False
    # As many breaks as there are between the keys: none of them holds one.
    return text.encode() == b"\n".join(rows.keys)  # type: ignore[arg-type]


def _column(column: Column, convert: Convert, values: Sequence[Any]) -> Sequence[object]:
    if convert is as_it_is:
        return values
    if convert is str:
        if FITS[column.type] == _TEXTS:
            return values  # they are what `str` would make of them
        if not column.nullable or None not in values:
            return list(map(str, values))
    if convert is int and column.type is ColumnType.INTEGER:
        return values
    if isinstance(convert, Within):
        try:
            if convert.least <= min(values) and max(values) <= convert.most:
                return values
        except TypeError:
            pass  # one is None
    return [None if value is None else convert(value) for value in values]


def key_of(shape: Shape, row: Row) -> list[tuple[Any, object]]:
    """Each part of the record's key, as it was written and as the driver takes it."""
    if shape.key is None or row.key is None:
        raise RowRefused(
            "it has no value, which deletes a row, but "
            + ("the sink was declared without key=" if shape.key is None else "it has no key either"),
            row.offset,
        )
    parts = _parts(row.key)
    if len(parts) != len(shape.key):
        raise RowRefused(f"its key has {len(parts)} parts, the sink's has {len(shape.key)}", row.offset)
    held: list[tuple[Any, object]] = []
    for place, part in zip(shape.key_places, parts, strict=True):
        column = shape.columns[place]
        fits = type(part) in FITS[column.type]
        if fits and column.type not in WRITTEN_ONE_WAY:
            try:
                wanted = key_part(column.type, part)
            except (ValueError, OverflowError) as why:
                raise RowRefused(f"column {column.name!r} cannot hold {part!r:.60}: {why}", row.offset) from None
            fits = wanted == part and type(wanted) is type(part)
        if not fits:
            raise RowRefused(
                f"its key has {part!r:.60} for the column {column.name!r}, which holds {column.type}: written in two "
                "ways, one row could be written from two partitions, in any order. Give the stream's key and the field "
                "the column's type, and say the type of the values (value=TYPE)",
                row.offset,
            )
        held.append((part, _converted(shape.converts[place], part, column.name, row.offset)))
    return held


def _converted(convert: Convert, value: object, name: str, offset: int) -> object:
    try:
        return convert(value)
    except (ValueError, TypeError, OverflowError) as why:
        raise RowRefused(f"column {name!r} cannot hold {value!r:.60}: {why}", offset) from None
