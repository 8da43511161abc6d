"""Batches of one delivery to Postgres: rows and position in one transaction.

Invariant: a batch first locks the position's row, which a claim locks too (`postgres_session.py`); rows and position
change together or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks.columns import Column, canonical_row, decode
from semel.sinks.postgres_session import Asked, PostgresSession, brief, copy_text, each, is_refusal, names
from semel.sinks.postgres_types import POSTGRES, converts
from semel.sinks.rows import Delete, Shape, Upsert, by_column, by_row, split
from semel.sinks.schema import created, judged
from semel.sinks.sink import RowRefused, SinkError

if TYPE_CHECKING:
    from semel.sinks.postgres import Postgres

COPY_ROWS_MIN = 100  # below this, statements in a pipeline are quicker than COPY and a merge


class PostgresConnection:
    """See `ports.SinkConnection`."""

    def __init__(self, sink: Postgres, steps: Steps) -> None:
        self._sink = sink
        self._steps = steps
        self._session = PostgresSession(sink, self._judge)
        self._notes: list[str] = []
        self._table, self._control = self._session.table, self._session.control

    def _connected(self) -> psycopg.Connection[Any]:
        return self._session.connected()

    def close(self) -> None:
        self._session.close()

    # --- the tables -----------------------------------------------------------------------------------------------

    def prepare(self, value_type: object) -> Done | NotDone:
        return self._session.prepare(value_type) or Done()

    def _judge(self, connection: psycopg.Connection[Any], asked: Asked) -> Shape | None:
        sink, session = self._sink, self._session
        wanted = session.wanted()
        if not session.create(connection, asked, lambda: self._create(connection, wanted)):
            return None
        found, unique = session.found(connection), session.unique(connection)
        columns = judged(POSTGRES, sink.where, found, wanted, sink.key, unique)
        self._notes = session.weaknesses(connection)
        return Shape(columns, converts(columns, found), sink.key, sink.where)

    def _create(self, connection: psycopg.Connection[Any], wanted: Sequence[Column] | None) -> None:
        sink = self._sink
        if self._session.create_like(connection):
            return
        if wanted is not None:
            parts = [
                sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind))
                for name, kind in created(POSTGRES, wanted, sink.key)
            ]
            if sink.key is not None:
                parts.append(sql.SQL("PRIMARY KEY ({})").format(names(sink.key)))
            connection.execute(sql.SQL("CREATE TABLE {} ({})").format(self._table, sql.SQL(", ").join(parts)))
        else:
            raise SinkError(
                f"{sink.where} does not exist, and the type of the values is not known here. "
                "Say it: Postgres(…, value=TYPE), or create the table."
            )

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    # --- a batch --------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        return self._session.claim(delivery, log)

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        assert start < end, (start, end)
        connection, shape = self._session.held(claim), self._session.shape
        if connection is None:
            return NotDone(f"{self._sink.where}: the connection of the claim is gone")
        assert shape is not None, "a claim comes before a write"
        upserts, deletes = split(shape, rows)
        try:
            fenced = self._write(connection, claim, start, end, run, upserts, deletes)
        except psycopg.Error as why:
            self._session.rolled_back()
            if is_refusal(why):
                self._refuse(connection, upserts, deletes, why)
            return self._session.not_done(why)
        if fenced is not None:
            return fenced
        self._steps.reached(Step.SINK_BEFORE)
        try:
            status = connection.execute("COMMIT").statusmessage
        except psycopg.IntegrityError as why:  # a deferred constraint: the server has answered, it is not done
            self._session.rolled_back()
            raise RowRefused(f"a constraint checked at the commit refuses the batch: {brief(why)}", start) from None
        except psycopg.Error as why:
            # The answer is lost, or it is one after which the transaction may still stand. Only a claim can tell.
            connection.close()
            return Unknown(f"{self._sink.where}: COMMIT of [{start}, {end}) was not answered: {brief(why)}")
        # COMMIT of a failed transaction is answered with ROLLBACK, and no error.
        assert status == "COMMIT", f"{self._sink.where}: COMMIT was answered with {status}"
        self._steps.reached(Step.SINK_AFTER)
        return Done()

    def _write(
        self,
        connection: psycopg.Connection[Any],
        claim: Claim,
        start: int,
        end: int,
        run: str,
        upserts: Sequence[Upsert],
        deletes: Sequence[Delete],
    ) -> Fenced | None:
        who = (claim.delivery.app, claim.delivery.sink, claim.delivery.partition)
        connection.execute("BEGIN")
        # The lock only: rows are never written while a claim could pass. What decides is the UPDATE below.
        connection.execute(
            sql.SQL("SELECT FROM {} WHERE app = %s AND sink = %s AND partition = %s FOR UPDATE").format(self._control),
            who,
        )
        self._steps.reached(Step.ROWS_BEFORE)
        self._rows(connection, upserts, deletes)
        self._steps.reached(Step.ROWS_AFTER)
        self._steps.reached(Step.POSITION_BEFORE)
        moved = connection.execute(
            sql.SQL(
                "UPDATE {} SET position = %s, run = %s, updated = now() "
                "WHERE app = %s AND sink = %s AND partition = %s AND epoch = %s AND position = %s"
            ).format(self._control),
            (end, run, *who, claim.epoch, start),
        ).rowcount
        self._steps.reached(Step.POSITION_AFTER)
        if moved == 1:
            return None
        there = connection.execute(
            sql.SQL("SELECT epoch, position, holder FROM {} WHERE app = %s AND sink = %s AND partition = %s").format(
                self._control
            ),
            who,
        ).fetchone()
        connection.rollback()
        said = "its position is gone" if there is None else "epoch {}, position {}, held by {}".format(*there)
        return Fenced(f"{self._sink.where}: {said}; ours was epoch {claim.epoch}, position {start}")

    def _rows(self, connection: psycopg.Connection[Any], upserts: Sequence[Upsert], deletes: Sequence[Delete]) -> None:
        """All rows of a batch, inside the caller's transaction. Each key is in one of the two, once."""
        shape = self._session.shape
        assert shape is not None
        key, fields = shape.key, [column.name for column in shape.columns]
        columns = names(fields)
        if deletes:
            match = sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in key or ())
            query = sql.SQL("DELETE FROM {} WHERE {}").format(self._table, match)
            each(connection, query, [one.key for one in deletes])
        if not upserts:
            return
        merge = (
            sql.SQL("") if key is None else sql.SQL(" ON CONFLICT ({}) DO ").format(names(key)) + _update(fields, key)
        )
        if len(upserts) < COPY_ROWS_MIN:
            places = sql.SQL(", ").join(sql.Placeholder() * len(fields))
            insert = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(self._table, columns, places) + merge
            each(connection, insert, list(by_row(upserts)))
            return
        target: sql.Composable = self._table
        if key is not None:
            target = sql.Identifier("pg_temp", "semel_batch")
            connection.execute(
                sql.SQL(
                    "CREATE TEMP TABLE IF NOT EXISTS semel_batch ON COMMIT DELETE ROWS AS "
                    "SELECT {} FROM {} WITH NO DATA"
                ).format(columns, self._table)
            )
        with (
            connection.cursor() as cursor,
            cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(target, columns)) as copy,
        ):
            copy.write(copy_text(by_column(upserts)))
        if key is not None:
            connection.execute(
                sql.SQL("INSERT INTO {} ({c}) SELECT {c} FROM pg_temp.semel_batch").format(self._table, c=columns)
                + merge
            )

    def _refuse(
        self,
        connection: psycopg.Connection[Any],
        upserts: Sequence[Upsert],
        deletes: Sequence[Delete],
        why: psycopg.Error,
    ) -> None:
        """Finds the row that the server refuses by trying each alone, in a transaction that is rolled back, and
        raises RowRefused. Returns when each alone is accepted."""
        try:
            connection.execute("BEGIN")
            for delete in deletes:
                offset = delete.offset
                self._rows(connection, [], [delete])
            for upsert in upserts:
                offset = upsert.offset
                self._rows(connection, [upsert], [])
        except psycopg.Error as refusal:
            self._session.rolled_back()
            if is_refusal(refusal):
                raise RowRefused(brief(refusal), offset) from None
            return
        self._session.rolled_back()
        raise SinkError(f"{self._sink.where} refuses a batch each of whose rows it accepts alone: {brief(why)}.")

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
        found = self._connected().execute(sql.SQL("SELECT {} FROM {}").format(names(fields), self._table))
        return [canonical_row(shape.columns, dict(zip(fields, row, strict=True))) for row in found]

    def canonical(self, value: bytes) -> bytes:
        assert self._session.shape is not None, "prepare comes first"
        return canonical_row(self._session.shape.columns, decode(value))

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only tables that it has named itself.")
        connection = self._connected()
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}, {}").format(self._table, self._control))


def _update(fields: Sequence[str], key: Sequence[str]) -> sql.Composable:
    others = [name for name in fields if name not in key]
    if not others:
        return sql.SQL("NOTHING")
    return sql.SQL("UPDATE SET ") + sql.SQL(", ").join(
        sql.SQL("{c} = excluded.{c}").format(c=sql.Identifier(name)) for name in others
    )
