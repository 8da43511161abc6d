"""MariaDB as a subject of the contract kit. `make` functions stand at module level: processes import them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pymysql

from semel.sinks import MariaDB
from semel.sinks.mariadb import address_of
from semel.testing.contracts import Subject, over_the_wire
from tests.support.mariadb import MariaDBServer

HAND_OVER_S = 4.0


def connected(url: str) -> Any:
    at = address_of(url)
    return pymysql.connect(
        host=at.host, port=at.port, user=at.user, password=at.password, database=at.database, autocommit=True
    )


def query(url: str, statement: str, *parameters: object) -> Sequence[Sequence[Any]]:
    connection = connected(url)
    try:
        cursor = connection.cursor()
        cursor.execute(statement, parameters or None)
        rows: Sequence[Sequence[Any]] = cursor.fetchall()
        return rows
    finally:
        connection.close()


def keyed(address: str, suffix: str) -> MariaDB:
    return MariaDB(address, "entries", key="id", hand_over_s=HAND_OVER_S).renamed(suffix)


def appended(address: str, suffix: str) -> MariaDB:
    return MariaDB(address, "entries", hand_over_s=HAND_OVER_S).renamed(suffix)


def read(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    return [(row[0], row[1]) for row in query(address, f"SELECT id, n FROM `entries{suffix}`")]


def left(address: str, suffix: str) -> Sequence[str]:
    """Tables that were not dropped, prepared transactions, and sessions that sit in a transaction."""
    tables = query(
        address,
        "SELECT table_name FROM information_schema.tables WHERE table_schema = database() AND table_name LIKE %s",
        f"%{suffix}",
    )
    prepared = query(address, "XA RECOVER")
    open_ = query(address, "SELECT concat('transaction ', trx_id, ' ', trx_state) FROM information_schema.innodb_trx")
    return [str(row[0]) for row in (*tables, *prepared, *open_)]


def subject(make: Callable[[str, str], Any], server: MariaDBServer) -> Subject:
    def crash() -> None:
        server.kill()
        server.start()

    def at_port(port: int) -> str:
        return server.url.replace(f":{server.port}/", f":{port}/")

    return Subject(
        make=make,
        address=server.url,
        read=read,
        orphans=left,
        loses=lambda: over_the_wire(server.port, b"COMMIT", at_port),
        crash=crash,
        hand_over_s=HAND_OVER_S,
    )
