"""Keys in the application's Postgres, in the transaction of the handler; with psycopg, its async half or the other.

Invariant: as in `keys`. The key's lock is a transaction-level advisory lock: tried, never waited for, and gone when
the transaction ends, also by the server (`idle_in_transaction_session_timeout`), so that a paused process holds no key
for ever (FAULTS S14). The row's primary key stands behind it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from semel.errors import UsageError
from semel.receiver import keys as shared
from semel.receiver.keys import KeysUnavailable, NotOurs, Threads, number_of, of_kept, of_row, of_sent
from semel.receiver.rules import Kept, Sent

RUNNING_S = 60.0
LOCK = "SELECT pg_try_advisory_xact_lock(%s)"

Connection = psycopg.Connection[Any]
AsyncConnection = psycopg.AsyncConnection[Any]
Connect = str | Callable[[], AbstractContextManager[Connection]]
AsyncConnect = str | Callable[[], AbstractAsyncContextManager[AsyncConnection]]


class _Tables:
    """The statements, for one schema."""

    def __init__(self, schema: str | None, running_s: float) -> None:
        self.scope = schema or ""
        self._prefix = "" if schema is None else '"' + schema.replace('"', '""') + '".'
        self.read, self.keep, self.raised, self.purge = map(
            self._statement, (shared.READ, shared.KEEP, shared.RAISE, shared.PURGE)
        )
        # READ COMMITTED: the key is read after its lock was granted, in a snapshot taken after that.
        self.begun = (
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; "
            f"SET LOCAL idle_in_transaction_session_timeout = {int(running_s * 1000)}"
        )

    def _statement(self, text: str) -> str:
        return re.sub(r":([a-z_]+)", r"%(\1)s", shared.statement(text, self._prefix))

    def created(self) -> list[str]:
        return [shared.statement(text, self._prefix).replace("{bytes}", "bytea") for text in shared.TABLES]

    def missing(self) -> str:
        """What is asked before anything is created: a role without the right to create must not need it."""
        return f"SELECT to_regclass('{self._prefix}semel_keys'), to_regclass('{self._prefix}semel_floors')"


def _where(connect: object) -> str:
    if not isinstance(connect, str):
        return "Postgres"
    said = conninfo_to_dict(connect)
    return f"Postgres {said.get('host', 'localhost')}:{said.get('port', 5432)}/{said.get('dbname', '')}"


def _idle(connection: Connection | AsyncConnection, where: str) -> None:
    status = connection.info.transaction_status
    if status is not TransactionStatus.IDLE:
        raise UsageError(
            f"{where}: connect= gave a connection that is in a transaction already ({status.name}). The receiver "
            "begins the transaction and commits it; give it connections that are idle."
        )


class AsyncPostgresKeys:
    """`connect`: a connection string (a connection per request), or what opens one: `pool.connection` of psycopg_pool.
    `schema`: where the tables lie or are created; else the search path says. `running_s`: after so long without a
    statement the server ends the transaction of a request, and its key is free."""

    def __init__(self, connect: AsyncConnect, *, schema: str | None = None, running_s: float = RUNNING_S) -> None:
        self._where = _where(connect)
        self._connect = connect if callable(connect) else lambda: _opened_async(connect)
        self._tables = _Tables(schema, running_s)
        self._made = False

    @property
    def where(self) -> str:
        return self._where

    def schema(self) -> str:
        """The tables, for a migration of your own."""
        return ";\n".join(self._tables.created()) + ";\n"

    async def begin(self, sent: Sent, now_ms: int) -> AsyncPostgresHeld | None:
        stack = AsyncExitStack()
        try:
            try:
                await self._make()
                connection = await stack.enter_async_context(self._connect())
                _idle(connection, self.where)
                transaction = await stack.enter_async_context(connection.transaction())
                await connection.execute(self._tables.begun)
                cursor = connection.cursor(row_factory=tuple_row)  # the application's own may be another
                got = await (await cursor.execute(LOCK, (number_of(sent, 63, self._tables.scope),))).fetchone()
                if got != (True,):
                    await stack.__aexit__(psycopg.Rollback, psycopg.Rollback(transaction), None)
                    return None
                row = await (await cursor.execute(self._tables.read, of_sent(sent))).fetchone()
                assert row is not None, "READ returns one row"
                await connection.execute("SAVEPOINT semel_handler")
            except psycopg.Error as why:
                raise KeysUnavailable(f"{self.where}: {why}") from why
        except BaseException as why:
            with suppress(psycopg.Error):
                await stack.__aexit__(type(why), why, why.__traceback__)
            raise
        return AsyncPostgresHeld(self, stack, transaction, connection, sent, now_ms, *of_row(row))

    async def _make(self) -> None:
        if self._made:
            return
        async with self._connect() as connection, connection.transaction():
            cursor = connection.cursor(row_factory=tuple_row)
            if None in (await (await cursor.execute(self._tables.missing())).fetchone() or ()):
                await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_CREATING,))  # one process creates
                for text in self._tables.created():
                    await connection.execute(text)
        self._made = True

    async def purge(self, now_ms: int, limit: int) -> int:
        try:
            async with self._connect() as connection, connection.transaction():
                return (await connection.execute(self._tables.purge, {"now_ms": now_ms, "limit": limit})).rowcount
        except psycopg.Error as why:
            raise KeysUnavailable(f"{self.where}: {why}") from why


class AsyncPostgresHeld:
    """See `keys.Held`."""

    def __init__(
        self,
        keys: AsyncPostgresKeys,
        stack: AsyncExitStack,
        transaction: psycopg.AsyncTransaction,
        connection: AsyncConnection,
        sent: Sent,
        now_ms: int,
        kept: Kept | None,
        floor: int,
    ) -> None:
        self.connection, self.kept, self.floor = connection, kept, floor
        self._where, self._tables = keys.where, keys._tables
        self._stack, self._transaction = stack, transaction
        self._sent, self._now_ms = sent, now_ms

    async def commit(self, kept: Kept | None, *, undo: bool = False) -> None:
        connection, sent, tables = self.connection, self._sent, self._tables
        try:
            try:
                if undo:
                    await connection.execute("ROLLBACK TO SAVEPOINT semel_handler")
                await connection.execute("RELEASE SAVEPOINT semel_handler")
                if kept is not None:
                    done = await connection.execute(tables.keep, {**of_sent(sent), **of_kept(kept, self._now_ms)})
                    assert done.rowcount == 1, f"the key {sent.key} of {sent.sender} was kept without its lock"
                if sent.floor is not None and sent.floor > self.floor:
                    await connection.execute(tables.raised, of_sent(sent))
            except BaseException:
                await self.rollback()
                raise
            await self._stack.aclose()  # COMMIT
        except _NOT_OURS as why:
            raise NotOurs(f"{self._where}: {why}") from why
        except psycopg.Error as why:
            raise KeysUnavailable(f"{self._where}: {why}") from why

    async def rollback(self) -> None:
        with suppress(psycopg.Error):
            await self._stack.__aexit__(psycopg.Rollback, psycopg.Rollback(self._transaction), None)


class PostgresKeys:
    """The same with psycopg's blocking connections, for handlers that are plain functions. `connect`: a connection
    string, or `pool.connection` of a psycopg_pool.ConnectionPool."""

    def __init__(self, connect: Connect, *, schema: str | None = None, running_s: float = RUNNING_S) -> None:
        self._where = _where(connect)
        self._connect = connect if callable(connect) else lambda: _opened(connect)
        self._tables = _Tables(schema, running_s)
        self._threads = Threads()
        self._made = False

    @property
    def where(self) -> str:
        return self._where

    def schema(self) -> str:
        """The tables, for a migration of your own."""
        return ";\n".join(self._tables.created()) + ";\n"

    async def begin(self, sent: Sent, now_ms: int) -> PostgresHeld | None:
        return await self._threads.begin(lambda: self._begin(sent, now_ms))

    def _begin(self, sent: Sent, now_ms: int) -> PostgresHeld | None:
        stack = ExitStack()
        try:
            try:
                self._make()
                connection = stack.enter_context(self._connect())
                _idle(connection, self.where)
                transaction = stack.enter_context(connection.transaction())
                connection.execute(self._tables.begun)
                cursor = connection.cursor(row_factory=tuple_row)
                if cursor.execute(LOCK, (number_of(sent, 63, self._tables.scope),)).fetchone() != (True,):
                    stack.__exit__(psycopg.Rollback, psycopg.Rollback(transaction), None)
                    return None
                row = cursor.execute(self._tables.read, of_sent(sent)).fetchone()
                assert row is not None, "READ returns one row"
                connection.execute("SAVEPOINT semel_handler")
            except psycopg.Error as why:
                raise KeysUnavailable(f"{self.where}: {why}") from why
        except BaseException as why:
            with suppress(psycopg.Error):
                stack.__exit__(type(why), why, why.__traceback__)
            raise
        return PostgresHeld(self, stack, transaction, connection, sent, now_ms, *of_row(row))

    def _make(self) -> None:
        if self._made:
            return
        with self._connect() as connection, connection.transaction():
            cursor = connection.cursor(row_factory=tuple_row)
            if None in (cursor.execute(self._tables.missing()).fetchone() or ()):
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_CREATING,))
                for text in self._tables.created():
                    connection.execute(text)
        self._made = True

    async def purge(self, now_ms: int, limit: int) -> int:
        def delete() -> int:
            try:
                with self._connect() as connection, connection.transaction():
                    return connection.execute(self._tables.purge, {"now_ms": now_ms, "limit": limit}).rowcount
            except psycopg.Error as why:
                raise KeysUnavailable(f"{self.where}: {why}") from why

        return await self._threads.begin(delete)


class PostgresHeld:
    """See `keys.Held`."""

    def __init__(
        self,
        keys: PostgresKeys,
        stack: ExitStack,
        transaction: psycopg.Transaction,
        connection: Connection,
        sent: Sent,
        now_ms: int,
        kept: Kept | None,
        floor: int,
    ) -> None:
        self.connection, self.kept, self.floor = connection, kept, floor
        self._where, self._tables, self._threads = keys.where, keys._tables, keys._threads
        self._stack, self._transaction = stack, transaction
        self._sent, self._now_ms = sent, now_ms

    async def commit(self, kept: Kept | None, *, undo: bool = False) -> None:
        await self._threads.end(lambda: self._commit(kept, undo))

    def _commit(self, kept: Kept | None, undo: bool) -> None:
        connection, sent, tables = self.connection, self._sent, self._tables
        try:
            try:
                if undo:
                    connection.execute("ROLLBACK TO SAVEPOINT semel_handler")
                connection.execute("RELEASE SAVEPOINT semel_handler")
                if kept is not None:
                    done = connection.execute(tables.keep, {**of_sent(sent), **of_kept(kept, self._now_ms)})
                    assert done.rowcount == 1, f"the key {sent.key} of {sent.sender} was kept without its lock"
                if sent.floor is not None and sent.floor > self.floor:
                    connection.execute(tables.raised, of_sent(sent))
            except BaseException:
                self._rollback()
                raise
            self._stack.close()  # COMMIT
        except _NOT_OURS as why:
            raise NotOurs(f"{self._where}: {why}") from why
        except psycopg.Error as why:
            raise KeysUnavailable(f"{self._where}: {why}") from why

    async def rollback(self) -> None:
        await self._threads.end(self._rollback)

    def _rollback(self) -> None:
        with suppress(psycopg.Error):
            self._stack.__exit__(psycopg.Rollback, psycopg.Rollback(self._transaction), None)


_CREATING = 0x73656D656C  # "semel"
# What a handler leaves behind that has committed, rolled back, or swallowed an error of the database.
_NOT_OURS = (
    psycopg.errors.InFailedSqlTransaction,
    psycopg.errors.NoActiveSqlTransaction,
    psycopg.errors.InvalidSavepointSpecification,
)


@asynccontextmanager
async def _opened_async(dsn: str) -> AsyncIterator[AsyncConnection]:
    connection = await psycopg.AsyncConnection.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


@contextmanager
def _opened(dsn: str) -> Iterator[Connection]:
    connection = psycopg.connect(dsn)
    try:
        yield connection
    finally:
        connection.close()
