"""One connection of one delivery to a SQLite file: claim, write, and who holds the file when it has to wait.

Invariant: rows and position change in one `BEGIN IMMEDIATE` transaction under `synchronous=EXTRA`, so a commit that was
acknowledged survives a power cut in every journal mode (FULL does not sync the folder after a rollback journal is
deleted, and a resurrected journal would undo the commit). Nobody can take the write lock from a process that stopped
inside its transaction: who waits says which process holds the file (FAULTS S14).
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks import positions
from semel.sinks.columns import Column, ColumnType, canonical_row, columns_of, decode
from semel.sinks.file_locks import held_by, identity
from semel.sinks.rows import Delete, Shape, Upsert, by_row, split
from semel.sinks.schema import Found, created, judged
from semel.sinks.sink import RowRefused, SinkError
from semel.sinks.sqlite_types import SQLITE, base, converts

if TYPE_CHECKING:
    from semel.sinks.sqlite import SQLite

WAIT_S = 1.0  # for the write lock, at each try; the delivery tries again and keeps its membership alive in between
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
PASSING = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_PROTOCOL,
)
REFUSED = (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG)

_NAME = r"""(?:"(?:[^"]|"")*"|`(?:[^`]|``)*`|'(?:[^']|'')*'|\[[^\]]*\]|[\w$]+)"""
_CREATE_TABLE = re.compile(rf"(?P<create>CREATE TABLE ){_NAME}", re.IGNORECASE)
_CREATE_INDEX = re.compile(rf"(?P<create>CREATE (?:UNIQUE )?INDEX ){_NAME}(?P<on>\s+ON\s+){_NAME}", re.IGNORECASE)

Answer = TypeVar("Answer")


class SQLiteConnection:
    """See `ports.SinkConnection`."""

    def __init__(self, sink: SQLite, steps: Steps) -> None:
        self._sink = sink
        self._steps = steps
        self._value_type: object = None
        self._connection: sqlite3.Connection | None = None
        self._file = (0, 0)  # device and inode of what is open
        self._shape: Shape | None = None
        self._notes: list[str] = []
        self._table = _quoted(sink.table)
        self._control = _quoted(positions.TABLE + sink.suffix)

    # --- connecting -----------------------------------------------------------------------------------------------

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and self._file == identity(self._sink.path):
            return self._connection
        self.close()
        folder = Path(self._sink.path).absolute().parent
        if not folder.is_dir():
            raise SinkError(f"{self._sink.where}: there is no folder {folder}. Create it, or name another file.")
        connection = sqlite3.connect(self._sink.path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            # A file that was here before keeps the mode that its owner chose. A new one is given WAL, where readers
            # and our writes do not wait for each other.
            if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = EXTRA")
        except BaseException:
            connection.close()
            raise
        self._connection, self._file = connection, identity(self._sink.path)
        self._shape = None  # perhaps another file than the one looked at before
        return connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextlib.contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[None]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            raise

    def _trying(self, what: Callable[[sqlite3.Connection], Answer]) -> Answer | NotDone:
        try:
            return what(self._connected())
        except sqlite3.Error as why:
            return self._not_done(why)

    def _not_done(self, why: sqlite3.Error) -> NotDone:
        code = _code(why)
        if code in BUSY:
            return NotDone(f"{self._sink.where}: {self._who_holds()}")
        self.close()
        if code in PASSING:
            return NotDone(f"{self._sink.where}: {why}")
        next_ = ""
        if code == sqlite3.SQLITE_NOTADB:
            next_ = (
                " Name another file, or put the database back; if it was one, move this file away together with its "
                "-wal and -shm: the next start makes a new one and delivers the outbox from its start."
            )
        raise SinkError(f"{self._sink.where}: {why} ({why.sqlite_errorname}).{next_}") from None

    def _who_holds(self) -> str:
        """The process that has the write lock, as far as this machine tells; else the owners by their claims."""
        if said := held_by("SQLite", self._sink.path, self._sink.path + "-shm"):
            return said
        owners: list[str] = []
        with contextlib.suppress(sqlite3.Error):
            if self._connection is not None:
                found = self._connection.execute(f"SELECT DISTINCT holder FROM {self._control}")
                owners = [row[0] for row in found]
        return f"the file is locked{', perhaps by ' + ' or '.join(owners) if owners else ''}; waiting for it"

    # --- the tables -----------------------------------------------------------------------------------------------

    def prepare(self, value_type: object) -> Done | NotDone:
        self._value_type = value_type if self._sink.value_type is None else self._sink.value_type
        outcome = self._trying(self._prepare)
        return outcome if isinstance(outcome, NotDone) else Done()

    def _prepare(
        self, connection: sqlite3.Connection, delivery: DeliveryId | None = None, log: LogIdentity | None = None
    ) -> None:
        sink = self._sink
        wanted = columns_of(self._value_type, sink.where)
        if wanted is not None:
            for field in sink.key or ():
                if field not in {column.name for column in wanted}:
                    raise SinkError(f"{sink.where}: key {field!r} is no field of {self._value_type!r}.")
        with self._transaction(connection):
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {self._control} (app TEXT, sink TEXT, partition INTEGER, "
                "epoch INTEGER NOT NULL, position INTEGER NOT NULL, run TEXT NOT NULL, topic_id TEXT NOT NULL, "
                "partitions INTEGER NOT NULL, incarnation INTEGER NOT NULL, holder TEXT NOT NULL, "
                "updated TEXT NOT NULL, PRIMARY KEY (app, sink, partition))"
            )
            kind = self._kind(connection, sink.table)
            if kind is None:
                if self._delivered(connection, delivery, log):
                    return  # whose the positions are, the claim knows
                self._create(connection, wanted)
            elif kind != "table":
                raise SinkError(f"{sink.where} is a {kind}. Name a table.")
        found = self._found(connection, sink.table)
        columns = judged(SQLITE, sink.where, found, wanted, sink.key, self._unique(connection))
        self._shape = Shape(columns, converts(columns, found), sink.key, sink.where)
        self._notes = list(self._weaknesses(connection))

    def _kind(self, connection: sqlite3.Connection, table: str) -> str | None:
        row = connection.execute("SELECT type FROM sqlite_schema WHERE lower(name) = lower(?)", (table,)).fetchone()
        return None if row is None else str(row[0])

    def _delivered(self, connection: sqlite3.Connection, delivery: DeliveryId | None, log: LogIdentity | None) -> bool:
        found = connection.execute(
            f"SELECT partition, position FROM {self._control} WHERE sink = ? AND app = coalesce(?, app) "
            "AND run <> '' ORDER BY partition",
            (self._sink.name, delivery and delivery.app),
        ).fetchall()
        if found and delivery is not None and log is not None:
            positions.table_gone(delivery, log, found, self._sink.where, self._control)
        return bool(found)

    def _create(self, connection: sqlite3.Connection, wanted: Sequence[Column] | None) -> None:
        sink = self._sink
        if sink.suffix and (kind := self._kind(connection, sink.original)) is not None:
            if kind != "table":
                raise SinkError(f"{sink.where} would be like {sink.original}, which is a {kind}. Name a table.")
            self._create_like(connection)
            return
        if wanted is None:
            raise SinkError(
                f"{sink.where} does not exist, and the type of the values is not known here. "
                "Say it: SQLite(…, value=TYPE), or create the table."
            )
        columns = created(SQLITE, wanted, sink.key)
        parts = [f"{_quoted(name)} {kind}" for name, kind in columns]
        if sink.key is not None:
            parts.append(f"PRIMARY KEY ({_names(sink.key)})")
        connection.execute(f"CREATE TABLE {self._table} ({', '.join(parts)})")

    def _create_like(self, connection: sqlite3.Connection) -> None:
        """For `semel verify`, whose table is like the user's: one that rounds values or holds two keys for equal must
        do so there, too. SQLite keeps the statement that made a table, and begins it in one way."""
        made = connection.execute(
            "SELECT type, name, sql FROM sqlite_schema WHERE lower(tbl_name) = lower(?) AND type IN ('table', 'index') "
            "AND sql IS NOT NULL ORDER BY type = 'index'",
            (self._sink.original,),
        ).fetchall()
        for kind, name, statement in made:
            parts = (_CREATE_TABLE if kind == "table" else _CREATE_INDEX).match(statement)
            if parts is None:
                raise SinkError(
                    f"{self._sink.where}: the {kind} {name} was made by a statement that cannot be repeated for the "
                    f"run's own table: {statement[:80]!r}. Verify with a plain table."
                )
            own = self._table if kind == "table" else f"{_quoted(name + self._sink.suffix)}{parts['on']}{self._table}"
            connection.execute(parts["create"] + own + statement[parts.end() :])

    def _found(self, connection: sqlite3.Connection, table: str) -> list[Found]:
        rows = connection.execute(f"PRAGMA table_xinfo({_quoted(table)})").fetchall()
        alone = sum(1 for row in rows if row[5]) == 1
        return [
            Found(
                name=name,
                type_text=declared,
                base=base(declared),
                not_null=bool(not_null),
                # INTEGER PRIMARY KEY is the rowid: SQLite fills it.
                filled=default is not None or hidden != 0 or (bool(pk) and alone and declared.upper() == "INTEGER"),
                generated=hidden != 0,
                deterministic=True,
            )
            for _, name, declared, not_null, default, pk, hidden in rows
        ]

    def _unique(self, connection: sqlite3.Connection) -> list[frozenset[str]]:
        """The column sets of the unique indexes that ON CONFLICT can use and that compare byte by byte."""
        keys = [row[1] for row in connection.execute(f"PRAGMA table_info({self._table})") if row[5]]
        found = []
        indexes = connection.execute(f"PRAGMA index_list({self._table})").fetchall()
        for _, name, unique, _, partial in indexes:
            parts = [row for row in connection.execute(f"PRAGMA index_xinfo({_quoted(name)})") if row[5]]
            if unique and not partial and all(row[2] is not None and row[4] == "BINARY" for row in parts):
                found.append(frozenset(row[2] for row in parts))
        if len(keys) == 1 and not any(row[3] == "pk" for row in indexes):  # the rowid itself, which has no index
            found.append(frozenset(keys))
        return found

    def _weaknesses(self, connection: sqlite3.Connection) -> Iterator[str]:
        table = (self._sink.table,)
        if connection.execute("SELECT 1 FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?", table).fetchone():
            yield f"{self._sink.where}: it has triggers; what they do outside this file is not part of the promise."

    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    # --- the claim ------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        return self._trying(lambda connection: self._claim(connection, delivery, log))

    def _claim(self, connection: sqlite3.Connection, delivery: DeliveryId, log: LogIdentity) -> Claim:
        if self._shape is None:
            self._prepare(connection, delivery, log)
        who = (delivery.app, delivery.sink, delivery.partition)
        with self._transaction(connection):
            connection.execute(
                f"INSERT INTO {self._control} SELECT ?, ?, ?, 0, 0, '', ?, ?, coalesce((SELECT max(incarnation) FROM "
                f"{self._control} WHERE app = ? AND sink = ?), 1), '', '' WHERE true ON CONFLICT DO NOTHING",
                (*who, log.topic_id, log.partitions, delivery.app, delivery.sink),
            )
            row = connection.execute(
                f"UPDATE {self._control} SET epoch = epoch + 1, holder = ?, updated = datetime('now') "
                "WHERE app = ? AND sink = ? AND partition = ? RETURNING epoch, incarnation, position, run",
                (positions.here(), *who),
            ).fetchall()[0]
            stored = connection.execute(
                f"SELECT partition, topic_id, partitions FROM {self._control} WHERE app = ? AND sink = ?", who[:2]
            ).fetchall()
            # Raising rolls back: a claim on another log leaves no trace.
            positions.same_log(delivery, log, [positions.Stored(*one) for one in stored], self._sink.where)
        return Claim(delivery, epoch=row[0], incarnation=row[1], position=row[2], run=row[3], log=log)

    # --- a batch --------------------------------------------------------------------------------------------------

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        assert self._shape is not None, "a claim comes before a write"
        assert start < end, (start, end)
        upserts, deletes = split(self._shape, rows)
        connection = self._connection
        if connection is None or self._file != identity(self._sink.path):
            self.close()
            return NotDone(f"{self._sink.where}: the file was removed or replaced")
        try:
            connection.execute("BEGIN IMMEDIATE")
            fenced = self._write(connection, claim, start, end, run, upserts, deletes)
        except sqlite3.Error as why:
            self._rolled_back(connection)
            if _code(why) in REFUSED:
                self._refuse(connection, upserts, deletes)
            return self._not_done(why)
        except BaseException:
            self._rolled_back(connection)
            raise
        if fenced is not None:
            self._rolled_back(connection)
            return fenced
        self._steps.reached(Step.SINK_BEFORE)
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as why:
            if _code(why) in BUSY:  # a reader in a rollback journal's mode; the transaction is still open
                self._rolled_back(connection)
                return self._not_done(why)
            self.close()
            return Unknown(f"{self._sink.where}: COMMIT of [{start}, {end}) failed: {why}")
        self._steps.reached(Step.SINK_AFTER)
        return Done()

    def _write(
        self,
        connection: sqlite3.Connection,
        claim: Claim,
        start: int,
        end: int,
        run: str,
        upserts: Sequence[Upsert],
        deletes: Sequence[Delete],
    ) -> Fenced | None:
        who = (claim.delivery.app, claim.delivery.sink, claim.delivery.partition)
        self._steps.reached(Step.ROWS_BEFORE)
        self._rows(connection, upserts, deletes)
        self._steps.reached(Step.ROWS_AFTER)
        self._steps.reached(Step.POSITION_BEFORE)
        moved = connection.execute(
            f"UPDATE {self._control} SET position = ?, run = ?, updated = datetime('now') "
            "WHERE app = ? AND sink = ? AND partition = ? AND epoch = ? AND position = ?",
            (end, run, *who, claim.epoch, start),
        ).rowcount
        self._steps.reached(Step.POSITION_AFTER)
        if moved == 1:
            return None
        there = connection.execute(
            f"SELECT epoch, position, holder FROM {self._control} WHERE app = ? AND sink = ? AND partition = ?", who
        ).fetchone()
        said = "its position is gone" if there is None else "epoch {}, position {}, held by {}".format(*there)
        return Fenced(f"{self._sink.where}: {said}; ours was epoch {claim.epoch}, position {start}")

    def _rows(self, connection: sqlite3.Connection, upserts: Sequence[Upsert], deletes: Sequence[Delete]) -> None:
        """All rows of a batch, inside the caller's transaction. Each key is in one of the two, once."""
        assert self._shape is not None
        key, names = self._shape.key, [column.name for column in self._shape.columns]
        if deletes:
            match = " AND ".join(f"{_quoted(name)} = ?" for name in key or ())
            connection.executemany(f"DELETE FROM {self._table} WHERE {match}", [one.key for one in deletes])
        if upserts:
            places = ", ".join("?" * len(names))
            insert = f"INSERT INTO {self._table} ({_names(names)}) VALUES ({places})"
            if key is not None:
                changes = ", ".join(f"{_quoted(n)} = excluded.{_quoted(n)}" for n in names if n not in key)
                insert += f" ON CONFLICT ({_names(key)}) DO " + (f"UPDATE SET {changes}" if changes else "NOTHING")
            connection.executemany(insert, by_row(upserts))

    def _refuse(self, connection: sqlite3.Connection, upserts: Sequence[Upsert], deletes: Sequence[Delete]) -> None:
        """Finds the row that the file refuses by trying one after the other, in a transaction that is rolled back."""
        connection.execute("BEGIN IMMEDIATE")
        offset = -1
        try:
            for delete in deletes:
                offset = delete.offset
                self._rows(connection, [], [delete])
            for upsert in upserts:
                offset = upsert.offset
                self._rows(connection, [upsert], [])
        except sqlite3.Error as why:
            if _code(why) in REFUSED:
                raise RowRefused(str(why), offset) from None
        finally:
            self._rolled_back(connection)

    def _rolled_back(self, connection: sqlite3.Connection) -> None:
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    # --- for `semel sink` -----------------------------------------------------------------------------------------

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        if not os.path.exists(self._sink.path):  # looking makes no file
            return []
        return self._trying(lambda connection: self._remembered(connection, app))

    def _remembered(self, connection: sqlite3.Connection, app: str) -> list[Remembered]:
        if self._kind(connection, positions.TABLE + self._sink.suffix) is None:
            return []
        found = connection.execute(
            "SELECT partition, epoch, incarnation, position, run, topic_id, partitions, holder, updated "
            f"FROM {self._control} WHERE app = ? AND sink = ? ORDER BY partition",
            (app, self._sink.name),
        )
        return [positions.remembered(row) for row in found]

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        return self._trying(lambda connection: self._move(connection, app, seen, to))

    def _move(
        self, connection: sqlite3.Connection, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]
    ) -> Outcome:
        connection.execute("BEGIN IMMEDIATE")
        try:
            if changed := positions.changed(seen, self._remembered(connection, app)):
                return Fenced(f"{self._sink.where}: {changed}")
            for one in to:
                connection.execute(
                    f"INSERT INTO {self._control} VALUES (?, ?, ?, 1, ?, ?, ?, ?, ?, ?, datetime('now')) "
                    "ON CONFLICT (app, sink, partition) DO UPDATE SET epoch = epoch + 1, position = excluded.position, "
                    "run = excluded.run, topic_id = excluded.topic_id, partitions = excluded.partitions, "
                    "incarnation = excluded.incarnation, holder = excluded.holder, updated = excluded.updated",
                    (
                        app, self._sink.name, one.partition, one.position, one.run, one.log.topic_id,
                        one.log.partitions, one.incarnation, positions.OPERATOR,
                    ),
                )  # fmt: skip
            try:
                connection.execute("COMMIT")
            except sqlite3.Error as why:
                if _code(why) in BUSY:
                    raise
                self.close()
                return Unknown(f"{self._sink.where}: COMMIT failed: {why}")
            return Done()
        finally:
            self._rolled_back(connection)

    # --- for semel verify -----------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        assert self._shape is not None, "prepare comes first"
        columns = self._shape.columns
        found = self._connected().execute(f"SELECT {_names([c.name for c in columns])} FROM {self._table}")
        return [
            canonical_row(
                columns,
                {
                    # JSON lies in TEXT; everything else comes back as it was bound.
                    c.name: msgspec.json.decode(part) if c.type is ColumnType.JSON and part is not None else part
                    for c, part in zip(columns, row, strict=True)
                },
            )
            for row in found
        ]

    def canonical(self, value: bytes) -> bytes:
        assert self._shape is not None, "prepare comes first"
        return canonical_row(self._shape.columns, decode(value))

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only tables that it has named itself.")
        connection = self._connected()
        with self._transaction(connection):
            connection.execute(f"DROP TABLE IF EXISTS {self._table}")
            connection.execute(f"DROP TABLE IF EXISTS {self._control}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(_quoted, names))


def _code(why: sqlite3.Error) -> int:
    """The primary result code; an error of the driver itself has none: it could not bind a value."""
    return getattr(why, "sqlite_errorcode", sqlite3.SQLITE_MISMATCH) & 0xFF
