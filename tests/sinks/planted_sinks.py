"""Sinks with a bug in them: what the contract kit is there to find. Each `make` stands for a mistake that a real sink
makes; all but the mistake is the built-in sink."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from semel.contract import Contract, Row
from semel.ports import Done, NotDone, Step, Unknown
from semel.sinks import SQLite
from semel.sinks.positions import transactional
from semel.sinks.sink import RowRefused
from tests.sinks import subjects

Make = Callable[[str, str], Any]


class Planted:
    """A sink whose connections are altered, or whose contract is."""

    def __init__(self, sink: Any, alter: Callable[[Any], Any], contract: Contract | None = None, kind: Any = None):
        self._sink, self._alter = sink, alter
        self.contract = contract or sink.contract
        self.kind = kind or sink.kind

    def renamed(self, suffix: str) -> Planted:
        return Planted(self._sink.renamed(suffix), self._alter, self.contract, self.kind)

    def open(self, steps: Any = None) -> Any:
        return self._alter(self._sink.open(steps))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)


class Altered:
    """A connection with one method replaced."""

    def __init__(self, connection: Any, **methods: Callable[..., Any]) -> None:
        self._inner = connection
        for name, method in methods.items():
            setattr(self, name, lambda *words, _method=method: _method(connection, *words))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def _connection(self) -> Any:
        return self._inner._connection

    @_connection.setter
    def _connection(self, connection: Any) -> None:
        self._inner._connection = connection


def unchanged(connection: Any) -> Any:
    return connection


def _writing(make: Make, write: Callable[..., Any]) -> Make:
    return lambda address, suffix: Planted(make(address, suffix), lambda connection: Altered(connection, write=write))


# --- mistakes of any sink --------------------------------------------------------------------------------------------


def _done_or_unknown(connection: Any, *words: Any) -> Any:
    outcome = connection.write(*words)
    return Done() if isinstance(outcome, Unknown) else outcome


def _done_or_failed(connection: Any, *words: Any) -> Any:
    outcome = connection.write(*words)
    return NotDone(outcome.reason) if isinstance(outcome, Unknown) else outcome


def _skips_poison(connection: Any, claim: Any, start: int, end: int, run: str, rows: Sequence[Row]) -> Any:
    try:
        return connection.write(claim, start, end, run, rows)
    except RowRefused as why:
        return connection.write(claim, start, end, run, [row for row in rows if row.offset != why.offset])


def _up_to_poison(connection: Any, claim: Any, start: int, end: int, run: str, rows: Sequence[Row]) -> Any:
    try:
        return connection.write(claim, start, end, run, rows)
    except RowRefused as why:
        connection.write(claim, start, why.offset, run, [row for row in rows if row.offset < why.offset])
        raise


def _blames_the_first(connection: Any, claim: Any, start: int, end: int, run: str, rows: Sequence[Row]) -> Any:
    try:
        return connection.write(claim, start, end, run, rows)
    except RowRefused as why:
        raise RowRefused(str(why), rows[0].offset) from None


def _forgets_deletes(connection: Any, claim: Any, start: int, end: int, run: str, rows: Sequence[Row]) -> Any:
    return connection.write(claim, start, end, run, [row for row in rows if row.value is not None])


def _without_the_last(connection: Any, claim: Any, start: int, end: int, run: str, rows: Sequence[Row]) -> Any:
    return connection.write(claim, start, end, run, rows[:-1])


def _any_log(connection: Any, delivery: Any, log: Any) -> Any:
    return connection.claim(delivery, replace(log, topic_id="", partitions=1))


ANY_SINK: dict[str, tuple[Callable[[Make], Make], tuple[str, ...]]] = {
    # the mistake: how it is planted, the trials that must find it
    "unknown taken for done": (lambda make: _writing(make, _done_or_unknown), ("lost_before",)),
    "unknown taken for failed": (lambda make: _writing(make, _done_or_failed), ("lost_after",)),
    "poison dropped silently": (lambda make: _writing(make, _skips_poison), ("poison", "written_off")),
    "a batch up to its poison": (lambda make: _writing(make, _up_to_poison), ("poison",)),
    "the wrong record blamed": (lambda make: _writing(make, _blames_the_first), ("poison", "written_off")),
    "deletes forgotten": (lambda make: _writing(make, _forgets_deletes), ("deletes",)),
    "a record lost": (lambda make: _writing(make, _without_the_last), ("plain", "replay")),
    "a re-created log taken for the old one": (
        lambda make: (
            lambda address, suffix: Planted(
                make(address, suffix), lambda connection: Altered(connection, claim=_any_log)
            )
        ),
        ("position",),
    ),
    "tables left behind": (
        lambda make: (
            lambda address, suffix: Planted(
                make(address, suffix), lambda connection: Altered(connection, drop=lambda _: None)
            )
        ),
        ("plain",),
    ),
}


# --- mistakes of a move -----------------------------------------------------------------------------------------------


def _moving(move: Callable[..., Any]) -> Make:
    return lambda address, suffix: Planted(
        subjects.sqlite_appended(address, suffix), lambda connection: Altered(connection, move=move)
    )


def _keeps_the_incarnation(connection: Any, app: str, seen: Any, to: Any) -> Any:
    return connection.move(app, seen, [replace(one, incarnation=seen[0].incarnation) for one in to])


def _compares_nothing(connection: Any, app: str, seen: Any, to: Any) -> Any:
    return connection.move(app, connection.remembered(app), to)


def _one_after_the_other(connection: Any, app: str, seen: Any, to: Any) -> Any:
    outcome: Any = Done()
    for one in to:
        outcome = connection.move(app, connection.remembered(app), [one])
        connection._steps.reached(Step.MOVE_PART)
    return outcome


def _no_next_epoch(raw: Any, statement: str, *more: Any) -> Any:
    return raw.execute(statement.replace("epoch = epoch + 1, position = excluded", "position = excluded"), *more)


class Bare:
    """A third party's connection: no method for `semel sink`."""

    def __init__(self, connection: Any) -> None:
        self._inner = connection

    def __getattr__(self, name: str) -> Any:
        if name in ("remembered", "move"):
            raise AttributeError(name)
        return getattr(self._inner, name)


def without_methods(address: str, suffix: str) -> Any:
    return Planted(subjects.sqlite_appended(address, suffix), Bare)


# --- mistakes in SQL -------------------------------------------------------------------------------------------------


class _Rewriting:
    """A sqlite3 connection that says something else than it was told."""

    def __init__(self, connection: Any, say: Callable[..., Any]) -> None:
        self._raw, self._say = connection, say

    def execute(self, statement: str, *more: Any) -> Any:
        return self._say(self._raw, statement, *more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def _saying(say: Callable[..., Any]) -> Make:
    def alter(connection: Any) -> Any:
        connected = connection._connected

        def rewriting() -> Any:
            found = connected()
            if not isinstance(found, _Rewriting):
                connection._connection = found = _Rewriting(found, say)
            return found

        connection._connected = rewriting
        return connection

    return lambda address, suffix: Planted(SQLite(address, "entries").renamed(suffix), alter)


def _no_epoch(raw: Any, statement: str, *more: Any) -> Any:
    return raw.execute(statement.replace("AND epoch = ?", "AND epoch >= ?"), *more)


def _no_position(raw: Any, statement: str, *more: Any) -> Any:
    return raw.execute(statement.replace("AND position = ?", "AND position + ? >= 0"), *more)


def _position_outside(raw: Any, statement: str, *more: Any) -> Any:
    if "SET position" in statement:
        raw.execute("COMMIT")
        raw.execute("BEGIN IMMEDIATE")
    return raw.execute(statement, *more)


def _position_first(raw: Any, statement: str, *more: Any) -> Any:
    """The position alone is committed, before the rows: at most once."""
    if statement.startswith("INSERT INTO") or "SET position" not in statement:
        return raw.execute(statement, *more)
    raw.execute("ROLLBACK")
    moved = raw.execute(statement, *more)
    raw.execute("BEGIN IMMEDIATE")
    return moved


position_outside = _saying(_position_outside)


def position_outside_sqlite(address: str, suffix: str) -> Any:
    """At module level: processes import it."""
    return position_outside(address, suffix)


IN_SQL: dict[str, tuple[Make, tuple[str, ...]]] = {
    "guard dropped: the epoch": (_saying(_no_epoch), ("zombie",)),
    "guard dropped: the position": (_saying(_no_position), ("replay", "recut")),
    "the position in a transaction of its own": (position_outside, ("torn",)),
    "the position without the rows": (_saying(_position_first), ("plain", "torn")),
}


MOVES: dict[str, tuple[Make, tuple[str, ...]]] = {
    "a move that does not raise the epoch": (_saying(_no_next_epoch), ("operated", "outmoved")),
    "a move that keeps the incarnation": (_moving(_keeps_the_incarnation), ("operated",)),
    "a move that compares nothing": (_moving(_compares_nothing), ("outmoved",)),
    "a move of one partition after the other": (_moving(_one_after_the_other), ("interrupted",)),
}


def claiming(make: Make, contract: Contract, kind: Any) -> Make:
    """A sink under another contract than it holds."""
    return lambda address, suffix: Planted(make(address, suffix), unchanged, contract, kind)


TRANSACTIONAL = transactional("it says so")
MAKE_SQLITE = {"keyed": subjects.sqlite_keyed, "appended": subjects.sqlite_appended}
