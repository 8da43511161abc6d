"""Judging a table that exists against the fields of the values, and the columns of one that does not exist yet.

One judgement for all SQL sinks; what differs between them is a `Dialect`. A table of another shape is refused naming
the column, what it is and what is wanted: a database that converts silently would hold something else than what was
committed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from semel.sinks.columns import Column, ColumnType
from semel.sinks.rows import Convert
from semel.sinks.sink import EXACT, SinkError


class Found(NamedTuple):
    """One column of a table that exists."""

    name: str
    type_text: str  # as the database prints it
    base: str  # the name under which `Dialect.holds` knows it
    not_null: bool
    filled: bool  # has a default, is an identity or generated
    generated: bool  # may not be written
    deterministic: bool  # its collation holds only equal bytes for equal
    length: int | None = None  # characters of a text, digits of a decimal; None: as many as its type has
    scale: int | None = None  # digits behind the point: of a decimal, of a second; None: as many as are committed
    pads: bool = False  # trailing blanks are not kept


@dataclass(frozen=True, slots=True)
class Dialect:
    """A database's types."""

    created: Mapping[ColumnType, str]  # the type of a column that semel creates
    holds: Mapping[str, ColumnType]  # by `Found.base`; what is missing here is nothing that semel writes
    accepts: Mapping[ColumnType, frozenset[ColumnType]]  # by what a column holds: the fields that fit besides its own
    no_key: frozenset[str]  # by `Found.base`: values that it holds for equal are written differently


def created(dialect: Dialect, columns: Sequence[Column], key: Sequence[str] | None) -> list[tuple[str, str]]:
    """(name, type and constraints) for CREATE TABLE."""
    return [
        (c.name, dialect.created[c.type] + ("" if c.nullable and c.name not in (key or ()) else " NOT NULL"))
        for c in columns
    ]


def judged(
    dialect: Dialect,
    where: str,
    found: Sequence[Found],
    wanted: Sequence[Column] | None,
    key: tuple[str, ...] | None,
    unique: Sequence[frozenset[str]],
) -> tuple[Column, ...]:
    """The columns that are written, by the fields' types, or where those are not known by what the table holds;
    SinkError on the first difference."""
    there = {column.name: column for column in found}
    if wanted is None:
        # What fills itself is left out, or every row would overwrite it with NULL.
        names = [c.name for c in found if not c.filled or c.name in (key or ())]
        columns = [Column(name, _holds(dialect, where, there[name]), not there[name].not_null) for name in names]
    else:
        columns = [_fitting(dialect, where, there.get(column.name), column) for column in wanted]
        written = {column.name for column in wanted}
        for extra in found:
            if extra.name not in written and extra.not_null and not extra.filled:
                raise SinkError(
                    f"{where}: column {extra.name!r} ({extra.type_text}) is NOT NULL without a default, and the "
                    "values have no such field. Give it a default, drop it, or add the field."
                )
    _check_key(dialect, where, there, {column.name for column in columns}, key, unique)
    return tuple(columns)


def exact(columns: Sequence[Column], found: Sequence[Found], converts: Sequence[Convert]) -> list[Convert]:
    """The converts, preceded where a column holds less than its type by a check: a database rounds numeric(9,2) and
    timestamp(3), and cuts blanks off, without a word. ValueError for what would not come back as it was committed."""
    there = {column.name: column for column in found}
    return [_checked(column, there[column.name], convert) for column, convert in zip(columns, converts, strict=True)]


def _checked(column: Column, there: Found, convert: Convert) -> Convert:
    check: Callable[[Any], None]
    match column.type:
        case ColumnType.DECIMAL | ColumnType.INTEGER | ColumnType.FLOAT if there.length or there.scale is not None:
            check = _digits(there)
        case ColumnType.TIMESTAMP | ColumnType.TIME | ColumnType.DURATION if there.scale is not None:
            check = _fraction(there)
        case ColumnType.TEXT | ColumnType.JSON | ColumnType.DURATION if there.length is not None or there.pads:
            check = _characters(there)
        case _:
            return convert

    def checked(value: Any) -> object:
        check(value)
        return convert(value)

    return checked


def _digits(there: Found) -> Callable[[Any], None]:
    scale, length = there.scale, there.length

    def check(value: Any) -> None:
        number = Decimal(str(value)).normalize(EXACT)
        exponent = number.as_tuple().exponent
        if not isinstance(exponent, int):
            raise ValueError("it is not finite")
        if scale is not None and number and -exponent > scale:
            raise ValueError(f"it would be rounded: {there.type_text} has {scale} digits behind the point")
        if length is not None and number and number.adjusted() + 1 > length - (scale or 0):
            raise ValueError(f"{there.type_text} has {length - (scale or 0)} digits before the point")

    return check


def _fraction(there: Found) -> Callable[[Any], None]:
    scale = there.scale or 0

    def check(value: Any) -> None:
        found = re.search(r"\.(\d+)", value) if isinstance(value, str) else None
        if found is not None and len(found[1].rstrip("0")) > scale:
            raise ValueError(f"it would be rounded: {there.type_text} has {scale} digits of a second")

    return check


def _characters(there: Found) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if not isinstance(value, str):
            return
        if there.length is not None and len(value) > there.length:
            raise ValueError(f"{there.type_text} has {there.length} characters, this has {len(value)}")
        if there.pads and value.endswith(" "):
            raise ValueError(f"{there.type_text} does not keep the blanks at its end")

    return check


def _fitting(dialect: Dialect, where: str, there: Found | None, wanted: Column) -> Column:
    if there is None:
        raise SinkError(
            f"{where}: there is no column {wanted.name!r}; wanted is {dialect.created[wanted.type]}. "
            f"ALTER TABLE … ADD COLUMN it, or name another table."
        )
    holds = _holds(dialect, where, there, wanted)
    if holds is not wanted.type and wanted.type not in dialect.accepts.get(holds, frozenset()):
        raise _other(dialect, where, there, wanted)
    if there.generated:
        raise SinkError(f"{where}: column {wanted.name!r} is generated; the field of that name cannot be written.")
    if wanted.nullable and there.not_null:
        raise SinkError(
            f"{where}: column {wanted.name!r} is {there.type_text} NOT NULL, the field may be None. "
            "Drop the NOT NULL, or make the field never None."
        )
    return wanted


def _holds(dialect: Dialect, where: str, there: Found, wanted: Column | None = None) -> ColumnType:
    holds = dialect.holds.get(there.base)
    if holds is None:
        raise _other(dialect, where, there, wanted)
    return holds


def _other(dialect: Dialect, where: str, there: Found, wanted: Column | None) -> SinkError:
    want = "a type that semel writes (see docs/sinks.md)" if wanted is None else dialect.created[wanted.type]
    return SinkError(
        f"{where}: column {there.name!r} is {there.type_text or 'without a type'}, wanted is {want}. "
        "Alter the column, change the field's type, or name another table."
    )


def _check_key(
    dialect: Dialect,
    where: str,
    there: Mapping[str, Found],
    written: set[str],
    key: tuple[str, ...] | None,
    unique: Sequence[frozenset[str]],
) -> None:
    if key is None:
        return
    named = ", ".join(key)
    for field in key:
        if field not in written:
            raise SinkError(f"{where}: key {field!r} is no field of the values and no column of the table.")
        column = there[field]
        if column.base in dialect.no_key or not column.deterministic:
            raise SinkError(
                f"{where}: column {field!r} ({column.type_text}) cannot be a key: it holds different values for equal, "
                "so two writes of one row could travel apart and arrive in the wrong order. Use text, a number, a "
                "date, a timestamp or a uuid, with a deterministic collation."
            )
    if frozenset(key) not in unique:
        raise SinkError(
            f"{where}: there is no primary key or unique index on exactly ({named}), which key= needs. "
            f"Add one: ALTER TABLE … ADD PRIMARY KEY ({named})."
        )
