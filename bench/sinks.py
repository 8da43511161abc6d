"""Rows per second of each sink beside the fastest writer of the same client that leaves the same rows.

    BENCH=sinks make bench     BENCH_SINKS="postgres redis …" chooses; ROWS and ROUNDS set the size

Both sides are given the same committed records, in the batches in which a delivery hands them over, and end each batch
with a commit (or a PUT) of their own. The peer has no position, no owner, no guard and no validation: what it lacks is
what the ratio measures. What both leave is read back and compared after the last turn.

append: COPY, multi-row INSERT, `executemany`, PUT. upsert: COPY into a temporary table and a merge; elsewhere the plain
upsert. Each batch of an upsert is first reduced to the last value per key on both sides: Postgres refuses it otherwise.

`SYSTEMS` is the table of entries: a function of a folder that starts the system and yields, by the name of the line,
what `sinks_common.Made` tells. What is not here lies in a module per family (MODULE:FUNCTION).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.sinks_common import BATCH, COLUMNS, CUT, FIELDS, Made, Order, Peer, cells, decoded, last_per_key, measure
from bench.table import table

# --- the systems ------------------------------------------------------------------------------------------------------


def _columns(text: str, integer: str, key: bool) -> str:
    kinds = (text, text, text, integer, integer, text)
    primary = " PRIMARY KEY" if key else ""
    return ", ".join(f"{n} {k}{primary if n == 'order_id' else ''}" for n, k in zip(FIELDS, kinds, strict=True))


@contextlib.contextmanager
def postgres_like(folder: Path, names: Sequence[str], sink_of: Callable[..., Any]) -> Iterator[dict[str, Made]]:
    """By the names of the tables; `sink_of(table, dsn, key)`. Of a table that ends in "kept" the writes are upserts."""
    import psycopg

    from semel.host.postgres import PostgresServer

    with PostgresServer(folder / "postgres") as server:
        connection = psycopg.connect(server.dsn)

        def peer(name: str, key: bool) -> Callable[[], Peer]:
            def made() -> Peer:
                connection.execute(f"CREATE TABLE {name}_peer ({_columns('text', 'bigint', key)})")
                connection.execute(f"CREATE TEMP TABLE {name}_batch (LIKE {name}_peer) ON COMMIT DELETE ROWS")
                connection.commit()
                updates = ", ".join(f"{f} = excluded.{f}" for f in FIELDS[1:])
                merge = (
                    f"INSERT INTO {name}_peer SELECT * FROM {name}_batch ON CONFLICT (order_id) DO UPDATE SET {updates}"
                )

                def write(batch: list[bytes]) -> None:
                    rows = last_per_key(decoded(batch)) if key else decoded(batch)
                    with (
                        connection.cursor() as cursor,
                        cursor.copy(f"COPY {name}_{'batch' if key else 'peer'} FROM STDIN") as copy,
                    ):
                        for row in rows:
                            copy.write_row(row)
                    if key:
                        connection.execute(merge)
                    connection.commit()

                return write

            return made

        def shown(name: str, of: str) -> Callable[[bool], list[Any]]:
            def read(ours: bool) -> list[Any]:
                query = f"SELECT {', '.join(FIELDS)} FROM {of if ours else name + '_peer'}"
                found = connection.execute(query).fetchall()
                connection.commit()
                return sorted(found)

            return read

        made = {}
        for name in names:
            key = "order_id" if name.endswith("kept") else None
            sink = sink_of(name, server.dsn, key)
            read = shown(name, name + "_live" if hasattr(sink, "live") else name)
            made[name] = Made(sink, peer(name, key is not None), read, CUT if hasattr(sink, "rule") else BATCH)
        yield made
        connection.close()


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[dict[str, Made]]:
    from semel.sinks import Postgres, PostgresVersioned

    def sink_of(name: str, dsn: str, key: str | None) -> Any:
        return PostgresVersioned(dsn, name, key=key) if "version" in name else Postgres(dsn, name, key=key)

    with postgres_like(folder, ("added", "kept", "version_kept"), sink_of) as made:
        yield {
            "Postgres, append (COPY)": made["added"],
            "Postgres, upsert (COPY, merge)": made["kept"],
            "PostgresVersioned, upsert": made["version_kept"],
        }


@contextlib.contextmanager
def sqlite(folder: Path) -> Iterator[dict[str, Made]]:
    from semel.sinks import SQLite

    path = str(folder / "peer.db")

    def peer(name: str, key: bool) -> Callable[[], Peer]:
        def made() -> Peer:
            connection = sqlite3.connect(path, isolation_level=None)
            # As semel has it: what was acknowledged survives a power cut.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute(f"CREATE TABLE {name} ({_columns('TEXT', 'INTEGER', key)})")
            insert = f"INSERT INTO {name} VALUES (?, ?, ?, ?, ?, ?)"
            if key:
                insert += " ON CONFLICT (order_id) DO UPDATE SET " + ", ".join(
                    f"{f} = excluded.{f}" for f in FIELDS[1:]
                )

            def write(batch: list[bytes]) -> None:
                rows = last_per_key(decoded(batch)) if key else decoded(batch)
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(insert, rows)
                connection.execute("COMMIT")

            return write

        return made

    def shown(name: str) -> Callable[[bool], list[Any]]:
        def read(ours: bool) -> list[Any]:
            with contextlib.closing(sqlite3.connect(folder / "ours.db" if ours else path)) as connection:
                return sorted(connection.execute(f"SELECT {', '.join(FIELDS)} FROM {name}"))

        return read

    yield {
        "SQLite, append": Made(SQLite(folder / "ours.db", "added"), peer("added", False), shown("added"), BATCH),
        "SQLite, upsert": Made(
            SQLite(folder / "ours.db", "kept", key="order_id"),
            peer("kept", True),
            shown("kept"),
            BATCH,
        ),
    }


@contextlib.contextmanager
def mariadb(folder: Path, kind: Callable[..., Any] | None = None) -> Iterator[dict[str, Made]]:
    import pymysql
    from tests.support.mariadb import MariaDBServer

    from semel.sinks import MariaDB
    from semel.sinks.mariadb import address_of

    sink = kind or MariaDB
    with MariaDBServer(folder / "mariadb") as server:
        url, at = server.url, address_of(server.url)
        connection = pymysql.connect(
            host=at.host, port=at.port, user=at.user, password=at.password, database=at.database, charset="utf8mb4"
        )

        def peer(name: str, key: bool) -> Callable[[], Peer]:
            def made() -> Peer:
                cursor = connection.cursor()
                cursor.execute(f"CREATE TABLE {name}_peer ({_columns('VARCHAR(255)', 'BIGINT', key)})")
                insert = f"INSERT INTO {name}_peer VALUES (%s, %s, %s, %s, %s, %s)"
                if key:
                    insert += " ON DUPLICATE KEY UPDATE " + ", ".join(f"{f} = VALUES({f})" for f in FIELDS[1:])

                def write(batch: list[bytes]) -> None:
                    cursor.executemany(insert, last_per_key(decoded(batch)) if key else decoded(batch))
                    connection.commit()

                return write

            return made

        def shown(name: str) -> Callable[[bool], list[Any]]:
            def read(ours: bool) -> list[Any]:
                cursor = connection.cursor()
                cursor.execute(f"SELECT {', '.join(FIELDS)} FROM {name if ours else name + '_peer'}")
                found = sorted(cursor.fetchall())
                connection.commit()
                return found

            return read

        yield {
            "MariaDB, append": Made(sink(url, "added"), peer("added", False), shown("added")),
            "MariaDB, upsert": Made(sink(url, "kept", key="order_id"), peer("kept", True), shown("kept")),
        }
        connection.close()


@contextlib.contextmanager
def objects(folder: Path) -> Iterator[dict[str, Made]]:
    """On SeaweedFS: an object per batch. The peer joins the lines, or builds the same Parquet, and PUTs."""
    import obstore
    import pyarrow as pa
    from obstore.store import S3Store
    from pyarrow import parquet as pq
    from tests.sinks.subjects import S3_BUCKET
    from tests.support.seaweed import SeaweedProcess

    from semel.sinks import Objects

    with SeaweedProcess(folder / "seaweed") as server:
        options: Any = server.options()
        store = S3Store(S3_BUCKET, config=options, client_options={"allow_http": True})

        def lines(prefix: str) -> Callable[[], Peer]:
            def made() -> Peer:
                numbers = iter(range(1 << 30))

                def write(batch: list[bytes]) -> None:
                    obstore.put(store, f"{prefix}/{next(numbers):09}.jsonl", b"\n".join(batch) + b"\n")

                return write

            return made

        def parquet(prefix: str) -> Callable[[], Peer]:
            schema = pa.schema([(f, pa.int64() if f in ("amount", "price") else pa.string()) for f in FIELDS])

            def made() -> Peer:
                numbers = iter(range(1 << 30))

                def write(batch: list[bytes]) -> None:
                    columns = list(zip(*decoded(batch), strict=True))
                    made = pa.table([pa.array(c, t) for c, t in zip(columns, schema.types)], schema=schema)
                    out = pa.BufferOutputStream()
                    pq.write_table(made, out, compression="zstd")
                    obstore.put(store, f"{prefix}/{next(numbers):09}.parquet", out.getvalue().to_pybytes())

                return write

            return made

        def shown(ours: str, theirs: str, form: str) -> Callable[[bool], list[Any]]:
            def read(mine: bool) -> list[Any]:
                found = []
                for page in obstore.list(store, ours if mine else theirs):
                    for one in page:
                        if not one["path"].endswith(form):
                            continue
                        body = bytes(obstore.get(store, one["path"]).bytes())
                        if form == "parquet":
                            found += [
                                tuple(row[f] for f in FIELDS)
                                for row in pq.read_table(pa.BufferReader(body)).to_pylist()
                            ]
                        else:
                            found += decoded(body.splitlines())
                return sorted(found)

            return read

        yield {
            "Objects, JSON lines (S3)": Made(
                Objects(f"s3://{S3_BUCKET}/ours-l", options=options), lines("peer-l"),
                shown("ours-l", "peer-l", "jsonl"), CUT,
            ),
            "Objects, Parquet (S3)": Made(
                Objects(f"s3://{S3_BUCKET}/ours-p", format="parquet", value=Order, options=options), parquet("peer-p"),
                shown("ours-p", "peer-p", "parquet"), CUT,
            ),
        }  # fmt: skip


SYSTEMS: dict[str, Any] = {
    "postgres": postgres,
    "sqlite": sqlite,
    "mariadb": mariadb,
    "objects": objects,
    "duckdb": "bench.sinks_lakes:duckdb",
    "delta": "bench.sinks_lakes:delta",
    "iceberg": "bench.sinks_lakes:iceberg",
    "redis": "bench.sinks_versioned:redis",
    "valkey": "bench.sinks_versioned:valkey",
    "opensearch": "bench.sinks_versioned:opensearch",
    "postgres-two-phase": "bench.sinks_phases:postgres",
    "mariadb-two-phase": "bench.sinks_phases:mariadb",
    "files": "bench.sinks_phases:files",
    "multipart": "bench.sinks_phases:multipart",
    "http": "bench.sinks_http:http_",
    "kafka": "bench.sinks_logs:kafka",
    "clickhouse": "bench.sinks_windowed:clickhouse",
}
BY_NAME_ONLY = {"mongodb": "bench.sinks_versioned:mongodb"}  # its server is built, which takes minutes

BESIDE = {"latency": "bench.sink_latency", "connect": "bench.sink_connect"}  # no plain writer; tables of their own


def found(name: str) -> Any:
    entry = (SYSTEMS | BY_NAME_ONLY)[name]
    if not isinstance(entry, str):
        return entry
    module, _, function = entry.partition(":")
    return getattr(importlib.import_module(module), function)


def run(rounds: int) -> None:
    """Each system by itself: what is there when one fails, or is interrupted, has been printed."""
    chosen = (os.environ.get("BENCH_SINKS") or " ".join([*SYSTEMS, *BESIDE])).split()
    if unknown := [name for name in chosen if name not in SYSTEMS | BY_NAME_ONLY | BESIDE]:
        raise SystemExit(f"error: no sink named {unknown}; there are: {', '.join(SYSTEMS | BY_NAME_ONLY | BESIDE)}")
    _beside_plain_writers([name for name in chosen if name not in BESIDE], rounds)
    for name in chosen:
        if name in BESIDE:
            importlib.import_module(BESIDE[name]).run()


def _beside_plain_writers(chosen: Sequence[str], rounds: int) -> None:
    rows: dict[str, Sequence[str]] = {}
    for system in chosen:
        with tempfile.TemporaryDirectory(prefix="semel-bench-") as folder, found(system)(Path(folder)) as sinks:
            for name, made in sinks.items():
                rows[name] = cells(*measure(Made(*made), rounds))
                print(f"{name}: {' | '.join(rows[name])}", flush=True)
    if not rows:
        return
    print(table("Sinks beside plain writers of the same client", COLUMNS, rows), flush=True)
