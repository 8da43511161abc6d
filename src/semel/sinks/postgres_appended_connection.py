"""Batches of one delivery to a Postgres table that is only appended to; each row carries the id of its event.

Invariant: every row has the id of the committed record that it is, whoever wrote it and however often, so rows of one
id are equal, and the view TABLE_once has each once. Nothing is locked, compared or refused before a batch: a replay
and a superseded owner append repeats. The position follows in a statement of its own, as for rows with versions: it is
never ahead of the rows. It guards nothing; it says where the next owner goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps
from semel.sinks import dedup
from semel.sinks.columns import Column, canonical_row, decode
from semel.sinks.dedup import EVENT, ONCE, SqlDialect
from semel.sinks.postgres_batch import begun, committed
from semel.sinks.postgres_rows import COPY_ROWS_MIN, by_column_plain, copy
from semel.sinks.postgres_session import Asked, PostgresSession, each, names
from semel.sinks.postgres_types import POSTGRES, converts
from semel.sinks.rows import Begun, Shape, Upsert, offsets
from semel.sinks.schema import Found, created, judged
from semel.sinks.sink import SinkError

if TYPE_CHECKING:
    from semel.sinks.postgres_appended import PostgresAppended

# "C": ids are compared byte by byte; a language's order would cost the view three times as much.
EVENT_TYPE = 'text COLLATE "C" NOT NULL'


class AppendedConnection:
    """See `ports.SinkConnection`."""

    def __init__(self, sink: PostgresAppended, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._session = PostgresSession(sink, self._judge)
        self._notes: list[str] = []
        self._table, self._control = self._session.table, self._session.control
        self._once_name = tuple(filter(None, (sink.schema, sink.table_name + ONCE + sink.suffix)))
        self._once = sql.Identifier(*self._once_name)

    def close(self) -> None:
        self._session.close()

    # --- the table and its view -----------------------------------------------------------------------------------

    def prepare(self, value_type: object) -> Done | NotDone:
        return self._session.prepare(value_type) or Done()

    def _judge(self, connection: psycopg.Connection[Any], asked: Asked) -> Shape | None:
        sink, session = self._sink, self._session
        wanted = session.wanted()
        if EVENT in {column.name for column in wanted or ()}:
            raise SinkError(f"{sink.where}: the field {EVENT!r} is semel's own column. Rename it.")
        if not session.create(connection, asked, lambda: self._create(connection, wanted)):
            return None
        found = session.found(connection)
        self._has_event(found)
        theirs = [column for column in found if column.name != EVENT]
        columns = judged(POSTGRES, sink.where, theirs, wanted, None, [])
        written = {EVENT, *(column.name for column in columns)}
        for unique in session.unique(connection):
            if unique <= written:
                raise SinkError(
                    f"{sink.where}: its unique index on ({', '.join(sorted(unique))}) would refuse a repeat, and a "
                    "table of this contract stores repeats. Drop the index, or use Postgres(…, key=…)."
                )
        self._has_view(connection, [column.name for column in columns])
        self._notes = session.weaknesses(connection)
        return Shape(columns, converts(columns, theirs), None, sink.where)

    def _has_event(self, found: Sequence[Found]) -> None:
        event = next((column for column in found if column.name == EVENT), None)
        if event is None:
            raise SinkError(
                f"{self._sink.where}: it has no column for the id of each row's event. ALTER TABLE {self._sink.table} "
                f"ADD COLUMN {EVENT} {EVENT_TYPE} DEFAULT gen_random_uuid(); rows that are there get ids of their own."
            )
        if event.base != "text" or not event.not_null or not event.deterministic:
            raise SinkError(
                f"{self._sink.where}: column {EVENT!r} is {event.type_text}{'' if event.not_null else ' NULL'}, wanted "
                f"is {EVENT_TYPE}: rows without an id would all be taken for repeats of one."
            )

    def _has_view(self, connection: psycopg.Connection[Any], columns: Sequence[str]) -> None:
        """One that is there is left as it is, if it has what is written: a person may have made it."""
        text = self._once.as_string(connection)
        there = connection.execute(
            "SELECT c.relkind::text, array_agg(a.attname::text) FROM pg_class c JOIN pg_attribute a ON "
            "a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped WHERE c.oid = to_regclass(%s) GROUP BY 1",
            (text,),
        ).fetchone()
        if there is None:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(hashtext('semel prepare'))")
                self._create_view(connection)
            return
        if there[0] not in ("v", "m"):
            raise SinkError(
                f"{self._sink.where}: {text} is no view. Rename it: the view without repeats wants its name."
            )
        if lacks := sorted(set(columns) - set(there[1])):
            raise SinkError(
                f"{self._sink.where}: its view {text} has no column {lacks[0]!r}. DROP VIEW {text}; the next start "
                "makes it anew."
            )

    def _create(self, connection: psycopg.Connection[Any], wanted: Sequence[Column] | None) -> None:
        sink = self._sink
        if self._session.create_like(connection):
            return
        if wanted is None:
            raise SinkError(
                f"{sink.where} does not exist, and the type of the values is not known here. "
                "Say it: PostgresAppended(…, value=TYPE), or create the table."
            )
        kinds = [*created(POSTGRES, wanted, None), (EVENT, EVENT_TYPE)]
        parts = [sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind)) for name, kind in kinds]
        connection.execute(sql.SQL("CREATE TABLE {} ({})").format(self._table, sql.SQL(", ").join(parts)))

    def _create_view(self, connection: psycopg.Connection[Any]) -> None:
        sink = self._sink
        columns = [column.name for column in self._session.found(connection)]
        table = tuple(filter(None, (sink.schema, sink.table_name + sink.suffix)))
        text = dedup.view(SqlDialect.POSTGRES, table, columns, name=self._once_name)
        connection.execute(text)  # type: ignore[arg-type, unused-ignore]  # names only, each quoted

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    # --- a batch --------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        return self._session.claim(delivery, log)

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        assert start < end, (start, end)

        def part(connection: psycopg.Connection[Any], batch: Begun) -> None:
            self._rows(connection, claim, batch)

        def write(connection: psycopg.Connection[Any], batch: Begun) -> None:
            self._steps.reached(Step.ROWS_BEFORE)
            part(connection, batch)
            self._steps.reached(Step.ROWS_AFTER)

        # A delete has no row to go to: it is refused when the batch begins.
        connection = begun(self._session, self._sink.where, claim, rows, write, part)
        if isinstance(connection, NotDone | Fenced):
            return connection
        outcome = committed(self._session, self._steps, self._sink.where, connection, start, end)
        if outcome != Done():
            return outcome
        return self._session.followed(connection, claim, end, run, self._steps)

    def _rows(self, connection: psycopg.Connection[Any], claim: Claim, batch: Begun) -> None:
        if not batch.rows:
            return
        fields = [*(column.name for column in batch.shape.columns), EVENT]
        columns = names(fields)
        pieces = (self._with_events(claim, piece) for piece in batch.pieces())
        if len(batch.rows) < COPY_ROWS_MIN:
            places = sql.SQL(", ").join(sql.Placeholder() * len(fields))
            query = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(self._table, columns, places)
            each(connection, query, [values for piece in pieces for values in zip(*piece)])
            return
        copy(connection, self._table, columns, pieces)

    def _with_events(self, claim: Claim, piece: Sequence[Upsert]) -> Sequence[Sequence[object]]:
        """By column."""
        who = claim.delivery
        events = dedup.event_ids(who.app, who.sink, claim.incarnation, who.partition, offsets(piece))
        return [*by_column_plain(piece), events]

    # --- for `semel sink` -----------------------------------------------------------------------------------------

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        return self._session.remembered(app)

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        return self._session.move(app, seen, to)

    # --- for semel verify -----------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        """Through the view: what the contract promises is promised there."""
        shape = self._session.shape
        assert shape is not None, "prepare comes first"
        fields = [column.name for column in shape.columns]
        found = self._session.connected().execute(sql.SQL("SELECT {} FROM {}").format(names(fields), self._once))
        return [canonical_row(shape.columns, dict(zip(fields, row, strict=True))) for row in found]

    def stored(self) -> int:
        """Rows in the table itself, repeats among them."""
        found = self._session.connected().execute(sql.SQL("SELECT count(*) FROM {}").format(self._table)).fetchone()
        assert found is not None
        count: int = found[0]
        return count

    def canonical(self, value: bytes) -> bytes:
        assert self._session.shape is not None, "prepare comes first"
        return canonical_row(self._session.shape.columns, decode(value))

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only tables that it has named itself.")
        connection = self._session.connected()
        with connection.transaction():
            connection.execute(sql.SQL("DROP VIEW IF EXISTS {}").format(self._once))
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}, {}").format(self._table, self._control))
