"""Cuts of one delivery to Postgres, each in a prepared transaction.

Invariant: what is prepared has locked the position's row under the epoch of its claim, and moves the position from the
cut's start to its end. So a claim, which locks that row too, is only given when nothing of a former owner is prepared,
and nothing can be any more; at most one attempt per partition is prepared at any time; and after `COMMIT PREPARED` was
answered with "does not exist", which is the answer after a commit as after a rollback, the row tells which it was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors, sql

from semel.contract import Attempt, Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks import postgres_rows
from semel.sinks.postgres_batch import begun
from semel.sinks.postgres_connection import PostgresConnection
from semel.sinks.postgres_session import brief, one
from semel.sinks.rows import Begun
from semel.sinks.sink import Diverged, RowRefused, SinkError
from semel.sinks.two_phase import attempt_in, delivery_prefix, name_of, prefix, settling

if TYPE_CHECKING:
    from semel.sinks.postgres import Postgres

TRIES = 2
PREPARED = "PREPARE TRANSACTION"


class PreparedConnection:
    """See `ports.TwoPhaseConnection`."""

    def __init__(self, sink: Postgres, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._plain = PostgresConnection(sink, steps)
        self._session = self._plain.session
        self._control = self._session.control

    def prepare(self, value_type: object) -> Done | NotDone:
        outcome = self._plain.prepare(value_type)
        if isinstance(outcome, NotDone):
            return outcome
        allowed = self._session.trying(lambda c: int(one(c, "SHOW max_prepared_transactions")[0]))
        if isinstance(allowed, NotDone):
            return allowed
        if allowed == 0:
            raise SinkError(self._disabled())
        return Done()

    def _disabled(self) -> str:
        return (
            f"{self._sink.where}: max_prepared_transactions is 0, which is the default: this server prepares nothing. "
            "Set it in postgresql.conf to at least the number of the outbox's partitions (64, say; on a standby no "
            "lower than on its primary) and restart the server; or use Postgres(…), which needs none."
        )

    def notes(self) -> Sequence[str]:
        return self._plain.notes()

    # --- the claim ------------------------------------------------------------------------------------------------

    def take_over(
        self, delivery: DeliveryId, log: LogIdentity, latest: Attempt, decided: bool
    ) -> Claim | NotDone | Fenced:
        prefix(delivery, self._sink.where)
        claim: Claim | NotDone = NotDone("")
        for _ in range(TRIES):  # a former owner can prepare once more between the look and the claim
            settled = self._session.trying(lambda c: self._settled(c, delivery, latest, decided))
            if settled is not None:
                return settled
            claim = self._session.claim(delivery, log)
            if isinstance(claim, Claim):
                return claim
        return claim

    def _settled(
        self, connection: psycopg.Connection[Any], delivery: DeliveryId, latest: Attempt, decided: bool
    ) -> Fenced | None:
        start = prefix(delivery, self._sink.where)
        found = connection.execute(
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND starts_with(gid, %s)", (start,)
        ).fetchall()
        attempts = [one for (gid,) in found if (one := attempt_in(gid, start)) is not None]
        plan = settling(attempts, latest, decided)
        if plan.later:
            name = name_of(delivery, plan.later[0], self._sink.where)
            return Fenced(
                f"{self._sink.where}: the transaction {name} is prepared, of a later owner than the log tells"
            )
        for settled, what in ((plan.roll_back, "ROLLBACK PREPARED"), (plan.commit, "COMMIT PREPARED")):
            for attempt in settled:
                # Another one has settled it the same way: the position tells.
                with contextlib.suppress(errors.UndefinedObject):
                    self._named(connection, what, delivery, attempt)
        return None

    def _named(
        self, connection: psycopg.Connection[Any], what: str, delivery: DeliveryId, attempt: Attempt
    ) -> str | None:
        name = name_of(delivery, attempt, self._sink.where)
        return connection.execute(sql.SQL(what + " {}").format(sql.Literal(name))).statusmessage

    # --- a cut ----------------------------------------------------------------------------------------------------

    def prepare_cut(self, claim: Claim, attempt: Attempt, run: str, rows: Sequence[Row]) -> Outcome:
        assert attempt.start < attempt.end, attempt

        def write(connection: psycopg.Connection[Any], batch: Begun) -> Fenced | None:
            return self._write(connection, claim, attempt, run, batch)

        connection = begun(self._session, self._sink.where, claim, rows, write, self._rows)
        if isinstance(connection, NotDone | Fenced):
            return connection
        self._steps.reached(Step.PREPARE_BEFORE)
        try:
            status = self._named(connection, PREPARED, claim.delivery, attempt)
        except psycopg.IntegrityError as why:  # a deferred constraint: the server has answered, nothing is prepared
            self._session.rolled_back()
            doubt = "it stands for its cut: a constraint that is checked at the end names no record"
            told = f"a constraint checked at the end refuses the cut: {brief(why)}"
            raise RowRefused(told, attempt.start, doubt) from None
        except psycopg.Error as why:
            return self._unprepared(connection, why)
        if status != PREPARED:
            # Preparing a failed transaction is answered with ROLLBACK, and no error.
            return NotDone(f"{self._sink.where}: {PREPARED} was answered with {status}: nothing is prepared")
        self._steps.reached(Step.PREPARE_AFTER)
        return Done()

    def _unprepared(self, connection: psycopg.Connection[Any], why: psycopg.Error) -> Outcome:
        if connection.closed:
            return Unknown(f"{self._sink.where}: {PREPARED} was not answered: {brief(why)}")
        self._session.rolled_back()
        match why:
            case errors.ObjectNotInPrerequisiteState():
                raise SinkError(self._disabled())
            case errors.FeatureNotSupported():
                raise SinkError(
                    f"{self._sink.where}: this transaction cannot be prepared: {brief(why)}. A trigger of the table "
                    "does what Postgres prepares not (temporary tables, NOTIFY, cursors WITH HOLD): take that out of "
                    "it, or use Postgres(…)."
                )
            case errors.DuplicateObject():
                # Of another database of this server, whose names are the server's: it is gone in a moment.
                return NotDone(
                    f"{self._sink.where}: {brief(why)}: does an app of the same name deliver to this server?"
                )
            case errors.OutOfMemory():
                return NotDone(f"{self._sink.where}: {brief(why)}: raise max_prepared_transactions")
        return self._session.not_done(why)

    def _write(
        self,
        connection: psycopg.Connection[Any],
        claim: Claim,
        attempt: Attempt,
        run: str,
        batch: Begun,
    ) -> Fenced | None:
        who = (claim.delivery.app, claim.delivery.sink, claim.delivery.partition)
        # First, so that nothing is written while a claim could pass; and it is what the claim waits for.
        moved = connection.execute(
            sql.SQL(
                "UPDATE {} SET position = %s, run = %s, updated = now() "
                "WHERE app = %s AND sink = %s AND partition = %s AND epoch = %s AND position = %s"
            ).format(self._control),
            (attempt.end, run, *who, claim.epoch, attempt.start),
        ).rowcount
        if moved != 1:
            connection.rollback()
            return Fenced(f"{self._sink.where}: {self._stands(connection, claim)[1]}; ours was epoch {claim.epoch}, "
                          f"position {attempt.start}")  # fmt: skip
        self._steps.reached(Step.ROWS_BEFORE)
        self._rows(connection, batch)
        self._steps.reached(Step.ROWS_AFTER)
        return None

    def _rows(self, connection: psycopg.Connection[Any], batch: Begun) -> None:
        postgres_rows.write(connection, self._session.table, batch, temporary=False)

    def commit_cut(self, claim: Claim, attempt: Attempt) -> Outcome:
        try:
            connection = self._session.connected()
        except psycopg.Error as why:
            return self._session.not_done(why)
        try:
            self._named(connection, "COMMIT PREPARED", claim.delivery, attempt)
            return Done()
        except errors.UndefinedObject:
            pass  # committed before, or rolled back: the answer is the same
        except psycopg.Error as why:
            if connection.closed:
                return Unknown(f"{self._sink.where}: COMMIT PREPARED was not answered: {brief(why)}")
            return self._session.not_done(why)
        there = self._session.trying(lambda c: self._stands(c, claim))
        if isinstance(there, NotDone):
            return there
        (epoch, position), said = there
        if epoch != claim.epoch:
            return Fenced(
                f"{self._sink.where}: {said}; ours was epoch {claim.epoch}: another owner has settled the cut"
            )
        if position == attempt.end:
            return Done()
        raise Diverged(
            f"{self._sink.where}: the log has decided {name_of(claim.delivery, attempt, self._sink.where)}, which is "
            f"not prepared, and {said}: somebody rolled it back by hand, or the database was put back from a backup. "
            "Nothing more is delivered. Put back the newer one."
        )

    def _stands(self, connection: psycopg.Connection[Any], claim: Claim) -> tuple[tuple[int, int], str]:
        """Epoch and position as committed, and in words."""
        row = connection.execute(
            sql.SQL("SELECT epoch, position, holder FROM {} WHERE app = %s AND sink = %s AND partition = %s").format(
                self._control
            ),
            (claim.delivery.app, claim.delivery.sink, claim.delivery.partition),
        ).fetchone()
        if row is None:
            return (-1, -1), "its position is gone"
        return (row[0], row[1]), "epoch {}, position {}, held by {}".format(*row)

    def abandon(self, claim: Claim, attempt: Attempt) -> None:
        with contextlib.suppress(psycopg.Error, SinkError):
            self._named(self._session.connected(), "ROLLBACK PREPARED", claim.delivery, attempt)

    def in_doubt(self) -> Sequence[str]:
        """By the lock that each holds on the control table."""
        found = self._session.connected().execute(
            "SELECT DISTINCT p.gid FROM pg_prepared_xacts p "
            "JOIN pg_locks x ON x.locktype = 'transactionid' AND x.transactionid = p.transaction AND x.pid IS NULL "
            "JOIN pg_locks l ON l.virtualtransaction = x.virtualtransaction AND l.pid IS NULL "
            "WHERE p.database = current_database() AND l.relation = to_regclass(%s)",
            (self._control.as_string(self._session.connected()),),
        )
        return [row[0] for row in found]

    # --- for `semel sink` -----------------------------------------------------------------------------------------

    def left(self, app: str) -> Sequence[str] | NotDone:
        return self._session.trying(lambda c: self._left(c, app))

    def _left(self, connection: psycopg.Connection[Any], app: str) -> list[str]:
        start = delivery_prefix(app, self._sink.name)
        found = connection.execute(
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND starts_with(gid, %s)", (start,)
        ).fetchall()
        return [gid for (gid,) in found]

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        return self._session.remembered(app)

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        outcome: Outcome = NotDone("")
        for _ in range(TRIES):  # a former owner can prepare once more before the row is ours
            swept = self._session.trying(lambda c: self._swept(c, app))
            if isinstance(swept, NotDone):
                return swept
            outcome = self._session.move(app, seen, to)
            if not isinstance(outcome, NotDone):
                return outcome
        return outcome

    def _swept(self, connection: psycopg.Connection[Any], app: str) -> None:
        for gid in self._left(connection, app):
            with contextlib.suppress(errors.UndefinedObject):  # its own owner was quicker
                connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))

    # --- for semel verify -----------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        return self._plain.rows()

    def canonical(self, value: bytes) -> bytes:
        return self._plain.canonical(value)

    def drop(self) -> None:
        """Also what is prepared and was never decided (a run of verify that was interrupted): it holds the tables, and
        would outlive them."""
        if self._sink.suffix:
            for gid in self.in_doubt():
                with contextlib.suppress(errors.UndefinedObject):
                    self._session.connected().execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
        self._plain.drop()

    def close(self) -> None:
        self._session.close()
