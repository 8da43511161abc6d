"""One connection of one delivery to Postgres: claim, write, and what the server says in between.

Invariant: rows and position change in one transaction, which first locks the position's row. So a claim, which locks
it too, returns only when nothing of a former owner is undecided; and a former owner that has stopped in the middle is
ended by the claimer, through the backend recorded in the row (FAULTS S14).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, LiteralString, TypeVar

import psycopg
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row

from semel.contract import Claim, DeliveryId, LogIdentity, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks import positions
from semel.sinks.columns import Column, canonical_row, columns_of, decode
from semel.sinks.postgres_types import POSTGRES, converts, found
from semel.sinks.rows import Delete, Shape, Upsert, split
from semel.sinks.schema import Found, created, judged
from semel.sinks.sink import RowRefused, SinkError

if TYPE_CHECKING:
    from semel.sinks.postgres import Postgres

COPY_ROWS_MIN = 100  # below this, statements in a pipeline are quicker than COPY and a merge
REFUSED = ("22", "23", "21")  # SQLSTATE classes: the value itself is what the table will not take
HUMAN = ("28", "3D", "3F", "42", "0A")  # rights, a missing database, schema, table or column: waiting mends nothing
# Server messages at connecting that waiting does not mend; libpq tells no SQLSTATE there.
HOPELESS = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")

Answer = TypeVar("Answer")


class _Bounded(psycopg.Connection[Any]):
    """Waits for each answer at most `bound_s`: a server that was stopped, or a middleman that froze, keeps the
    connection open and would be waited for without end."""

    bound_s = 60.0

    def wait(self, gen: Generator[Any, Any, Answer], *more: Any, **said: Any) -> Answer:
        return super().wait(self._bounded(gen), *more, **said)

    def _bounded(self, gen: Generator[Any, Any, Answer]) -> Generator[Any, Any, Answer]:
        deadline = time.monotonic() + self.bound_s
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted  # 0 every tenth of a second in which nothing came
                if not ready and time.monotonic() > deadline:
                    self.close()
                    raise psycopg.OperationalError(f"no answer within {self.bound_s:.0f} s")
                wanted = gen.send(ready)
        except StopIteration as done:
            answer: Answer = done.value
            return answer


class PostgresConnection:
    """See `ports.SinkConnection`."""

    def __init__(self, sink: Postgres, steps: Steps) -> None:
        self._sink = sink
        self._steps = steps
        self._value_type: object = None
        self._connection: psycopg.Connection[Any] | None = None
        self._shape: Shape | None = None
        # The first epoch of each delivery that was claimed on this connection. A claim names its backend, by which
        # its successor can end it; so a claim made on another connection is not written under.
        self._claimed: dict[DeliveryId, int] = {}
        self._notes: list[str] = []
        self._table = sql.Identifier(*filter(None, (sink.schema, sink.table_name + sink.suffix)))
        control = positions.TABLE + sink.suffix
        self._control = sql.Identifier(*filter(None, (sink.schema, control)))
        self._control_text = ".".join(filter(None, (sink.schema, control)))

    # --- connecting -----------------------------------------------------------------------------------------------

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        self._connection = None
        bound_ms = round(self._sink.hand_over_s * 1000)
        try:
            said = conninfo_to_dict(self._sink.dsn)
        except psycopg.ProgrammingError as why:
            raise SinkError(f"{self._sink.where}: the connection string cannot be read: {_brief(why)}.") from None
        ours: dict[str, str] = {
            "connect_timeout": str(max(2, bound_ms // 2000)),
            "keepalives_idle": "2",
            "keepalives_interval": "2",
            "keepalives_count": "3",
            "tcp_user_timeout": str(bound_ms),
            "application_name": f"semel {self._sink.name} {positions.here()}"[:63],
        }
        ours.update({name: str(value) for name, value in said.items()})
        try:
            connection = _Bounded.connect(make_conninfo(**ours), autocommit=True, row_factory=tuple_row)
            # Past the server's own bounds, which tell more.
            connection.bound_s = 1.0 + 1.5 * self._sink.hand_over_s
            # A statement, a lock and a silence inside a transaction all end below the hand-over time: an owner that
            # has stopped is put out by the server even when nobody comes to claim.
            settings = {
                "idle_in_transaction_session_timeout": bound_ms // 2,
                "statement_timeout": bound_ms,
                "lock_timeout": bound_ms // 5,
                "tcp_keepalives_idle": 2,
                "tcp_keepalives_interval": 2,
                "tcp_keepalives_count": 3,
                "tcp_user_timeout": bound_ms,
                "default_transaction_isolation": "read committed",
                "TimeZone": "UTC",
            }
            if _one(connection, "SHOW synchronous_commit")[0] == "off":
                settings["synchronous_commit"] = "on"
            for name, value in settings.items():
                connection.execute("SELECT set_config(%s, %s, false)", (name, str(value)))
        except psycopg.OperationalError as why:
            text = _brief(why)
            if any(sign in text for sign in HOPELESS) and "starting up" not in text:
                raise SinkError(f"{self._sink.where} refuses us: {text}.") from None
            raise
        self._connection = connection
        self._shape = None  # perhaps another server than the one looked at before
        self._claimed.clear()
        return connection

    def _trying(self, what: Callable[[psycopg.Connection[Any]], Answer]) -> Answer | NotDone:
        """`what` on a connection; a server that is away or busy is NotDone, what only a person can mend SinkError."""
        try:
            connection = self._connected()
            return what(connection)
        except psycopg.Error as why:
            self._rolled_back()
            return self._not_done(why)

    def _not_done(self, why: psycopg.Error) -> NotDone:
        state = why.sqlstate or ""
        if state[:2] in HUMAN:
            raise SinkError(f"{self._sink.where}: {_brief(why)} (SQLSTATE {state}).") from None
        bound = ""
        if isinstance(why, errors.QueryCanceled):
            bound = f" (a statement is given hand_over_s={self._sink.hand_over_s:g} s)"
        return NotDone(f"{self._sink.where}: {_brief(why)}{bound}")

    def _rolled_back(self) -> None:
        """Ends the open transaction; a connection that cannot even do that is given up."""
        connection = self._connection
        if connection is None or connection.closed:
            return
        try:
            connection.rollback()
        except psycopg.Error:
            connection.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    # --- the tables -----------------------------------------------------------------------------------------------

    def prepare(self, value_type: object) -> Done | NotDone:
        self._value_type = value_type if self._sink.value_type is None else self._sink.value_type
        outcome = self._trying(self._prepare)
        return outcome if isinstance(outcome, NotDone) else Done()

    def _prepare(
        self, connection: psycopg.Connection[Any], delivery: DeliveryId | None = None, log: LogIdentity | None = None
    ) -> None:
        sink = self._sink
        wanted = columns_of(self._value_type, sink.where)
        if strange := [column.name for column in wanted or () if "%" in column.name]:  # marks parameters in psycopg
            raise SinkError(f"{sink.where}: the field {strange[0]!r} has a per cent sign in its name. Rename it.")
        if wanted is not None:
            for field in sink.key or ():
                if field not in {column.name for column in wanted}:
                    raise SinkError(f"{sink.where}: key {field!r} is no field of {self._value_type!r}.")
        with connection.transaction():
            # Two workers start at once: `CREATE TABLE IF NOT EXISTS` alone would fail for one of them.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('semel prepare'))")
            if not self._exists(connection, self._control):
                connection.execute(
                    sql.SQL(
                        "CREATE TABLE {} (app text, sink text, partition int, epoch bigint NOT NULL, "
                        "position bigint NOT NULL, run text NOT NULL, topic_id text NOT NULL, partitions int NOT NULL, "
                        "incarnation int NOT NULL, holder text NOT NULL, holder_pid int NOT NULL, "
                        "holder_since timestamptz NOT NULL, updated timestamptz NOT NULL, "
                        "PRIMARY KEY (app, sink, partition))"
                    ).format(self._control)
                )
            if not self._exists(connection, self._table):
                if self._delivered(connection, delivery, log):
                    return  # whose the positions are, the claim knows
                self._create(connection, wanted)
        self._kept(connection, self._control)
        self._kept(connection, self._table)
        there = self._found(connection)
        columns = judged(POSTGRES, sink.where, there, wanted, sink.key, self._unique(connection))
        self._shape = Shape(columns, converts(columns, there), sink.key, sink.where)
        self._notes = list(self._weaknesses(connection))

    def _delivered(
        self, connection: psycopg.Connection[Any], delivery: DeliveryId | None, log: LogIdentity | None
    ) -> bool:
        who = (self._sink.name, delivery and delivery.app)
        found = connection.execute(
            sql.SQL(
                "SELECT partition, position FROM {} WHERE sink = %s AND app = coalesce(%s, app) AND position > 0 "
                "ORDER BY partition"
            ).format(self._control),
            who,
        ).fetchall()
        if found and delivery is not None and log is not None:
            positions.table_gone(delivery, log, found, self._sink.where, self._control_text)
        return bool(found)

    def _create(self, connection: psycopg.Connection[Any], wanted: Sequence[Column] | None) -> None:
        sink = self._sink
        original = sql.Identifier(*filter(None, (sink.schema, sink.table_name)))
        if sink.suffix and self._exists(connection, original):
            # For `semel verify`, whose table is like the user's: one that rounds values or holds two keys for equal
            # must do so there, too.
            self._kept(connection, original)
            connection.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(self._table, original))
        elif wanted is not None:
            parts = [
                sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind))
                for name, kind in created(POSTGRES, wanted, sink.key)
            ]
            if sink.key is not None:
                parts.append(sql.SQL("PRIMARY KEY ({})").format(_names(sink.key)))
            connection.execute(sql.SQL("CREATE TABLE {} ({})").format(self._table, sql.SQL(", ").join(parts)))
        else:
            raise SinkError(
                f"{sink.where} does not exist, and the type of the values is not known here. "
                "Say it: Postgres(…, value=TYPE), or create the table."
            )

    def _exists(self, connection: psycopg.Connection[Any], table: sql.Identifier) -> bool:
        found: bool = _one(connection, "SELECT to_regclass(%s) IS NOT NULL", table.as_string(connection))[0]
        return found

    def _kept(self, connection: psycopg.Connection[Any], table: sql.Identifier) -> None:
        """Refuses what Postgres empties after its own crash while the position stays, or keeps somewhere else."""
        text = table.as_string(connection)
        kind, persistence = _one(
            connection, "SELECT relkind::text, relpersistence::text FROM pg_class WHERE oid = to_regclass(%s)", text
        )
        if kind not in ("r", "p"):
            raise SinkError(f"{self._sink.where}: {text} is no table (pg_class.relkind {kind!r}). Name a table.")
        if persistence != "p":
            raise SinkError(
                f"{self._sink.where}: {text} is UNLOGGED or TEMPORARY: Postgres empties it after its own crash and the "
                f"other one of rows and positions stays. ALTER TABLE {text} SET LOGGED."
            )

    def _found(self, connection: psycopg.Connection[Any]) -> list[Found]:
        return [
            found(*row)
            for row in connection.execute(
                "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), "
                "CASE WHEN b.typtype = 'e' THEN 'enum' ELSE b.typname::text END, "
                "format_type(b.oid, CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END), "
                "a.attnotnull OR t.typnotnull, "
                "a.atthasdef OR a.attidentity <> '', a.attgenerated <> '' OR a.attidentity = 'a', "
                "coalesce(c.collisdeterministic, true) "
                "FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
                "JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END "
                "LEFT JOIN pg_collation c ON c.oid = a.attcollation "
                "WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
                (self._table.as_string(connection),),
            )
        ]

    def _unique(self, connection: psycopg.Connection[Any]) -> list[frozenset[str]]:
        """The column sets of the unique indexes that ON CONFLICT can use."""
        return [
            frozenset(row[0])
            for row in connection.execute(
                "SELECT array_agg(a.attname::text) FROM pg_index i "
                "JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k(num, place) ON place <= i.indnkeyatts "
                "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num "
                "WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indisvalid AND i.indimmediate "
                "AND i.indpred IS NULL AND i.indexprs IS NULL GROUP BY i.indexrelid",
                (self._table.as_string(connection),),
            )
        ]

    def _weaknesses(self, connection: psycopg.Connection[Any]) -> list[str]:
        where = self._sink.where
        notes = []
        if _one(connection, "SHOW fsync")[0] == "off":
            notes.append(f"{where}: fsync=off: what this server acknowledged is lost in a power cut.")
        if _one(connection, "SHOW full_page_writes")[0] == "off":
            notes.append(f"{where}: full_page_writes=off: a power cut can tear the server's pages.")
        if _one(connection, "SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'")[0] == "off":
            notes.append(f"{where}: synchronous_commit=off is the default here; semel's own session has set it to on.")
        if _one(connection, "SELECT count(*) FROM pg_trigger WHERE tgrelid = to_regclass(%s) AND NOT tgisinternal",
                self._table.as_string(connection))[0]:  # fmt: skip
            notes.append(f"{where}: it has triggers; what they do outside this database is not part of the promise.")
        return notes

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    # --- the claim ------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        claimed: Claim | NotDone = NotDone("")
        # Each try waits for the row at most `lock_timeout`, a fifth of the hand-over time; after the first, whoever
        # holds it has been told to end.
        for _ in range(3):
            try:
                connection = self._connected()
                if self._shape is None:
                    self._prepare(connection, delivery, log)
                return self._claim(connection, delivery, log)
            except (errors.LockNotAvailable, errors.QueryCanceled):
                self._rolled_back()
                claimed = NotDone(self._put_out(delivery))
            except psycopg.Error as why:
                self._rolled_back()
                return self._not_done(why)
        return claimed

    def _claim(self, connection: psycopg.Connection[Any], delivery: DeliveryId, log: LogIdentity) -> Claim:
        who = (delivery.app, delivery.sink, delivery.partition)
        with connection.transaction():
            connection.execute(
                sql.SQL(
                    "INSERT INTO {t} SELECT %s, %s, %s, 0, 0, '', %s, %s, "
                    "coalesce((SELECT max(incarnation) FROM {t} WHERE app = %s AND sink = %s), 1), '', 0, now(), now() "
                    "ON CONFLICT DO NOTHING"
                ).format(t=self._control),
                (*who, log.topic_id, log.partitions, delivery.app, delivery.sink),
            )
            row = _one(
                connection,
                sql.SQL(
                    "UPDATE {} SET epoch = epoch + 1, holder = current_setting('application_name'), "
                    "holder_pid = pg_backend_pid(), updated = now(), "
                    "holder_since = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()) "
                    "WHERE app = %s AND sink = %s AND partition = %s RETURNING epoch, incarnation, position, run"
                ).format(self._control),
                *who,
            )
            stored = connection.execute(
                sql.SQL("SELECT partition, topic_id, partitions FROM {} WHERE app = %s AND sink = %s").format(
                    self._control
                ),
                (delivery.app, delivery.sink),
            )
            # Raising rolls back: a claim on another log leaves no trace.
            positions.same_log(
                delivery, log, (positions.Stored(*one) for one in stored), self._sink.where, self._control_text
            )
        self._claimed.setdefault(delivery, row[0])
        return Claim(delivery, epoch=row[0], incarnation=row[1], position=row[2], run=row[3], log=log)

    def _put_out(self, delivery: DeliveryId) -> str:
        """Ends the backend that the row names as its holder; says who it is."""
        try:
            connection = self._connected()
            found = connection.execute(
                sql.SQL(
                    "SELECT p.holder, p.holder_pid, a.pid IS NOT NULL, a.state FROM {} p LEFT JOIN pg_stat_activity a "
                    "ON a.pid = p.holder_pid AND a.backend_start = p.holder_since AND a.pid <> pg_backend_pid() "
                    "WHERE app = %s AND sink = %s AND partition = %s"
                ).format(self._control),
                (delivery.app, delivery.sink, delivery.partition),
            ).fetchone()
            holder = "an owner that never finished its first claim"
            if found is not None and found[0]:
                holder = f"{found[0]} (backend {found[1]}{', ' + found[3] if found[3] else ''})"
                if found[2]:
                    connection.execute("SELECT pg_terminate_backend(%s)", (found[1],))
        except psycopg.Error as why:
            self._rolled_back()
            return f"{self._sink.where}: the lock of partition {delivery.partition} is taken, and {_brief(why)}"
        return f"{self._sink.where}: partition {delivery.partition} is held by {holder}; it was told to end"

    # --- a batch --------------------------------------------------------------------------------------------------

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        assert start < end, (start, end)
        connection = self._connection
        if connection is None or connection.closed or claim.delivery not in self._claimed:
            return NotDone(f"{self._sink.where}: the connection of the claim is gone")
        assert self._claimed[claim.delivery] <= claim.epoch, (self._claimed, claim)
        assert self._shape is not None, "a claim comes before a write"
        upserts, deletes = split(self._shape, rows)
        try:
            fenced = self._write(connection, claim, start, end, run, upserts, deletes)
        except psycopg.Error as why:
            self._rolled_back()
            if _is_refusal(why):
                self._refuse(connection, upserts, deletes, why)
            return self._not_done(why)
        if fenced is not None:
            return fenced
        self._steps.reached(Step.SINK_BEFORE)
        try:
            status = connection.execute("COMMIT").statusmessage
        except psycopg.IntegrityError as why:  # a deferred constraint: the server has answered, it is not done
            self._rolled_back()
            raise RowRefused(f"a constraint checked at the commit refuses the batch: {_brief(why)}", start) from None
        except psycopg.Error as why:
            # The answer is lost, or it is one after which the transaction may still stand. Only a claim can tell.
            connection.close()
            return Unknown(f"{self._sink.where}: COMMIT of [{start}, {end}) was not answered: {_brief(why)}")
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
        assert self._shape is not None
        key, names = self._shape.key, [column.name for column in self._shape.columns]
        columns = _names(names)
        if deletes:
            match = sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in key or ())
            with connection.cursor() as cursor:
                cursor.executemany(
                    sql.SQL("DELETE FROM {} WHERE {}").format(self._table, match), [one.key for one in deletes]
                )
        if not upserts:
            return
        merge = (
            sql.SQL("") if key is None else sql.SQL(" ON CONFLICT ({}) DO ").format(_names(key)) + _update(names, key)
        )
        if len(upserts) < COPY_ROWS_MIN:
            places = sql.SQL(", ").join(sql.Placeholder() * len(names))
            insert = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(self._table, columns, places) + merge
            with connection.cursor() as cursor:
                cursor.executemany(insert, [one.values for one in upserts])
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
            for one in upserts:
                copy.write_row(one.values)
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
            self._rolled_back()
            if _is_refusal(refusal):
                raise RowRefused(_brief(refusal), offset) from None
            return
        self._rolled_back()
        raise SinkError(f"{self._sink.where} refuses a batch each of whose rows it accepts alone: {_brief(why)}.")

    # --- for semel verify -----------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        assert self._shape is not None, "prepare comes first"
        names = [column.name for column in self._shape.columns]
        found = self._connected().execute(sql.SQL("SELECT {} FROM {}").format(_names(names), self._table))
        return [canonical_row(self._shape.columns, dict(zip(names, row, strict=True))) for row in found]

    def canonical(self, value: bytes) -> bytes:
        assert self._shape is not None, "prepare comes first"
        return canonical_row(self._shape.columns, decode(value))

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only tables that it has named itself.")
        connection = self._connected()
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}, {}").format(self._table, self._control))


def _update(names: Sequence[str], key: Sequence[str]) -> sql.Composable:
    others = [name for name in names if name not in key]
    if not others:
        return sql.SQL("NOTHING")
    return sql.SQL("UPDATE SET ") + sql.SQL(", ").join(
        sql.SQL("{c} = excluded.{c}").format(c=sql.Identifier(name)) for name in others
    )


def _names(names: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _one(connection: psycopg.Connection[Any], query: LiteralString | sql.Composed, *parameters: object) -> Any:
    row = connection.execute(query, parameters).fetchone()
    assert row is not None, query
    return row


def _is_refusal(why: psycopg.Error) -> bool:
    # A DataError without SQLSTATE is the client's: a NUL in a text, which Postgres cannot hold.
    return (why.sqlstate or "")[:2] in REFUSED or (isinstance(why, psycopg.DataError) and why.sqlstate is None)


def _brief(why: psycopg.Error) -> str:
    """The server's first line; it never holds the password, which libpq does not print."""
    text = why.diag.message_primary or str(why).strip().split("\n")[0] or type(why).__name__
    return text.rstrip(".")
