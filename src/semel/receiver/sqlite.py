"""Keys in a SQLite file, in the transaction of the handler: one writer at a time, in all processes.

Invariant: as in `keys`. The key's lock is a byte of a file beside the database, locked by this request's own open
file (F_OFD_SETLK): it ends with the request or the process, and is seen by every process. SQLite's own write lock
cannot tell which key is running, and a second request would wait for it instead of being told.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path

from semel.receiver.keys import (
    KEEP,
    PURGE,
    RAISE,
    READ,
    TABLES,
    KeysUnavailable,
    NotOurs,
    Threads,
    number_of,
    of_kept,
    of_row,
    of_sent,
    statement,
)
from semel.receiver.rules import Kept, Sent

WAIT_S = 5.0


class SQLiteKeys:
    """`path`: the application's database. `connect` opens it as the application does (its pragmas and functions);
    left out, `sqlite3.connect` with foreign keys on. `wait_s`: how long to wait for whoever writes."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        connect: Callable[[], sqlite3.Connection] | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        self.path = Path(path)
        self._connect = connect or self._open
        self._wait_s = wait_s
        self._threads = Threads()
        self._turn = asyncio.Lock()  # one writer: who waits here holds no thread
        self._made = False

    @property
    def where(self) -> str:
        return f"SQLite {self.path}"

    def schema(self) -> str:
        """The tables, for a migration of your own."""
        return ";\n".join(statement(text).replace("{bytes}", "blob") for text in TABLES) + ";\n"

    async def begin(self, sent: Sent, now_ms: int) -> SQLiteHeld | None:
        try:
            lock = _lock(self.path, number_of(sent, 62))
        except OSError as why:
            raise KeysUnavailable(f"{self.where}: its lock file cannot be used: {why}") from why
        if lock is None:
            return None
        try:
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._turn.acquire()
            except TimeoutError:
                raise KeysUnavailable(
                    f"{self.where}: another request writes for more than {self._wait_s:g} s"
                ) from None
            try:
                return await self._threads.begin(lambda: self._begin(sent, now_ms, lock))
            except BaseException:
                self._turn.release()
                raise
        except BaseException:
            os.close(lock)
            raise

    def _begin(self, sent: Sent, now_ms: int, lock: int) -> SQLiteHeld:
        try:
            connection = self._connected()
            try:
                connection.execute("BEGIN IMMEDIATE")
                kept, floor = of_row(connection.execute(statement(READ), of_sent(sent)).fetchone())
                connection.execute("SAVEPOINT semel_handler")
                connection.set_authorizer(_no_end)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as why:
            raise KeysUnavailable(f"{self.where}: {why}") from why
        return SQLiteHeld(self, connection, sent, now_ms, kept, floor, lock, self._threads, self._turn)

    def _connected(self) -> sqlite3.Connection:
        connection = self._connect()
        try:
            connection.isolation_level = None
            connection.execute(f"PRAGMA busy_timeout = {int(self._wait_s * 1000)}")
            connection.execute("PRAGMA synchronous = FULL")
            if not self._made:
                connection.execute("BEGIN IMMEDIATE")
                for text in TABLES:
                    connection.execute(statement(text).replace("{bytes}", "blob"))
                connection.execute("COMMIT")
                self._made = True
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, check_same_thread=False, timeout=self._wait_s)
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    async def purge(self, now_ms: int, limit: int) -> int:
        def delete() -> int:
            try:
                connection = self._connected()
                try:
                    return connection.execute(statement(PURGE), {"now_ms": now_ms, "limit": limit}).rowcount
                finally:
                    connection.close()
            except sqlite3.Error as why:
                raise KeysUnavailable(f"{self.where}: {why}") from why

        return await self._threads.begin(delete)


class SQLiteHeld:
    """See `keys.Held`."""

    def __init__(
        self,
        keys: SQLiteKeys,
        connection: sqlite3.Connection,
        sent: Sent,
        now_ms: int,
        kept: Kept | None,
        floor: int,
        lock: int,
        threads: Threads,
        turn: asyncio.Lock,
    ) -> None:
        self.connection, self.kept, self.floor = connection, kept, floor
        self._keys, self._sent, self._now_ms = keys, sent, now_ms
        self._lock, self._threads, self._turn = lock, threads, turn
        self._ended = False

    async def commit(self, kept: Kept | None, *, undo: bool = False) -> None:
        await self._end(lambda: self._commit(kept, undo))

    async def rollback(self) -> None:
        await self._end(lambda: None)

    async def _end(self, call: Callable[[], None]) -> None:
        def ended() -> None:
            try:
                call()
            except sqlite3.Error as why:
                raise KeysUnavailable(f"{self._keys.where}: {why}") from why
            finally:
                # Closing undoes what is not committed; then the key is free, and then the file.
                self.connection.close()
                os.close(self._lock)

        assert not self._ended, f"{self._sent.key} was ended before"
        self._ended = True
        try:
            await asyncio.shield(asyncio.ensure_future(self._threads.end(ended)))
        finally:
            self._turn.release()

    def _commit(self, kept: Kept | None, undo: bool) -> None:
        connection, sent = self.connection, self._sent
        connection.set_authorizer(None)
        try:
            if undo:
                connection.execute("ROLLBACK TO semel_handler")
            connection.execute("RELEASE semel_handler")
        except (
            sqlite3.OperationalError
        ) as why:  # no such savepoint: SQLite rolls back whole transactions on some errors
            raise NotOurs(f"{self._keys.where}: {why}") from why
        if kept is not None:
            written = connection.execute(statement(KEEP), {**of_sent(sent), **of_kept(kept, self._now_ms)}).rowcount
            assert written == 1, f"the key {sent.key} of {sent.sender} was kept by somebody who did not hold it"
        if sent.floor is not None and sent.floor > self.floor:
            connection.execute(statement(RAISE), of_sent(sent))
        connection.execute("COMMIT")


def _no_end(action: int, what: str | None, *more: str | None) -> int:
    """While the handler has the connection, BEGIN, COMMIT and ROLLBACK are not authorised: the receiver commits."""
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_TRANSACTION else sqlite3.SQLITE_OK


def _lock(database: Path, number: int) -> int | None:
    """An open file that holds the lock of byte `number`, until it is closed; None when somebody else does."""
    file = os.open(f"{database}-semel-keys", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        # struct flock: type, whence, start, length, pid (0: the lock is the open file's, not the process's)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0))
    except (BlockingIOError, PermissionError):
        os.close(file)
        return None
    except BaseException:
        os.close(file)
        raise
    return file
