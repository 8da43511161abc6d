"""One session with Postgres, for whichever contract: connecting, judging tables, and the claim.

Invariant: a claim locks the position's row, so it returns only when nothing that locks it is undecided; a former owner
that has stopped in the middle is ended by the claimer, through the backend recorded in the row (FAULTS S14).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, LiteralString, Protocol, TypeVar

import psycopg
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks import positions
from semel.sinks.columns import Column, columns_of
from semel.sinks.postgres_types import found
from semel.sinks.rows import Shape
from semel.sinks.schema import Found
from semel.sinks.sink import SinkError

REFUSED = ("22", "23", "21")  # SQLSTATE classes: the value itself is what the table will not take
HUMAN = ("28", "3D", "3F", "42", "0A")  # rights, a missing database, schema, table or column: waiting mends nothing
# Server messages at connecting that waiting does not mend; libpq tells no SQLSTATE there.
HOPELESS = ("authentication failed", "does not exist", "no pg_hba.conf entry", "no password supplied")

Answer = TypeVar("Answer")
Asked = tuple[DeliveryId, LogIdentity] | None  # who prepares, where it is a claim


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


class Declared(Protocol):
    """What a session reads of a declared sink."""

    dsn: str
    schema: str
    table_name: str
    suffix: str
    hand_over_s: float
    value_type: Any

    @property
    def name(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def key(self) -> tuple[str, ...] | None: ...


class PostgresSession:
    """`judge` looks at the sink's tables, or creates them, and returns the shape of a row; None where `create` made
    none. `versioned`: the rows carry incarnations, so a delivery that was never here begins above all that were."""

    def __init__(
        self,
        sink: Declared,
        judge: Callable[[psycopg.Connection[Any], Asked], Shape | None],
        *,
        versioned: bool = False,
    ) -> None:
        self._sink, self._judge = sink, judge
        self._versioned = versioned
        self.value_type: object = None
        self._connection: psycopg.Connection[Any] | None = None
        self.shape: Shape | None = None
        # The first epoch of each delivery that was claimed on this connection. A claim names its backend, by which
        # its successor can end it; so a claim made on another connection is not written under.
        self._claimed: dict[DeliveryId, int] = {}
        self.table = sql.Identifier(*filter(None, (sink.schema, sink.table_name + sink.suffix)))
        control = positions.TABLE + sink.suffix
        self.control = sql.Identifier(*filter(None, (sink.schema, control)))
        self.control_text = ".".join(filter(None, (sink.schema, control)))

    # --- connecting -----------------------------------------------------------------------------------------------

    def connected(self) -> psycopg.Connection[Any]:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        self._connection = None
        bound_ms = round(self._sink.hand_over_s * 1000)
        try:
            said = conninfo_to_dict(self._sink.dsn)
        except psycopg.ProgrammingError:  # libpq quotes what it cannot read, and the password with it
            raise SinkError(f"{self._sink.where}: the connection string cannot be read. {DSN_FORMS}") from None
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
            if one(connection, "SHOW synchronous_commit")[0] == "off":
                settings["synchronous_commit"] = "on"
            for name, value in settings.items():
                connection.execute("SELECT set_config(%s, %s, false)", (name, str(value)))
        except psycopg.OperationalError as why:
            text = brief(why)
            if any(sign in text for sign in HOPELESS) and "starting up" not in text:
                raise SinkError(f"{self._sink.where} refuses us: {text}.") from None
            raise
        self._connection = connection
        self.shape = None  # perhaps another server than the one looked at before
        self._claimed.clear()
        return connection

    def trying(self, what: Callable[[psycopg.Connection[Any]], Answer]) -> Answer | NotDone:
        """`what` on a connection; a server that is away or busy is NotDone, what only a person can mend SinkError."""
        try:
            connection = self.connected()
            return what(connection)
        except psycopg.Error as why:
            self.rolled_back()
            return self.not_done(why)

    def not_done(self, why: psycopg.Error) -> NotDone:
        state = why.sqlstate or ""
        if state[:2] in HUMAN:
            raise SinkError(f"{self._sink.where}: {brief(why)} (SQLSTATE {state}).") from None
        bound = ""
        if isinstance(why, errors.QueryCanceled):
            bound = f" (a statement is given hand_over_s={self._sink.hand_over_s:g} s)"
        return NotDone(f"{self._sink.where}: {brief(why)}{bound}")

    def rolled_back(self) -> None:
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

    def held(self, claim: Claim) -> psycopg.Connection[Any] | None:
        """The connection, if it is the one on which this delivery was claimed."""
        if self._connection is None or self._connection.closed or claim.delivery not in self._claimed:
            return None
        assert self._claimed[claim.delivery] <= claim.epoch, (self._claimed, claim)
        return self._connection

    # --- the tables -----------------------------------------------------------------------------------------------

    def prepare(self, value_type: object) -> NotDone | None:
        self.value_type = value_type if self._sink.value_type is None else self._sink.value_type
        return self.trying(self._prepare)

    def _prepare(self, connection: psycopg.Connection[Any], asked: Asked = None) -> None:
        self.shape = self._judge(connection, asked)

    def wanted(self) -> Sequence[Column] | None:
        """The columns that the values have; None when their type does not tell."""
        sink = self._sink
        wanted = columns_of(self.value_type, sink.where)
        if strange := [column.name for column in wanted or () if "%" in column.name]:  # marks parameters in psycopg
            raise SinkError(f"{sink.where}: the field {strange[0]!r} has a per cent sign in its name. Rename it.")
        if wanted is not None:
            for field in sink.key or ():
                if field not in {column.name for column in wanted}:
                    raise SinkError(f"{sink.where}: key {field!r} is no field of {self.value_type!r}.")
        return wanted

    def create(self, connection: psycopg.Connection[Any], asked: Asked, table: Callable[[], None]) -> bool:
        """The control table and the rows' table, by `table`, where they are not there; then what both must be. False
        where the rows' table is gone and positions say that it was delivered: whose they are, the claim knows."""
        with connection.transaction():
            # Two workers start at once: `CREATE TABLE IF NOT EXISTS` alone would fail for one of them.
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('semel prepare'))")
            if not self.exists(connection, self.control):
                connection.execute(
                    sql.SQL(
                        "CREATE TABLE {} (app text, sink text, partition int, epoch bigint NOT NULL, "
                        "position bigint NOT NULL, run text NOT NULL, topic_id text NOT NULL, partitions int NOT NULL, "
                        "incarnation int NOT NULL, holder text NOT NULL, holder_pid int NOT NULL, "
                        "holder_since timestamptz NOT NULL, updated timestamptz NOT NULL, "
                        "PRIMARY KEY (app, sink, partition))"
                    ).format(self.control)
                )
            if not self.exists(connection, self.table):
                if self._delivered(connection, asked):
                    return False
                table()
        self.kept(connection, self.control)
        self.kept(connection, self.table)
        return True

    def _delivered(self, connection: psycopg.Connection[Any], asked: Asked) -> bool:
        there = connection.execute(
            sql.SQL(
                "SELECT partition, position FROM {} WHERE sink = %s AND app = coalesce(%s, app) AND run <> '' "
                "ORDER BY partition"
            ).format(self.control),
            (self._sink.name, asked and asked[0].app),
        ).fetchall()
        if there and asked is not None:
            positions.table_gone(*asked, there, self._sink.where, self.control_text)
        return bool(there)

    def create_like(self, connection: psycopg.Connection[Any]) -> bool:
        """For `semel verify`, whose table is like the user's: one that rounds values or holds two keys for equal must
        do so there, too. False where there is none to be like."""
        original = sql.Identifier(*filter(None, (self._sink.schema, self._sink.table_name)))
        if not self._sink.suffix or not self.exists(connection, original):
            return False
        self.kept(connection, original)
        connection.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL)").format(self.table, original))
        return True

    def exists(self, connection: psycopg.Connection[Any], table: sql.Identifier) -> bool:
        found: bool = one(connection, "SELECT to_regclass(%s) IS NOT NULL", table.as_string(connection))[0]
        return found

    def kept(self, connection: psycopg.Connection[Any], table: sql.Identifier) -> None:
        """Refuses what Postgres empties after its own crash while the position stays, or keeps somewhere else."""
        text = table.as_string(connection)
        kind, persistence = one(
            connection, "SELECT relkind::text, relpersistence::text FROM pg_class WHERE oid = to_regclass(%s)", text
        )
        if kind not in ("r", "p"):
            raise SinkError(f"{self._sink.where}: {text} is no table (pg_class.relkind {kind!r}). Name a table.")
        if persistence != "p":
            raise SinkError(
                f"{self._sink.where}: {text} is UNLOGGED or TEMPORARY: Postgres empties it after its own crash and the "
                f"other one of rows and positions stays. ALTER TABLE {text} SET LOGGED."
            )

    def found(self, connection: psycopg.Connection[Any]) -> list[Found]:
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
                (self.table.as_string(connection),),
            )
        ]

    def unique(self, connection: psycopg.Connection[Any]) -> list[frozenset[str]]:
        """The column sets of the unique indexes that ON CONFLICT can use."""
        return [
            frozenset(row[0])
            for row in connection.execute(
                "SELECT array_agg(a.attname::text) FROM pg_index i "
                "JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k(num, place) ON place <= i.indnkeyatts "
                "JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num "
                "WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indisvalid AND i.indimmediate "
                "AND i.indpred IS NULL AND i.indexprs IS NULL GROUP BY i.indexrelid",
                (self.table.as_string(connection),),
            )
        ]

    def weaknesses(self, connection: psycopg.Connection[Any]) -> list[str]:
        where = self._sink.where
        notes = []
        if one(connection, "SHOW fsync")[0] == "off":
            notes.append(f"{where}: fsync=off: what this server acknowledged is lost in a power cut.")
        if one(connection, "SHOW full_page_writes")[0] == "off":
            notes.append(f"{where}: full_page_writes=off: a power cut can tear the server's pages.")
        if one(connection, "SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'")[0] == "off":
            notes.append(f"{where}: synchronous_commit=off is the default here; semel's own session has set it to on.")
        if one(connection, "SELECT count(*) FROM pg_trigger WHERE tgrelid = to_regclass(%s) AND NOT tgisinternal",
                self.table.as_string(connection))[0]:  # fmt: skip
            notes.append(f"{where}: it has triggers; what they do outside this database is not part of the promise.")
        return notes

    # --- the claim ------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        claimed: Claim | NotDone = NotDone("")
        # Each try waits for the row at most `lock_timeout`, a fifth of the hand-over time; after the first, whoever
        # holds it has been told to end.
        for _ in range(3):
            try:
                connection = self.connected()
                if self.shape is None:
                    self._prepare(connection, (delivery, log))
                return self._claim(connection, delivery, log)
            except (errors.LockNotAvailable, errors.QueryCanceled):
                self.rolled_back()
                claimed = NotDone(self._put_out(delivery))
            except psycopg.Error as why:
                self.rolled_back()
                return self.not_done(why)
        return claimed

    def _claim(self, connection: psycopg.Connection[Any], delivery: DeliveryId, log: LogIdentity) -> Claim:
        who = (delivery.app, delivery.sink, delivery.partition)
        # The rows of a sink of another name (it was renamed) have its offsets, which mean nothing beside ours.
        first = sql.SQL("(SELECT coalesce(max(incarnation), 0) + 1 FROM {})" if self._versioned else "1")
        with connection.transaction():
            connection.execute(
                sql.SQL(
                    "INSERT INTO {t} SELECT %s, %s, %s, 0, 0, '', %s, %s, "
                    "coalesce((SELECT max(incarnation) FROM {t} WHERE app = %s AND sink = %s), {first}), "
                    "'', 0, now(), now() ON CONFLICT DO NOTHING"
                ).format(t=self.control, first=first.format(self.control)),
                (*who, log.topic_id, log.partitions, delivery.app, delivery.sink),
            )
            row = one(
                connection,
                sql.SQL(
                    "UPDATE {} SET epoch = epoch + 1, holder = current_setting('application_name'), "
                    "holder_pid = pg_backend_pid(), updated = now(), "
                    "holder_since = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()) "
                    "WHERE app = %s AND sink = %s AND partition = %s RETURNING epoch, incarnation, position, run"
                ).format(self.control),
                *who,
            )
            stored = connection.execute(
                sql.SQL("SELECT partition, topic_id, partitions FROM {} WHERE app = %s AND sink = %s").format(
                    self.control
                ),
                (delivery.app, delivery.sink),
            )
            # Raising rolls back: a claim on another log leaves no trace.
            positions.same_log(delivery, log, [positions.Stored(*one) for one in stored], self._sink.where)
        self._claimed.setdefault(delivery, row[0])
        return Claim(delivery, epoch=row[0], incarnation=row[1], position=row[2], run=row[3], log=log)

    def followed(
        self, connection: psycopg.Connection[Any], claim: Claim, end: int, run: str, steps: Steps
    ) -> Done | Fenced | Unknown:
        """Moves the position behind rows that are committed: it says where the next owner goes on, and a superseded
        one is told here that it is one. For contracts under which rows need no guard."""
        who = (claim.delivery.app, claim.delivery.sink, claim.delivery.partition)
        steps.reached(Step.POSITION_BEFORE)
        try:
            connection.execute(
                # Not synced by itself: a position that is lost with the server is sent again, without effect.
                sql.SQL(
                    "WITH eased AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)) "
                    "UPDATE {} SET position = %s, run = %s, updated = now() FROM eased "
                    "WHERE app = %s AND sink = %s AND partition = %s AND epoch = %s AND position < %s"
                ).format(self.control),
                (end, run, *who, claim.epoch, end),
            )
            there = connection.execute(
                sql.SQL(
                    "SELECT epoch, position, holder FROM {} WHERE app = %s AND sink = %s AND partition = %s"
                ).format(self.control),
                who,
            ).fetchone()
        except psycopg.Error as why:
            self.rolled_back()
            return Unknown(f"{self._sink.where}: the rows up to {end} are there, their position: {brief(why)}")
        steps.reached(Step.POSITION_AFTER)
        if there is not None and there[0] == claim.epoch:
            return Done()
        said = "its position is gone" if there is None else "epoch {}, position {}, held by {}".format(*there)
        return Fenced(f"{self._sink.where}: {said}; ours was epoch {claim.epoch}")

    def _put_out(self, delivery: DeliveryId) -> str:
        """Ends the backend that the row names as its holder; says who it is."""
        try:
            connection = self.connected()
            found = connection.execute(
                sql.SQL(
                    "SELECT p.holder, p.holder_pid, a.pid IS NOT NULL, a.state FROM {} p LEFT JOIN pg_stat_activity a "
                    "ON a.pid = p.holder_pid AND a.backend_start = p.holder_since AND a.pid <> pg_backend_pid() "
                    "WHERE app = %s AND sink = %s AND partition = %s"
                ).format(self.control),
                (delivery.app, delivery.sink, delivery.partition),
            ).fetchone()
            holder = "an owner that never finished its first claim"
            if found is not None and found[0]:
                holder = f"{found[0]} (backend {found[1]}{', ' + found[3] if found[3] else ''})"
                if found[2]:
                    connection.execute("SELECT pg_terminate_backend(%s)", (found[1],))
        except psycopg.Error as why:
            self.rolled_back()
            return f"{self._sink.where}: the lock of partition {delivery.partition} is taken, and {brief(why)}"
        return f"{self._sink.where}: partition {delivery.partition} is held by {holder}; it was told to end"

    # --- for `semel sink` -----------------------------------------------------------------------------------------

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        return self.trying(lambda connection: self._remembered(connection, app))

    def _remembered(self, connection: psycopg.Connection[Any], app: str, lock: bool = False) -> list[Remembered]:
        if not self.exists(connection, self.control):
            return []
        query = sql.SQL(
            "SELECT partition, epoch, incarnation, position, run, topic_id, partitions, holder, "
            "to_char(updated AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') FROM {} "
            "WHERE app = %s AND sink = %s ORDER BY partition"
        ).format(self.control)
        found = connection.execute(query + sql.SQL(" FOR UPDATE" if lock else ""), (app, self._sink.name))
        return [positions.remembered(row) for row in found]

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        outcome: Outcome = NotDone("")
        for _ in range(3):  # as a claim: whoever holds a row is told to end
            try:
                return self._move(self.connected(), app, seen, to)
            except (errors.LockNotAvailable, errors.QueryCanceled):
                self.rolled_back()
                outcome = NotDone(self._put_out(DeliveryId(app, self._sink.name, seen[0].partition)))
            except psycopg.Error as why:
                self.rolled_back()
                return self.not_done(why)
        return outcome

    def _move(
        self, connection: psycopg.Connection[Any], app: str, seen: Sequence[Remembered], to: Sequence[Remembered]
    ) -> Outcome:
        connection.execute("BEGIN")
        if changed := positions.changed(seen, self._remembered(connection, app, lock=True)):
            connection.rollback()
            return Fenced(f"{self._sink.where}: {changed}")
        for one in to:
            connection.execute(
                sql.SQL(
                    "INSERT INTO {} AS t VALUES (%s, %s, %s, 1, %s, %s, %s, %s, %s, %s, 0, now(), now()) "
                    "ON CONFLICT (app, sink, partition) DO UPDATE SET epoch = t.epoch + 1, "
                    "position = excluded.position, run = excluded.run, topic_id = excluded.topic_id, "
                    "partitions = excluded.partitions, incarnation = excluded.incarnation, holder = excluded.holder, "
                    "holder_pid = 0, updated = now()"
                ).format(self.control),
                (
                    app, self._sink.name, one.partition, one.position, one.run, one.log.topic_id, one.log.partitions,
                    one.incarnation, positions.OPERATOR,
                ),
            )  # fmt: skip
        try:
            connection.execute("COMMIT")
        except psycopg.Error as why:
            connection.close()
            return Unknown(f"{self._sink.where}: COMMIT was not answered: {brief(why)}")
        return Done()


def names(names: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def one(connection: psycopg.Connection[Any], query: LiteralString | sql.Composed, *parameters: object) -> Any:
    row = connection.execute(query, parameters).fetchone()
    assert row is not None, query
    return row


def each(connection: psycopg.Connection[Any], query: sql.Composed, parameters: Sequence[Sequence[object]]) -> int:
    """The statement with each of the parameters, in a pipeline; how many rows it had an effect on, together.

    A pipeline of psycopg ends with a Flush message, on which the server stops its clock of idle transactions and does
    not start it again (tried on 18.6): an owner that stops behind it would keep its locks for ever (FAULTS S14). Found
    by the contract kit. A plain statement starts the clock.
    """
    with connection.cursor() as cursor:
        cursor.executemany(query, parameters)
        count = cursor.rowcount
    connection.execute("SELECT")
    return count


_ESCAPED = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


class Plain(tuple[str, ...]):
    """Values of a column that are known to be texts without anything that COPY's text format escapes."""


def copy_text(columns: Sequence[Sequence[object]]) -> str:
    """Rows, given by column, as COPY's text format takes them (PostgreSQL: COPY, File Formats). What is no text is
    written as `str` does, which must be what the column reads."""
    return "\n".join(map("\t".join, zip(*map(_copied, columns)))) + "\n"


def _copied(values: Sequence[object]) -> Sequence[str]:
    texts: Sequence[str]
    if isinstance(values, Plain):
        return values
    try:
        texts, all_of_them = values, "".join(values)  # type: ignore[arg-type, assignment]
    except TypeError:
        texts = [v if type(v) is str else "" if v is None else str(v) for v in values]
        all_of_them = "".join(texts)
    if any(mark in all_of_them for mark in "\\\t\n\r"):
        texts = [text.translate(_ESCAPED) for text in texts]
    return ["\\N" if v is None else text for v, text in zip(values, texts)] if None in values else texts


def is_refusal(why: psycopg.Error) -> bool:
    # A DataError without SQLSTATE is the client's: a NUL in a text, which Postgres cannot hold.
    return (why.sqlstate or "")[:2] in REFUSED or (isinstance(why, psycopg.DataError) and why.sqlstate is None)


DSN_FORMS = "Write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or host=HOST dbname=DATABASE user=USER."


def brief(why: psycopg.Error) -> str:
    """The server's first line; it never holds the password, which libpq does not print."""
    text = why.diag.message_primary or str(why).strip().split("\n")[0] or type(why).__name__
    return text.rstrip(".")
