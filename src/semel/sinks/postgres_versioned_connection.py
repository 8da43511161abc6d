"""Batches of one delivery to a Postgres table whose rows carry versions.

Invariant: a row is only ever replaced by one of a higher (incarnation, offset), and a deleted row stays as a tombstone;
so what is written again, by whomever, has no effect, and nothing needs to be locked before a batch. The position
follows in a statement of its own, after the rows' commit: it is never ahead of them, and where it is behind, rows are
written again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps
from semel.sinks.columns import Column, canonical_row, decode
from semel.sinks.postgres_batch import begun, committed
from semel.sinks.postgres_rows import COPY_ROWS_MIN, copy
from semel.sinks.postgres_session import Asked, PostgresSession, each, names
from semel.sinks.postgres_types import POSTGRES, converts
from semel.sinks.postgres_versioned import DELETED, INCARNATION, LIVE, OFFSET
from semel.sinks.rows import Begun, Shape, by_column, offsets
from semel.sinks.schema import Found, created, judged
from semel.sinks.sink import SinkError

if TYPE_CHECKING:
    from semel.sinks.postgres_versioned import PostgresVersioned

OURS = {INCARNATION: ("int4", "integer NOT NULL DEFAULT 0"), OFFSET: ("int8", "bigint NOT NULL DEFAULT -1")}
OURS[DELETED] = ("timestamptz", "timestamptz")


class VersionedConnection:
    """See `ports.SinkConnection`."""

    def __init__(self, sink: PostgresVersioned, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._session = PostgresSession(sink, self._judge, versioned=True)
        self._notes: list[str] = []
        self._table, self._control = self._session.table, self._session.control
        self._live = sql.Identifier(*filter(None, (sink.schema, sink.table_name + LIVE + sink.suffix)))

    def close(self) -> None:
        self._session.close()

    # --- the table ------------------------------------------------------------------------------------------------

    def prepare(self, value_type: object) -> Done | NotDone:
        return self._session.prepare(value_type) or Done()

    def _judge(self, connection: psycopg.Connection[Any], asked: Asked) -> Shape | None:
        sink, session = self._sink, self._session
        wanted = session.wanted()
        for column in wanted or ():
            if column.name in OURS:
                raise SinkError(f"{sink.where}: the field {column.name!r} is semel's own column. Rename it.")
        if not session.create(connection, asked, lambda: self._create(connection, wanted)):
            return None
        found = session.found(connection)
        self._has_versions(found)
        theirs = [column for column in found if column.name not in OURS]
        columns = judged(POSTGRES, sink.where, theirs, wanted, sink.key, session.unique(connection))
        for there in theirs:
            if there.not_null and there.name not in sink.key:
                raise SinkError(
                    f"{sink.where}: column {there.name!r} is {there.type_text} NOT NULL, and a tombstone has only the "
                    f"key. DROP NOT NULL and ADD CHECK ({DELETED} IS NOT NULL OR {there.name} IS NOT NULL)."
                )
        self._notes = session.weaknesses(connection)
        return Shape(columns, converts(columns, theirs), sink.key, sink.where)

    def _has_versions(self, found: Sequence[Found]) -> None:
        there = {column.name: column.base for column in found}
        lacks = [f"ADD COLUMN {name} {text}" for name, (_, text) in OURS.items() if name not in there]
        if lacks:
            raise SinkError(
                f"{self._sink.where}: it has no columns for the versions of its rows. "
                f"ALTER TABLE {self._sink.table} {', '.join(lacks)}."
            )
        for name, (base, text) in OURS.items():
            if there[name] != base:
                raise SinkError(f"{self._sink.where}: column {name!r} is {there[name]}, wanted is {text}.")

    def _create(self, connection: psycopg.Connection[Any], wanted: Sequence[Column] | None) -> None:
        sink = self._sink
        if self._session.create_like(connection):
            pass
        elif wanted is not None:
            nullable = [Column(c.name, c.type, c.nullable or c.name not in sink.key) for c in wanted]
            kinds = [*created(POSTGRES, nullable, sink.key), *((name, text) for name, (_, text) in OURS.items())]
            parts = [sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind)) for name, kind in kinds]
            parts.append(sql.SQL("PRIMARY KEY ({})").format(names(sink.key)))
            if required := [c.name for c in wanted if not c.nullable and c.name not in sink.key]:
                parts.append(
                    sql.SQL("CHECK ({} IS NOT NULL OR ({}))").format(
                        sql.Identifier(DELETED),
                        sql.SQL(" AND ").join(sql.SQL("{} IS NOT NULL").format(sql.Identifier(n)) for n in required),
                    )
                )
            connection.execute(sql.SQL("CREATE TABLE {} ({})").format(self._table, sql.SQL(", ").join(parts)))
        else:
            raise SinkError(
                f"{sink.where} does not exist, and the type of the values is not known here. "
                "Say it: PostgresVersioned(…, value=TYPE), or create the table."
            )
        theirs = [column.name for column in self._session.found(connection) if column.name not in OURS]
        connection.execute(
            sql.SQL("CREATE OR REPLACE VIEW {} AS SELECT {} FROM {} WHERE {} IS NULL").format(
                self._live, names(theirs), self._table, sql.Identifier(DELETED)
            )
        )

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    # --- a batch --------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        return self._session.claim(delivery, log)

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        assert start < end, (start, end)

        def part(connection: psycopg.Connection[Any], batch: Begun) -> int:
            return self._rows(connection, claim, batch)

        def write(connection: psycopg.Connection[Any], batch: Begun) -> None:
            self._steps.reached(Step.ROWS_BEFORE)
            taken = part(connection, batch)
            self._steps.reached(Step.ROWS_AFTER)
            if taken < len(batch.rows) + len(batch.deletes):
                self._steps.reached(Step.SINK_STALE)

        connection = begun(self._session, self._sink.where, claim, rows, write, part)
        if isinstance(connection, NotDone | Fenced):
            return connection
        outcome = committed(self._session, self._steps, self._sink.where, connection, start, end)
        return self._moved(connection, claim, end, run) if outcome == Done() else outcome

    def _moved(self, connection: psycopg.Connection[Any], claim: Claim, end: int, run: str) -> Outcome:
        """The position follows the rows. Not for their sake, who are what they are: it says where the next owner goes
        on, and tells a superseded one that it is one."""
        return self._session.followed(connection, claim, end, run, self._steps)

    def _pieces(self, claim: Claim, batch: Begun) -> Iterator[Sequence[Sequence[object]]]:
        """Each key once, with the version of its last record; a delete is a row that has only its key. By column."""
        for piece in batch.pieces():
            count = len(piece)
            yield [*by_column(piece), [claim.incarnation] * count, offsets(piece), [None] * count]
        if batch.deletes:
            gone: list[Sequence[object]] = [[None] * len(batch.deletes) for _ in batch.shape.columns]
            for place, parts in zip(
                batch.shape.key_places, zip(*(delete.key for delete in batch.deletes)), strict=True
            ):
                gone[place] = parts
            count = len(batch.deletes)
            yield [*gone, [claim.incarnation] * count, [one.offset for one in batch.deletes], ["now"] * count]

    def _rows(self, connection: psycopg.Connection[Any], claim: Claim, batch: Begun) -> int:
        """How many of them had an effect: the others are as old as what is there, or older. That is no error."""
        if not batch.rows and not batch.deletes:
            return 0
        fields = [*(column.name for column in batch.shape.columns), *OURS]
        columns = names(fields)
        changes = sql.SQL(", ").join(
            sql.SQL("{c} = excluded.{c}").format(c=sql.Identifier(name))
            for name in fields
            if name not in self._sink.key
        )
        merge = sql.SQL(
            " ON CONFLICT ({key}) DO UPDATE SET {changes} WHERE (t.{i}, t.{o}) < (excluded.{i}, excluded.{o})"
        ).format(key=names(self._sink.key), changes=changes, i=sql.Identifier(INCARNATION), o=sql.Identifier(OFFSET))
        into = sql.SQL("INSERT INTO {} AS t ({}) ").format(self._table, columns)
        pieces = self._pieces(claim, batch)
        if len(batch.rows) + len(batch.deletes) < COPY_ROWS_MIN:
            places = sql.SQL(", ").join(sql.Placeholder() * len(fields))
            query = into + sql.SQL("VALUES ({})").format(places) + merge
            return each(connection, query, [values for piece in pieces for values in zip(*piece)])
        connection.execute(
            sql.SQL(
                "CREATE TEMP TABLE IF NOT EXISTS semel_versions ON COMMIT DELETE ROWS AS SELECT {} FROM {} WITH NO DATA"
            ).format(columns, self._table)
        )
        copy(connection, sql.SQL("pg_temp.semel_versions"), columns, pieces)
        return connection.execute(
            into + sql.SQL("SELECT {} FROM pg_temp.semel_versions").format(columns) + merge
        ).rowcount

    # --- for `semel sink` -----------------------------------------------------------------------------------------

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        return self._session.remembered(app)

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        return self._session.move(app, seen, to)

    # --- for semel verify -----------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        shape = self._session.shape
        assert shape is not None, "prepare comes first"
        fields = [column.name for column in shape.columns]
        found = self._session.connected().execute(
            sql.SQL("SELECT {} FROM {} WHERE {} IS NULL").format(names(fields), self._table, sql.Identifier(DELETED))
        )
        return [canonical_row(shape.columns, dict(zip(fields, row, strict=True))) for row in found]

    def canonical(self, value: bytes) -> bytes:
        assert self._session.shape is not None, "prepare comes first"
        return canonical_row(self._session.shape.columns, decode(value))

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only tables that it has named itself.")
        connection = self._session.connected()
        with connection.transaction():
            connection.execute(sql.SQL("DROP VIEW IF EXISTS {}").format(self._live))
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}, {}").format(self._table, self._control))
