"""Judging a table that exists against the fields of the values, and the columns of one that does not exist yet.

One judgement for all SQL sinks; what differs between them is a `Dialect`. A table of another shape is refused naming
the column, what it is and what is wanted: a database that converts silently would hold something else than what was
committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from semel.sinks.columns import Column, ColumnType
from semel.sinks.sink import SinkError


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


@dataclass(frozen=True, slots=True)
class Dialect:
    """A database's types."""

    created: Mapping[ColumnType, str]  # the type of a column that semel creates
    holds: Mapping[str, ColumnType]  # by `Found.base`; what is missing here is nothing that semel writes
    accepts: Mapping[ColumnType, frozenset[ColumnType]]  # by what a column holds: the fields that fit besides its own
    no_key: frozenset[str]  # by `Found.base`: values that it holds for equal are written differently
    also: Mapping[str, frozenset[ColumnType]]  # by `Found.base`: the fields that a column outside `holds` keeps as is


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
    _check_key(dialect, where, there, {column.name: column for column in columns}, key, unique)
    return tuple(columns)


def _fitting(dialect: Dialect, where: str, there: Found | None, wanted: Column) -> Column:
    if there is None:
        raise SinkError(
            f"{where}: there is no column {wanted.name!r}; wanted is {dialect.created[wanted.type]}. "
            f"ALTER TABLE … ADD COLUMN it, or name another table."
        )
    as_is = wanted.type in dialect.also.get(there.base, frozenset())
    holds = wanted.type if as_is else _holds(dialect, where, there, wanted)
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
    why = ""
    if there.base in dialect.also:  # SQLite's affinity of numbers, which DATE has, too
        want = want if wanted is not None else f"{dialect.created[ColumnType.TEXT]}, or value=TYPE said"
        why = " (SQLite makes numbers of what looks like one there: 7 of '007')"
    return SinkError(
        f"{where}: column {there.name!r} is {there.type_text or 'without a type'}, wanted is {want}{why}. "
        "Alter the column, change the field's type, or name another table."
    )


def _check_key(
    dialect: Dialect,
    where: str,
    there: Mapping[str, Found],
    written: Mapping[str, Column],
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
        whole = written[field].type is ColumnType.INTEGER and (column.scale or 0) >= 0
        ours = dialect.created[written[field].type].lower() == column.type_text.lower()
        if column.scale is not None and not whole and not ours:
            raise SinkError(
                f"{where}: column {field!r} ({column.type_text}) cannot be a key: it holds fewer digits than the field "
                f"may have, and would make one row of two. Alter it to {dialect.created[written[field].type]}."
            )
    if frozenset(key) not in unique:
        raise SinkError(
            f"{where}: there is no primary key or unique index on exactly ({named}), which key= needs. "
            f"Add one: CREATE UNIQUE INDEX name ON table ({named});"
        )
