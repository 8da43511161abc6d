"""Cuts of one delivery to MariaDB, each in an XA transaction.

Invariant: as for Postgres, what is prepared has locked the position's row under the epoch of its claim and moves the
position over the cut. What MariaDB adds (each tried on 10.11): what is prepared belongs to its session until that
ends, and is unknown to every other one though XA RECOVER shows it (1397, the answer after a commit and after a
rollback, too); a session with something prepared can do nothing else; a failed statement does not fail the
transaction, so whatever fails takes it back; and names are the server's, so a mark of the control table ends them (a
format id of its own does not tell two apart).
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pymysql

from semel.contract import Attempt, Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks.mariadb_connection import _OURS, REFUSED, MariaDBConnection, brief, code
from semel.sinks.mariadb_tables import execute, one
from semel.sinks.rows import Delete, Upsert, split
from semel.sinks.sink import Diverged, RowRefused, SinkError
from semel.sinks.two_phase import attempt_in, delivery_prefix, name_of, prefix, settling

if TYPE_CHECKING:
    from semel.sinks.mariadb import MariaDB

PART_BYTES = 64  # of a name: it has two parts
UNKNOWN_XID, IN_USE = 1397, 1440
TRIES = 3
LOOK_S = 0.02


class PreparedConnection:
    """See `ports.TwoPhaseConnection`. `_plain` connects, judges, claims and writes rows: this is its other half."""

    def __init__(self, sink: MariaDB, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._plain = MariaDBConnection(sink, steps)
        self._control = self._plain._control
        # Two databases of one server may hold deliveries of one name; nobody settles the other's.
        self._ending = f"@{zlib.crc32(self._control.encode()):08x}"

    def prepare(self, value_type: object) -> Done | NotDone:
        return self._plain.prepare(value_type)

    def notes(self) -> Sequence[str]:
        notes = [*self._plain.notes()]
        logs = self._plain._trying(lambda c: one(c, "SELECT @@log_bin")[0])
        if logs == 1:
            notes.append(
                f"{self._sink.where}: the binary log is on: MariaDB does not write prepared transactions to it in a "
                "way that survives its own crash (MDEV-21469), so a replica can hold something else afterwards than "
                "this server. Where replicas matter, use MariaDB(…)."
            )
        return notes

    # --- names ----------------------------------------------------------------------------------------------------

    def _prefix(self, delivery: DeliveryId) -> str:
        return prefix(delivery, self._sink.where, 2 * PART_BYTES - len(self._ending))

    def _xid(self, delivery: DeliveryId, attempt: Attempt) -> str:
        self._prefix(delivery)
        return self._spelled(name_of(delivery, attempt, self._sink.where))

    def _spelled(self, what: str) -> str:
        name = (what + self._ending).encode()
        return f"X'{name[:PART_BYTES].hex()}', X'{name[PART_BYTES:].hex()}'"

    def _prepared(self, connection: Any) -> list[str]:
        """Names of this control table's, without their ending."""
        found = [bytes(row[3]).decode("utf-8", "replace") for row in execute(connection, "XA RECOVER").fetchall()]
        return [name.removesuffix(self._ending) for name in found if name.endswith(self._ending)]

    # --- the claim ------------------------------------------------------------------------------------------------

    def take_over(
        self, delivery: DeliveryId, log: LogIdentity, latest: Attempt, decided: bool
    ) -> Claim | NotDone | Fenced:
        self._prefix(delivery)
        claim: Claim | NotDone = NotDone("")
        for _ in range(TRIES):
            settled = self._plain._trying(lambda c: self._settled(c, delivery, latest, decided))
            if settled is not None:
                return settled
            claim = self._plain.claim(delivery, log)
            if isinstance(claim, Claim):
                return claim
        return claim

    def _settled(
        self, connection: Any, delivery: DeliveryId, latest: Attempt, decided: bool
    ) -> Fenced | NotDone | None:
        start = self._prefix(delivery)
        attempts = [one for name in self._prepared(connection) if (one := attempt_in(name, start)) is not None]
        plan = settling(attempts, latest, decided)
        if plan.later:
            name = name_of(delivery, plan.later[0], self._sink.where)
            return Fenced(f"{self._sink.where}: {name} is prepared, of a later owner than the log tells")
        for settled, what in ((plan.roll_back, "XA ROLLBACK"), (plan.commit, "XA COMMIT")):
            for attempt in settled:
                if (left := self._let_go(connection, delivery, attempt, what)) is not None:
                    return left
        return None

    def _let_go(self, connection: Any, delivery: DeliveryId, attempt: Attempt, what: str) -> NotDone | None:
        """Settles what may belong to a session that lives: ends that session, which lets go of it in a moment."""
        deadline = time.monotonic() + self._sink.hand_over_s / 4
        said = ""
        while True:
            try:
                execute(connection, f"{what} {self._xid(delivery, attempt)}")
                return None
            except pymysql.MySQLError as why:
                if code(why) not in (UNKNOWN_XID, IN_USE):
                    raise
            if name_of(delivery, attempt, self._sink.where) not in self._prepared(connection):
                return None  # another one has settled it: the position tells how
            said = said or self._plain._put_out(delivery)
            if time.monotonic() > deadline:
                return NotDone(said)
            time.sleep(LOOK_S)

    # --- a cut ----------------------------------------------------------------------------------------------------

    def prepare_cut(self, claim: Claim, attempt: Attempt, run: str, rows: Sequence[Row]) -> Outcome:
        assert attempt.start < attempt.end, attempt
        plain = self._plain
        connection = plain._connection
        if connection is None or not connection.open or claim.delivery not in plain._claimed:
            return NotDone(f"{self._sink.where}: the connection of the claim is gone")
        assert plain._shape is not None, "a claim comes before a cut"
        upserts, deletes = split(plain._shape, rows)
        xid = self._xid(claim.delivery, attempt)
        try:
            fenced = self._write(connection, xid, claim, attempt, run, upserts, deletes)
        except pymysql.MySQLError as why:
            self._taken_back(connection, xid)
            if code(why) in REFUSED and connection.open:
                plain._refuse(connection, upserts, deletes, why)
            return plain._not_done(why)
        except RowRefused:
            self._taken_back(connection, xid)
            raise
        if fenced is not None:
            return fenced
        self._steps.reached(Step.PREPARE_BEFORE)
        try:
            execute(connection, f"XA PREPARE {xid}")
        except pymysql.MySQLError as why:
            if not connection.open or code(why) >= 2000:  # the client's own: no answer
                plain.close()
                return Unknown(f"{self._sink.where}: XA PREPARE was not answered: {brief(why)}")
            self._taken_back(connection, xid)
            return plain._not_done(why)
        self._steps.reached(Step.PREPARE_AFTER)
        return Done()

    def _taken_back(self, connection: Any, xid: str) -> None:
        """Of a transaction that is not prepared. A connection that cannot even do that is given up, and it with it."""
        with contextlib.suppress(pymysql.MySQLError):
            execute(connection, f"XA END {xid}")
        try:
            execute(connection, f"XA ROLLBACK {xid}")
        except pymysql.MySQLError:
            self._plain.close()

    def _write(
        self,
        connection: Any,
        xid: str,
        claim: Claim,
        attempt: Attempt,
        run: str,
        upserts: Sequence[Upsert],
        deletes: Sequence[Delete],
    ) -> Fenced | None:
        execute(connection, f"XA START {xid}")
        # First, so that nothing is written while a claim could pass; and it is what the claim waits for.
        moved = execute(
            connection,
            f"UPDATE {self._control} SET `position` = %s, run = %s, updated = now(6) {_OURS} "
            "AND epoch = %s AND `position` = %s",
            attempt.end, run, *_who(claim), claim.epoch, attempt.start,
        ).rowcount  # fmt: skip
        if moved != 1:
            self._taken_back(connection, xid)
            said = self._plain._trying(lambda c: self._stands(c, claim, "")[1])
            return Fenced(f"{self._sink.where}: {said}; ours was epoch {claim.epoch}, position {attempt.start}")
        self._steps.reached(Step.ROWS_BEFORE)
        self._plain._rows(connection, upserts, deletes)
        self._steps.reached(Step.ROWS_AFTER)
        execute(connection, f"XA END {xid}")
        return None

    def commit_cut(self, claim: Claim, attempt: Attempt) -> Outcome:
        try:
            connection = self._plain._connected()
        except pymysql.MySQLError as why:
            return self._plain._not_done(why)
        name = name_of(claim.delivery, attempt, self._sink.where)
        try:
            execute(connection, f"XA COMMIT {self._xid(claim.delivery, attempt)}")
            return Done()
        except pymysql.MySQLError as why:
            if not connection.open or code(why) >= 2000:
                self._plain.close()
                return Unknown(f"{self._sink.where}: XA COMMIT was not answered: {brief(why)}")
            if code(why) not in (UNKNOWN_XID, IN_USE):
                return self._plain._not_done(why)
        # Committed before, rolled back, or of a session of ours that the server believes to live: one answer for all.
        there = self._plain._trying(lambda c: self._after(c, claim, name))
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
            f"{self._sink.where}: the log has decided {name}, which is not prepared, and {said}: somebody rolled it "
            "back by hand, or the database was put back from a backup. Nothing more is delivered. Put back the newer "
            "one."
        )

    def _after(self, connection: Any, claim: Claim, name: str) -> tuple[tuple[int, int], str] | NotDone:
        if name in self._prepared(connection):
            return NotDone(self._plain._put_out(claim.delivery))
        # Behind whoever commits it just now.
        return self._stands(connection, claim, " LOCK IN SHARE MODE")

    def _stands(self, connection: Any, claim: Claim, lock: str) -> tuple[tuple[int, int], str]:
        """Epoch and position as committed, and in words."""
        row = execute(
            connection, f"SELECT epoch, `position`, holder FROM {self._control} {_OURS}{lock}", *_who(claim)
        ).fetchone()
        if row is None:
            return (-1, -1), "its position is gone"
        return (row[0], row[1]), "epoch {}, position {}, held by {}".format(*row)

    def abandon(self, claim: Claim, attempt: Attempt) -> None:
        with contextlib.suppress(pymysql.MySQLError, SinkError):
            execute(self._plain._connected(), f"XA ROLLBACK {self._xid(claim.delivery, attempt)}")

    def in_doubt(self) -> Sequence[str]:
        return self._prepared(self._plain._connected())

    # --- for `semel sink` -----------------------------------------------------------------------------------------

    def left(self, app: str) -> Sequence[str] | NotDone:
        return self._plain._trying(lambda c: self._left(c, app))

    def _left(self, connection: Any, app: str) -> list[str]:
        start = delivery_prefix(app, self._sink.name)
        return [name for name in self._prepared(connection) if name.startswith(start)]

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        return self._plain.remembered(app)

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        outcome: Outcome = NotDone("")
        for _ in range(TRIES):  # a former owner can prepare once more before the row is ours
            swept = self._plain._trying(lambda c: self._swept(c, app))
            if isinstance(swept, NotDone):
                return swept
            outcome = self._plain.move(app, seen, to)
            if not isinstance(outcome, NotDone):
                return outcome
        return outcome

    def _swept(self, connection: Any, app: str) -> NotDone | None:
        for name in self._left(connection, app):
            partition = name.removeprefix(delivery_prefix(app, self._sink.name)).partition(":")[0]
            delivery = DeliveryId(app, self._sink.name, int(partition))
            attempt = attempt_in(name, self._prefix(delivery))
            if attempt is None:
                continue
            if (waits := self._let_go(connection, delivery, attempt, "XA ROLLBACK")) is not None:
                return waits
        return None

    # --- for semel verify -----------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        return self._plain.rows()

    def canonical(self, value: bytes) -> bytes:
        return self._plain.canonical(value)

    def drop(self) -> None:
        """Also what is prepared and was never decided (a run of verify that was interrupted): it holds the tables, and
        would outlive them."""
        if self._sink.suffix:
            connection = self._plain._connected()
            for name in self._prepared(connection):
                with contextlib.suppress(pymysql.MySQLError):  # gone, or of a session that ends in a moment
                    execute(connection, f"XA ROLLBACK {self._spelled(name)}")
        self._plain.drop()

    def close(self) -> None:
        self._plain.close()


def _who(claim: Claim) -> tuple[str, str, int]:
    return claim.delivery.app, claim.delivery.sink, claim.delivery.partition
