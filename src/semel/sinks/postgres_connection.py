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
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps
from semel.sinks.columns import Column, canonical_row, decode
from semel.sinks.postgres_batch import begun, committed
from semel.sinks.postgres_rows import write as write_rows
from semel.sinks.postgres_session import Asked, PostgresSession, names
from semel.sinks.postgres_types import POSTGRES, converts
from semel.sinks.rows import Begun, Shape
from semel.sinks.schema import created, judged
from semel.sinks.sink import SinkError

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

        def write(connection: psycopg.Connection[Any], batch: Begun) -> Fenced | None:
            return self._write(connection, claim, start, end, run, batch)

        where = self._sink.where
        held = begun(self._session, where, claim, rows, write, self._rows)
        if isinstance(held, NotDone | Fenced):
            return held
        return committed(self._session, self._steps, where, held, start, end)

    def _rows(self, connection: psycopg.Connection[Any], batch: Begun) -> None:
        write_rows(connection, self._table, batch, temporary=True)

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
        # The lock only: rows are never written while a claim could pass. What decides is the UPDATE below.
        connection.execute(
            sql.SQL("SELECT FROM {} WHERE app = %s AND sink = %s AND partition = %s FOR UPDATE").format(self._control),
            who,
        )
        self._steps.reached(Step.ROWS_BEFORE)
        self._rows(connection, batch)
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
