"""A batch in one transaction of Postgres, for whichever contract: how it begins, ends, is refused, or stays unknown.

Invariant: Done is what the server has answered with COMMIT and nothing else; a COMMIT without an answer is Unknown, and
its connection is closed, so that nothing of it can come later; whatever else ends a batch has rolled it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from semel.contract import Claim, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks.postgres_session import PostgresSession, brief, is_refusal
from semel.sinks.rows import Begun, begin
from semel.sinks.sink import RowRefused, SinkError

Write = Callable[[psycopg.Connection[Any], Begun], Fenced | None]
Part = Callable[[psycopg.Connection[Any], Begun], object]


def begun(
    session: PostgresSession, where: str, claim: Claim, rows: Sequence[Row], write: Write, part: Part
) -> psycopg.Connection[Any] | NotDone | Fenced:
    """The claim's connection with `write` done in an open transaction. `part` writes a batch of one row: it finds the
    one that the server refuses. Raises RowRefused for it."""
    connection, shape = session.held(claim), session.shape
    if connection is None:
        return NotDone(f"{where}: the connection of the claim is gone")
    assert shape is not None, "a claim comes before a batch"
    batch = begin(shape, rows)
    try:
        connection.execute("BEGIN")
        fenced = write(connection, batch)
    except RowRefused:
        session.rolled_back()
        raise
    except psycopg.Error as why:
        session.rolled_back()
        if is_refusal(why):
            _refuse(session, connection, where, batch, part, why)
        return session.not_done(why)
    if fenced is not None:
        session.rolled_back()
        return fenced
    return connection


def committed(
    session: PostgresSession, steps: Steps, where: str, connection: psycopg.Connection[Any], start: int, end: int
) -> Outcome:
    """Ends what `begun` has opened."""
    steps.reached(Step.SINK_BEFORE)
    try:
        status = connection.execute("COMMIT").statusmessage
    except psycopg.IntegrityError as why:  # a deferred constraint: the server has answered, it is not done
        session.rolled_back()
        doubt = "it stands for its batch: a constraint that is checked at the end names no record"
        told = f"a constraint checked at the commit refuses the batch: {brief(why)}"
        raise RowRefused(told, start, doubt) from None
    except psycopg.Error as why:
        # The answer is lost, or it is one after which the transaction may still stand. Only a claim can tell.
        connection.close()
        return Unknown(f"{where}: COMMIT of [{start}, {end}) was not answered: {brief(why)}")
    # COMMIT of a failed transaction is answered with ROLLBACK, and no error.
    assert status == "COMMIT", f"{where}: COMMIT was answered with {status}"
    steps.reached(Step.SINK_AFTER)
    return Done()


def _refuse(
    session: PostgresSession,
    connection: psycopg.Connection[Any],
    where: str,
    batch: Begun,
    part: Part,
    why: psycopg.Error,
) -> None:
    """Finds the row that the server refuses by trying each alone, in a transaction that is rolled back, and raises
    RowRefused. Returns when the server does not answer."""
    offset = -1
    try:
        connection.execute("BEGIN")
        for delete in batch.deletes:
            offset = delete.offset
            part(connection, Begun(batch.shape, [], [delete]))
        for row in batch.rows:
            offset = row.offset
            part(connection, Begun(batch.shape, [row], []))
    except RowRefused:
        session.rolled_back()
        raise
    except psycopg.Error as refusal:
        session.rolled_back()
        if is_refusal(refusal):
            raise RowRefused(brief(refusal), offset) from None
        return
    session.rolled_back()
    raise SinkError(f"{where} refuses a batch each of whose rows it accepts alone: {brief(why)}.")
