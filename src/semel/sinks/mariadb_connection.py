"""One connection of one delivery to MariaDB: claim, write, and what the server says in between.

Invariant: rows and position change in one InnoDB transaction, which first locks the position's row. So a claim, which
locks it too, returns only when nothing of a former owner is undecided; and a former owner that has stopped in the
middle is ended by the server after a while, and by the claimer at once: its connection holds a lock of the name that
the row names (connection ids are used again after a restart of the server, these names never).
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pymysql
from pymysql.constants import CLIENT

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks import mariadb_tables, positions
from semel.sinks.columns import canonical_row, columns_of, decode
from semel.sinks.mariadb_tables import execute, literals_of, names, one, quoted
from semel.sinks.mariadb_types import committed, told
from semel.sinks.rows import Delete, Shape, Upsert, by_column, offsets, split
from semel.sinks.sink import RowRefused, SinkError

if TYPE_CHECKING:
    from semel.sinks.mariadb import MariaDB

STATEMENT_BYTES = 1_000_000  # rows are written in statements of about this size
OVERHEAD_BYTES = 10_000  # of a statement besides its rows
NOT_NULL, DUPLICATE, LOCK_WAIT, DEADLOCK = 1048, 1062, 1205, 1213
# The value itself is what the table will not take: null, duplicate, range, a text that does not fit, a foreign key.
REFUSED = {NOT_NULL, DUPLICATE, 1216, 1264, 1265, 1292, 1366, 1367, 1406, 1411, 1452, 1690, 4025, 4078}
# Rights, a wrong password, a missing database, table or column, a statement that cannot be read: waiting mends nothing.
HUMAN = {1044, 1045, 1049, 1054, 1064, 1142, 1143, 1146, 1227, 1364, 1370, 1698}

Answer = TypeVar("Answer")


class MariaDBConnection:
    """See `ports.SinkConnection`."""

    def __init__(self, sink: MariaDB, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._value_type: object = None
        self._connection: Any = None
        self._shape: Shape | None = None
        self._lock = ""  # a name that this connection alone holds
        self._packet_bytes = 0
        # The first epoch of each delivery that was claimed on this connection: see `postgres_session.py`.
        self._claimed: dict[DeliveryId, int] = {}
        self._notes: list[str] = []
        self._table = f"{quoted(sink.database)}.{quoted(sink.table_name + sink.suffix)}"
        self._control_name = positions.TABLE + sink.suffix
        self._control = f"{quoted(sink.database)}.{quoted(self._control_name)}"

    # --- connecting -----------------------------------------------------------------------------------------------

    def _connected(self) -> Any:
        if self._connection is not None and self._connection.open:
            return self._connection
        self._connection = None
        at, hand_over_s = self._sink.at, self._sink.hand_over_s
        connection: Any = pymysql.connect(
            host=at.host,
            port=at.port,
            user=at.user,
            password=at.password,
            database=at.database,
            charset="utf8mb4",
            binary_prefix=True,
            autocommit=True,
            client_flag=CLIENT.FOUND_ROWS,
            connect_timeout=max(1, round(hand_over_s / 2)),
            # Past the server's own bounds, which tell more.
            read_timeout=1.0 + 1.5 * hand_over_s,
            write_timeout=1.0 + 1.5 * hand_over_s,
            **at.options,
        )
        try:
            version = str(one(connection, "SELECT @@version")[0])
            if "MariaDB" not in version:
                raise SinkError(f"{self._sink.where}: this is a MySQL server ({version}), on which nothing was tried.")
            whole = max(1, int(hand_over_s / 2))
            # A statement, a lock and a silence inside a transaction all end below the hand-over time: an owner that
            # has stopped is put out by the server even when nobody comes to claim (FAULTS S14).
            for name, value in {
                "idle_transaction_timeout": whole,
                "innodb_lock_wait_timeout": max(1, int(hand_over_s / 5)),
                "lock_wait_timeout": whole,
                "max_statement_time": hand_over_s,
                "net_read_timeout": whole,
                "net_write_timeout": whole,
                "time_zone": "'+00:00'",
                "transaction_isolation": "'READ-COMMITTED'",
                # What does not fit is an error, not another value.
                "sql_mode": "'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,"
                "NO_ENGINE_SUBSTITUTION'",
            }.items():
                name = "tx_isolation" if name == "transaction_isolation" and version < "11" else name
                execute(connection, f"SET SESSION {name} = {value}")
            self._packet_bytes = one(connection, "SELECT @@max_allowed_packet")[0]
            connection.max_allowed_packet = self._packet_bytes
            self._lock = f"semel {uuid.uuid4().hex}"
            one(connection, "SELECT GET_LOCK(%s, 0)", self._lock)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._shape = None  # perhaps another server than the one looked at before
        self._claimed.clear()
        return connection

    def _trying(self, what: Callable[[Any], Answer]) -> Answer | NotDone:
        """`what` on a connection; a server that is away or busy is NotDone, what only a person can mend SinkError."""
        try:
            return what(self._connected())
        except pymysql.MySQLError as why:
            self._rolled_back()
            return self._not_done(why)

    def _not_done(self, why: pymysql.MySQLError) -> NotDone:
        if code(why) in HUMAN:
            raise SinkError(f"{self._sink.where}: {brief(why)} (error {code(why)}).") from None
        return NotDone(f"{self._sink.where}: {brief(why)}")

    def _rolled_back(self) -> None:
        """Ends the open transaction; a connection that cannot even do that is given up."""
        if self._connection is None or not self._connection.open:
            return
        try:
            self._connection.rollback()
        except pymysql.MySQLError:
            self.close()

    def close(self) -> None:
        if self._connection is not None and self._connection.open:
            with contextlib.suppress(pymysql.MySQLError, OSError):
                self._connection.close()

    # --- the tables -----------------------------------------------------------------------------------------------

    def prepare(self, value_type: object) -> Done | NotDone:
        self._value_type = value_type if self._sink.value_type is None else self._sink.value_type
        outcome = self._trying(self._prepare)
        return outcome if isinstance(outcome, NotDone) else Done()

    def _prepare(self, connection: Any, asked: mariadb_tables.Asked = None) -> None:
        sink = self._sink
        wanted = columns_of(self._value_type, sink.where)
        for field in sink.key or () if wanted is not None else ():
            if field not in {column.name for column in wanted or ()}:
                raise SinkError(f"{sink.where}: key {field!r} is no field of {self._value_type!r}.")
        # Two workers start at once.
        lock = f"semel prepare {sink.database}"[:60]
        if one(connection, "SELECT GET_LOCK(%s, %s)", lock, max(1, int(sink.hand_over_s / 2)))[0] != 1:
            raise pymysql.OperationalError(LOCK_WAIT, "another worker is preparing the tables")
        try:
            if not mariadb_tables.create(connection, sink, self._control_name, wanted, asked):
                return
            self._shape = mariadb_tables.judge(connection, sink, self._control_name, wanted)
            self._notes = mariadb_tables.weaknesses(connection, sink)
        finally:
            if connection.open:
                one(connection, "SELECT RELEASE_LOCK(%s)", lock)

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    # --- the claim ------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        claimed: Claim | NotDone = NotDone("")
        # Each try waits for the row a fifth of the hand-over time; after the first, whoever holds it was told to end.
        for _ in range(3):
            try:
                connection = self._connected()
                if self._shape is None:
                    self._prepare(connection, (delivery, log))
                return self._claim(connection, delivery, log)
            except pymysql.MySQLError as why:
                self._rolled_back()
                if code(why) not in (LOCK_WAIT, DEADLOCK):
                    return self._not_done(why)
                claimed = NotDone(self._put_out(delivery))
        return claimed

    def _claim(self, connection: Any, delivery: DeliveryId, log: LogIdentity) -> Claim:
        who = (delivery.app, delivery.sink, delivery.partition)
        execute(connection, "BEGIN")
        incarnation = one(
            connection,
            f"SELECT coalesce(max(incarnation), 1) FROM {self._control} WHERE app = %s AND sink = %s",
            *who[:2],
        )[0]
        execute(
            connection,
            f"INSERT INTO {self._control} (app, sink, `partition`, epoch, `position`, run, topic_id, partitions, "
            "incarnation, holder, holder_lock, updated) VALUES (%s, %s, %s, 0, 0, '', %s, %s, %s, '', '', now(6)) "
            "ON DUPLICATE KEY UPDATE updated = now(6)",
            *who, log.topic_id, log.partitions, incarnation,
        )  # fmt: skip
        execute(
            connection,
            f"UPDATE {self._control} SET epoch = epoch + 1, holder = %s, holder_lock = %s {_OURS}",
            positions.here(), self._lock, *who,
        )  # fmt: skip
        epoch, incarnation, position, run = one(
            connection, f"SELECT epoch, incarnation, `position`, run FROM {self._control} {_OURS}", *who
        )
        stored = execute(
            connection,
            f"SELECT `partition`, topic_id, partitions FROM {self._control} WHERE app = %s AND sink = %s",
            *who[:2],
        ).fetchall()
        try:
            positions.same_log(delivery, log, [positions.Stored(*one) for one in stored], self._sink.where)
        except SinkError:  # a claim on another log leaves no trace
            self._rolled_back()
            raise
        execute(connection, "COMMIT")
        self._claimed.setdefault(delivery, epoch)
        return Claim(delivery, epoch=epoch, incarnation=incarnation, position=position, run=run, log=log)

    def _put_out(self, delivery: DeliveryId) -> str:
        """Ends the connection that holds the lock which the row names; says who it is."""
        who = (delivery.app, delivery.sink, delivery.partition)
        try:
            connection = self._connected()
            found = execute(
                connection, f"SELECT holder, IS_USED_LOCK(nullif(holder_lock, '')) FROM {self._control} {_OURS}", *who
            ).fetchone()
            holder = "an owner that never finished its first claim"
            if found is not None and found[0]:
                holder = found[0]
                if found[1] is not None and found[1] != connection.thread_id():
                    holder += f" (connection {found[1]})"
                    execute(connection, f"KILL CONNECTION {int(found[1])}")
        except pymysql.MySQLError as why:
            self._rolled_back()
            return f"{self._sink.where}: the lock of partition {delivery.partition} is taken, and {brief(why)}"
        return f"{self._sink.where}: partition {delivery.partition} is held by {holder}; it was told to end"

    # --- a batch --------------------------------------------------------------------------------------------------

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        assert start < end, (start, end)
        connection = self._connection
        if connection is None or not connection.open or claim.delivery not in self._claimed:
            return NotDone(f"{self._sink.where}: the connection of the claim is gone")
        assert self._claimed[claim.delivery] <= claim.epoch, (self._claimed, claim)
        assert self._shape is not None, "a claim comes before a write"
        upserts, deletes = split(self._shape, rows)
        try:
            fenced = self._write(connection, claim, start, end, run, upserts, deletes)
        except pymysql.MySQLError as why:
            self._rolled_back()
            if code(why) in REFUSED:
                self._refuse(connection, upserts, deletes, why)
            return self._not_done(why)
        except RowRefused:
            self._rolled_back()
            raise
        if fenced is not None:
            return fenced
        self._steps.reached(Step.SINK_BEFORE)
        try:
            execute(connection, "COMMIT")
        except pymysql.MySQLError as why:
            # The answer is lost, or it is one after which the transaction may still stand. Only a claim can tell.
            self.close()
            return Unknown(f"{self._sink.where}: COMMIT of [{start}, {end}) was not answered: {brief(why)}")
        self._steps.reached(Step.SINK_AFTER)
        return Done()

    def _write(
        self,
        connection: Any,
        claim: Claim,
        start: int,
        end: int,
        run: str,
        upserts: Sequence[Upsert],
        deletes: Sequence[Delete],
    ) -> Fenced | None:
        who = (claim.delivery.app, claim.delivery.sink, claim.delivery.partition)
        execute(connection, "BEGIN")
        # The lock only: rows are never written while a claim could pass. What decides is the UPDATE below.
        execute(connection, f"SELECT epoch FROM {self._control} {_OURS} FOR UPDATE", *who)
        self._steps.reached(Step.ROWS_BEFORE)
        self._rows(connection, upserts, deletes)
        self._steps.reached(Step.ROWS_AFTER)
        self._steps.reached(Step.POSITION_BEFORE)
        moved = execute(
            connection,
            f"UPDATE {self._control} SET `position` = %s, run = %s, updated = now(6) {_OURS} "
            "AND epoch = %s AND `position` = %s",
            end, run, *who, claim.epoch, start,
        ).rowcount  # fmt: skip
        self._steps.reached(Step.POSITION_AFTER)
        if moved == 1:
            return None
        there = execute(connection, f"SELECT epoch, `position`, holder FROM {self._control} {_OURS}", *who).fetchone()
        self._rolled_back()
        said = "its position is gone" if there is None else "epoch {}, position {}, held by {}".format(*there)
        return Fenced(f"{self._sink.where}: {said}; ours was epoch {claim.epoch}, position {start}")

    def _rows(self, connection: Any, upserts: Sequence[Upsert], deletes: Sequence[Delete]) -> None:
        """All rows of a batch, inside the caller's transaction. Each key is in one of the two, once."""
        assert self._shape is not None
        key, fields = self._shape.key, [column.name for column in self._shape.columns]
        if deletes:
            before, after = f"DELETE FROM {self._table} WHERE ({names(key or ())}) IN (", ")"
            keys = list(zip(*(one.key for one in deletes)))
            for statement in self._statements(connection, before, [d.offset for d in deletes], keys, after):
                execute(connection, statement)
        if upserts:
            before, after = f"INSERT INTO {self._table} ({names(fields)}) VALUES ", ""
            if key is not None:
                # A field that changes nothing stands for DO NOTHING, where there are no fields besides the key's.
                changed = [name for name in fields if name not in key] or list(key[:1])
                changes = ", ".join(f"{quoted(name)} = VALUES({quoted(name)})" for name in changed)
                after = f" ON DUPLICATE KEY UPDATE {changes}"
            for statement in self._statements(connection, before, offsets(upserts), by_column(upserts), after):
                cursor = execute(connection, statement)
                if cursor.warning_count:  # a second lock: what was checked before should not come to this
                    self._no_other_value(connection)

    def _statements(
        self, connection: Any, before: str, offsets: Sequence[int], columns: Sequence[Sequence[object]], after: str
    ) -> Iterator[bytes]:
        """Statements with all rows as literals, none larger than the server takes."""
        head, tail = before.encode(), after.encode()
        parts: list[bytes] = []
        size = 0
        for offset, literals in zip(offsets, zip(*(literals_of(connection, column) for column in columns))):
            part = ("(" + ", ".join(literals) + ")").encode("utf-8", "surrogateescape")
            if len(part) + OVERHEAD_BYTES > self._packet_bytes:
                raise RowRefused(f"it has {len(part):,} bytes; max_allowed_packet is {self._packet_bytes:,}", offset)
            if parts and size + len(part) > min(STATEMENT_BYTES, self._packet_bytes - OVERHEAD_BYTES):
                yield head + b", ".join(parts) + tail
                parts, size = [], 0
            parts.append(part)
            size += len(part) + 2
        yield head + b", ".join(parts) + tail

    def _no_other_value(self, connection: Any) -> None:
        for _, number, text in connection.show_warnings():
            if number in REFUSED:
                raise pymysql.DataError(number, text)

    def _refuse(
        self, connection: Any, upserts: Sequence[Upsert], deletes: Sequence[Delete], why: pymysql.MySQLError
    ) -> None:
        """Finds the row that the server refuses by trying each alone, in a transaction that is rolled back, and
        raises RowRefused."""
        offset = -1
        try:
            execute(connection, "BEGIN")
            for delete in deletes:
                offset = delete.offset
                self._rows(connection, [], [delete])
            for upsert in upserts:
                offset = upsert.offset
                self._rows(connection, [upsert], [])
        except pymysql.MySQLError as refusal:
            self._rolled_back()
            if code(refusal) in REFUSED:
                raise RowRefused(brief(refusal), offset) from None
            return
        self._rolled_back()
        raise SinkError(f"{self._sink.where} refuses a batch each of whose rows it accepts alone: {brief(why)}.")

    # --- for `semel sink` -----------------------------------------------------------------------------------------

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        return self._trying(lambda connection: self._remembered(connection, app))

    def _remembered(self, connection: Any, app: str, lock: str = "") -> list[Remembered]:
        if not mariadb_tables.there(connection, self._sink.database, self._control_name):
            return []
        found = execute(
            connection,
            "SELECT `partition`, epoch, incarnation, `position`, run, topic_id, partitions, holder, "
            f"date_format(updated, '%%Y-%%m-%%d %%H:%%i:%%s') FROM {self._control} "
            f"WHERE app = %s AND sink = %s ORDER BY `partition` {lock}",
            app,
            self._sink.name,
        ).fetchall()
        return [positions.remembered(row) for row in found]

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        outcome: Outcome = NotDone("")
        for _ in range(3):  # as a claim: whoever holds a row is told to end
            try:
                return self._move(self._connected(), app, seen, to)
            except pymysql.MySQLError as why:
                self._rolled_back()
                if code(why) not in (LOCK_WAIT, DEADLOCK):
                    return self._not_done(why)
                outcome = NotDone(self._put_out(DeliveryId(app, self._sink.name, seen[0].partition)))
        return outcome

    def _move(self, connection: Any, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        execute(connection, "BEGIN")
        if changed := positions.changed(seen, self._remembered(connection, app, "FOR UPDATE")):
            self._rolled_back()
            return Fenced(f"{self._sink.where}: {changed}")
        for row in to:
            execute(
                connection,
                f"INSERT INTO {self._control} (app, sink, `partition`, epoch, `position`, run, topic_id, partitions, "
                "incarnation, holder, holder_lock, updated) VALUES (%s, %s, %s, 1, %s, %s, %s, %s, %s, %s, '', now(6)) "
                "ON DUPLICATE KEY UPDATE epoch = epoch + 1, `position` = values(`position`), run = values(run), "
                "topic_id = values(topic_id), partitions = values(partitions), incarnation = values(incarnation), "
                "holder = values(holder), holder_lock = '', updated = values(updated)",
                app, self._sink.name, row.partition, row.position, row.run, row.log.topic_id, row.log.partitions,
                row.incarnation, positions.OPERATOR,
            )  # fmt: skip
        try:
            execute(connection, "COMMIT")
        except pymysql.MySQLError as why:
            self.close()
            return Unknown(f"{self._sink.where}: COMMIT was not answered: {brief(why)}")
        return Done()

    # --- for semel verify -----------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        assert self._shape is not None, "prepare comes first"
        columns = self._shape.columns
        found = execute(self._connected(), f"SELECT {names([c.name for c in columns])} FROM {self._table}").fetchall()
        return [
            canonical_row(columns, {c.name: told(c, value) for c, value in zip(columns, row, strict=True)})
            for row in found
        ]

    def canonical(self, value: bytes) -> bytes:
        assert self._shape is not None, "prepare comes first"
        fields = decode(value)
        columns = self._shape.columns
        return canonical_row(columns, {c.name: committed(c, fields.get(c.name)) for c in columns})

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only tables that it has named itself.")
        execute(self._connected(), f"DROP TABLE IF EXISTS {self._table}, {self._control}")


_OURS = "WHERE app = %s AND sink = %s AND `partition` = %s"


def code(why: pymysql.MySQLError) -> int:
    return why.args[0] if why.args and isinstance(why.args[0], int) else 0


def brief(why: pymysql.MySQLError) -> str:
    """The server's words; they never hold the password."""
    text = str(why.args[1]) if len(why.args) > 1 else str(why)
    return text.rstrip(".") or type(why).__name__
