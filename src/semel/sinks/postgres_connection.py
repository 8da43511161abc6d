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
from semel.sinks.postgres_rows import refuse
from semel.sinks.postgres_rows import write as write_rows
from semel.sinks.postgres_session import Asked, PostgresSession, brief, is_refusal, names
from semel.sinks.postgres_types import POSTGRES, converts
from semel.sinks.rows import Begun, Shape, begin
from semel.sinks.schema import created, judged
from semel.sinks.sink import RowRefused, SinkError

if TYPE_CHECKING:
    from semel.sinks.postgres import Postgres


class PostgresConnection:
    """See `ports.SinkConnection`."""

    def __init__(self, sink: Postgres, steps: Steps) -> None:
        self._sink = sink
        self._steps = steps
        self._session = PostgresSession(sink, self._judge)
        self._notes: list[str] = []
        self._table, self._control = self._session.table, self._session.control

    @property
    def session(self) -> PostgresSession:
        """For a connection that writes the same rows under another contract."""
        return self._session

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
        batch = begin(shape, rows)
        try:
            fenced = self._write(connection, claim, start, end, run, batch)
        except RowRefused:
            self._session.rolled_back()
            raise
        except psycopg.Error as why:
            self._session.rolled_back()
            if is_refusal(why):
                refuse(self._session, connection, self._sink.where, rows, why)
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
        batch: Begun,
    ) -> Fenced | None:
        who = (claim.delivery.app, claim.delivery.sink, claim.delivery.partition)
        connection.execute("BEGIN")
        # The lock only: rows are never written while a claim could pass. What decides is the UPDATE below.
        connection.execute(
            sql.SQL("SELECT FROM {} WHERE app = %s AND sink = %s AND partition = %s FOR UPDATE").format(self._control),
            who,
        )
        self._steps.reached(Step.ROWS_BEFORE)
        assert self._session.shape is not None
        write_rows(connection, self._table, self._session.shape, batch, temporary=True)
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
