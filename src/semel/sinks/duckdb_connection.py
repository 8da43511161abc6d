"""One connection of one delivery to a DuckDB file: claim, write, and who holds the file when it has to wait.

Invariant: rows and position change in one transaction, whose commit DuckDB syncs before it returns. One process at a
time can have the file, so it is open for the time of a claim or a batch, and between large batches that follow each
other (`duckdb_file.py`). Nobody can take the lock from a process that stopped meanwhile: who waits says which process
holds the file (FAULTS S14).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import duckdb

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks import arrow_rows, duckdb_positions, positions
from semel.sinks.columns import Column, ColumnType, canonical_row, decode
from semel.sinks.duckdb_file import Busy, file_of
from semel.sinks.file_locks import held_by, identity
from semel.sinks.rows import Delete, Shape, Upsert, split
from semel.sinks.schema import Found, created, judged
from semel.sinks.sink import RowRefused, SinkError

if TYPE_CHECKING:
    from semel.sinks.duckdb import DuckDB

WAIT_S = 2.0  # for the file, at each try; the delivery tries again and keeps its membership in between
READ_WAIT_S = 30.0  # `rows` and `drop` have nobody who tries again for them
PASSING = (
    duckdb.IOException,
    duckdb.TransactionException,
    duckdb.OutOfMemoryException,
    duckdb.InterruptException,
    duckdb.FatalException,  # this opening is of no use any more; the next one reads what was committed
)
MANY_ROWS = 1_000
REFUSED = (duckdb.ConstraintException, duckdb.ConversionException, duckdb.OutOfRangeException)
NO_DATABASE = re.compile(r"not a valid DuckDB database|version number|[Cc]orrupt|[Ww]rong checksum")

CREATED = {
    ColumnType.DURATION: "interval",
    ColumnType.UUID: "uuid",
    ColumnType.JSON: "json",
}
DUCKDB = arrow_rows.dialect(CREATED)
SPELLED = {  # where DuckDB's word differs from the one in messages
    "byte": "TINYINT",
    "short": "SMALLINT",
    "long": "BIGINT",
    "string": "VARCHAR",
    "binary": "BLOB",
}
OTHERWISE = ("HUGEINT", "UHUGEINT", "TIME WITH TIME ZONE")  # Arrow shows them as what they are not
_NAME = r"""(?:"(?:[^"]|"")*"|[\w$]+)"""
_CREATE_TABLE = re.compile(rf"(?P<create>CREATE TABLE )(?:{_NAME}\.)?{_NAME}", re.IGNORECASE)
_CREATE_INDEX = re.compile(
    rf"(?P<create>CREATE (?:UNIQUE )?INDEX ){_NAME}(?P<on>\s+ON\s+)(?:{_NAME}\.)?{_NAME}", re.IGNORECASE
)

Answer = TypeVar("Answer")


class DuckDBConnection:
    """See `ports.SinkConnection`."""

    def __init__(self, sink: DuckDB, steps: Steps) -> None:
        self._sink = sink
        self._steps = steps
        self._value_type: object = None
        self._file = (0, 0)  # device and inode of what was looked at
        self._shape: Shape | None = None
        self._found: list[Found] = []
        self._schema: Any = None  # Arrow's, of the table
        self._notes: list[str] = []
        self._table = _quoted(sink.table)
        self._control = _quoted(positions.TABLE + sink.suffix)

    # --- the file -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _opened(self, wait_s: float = WAIT_S) -> Iterator[duckdb.DuckDBPyConnection]:
        folder = Path(self._sink.path).absolute().parent
        if not folder.is_dir():
            raise SinkError(f"{self._sink.where}: there is no folder {folder}. Create it, or name another file.")
        with file_of(self._sink.path).opened(wait_s) as connection:
            now = identity(self._sink.path)
            if now != self._file:  # perhaps another file than the one looked at before
                self._file, self._shape = now, None
            yield connection

    def close(self) -> None:
        file_of(self._sink.path).closed()

    @contextlib.contextmanager
    def _transaction(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        _all(connection, "BEGIN")
        try:
            yield
            _all(connection, "COMMIT")
        except BaseException:
            _rolled_back(connection)
            raise

    def _trying(self, what: Callable[[duckdb.DuckDBPyConnection], Answer]) -> Answer | NotDone:
        try:
            with self._opened() as connection:
                return what(connection)
        except (Busy, duckdb.Error) as why:
            return self._not_done(why)

    def _not_done(self, why: Exception) -> NotDone:
        where, text = self._sink.where, str(why)
        if isinstance(why, Busy):
            said = held_by("DuckDB", self._sink.path, readers=True)
            return NotDone(f"{where}: {said or 'the file is in use'}; waiting for it")
        if NO_DATABASE.search(text):
            raise SinkError(
                f"{where}: {text}. Name another file, or put the database back; if it was one, move this file away "
                "together with its .wal: the next start makes a new one and delivers the outbox from its start."
            ) from None
        if isinstance(why, PASSING):
            return NotDone(f"{where}: {_first_line(text)}")
        next_ = ""
        if isinstance(why, duckdb.ConnectionException):
            next_ = " Another part of this process has it open with other settings; close it there."
        raise SinkError(f"{where}: {_first_line(text)}.{next_}") from None

    # --- the tables -----------------------------------------------------------------------------------------------

    def prepare(self, value_type: object) -> Done | NotDone:
        self._value_type = value_type if self._sink.value_type is None else self._sink.value_type
        outcome = self._trying(self._prepare)
        return outcome if isinstance(outcome, NotDone) else Done()

    def _prepare(
        self,
        connection: duckdb.DuckDBPyConnection,
        delivery: DeliveryId | None = None,
        log: LogIdentity | None = None,
    ) -> None:
        sink = self._sink
        wanted = arrow_rows.wanted_columns(self._value_type, sink.key, sink.where)
        with self._transaction(connection):
            _all(
                connection,
                f"CREATE TABLE IF NOT EXISTS {self._control} (app VARCHAR, sink VARCHAR, partition INTEGER, "
                "epoch BIGINT NOT NULL, position BIGINT NOT NULL, run VARCHAR NOT NULL, topic_id VARCHAR NOT NULL, "
                "partitions INTEGER NOT NULL, incarnation BIGINT NOT NULL, holder VARCHAR NOT NULL, "
                "updated TIMESTAMP NOT NULL, PRIMARY KEY (app, sink, partition))",
            )
            kind = self._kind(connection, sink.table)
            if kind is None:
                if self._delivered(connection, delivery, log):
                    return  # whose the positions are, the claim knows
                self._create(connection, wanted)
            elif kind != "BASE TABLE":
                raise SinkError(f"{sink.where} is a {kind.lower()}. Name a table.")
        self._schema = connection.sql(f"SELECT * FROM {self._table} LIMIT 0").to_arrow_table().schema
        self._found = self._columns(connection)
        columns = judged(DUCKDB, sink.where, self._found, wanted, sink.key, self._unique(connection))
        self._shape = Shape(columns, arrow_rows.converts(columns, self._found), sink.key, sink.where)

    def _kind(self, connection: duckdb.DuckDBPyConnection, table: str) -> str | None:
        row = _one(
            connection,
            "SELECT table_type FROM information_schema.tables WHERE table_schema = 'main' AND "
            "table_catalog = current_database() AND lower(table_name) = lower(?)",
            [table],
        )
        return None if row is None else str(row[0])

    def _delivered(
        self, connection: duckdb.DuckDBPyConnection, delivery: DeliveryId | None, log: LogIdentity | None
    ) -> bool:
        found = _all(
            connection,
            f"SELECT partition, position FROM {self._control} WHERE sink = ? AND app = coalesce(?, app) "
            "AND position > 0 ORDER BY partition",
            [self._sink.name, delivery and delivery.app],
        )
        if found and delivery is not None and log is not None:
            positions.table_gone(delivery, log, found, self._sink.where, self._control)
        return bool(found)

    def _create(self, connection: duckdb.DuckDBPyConnection, wanted: Sequence[Column] | None) -> None:
        sink = self._sink
        if sink.suffix and (kind := self._kind(connection, sink.original)) is not None:
            if kind != "BASE TABLE":
                raise SinkError(f"{sink.where} would be like {sink.original}, which is a {kind.lower()}. Name a table.")
            self._create_like(connection)
            return
        if wanted is None:
            raise SinkError(
                f"{sink.where} does not exist, and the type of the values is not known here. "
                "Say it: DuckDB(…, value=TYPE), or create the table."
            )
        parts = []
        for name, kind in created(DUCKDB, wanted, sink.key):
            plain = kind.removesuffix(" NOT NULL")
            parts.append(f"{_quoted(name)} {SPELLED.get(plain, plain)}{kind[len(plain) :]}")
        if sink.key is not None:
            parts.append(f"PRIMARY KEY ({_names(sink.key)})")
        _all(connection, f"CREATE TABLE {self._table} ({', '.join(parts)})")

    def _create_like(self, connection: duckdb.DuckDBPyConnection) -> None:
        """For `semel verify`, whose table is like the user's: DuckDB tells a statement that makes it again."""
        sink = self._sink
        made = _all(
            connection,
            "SELECT 'table', table_name, sql FROM duckdb_tables() WHERE schema_name = 'main' AND database_name = "
            "current_database() AND lower(table_name) = lower(?) UNION ALL SELECT 'index', index_name, sql FROM "
            "duckdb_indexes() WHERE schema_name = 'main' AND database_name = current_database() AND lower(table_name) "
            "= lower(?) AND sql IS NOT NULL ORDER BY 1 DESC",
            [sink.original, sink.original],
        )
        for kind, name, statement in made:
            parts = (_CREATE_TABLE if kind == "table" else _CREATE_INDEX).match(statement)
            if parts is None:
                raise SinkError(
                    f"{sink.where}: the {kind} {name} was made by a statement that cannot be repeated for the run's "
                    f"own table: {statement[:80]!r}. Verify with a plain table."
                )
            own = self._table if kind == "table" else f"{_quoted(name + sink.suffix)}{parts['on']}{self._table}"
            _all(connection, parts["create"] + own + statement[parts.end() :])

    def _columns(self, connection: duckdb.DuckDBPyConnection) -> list[Found]:
        rows = _all(
            connection,
            "SELECT column_name, data_type, is_nullable = 'NO', column_default IS NOT NULL, "
            "coalesce(is_generated, 'NEVER') = 'ALWAYS' FROM information_schema.columns WHERE table_schema = 'main' "
            "AND table_catalog = current_database() AND lower(table_name) = lower(?)",
            [self._sink.table],
        )
        sql = _one(
            connection,
            "SELECT sql FROM duckdb_tables() WHERE schema_name = 'main' AND database_name = current_database() "
            "AND lower(table_name) = lower(?)",
            [self._sink.table],
        )
        collated = sql is not None and re.search(r"\bCOLLATE\b", str(sql[0]), re.IGNORECASE) is not None
        found = []
        for name, declared, not_null, filled, generated in rows:
            said: dict[str, Any] = {"not_null": not_null, "filled": filled, "generated": generated}
            if declared in ("JSON", "UUID"):
                said["base"] = declared.lower()
            elif declared in OTHERWISE:
                said["base"] = declared
            said["type_text"] = declared
            said["deterministic"] = not (collated and declared == "VARCHAR")
            found.append(arrow_rows.described(name, self._schema.field(name).type, **said))
        return found

    def _unique(self, connection: duckdb.DuckDBPyConnection) -> list[frozenset[str]]:
        constraints = _all(
            connection,
            "SELECT constraint_column_names FROM duckdb_constraints() WHERE constraint_type IN ('PRIMARY KEY', "
            "'UNIQUE') AND schema_name = 'main' AND database_name = current_database() AND "
            "lower(table_name) = lower(?)",
            [self._sink.table],
        )
        indexes = _all(
            connection,
            "SELECT expressions FROM duckdb_indexes() WHERE is_unique AND schema_name = 'main' AND database_name = "
            "current_database() AND lower(table_name) = lower(?)",
            [self._sink.table],
        )
        found = [frozenset(names) for (names,) in constraints]
        for (text,) in indexes:  # "[id, day]", with quotes where a name wants them
            found.append(frozenset(part.strip().strip("'\"") for part in str(text).strip("[]").split(",")))
        return found

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    # --- the claim ------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        return self._trying(lambda connection: self._claim(connection, delivery, log))

    def _claim(self, connection: duckdb.DuckDBPyConnection, delivery: DeliveryId, log: LogIdentity) -> Claim:
        # Each time: a file made anew can have the number of the one that was removed.
        self._shape = None
        self._prepare(connection, delivery, log)
        who = [delivery.app, delivery.sink, delivery.partition]
        with self._transaction(connection):
            _all(
                connection,
                f"INSERT INTO {self._control} SELECT ?, ?, ?, 0, 0, '', ?, ?, coalesce((SELECT max(incarnation) FROM "
                f"{self._control} WHERE app = ? AND sink = ?), 1), '', current_localtimestamp() ON CONFLICT DO NOTHING",
                [*who, log.topic_id, log.partitions, delivery.app, delivery.sink],
            )
            rows = _all(
                connection,
                f"UPDATE {self._control} SET epoch = epoch + 1, holder = ?, updated = current_localtimestamp() "
                "WHERE app = ? AND sink = ? AND partition = ? RETURNING epoch, incarnation, position, run",
                [positions.here(), *who],
            )
            stored = _all(
                connection,
                f"SELECT partition, topic_id, partitions FROM {self._control} WHERE app = ? AND sink = ?",
                who[:2],
            )
            # Raising rolls back: a claim on another log leaves no trace.
            positions.same_log(delivery, log, [positions.Stored(*one) for one in stored], self._sink.where)
        epoch, incarnation, position, run = rows[0]
        return Claim(delivery, epoch=epoch, incarnation=incarnation, position=position, run=run, log=log)

    # --- a batch --------------------------------------------------------------------------------------------------

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        assert self._shape is not None, "a claim comes before a write"
        assert start < end, (start, end)
        upserts, deletes = split(self._shape, rows)
        arrow_rows.require_values(self._shape, self._found, upserts)
        if identity(self._sink.path) != self._file:  # never made anew by opening it
            return NotDone(f"{self._sink.where}: the file was removed or replaced")
        committing = False
        try:
            with self._opened() as connection:
                if self._shape is None:
                    return NotDone(f"{self._sink.where}: the file was replaced")
                try:
                    _all(connection, "BEGIN")
                    fenced = self._write(connection, claim, start, end, run, upserts, deletes)
                except REFUSED:
                    _rolled_back(connection)
                    self._refuse(connection, upserts, deletes)
                    raise
                if fenced is not None:
                    _rolled_back(connection)
                    return fenced
                self._steps.reached(Step.SINK_BEFORE)
                committing = True
                self._commit(connection)
                committing = False
                self._steps.reached(Step.SINK_AFTER)
                if len(rows) >= MANY_ROWS:  # there is a backlog, and the next batch comes at once
                    file_of(self._sink.path).lingers()
        except (Busy, duckdb.Error) as why:
            if committing:
                return Unknown(f"{self._sink.where}: COMMIT of [{start}, {end}) failed: {_first_line(str(why))}")
            if isinstance(why, duckdb.CatalogException):  # dropped or altered since: the claim looks, and says what
                return NotDone(f"{self._sink.where}: {_first_line(str(why))}")
            return self._not_done(why)
        return Done()

    def _commit(self, connection: duckdb.DuckDBPyConnection) -> None:
        _all(connection, "COMMIT")

    def _write(
        self,
        connection: duckdb.DuckDBPyConnection,
        claim: Claim,
        start: int,
        end: int,
        run: str,
        upserts: Sequence[Upsert],
        deletes: Sequence[Delete],
    ) -> Fenced | None:
        who = [claim.delivery.app, claim.delivery.sink, claim.delivery.partition]
        self._steps.reached(Step.ROWS_BEFORE)
        self._rows(connection, upserts, deletes)
        self._steps.reached(Step.ROWS_AFTER)
        self._steps.reached(Step.POSITION_BEFORE)
        moved = self._moved(connection, [end, run, *who, claim.epoch, start])
        self._steps.reached(Step.POSITION_AFTER)
        if moved == 1:
            return None
        there = _one(
            connection,
            f"SELECT epoch, position, holder FROM {self._control} WHERE app = ? AND sink = ? AND partition = ?",
            who,
        )
        said = "its position is gone" if there is None else "epoch {}, position {}, held by {}".format(*there)
        return Fenced(f"{self._sink.where}: {said}; ours was epoch {claim.epoch}, position {start}")

    def _moved(self, connection: duckdb.DuckDBPyConnection, parameters: Sequence[object]) -> int:
        """How many rows the position's update changed: one, or this owner is none any more."""
        counted = _one(
            connection,
            f"UPDATE {self._control} SET position = ?, run = ?, updated = current_localtimestamp() "
            "WHERE app = ? AND sink = ? AND partition = ? AND epoch = ? AND position = ?",
            list(parameters),
        )
        return 0 if counted is None else int(counted[0])

    def _rows(
        self, connection: duckdb.DuckDBPyConnection, upserts: Sequence[Upsert], deletes: Sequence[Delete]
    ) -> None:
        """All rows of a batch, inside the caller's transaction. Each key is in one of the two, once."""
        assert self._shape is not None
        key, names = self._shape.key, [column.name for column in self._shape.columns]
        if deletes:
            match = " AND ".join(f"t.{_quoted(name)} = s.{_quoted(name)}" for name in key or ())
            batch = arrow_rows.keys(self._shape, self._schema, deletes)
            with _registered(connection, batch) as view:
                _all(connection, f"DELETE FROM {self._table} AS t USING {view} AS s WHERE {match}")
        if upserts:
            insert = f"INSERT INTO {self._table} ({_names(names)}) SELECT {_names(names)} FROM "
            conflict = ""
            if key is not None:
                changes = ", ".join(f"{_quoted(n)} = excluded.{_quoted(n)}" for n in names if n not in key)
                conflict = f" ON CONFLICT ({_names(key)}) DO " + (f"UPDATE SET {changes}" if changes else "NOTHING")
            with _registered(connection, arrow_rows.table(self._shape, self._schema, upserts)) as view:
                _all(connection, insert + view + conflict)

    def _refuse(
        self, connection: duckdb.DuckDBPyConnection, upserts: Sequence[Upsert], deletes: Sequence[Delete]
    ) -> None:
        """Finds the row that the file refuses: the first that does not go in after the ones before it. Each try is in
        a transaction that is rolled back, because an error ends a transaction here."""
        ordered: list[Upsert | Delete] = [*deletes, *upserts]
        good, bad = 0, len(ordered)  # the first `good` go in, the first `bad` do not
        told: Exception | None = None
        while bad - good > 1:
            middle = (good + bad) // 2
            why = self._tried(connection, ordered[:middle])
            if why is None:
                good = middle
            else:
                bad, told = middle, why
        if told is None:
            told = self._tried(connection, ordered[:bad])
        if told is not None:
            raise RowRefused(_first_line(str(told)), ordered[bad - 1].offset)

    def _tried(self, connection: duckdb.DuckDBPyConnection, some: Sequence[Upsert | Delete]) -> Exception | None:
        _all(connection, "BEGIN")
        try:
            self._rows(
                connection,
                [one for one in some if isinstance(one, Upsert)],
                [one for one in some if isinstance(one, Delete)],
            )
        except REFUSED as why:
            return why
        finally:
            _rolled_back(connection)
        return None

    # --- for `semel sink` -----------------------------------------------------------------------------------------

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        if identity(self._sink.path) == (0, 0):  # looking makes no file
            return []
        return self._trying(lambda connection: self._remembered(connection, app))

    def _remembered(self, connection: duckdb.DuckDBPyConnection, app: str) -> list[Remembered]:
        if self._kind(connection, positions.TABLE + self._sink.suffix) is None:
            return []
        return duckdb_positions.remembered(partial(_all, connection), self._control, app, self._sink.name)

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        return self._trying(lambda connection: self._move(connection, app, seen, to))

    def _move(
        self, connection: duckdb.DuckDBPyConnection, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]
    ) -> Outcome:
        _all(connection, "BEGIN")
        changed = duckdb_positions.moved(partial(_all, connection), self._control, app, self._sink.name, seen, to)
        if changed:
            _rolled_back(connection)
            return Fenced(f"{self._sink.where}: {changed}")
        try:
            self._commit(connection)
        except duckdb.Error as why:
            return Unknown(f"{self._sink.where}: COMMIT failed: {_first_line(str(why))}")
        return Done()

    # --- for semel verify -----------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        assert self._shape is not None, "prepare comes first"
        columns = self._shape.columns
        with self._opened(READ_WAIT_S) as connection:
            found = connection.sql(f"SELECT {_names([c.name for c in columns])} FROM {self._table}").to_arrow_table()
        return arrow_rows.told(columns, found)

    def canonical(self, value: bytes) -> bytes:
        assert self._shape is not None, "prepare comes first"
        return canonical_row(self._shape.columns, decode(value))

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only tables that it has named itself.")
        with self._opened(READ_WAIT_S) as connection, self._transaction(connection):
            _all(connection, f"DROP TABLE IF EXISTS {self._table}")
            _all(connection, f"DROP TABLE IF EXISTS {self._control}")


def _all(connection: duckdb.DuckDBPyConnection, statement: str, parameters: object = None) -> list[Any]:
    """To the end: a statement whose answer was not read is in the way of the next one."""
    return connection.execute(statement, parameters).fetchall()


def _one(connection: duckdb.DuckDBPyConnection, statement: str, parameters: object = None) -> Any:
    return next(iter(_all(connection, statement, parameters)), None)


def is_empty(path: str) -> bool:
    """Whether there is no table in it."""
    with duckdb.connect(path) as connection:
        return _one(connection, "SELECT 1 FROM duckdb_tables() WHERE NOT internal LIMIT 1") is None


def _rolled_back(connection: duckdb.DuckDBPyConnection) -> None:
    with contextlib.suppress(duckdb.Error):
        _all(connection, "ROLLBACK")


@contextlib.contextmanager
def _registered(connection: duckdb.DuckDBPyConnection, batch: Any) -> Iterator[str]:
    """The Arrow table as a view that a statement can read without a copy."""
    connection.register("semel_batch", batch)
    try:
        yield "semel_batch"
    finally:
        with contextlib.suppress(duckdb.Error):
            connection.unregister("semel_batch")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(_quoted, names))


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].rstrip(".")
