"""The built-in sinks as subjects of the contract kit: how each is declared, read from outside, and made to fail.

`make` functions stand at module level: processes that are killed import them.
"""

from __future__ import annotations

import csv
import gzip
import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import obstore
import psycopg
from obstore.store import S3Store
from pyarrow import parquet

from semel.host.postgres import PostgresServer
from semel.ports import SinkConnection
from semel.sinks import Objects, Postgres, PostgresAppended, PostgresVersioned, SQLite
from semel.testing.contracts import Entry, Subject, lost_at_the_call, over_the_wire

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


# --- objects ---------------------------------------------------------------------------------------------------------


def objects_jsonl(address: str, suffix: str) -> Objects:
    return Objects(address, name="entries", records=10, seconds=0.01).renamed(suffix)


def objects_csv(address: str, suffix: str) -> Objects:
    form = Objects(address, name="entries", records=10, seconds=0.01, format="csv", value=Entry, compression="gzip")
    return form.renamed(suffix)


def objects_parquet(address: str, suffix: str) -> Objects:
    form = Objects(address, name="entries", records=10, seconds=0.01, format="parquet", value=Entry)
    return form.renamed(suffix)


def read_objects(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    """Every object that lies there, whether a manifest names it or not."""
    for file in sorted(Path(address + suffix).glob("0*/*")):
        if file.suffix == ".parquet":
            yield from ((r["id"], r["n"]) for r in parquet.read_table(file).to_pylist())
        elif file.suffix == ".gz":
            lines = gzip.decompress(file.read_bytes()).decode().splitlines()
            yield from ((r["id"], int(r["n"])) for r in csv.DictReader(lines))
        else:
            yield from ((r["id"], r["n"]) for r in map(json.loads, file.read_text().splitlines()))


def left_in_a_folder(address: str, suffix: str) -> Sequence[str]:
    return [str(file) for file in Path(address + suffix).rglob("*")]


def objects_subject(make: Callable[[str, str], Any], folder: Path) -> Subject:
    poison = () if make is objects_jsonl else (b'{"id": "p", "m": 1}', b"[1]")
    address = str(folder / "kit")
    # A cut follows the one before it without a gap: 10 records, 990, and the kit goes on at 1,000.
    return Subject(make=make, address=address, read=read_objects, orphans=left_in_a_folder, poison=poison, large=990)


S3_KEY, S3_SECRET = "semel-test", "semel-test-secret"
S3_BUCKET = "semel-test"


def s3_options(endpoint: str) -> dict[str, str]:
    return {"endpoint": endpoint, "region": "us-east-1", "access_key_id": S3_KEY, "secret_access_key": S3_SECRET}


def objects_s3(address: str, suffix: str) -> Objects:
    """`address` is the server's endpoint."""
    url = f"s3://{S3_BUCKET}/kit"
    return Objects(url, name="entries", records=10, seconds=0.01, options=s3_options(address)).renamed(suffix)


def _bucket(address: str) -> Any:
    # After a crash SeaweedFS answers 500 until its volumes have come back to its master.
    patient: Any = {"max_retries": 100, "backoff": {"init_backoff": timedelta(milliseconds=300)}}
    patient |= {"retry_timeout": timedelta(seconds=60)}
    options: Any = s3_options(address)
    return S3Store(S3_BUCKET, config=options, client_options={"allow_http": True}, retry_config=patient)


def left_in_s3(address: str, suffix: str) -> Sequence[str]:
    return [one["path"] for chunk in obstore.list(_bucket(address), prefix=f"kit{suffix}") for one in chunk]


def read_s3(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    for key in left_in_s3(address, suffix):
        if "/_semel/" not in key:
            lines = bytes(obstore.get(_bucket(address), key).bytes()).splitlines()
            yield from ((r["id"], r["n"]) for r in map(json.loads, lines))


def s3_subject(port: int, crash: Callable[[], None]) -> Subject:
    def at(port: int) -> str:
        return f"http://127.0.0.1:{port}"

    return Subject(
        make=objects_s3,
        address=at(port),
        read=read_s3,
        orphans=left_in_s3,
        loses=lambda: over_the_wire(port, f"PUT /{S3_BUCKET}/kit".encode(), at),
        crash=crash,
        poison=(),
        large=990,
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


def postgres_once(address: str, suffix: str) -> PostgresAppended:
    return PostgresAppended(address, "entries", hand_over_s=HAND_OVER_S).renamed(suffix)


def read_once(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    """Without repeats, as the view has it."""
    with psycopg.connect(address) as connection:
        return connection.execute(f'SELECT id, n FROM "entries_once{suffix}"').fetchall()  # type: ignore[arg-type]


def stored_in_postgres(address: str, suffix: str) -> int:
    with psycopg.connect(address) as connection:
        (found,) = connection.execute(f'SELECT count(*) FROM "entries{suffix}"').fetchone() or (0,)  # type: ignore[arg-type]
        return int(found)


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
        read={postgres_versioned: read_live, postgres_once: read_once}.get(make, read_postgres),
        stored=stored_in_postgres if make is postgres_once else None,
        orphans=left_in_postgres,
        loses=lambda: over_the_wire(server.port, b"COMMIT", lambda port: at_port(address, port)),
        crash=crash,
        hand_over_s=HAND_OVER_S,
    )
