"""The built-in sinks as subjects of the contract kit: how each is declared, read from outside, and made to fail.

`make` functions stand at module level: processes that are killed import them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from semel.host.postgres import PostgresServer
from semel.ports import SinkConnection
from semel.sinks import Postgres, PostgresVersioned, SQLite
from semel.testing.contracts import Subject, lost_at_the_call, over_the_wire

HAND_OVER_S = 2.0


# --- SQLite ----------------------------------------------------------------------------------------------------------


def sqlite_keyed(address: str, suffix: str) -> SQLite:
    return SQLite(address, "entries", key="id").renamed(suffix)


def sqlite_appended(address: str, suffix: str) -> SQLite:
    return SQLite(address, "entries").renamed(suffix)


def read_sqlite(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    connection = sqlite3.connect(address)
    try:
        return connection.execute(f'SELECT id, n FROM "entries{suffix}"').fetchall()
    finally:
        connection.close()


def left_in_sqlite(address: str, suffix: str) -> Sequence[str]:
    """Tables that were not dropped; a journal of a transaction that nobody finished."""
    connection = sqlite3.connect(address)
    try:
        left = [
            row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE name LIKE ?", (f"%{suffix}",))
        ]
    finally:
        connection.close()
    return left + [str(file) for file in Path(address).parent.glob("*-journal")]


class _Arming:
    """A sqlite3 connection whose next COMMIT is done by `instead`."""

    def __init__(self, connection: sqlite3.Connection, instead: Callable[[Callable[[], Any]], Any]) -> None:
        self._connection, self._instead = connection, instead

    def execute(self, statement: str, *more: Any) -> Any:
        if statement == "COMMIT":
            return self._instead(lambda: self._connection.execute("COMMIT"))
        return self._connection.execute(statement, *more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def arm_sqlite(connection: SinkConnection, instead: Callable[[Callable[[], Any]], Any]) -> None:
    connection._connection = _Arming(connection._connection, instead)  # type: ignore[attr-defined]


def sqlite_subject(make: Callable[[str, str], Any], folder: Path) -> Subject:
    address = str(folder / "kit.db")
    return Subject(
        make=make,
        address=address,
        read=read_sqlite,
        orphans=left_in_sqlite,
        loses=lambda: lost_at_the_call(address, arm_sqlite, lambda: sqlite3.OperationalError("disk I/O error")),
    )


# --- Postgres --------------------------------------------------------------------------------------------------------


def postgres_keyed(address: str, suffix: str) -> Postgres:
    return Postgres(address, "entries", key="id", hand_over_s=HAND_OVER_S).renamed(suffix)


def postgres_appended(address: str, suffix: str) -> Postgres:
    return Postgres(address, "entries", hand_over_s=HAND_OVER_S).renamed(suffix)


def read_postgres(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    with psycopg.connect(address) as connection:
        return connection.execute(f'SELECT id, n FROM "entries{suffix}"').fetchall()  # type: ignore[arg-type]


def postgres_versioned(address: str, suffix: str) -> PostgresVersioned:
    return PostgresVersioned(address, "entries", key="id", hand_over_s=HAND_OVER_S).renamed(suffix)


def read_live(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    """Without tombstones, as the view has it."""
    with psycopg.connect(address) as connection:
        return connection.execute(f'SELECT id, n FROM "entries_live{suffix}"').fetchall()  # type: ignore[arg-type]


def left_in_postgres(address: str, suffix: str) -> Sequence[str]:
    """Tables that were not dropped, prepared transactions, and sessions of this database that sit in a transaction."""
    with psycopg.connect(address) as connection:
        tables = connection.execute("SELECT relname FROM pg_class WHERE relkind IN ('r','v') AND relname LIKE %s",
                                    (f"%{suffix}",)).fetchall()  # fmt: skip
        prepared = connection.execute("SELECT gid FROM pg_prepared_xacts").fetchall()
        held = connection.execute(
            "SELECT 'a session in a transaction: ' || pid || ' ' || query FROM pg_stat_activity "
            "WHERE datname = current_database() AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()"
        ).fetchall()
    return [row[0] for row in (*tables, *prepared, *held)]


def at_port(address: str, port: int) -> str:
    url = urlsplit(address)
    return urlunsplit(url._replace(netloc=f"{url.netloc.rpartition(':')[0]}:{port}"))


def postgres_subject(make: Callable[[str, str], Any], server: PostgresServer, address: str) -> Subject:
    def crash() -> None:
        server.kill()
        server.start()

    return Subject(
        make=make,
        address=address,
        read=read_live if make is postgres_versioned else read_postgres,
        orphans=left_in_postgres,
        loses=lambda: over_the_wire(server.port, b"COMMIT", lambda port: at_port(address, port)),
        crash=crash,
        hand_over_s=HAND_OVER_S,
    )
