"""Rows per second of each sink beside the fastest writer of the same client that leaves the same rows.

    BENCH=sinks make bench          SINKS="postgres sqlite …" chooses, ROWS sets the rows of a turn

Both sides are given the same encoded values, in the batches in which a delivery hands them over, and end each batch
with a commit (or a PUT) of their own. The peer has no position, no owner, no guard and no validation: what it lacks is
what the ratio measures. What both leave is read back and compared after the last turn.

append: COPY, multi-row INSERT, `executemany`, PUT. upsert: COPY into a temporary table and a merge; elsewhere the plain
upsert. Each batch of an upsert is first reduced to the last value per key on both sides: Postgres refuses it otherwise.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.table import ratios, spread, table
from semel.contract import Claim, DeliveryId, LogIdentity, Row
from semel.ports import Done, NoSteps

ROWS = int(os.environ.get("ROWS", "100000"))
BATCH = 5_000
KEYS = 20_000
SEED = 1
RUN = "0 1 - 00000000"


class Order(msgspec.Struct, frozen=True):
    """What a row is: a key, three texts, two numbers; about 140 bytes as JSON."""

    order_id: str
    customer: str
    product: str
    amount: int
    price: int
    note: str


FIELDS = Order.__struct_fields__
Decoded = list[tuple[Any, ...]]
Peer = Callable[[list[bytes]], None]  # one batch, committed
Made = tuple[Any, Callable[[], Peer], Callable[[bool], list[Any]], int]  # sink, its peer, the rows of (ours), batch


def values(count: int) -> list[bytes]:
    dice, encode = random.Random(SEED), msgspec.json.Encoder().encode
    return [
        encode(
            Order(
                f"o-{dice.randrange(KEYS):07}", f"customer {dice.randrange(1000)}", dice.choice("abcdefgh") * 8, n,
                dice.randrange(100_000), "a note of some length, as they are",
            )
        )
        for n in range(count)
    ]  # fmt: skip


_decode = msgspec.json.Decoder(Order).decode


def decoded(batch: Sequence[bytes]) -> Decoded:
    return [(o.order_id, o.customer, o.product, o.amount, o.price, o.note) for o in map(_decode, batch)]


def last_per_key(rows: Decoded) -> Decoded:
    return list({row[0]: row for row in rows}.values())


class Ours:
    """A sink's connection, driven as a delivery drives it."""

    def __init__(self, sink: Any) -> None:
        self.sink = sink
        self.connection = sink.open(NoSteps())
        assert self.connection.prepare(Order) == Done(), "the sink is not ready"
        claim = self.connection.claim(DeliveryId("bench", sink.name, 0), LogIdentity("bench-topic", 1))
        assert isinstance(claim, Claim), claim
        self.claim, self.at = claim, claim.position

    def write(self, batch: list[tuple[bytes | None, bytes]]) -> None:
        start, end = self.at, self.at + len(batch)
        rows = [Row(start + n, 1_000, key, value) for n, (key, value) in enumerate(batch)]
        outcome = self.connection.write(self.claim, start, end, RUN, rows)
        assert outcome == Done(), outcome
        self.at = end


# --- the systems ------------------------------------------------------------------------------------------------------


def _columns(text: str, integer: str, key: bool) -> str:
    kinds = (text, text, text, integer, integer, text)
    primary = " PRIMARY KEY" if key else ""
    return ", ".join(f"{n} {k}{primary if n == 'order_id' else ''}" for n, k in zip(FIELDS, kinds, strict=True))


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[dict[str, Made]]:
    import psycopg

    from semel.host.postgres import PostgresServer
    from semel.sinks import Postgres, PostgresVersioned

    with PostgresServer(folder / "postgres") as server:
        connection = psycopg.connect(server.dsn)
        names = ", ".join(FIELDS)

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

        def shown(name: str, table: str) -> Callable[[bool], list[Any]]:
            def read(ours: bool) -> list[Any]:
                found = connection.execute(f"SELECT {names} FROM {table if ours else name + '_peer'}").fetchall()
                connection.commit()
                return sorted(found)

            return read

        yield {
            "Postgres, append (COPY)": (
                Postgres(server.dsn, "added"), peer("added", False), shown("added", "added"), BATCH
            ),
            "Postgres, upsert (COPY, merge)": (
                Postgres(server.dsn, "kept", key="order_id"), peer("kept", True), shown("kept", "kept"), BATCH
            ),
            "PostgresVersioned, upsert": (
                PostgresVersioned(server.dsn, "versions", key="order_id"), peer("versions", True),
                shown("versions", "versions_live"), BATCH,
            ),
        }  # fmt: skip
        connection.close()


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
        "SQLite, append": (SQLite(folder / "ours.db", "added"), peer("added", False), shown("added"), BATCH),
        "SQLite, upsert": (
            SQLite(folder / "ours.db", "kept", key="order_id"),
            peer("kept", True),
            shown("kept"),
            BATCH,
        ),
    }


@contextlib.contextmanager
def mariadb(folder: Path) -> Iterator[dict[str, Made]]:
    import pymysql
    from tests.support.mariadb import MariaDBServer

    from semel.sinks import MariaDB
    from semel.sinks.mariadb import address_of

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
            "MariaDB, append": (MariaDB(url, "added"), peer("added", False), shown("added"), BATCH),
            "MariaDB, upsert": (MariaDB(url, "kept", key="order_id"), peer("kept", True), shown("kept"), BATCH),
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
            "Objects, JSON lines (S3)": (
                Objects(f"s3://{S3_BUCKET}/ours-l", options=options), lines("peer-l"),
                shown("ours-l", "peer-l", "jsonl"), BATCH,
            ),
            "Objects, Parquet (S3)": (
                Objects(f"s3://{S3_BUCKET}/ours-p", format="parquet", value=Order, options=options), parquet("peer-p"),
                shown("ours-p", "peer-p", "parquet"), BATCH,
            ),
        }  # fmt: skip


@contextlib.contextmanager
def kafka(folder: Path) -> Iterator[dict[str, Made]]:
    """Apache Kafka and `semel broker` as targets, 4 partitions. The peer is given its keys, and commits a transaction
    per batch."""
    import confluent_kafka
    from tests.servers.kafka_subjects import KEEPING, messages, ready
    from tests.support.broker import BrokerProcess
    from tests.support.kafka import KafkaProcess

    from semel.sinks import KafkaTopic

    def made(address: str) -> Made:
        ready(address)
        sink = KafkaTopic(f"kafka://{address}", "ours", key="order_id", partitions=4)
        KafkaTopic(f"kafka://{address}", "theirs", partitions=4).open(NoSteps()).prepare(Order)

        def peer() -> Peer:
            keys = {value: sink.encode_key(_decode(value)) for value in values(ROWS)}
            producer = confluent_kafka.Producer(
                {
                    "bootstrap.servers": address,
                    "transactional.id": "theirs",
                    "partitioner": "murmur2_random",
                    "linger.ms": 5,
                    "batch.size": 1_000_000,
                    "queue.buffering.max.messages": 2_000_000,
                    "delivery.report.only.error": True,
                }
            )
            producer.init_transactions(30)

            def write(batch: list[bytes]) -> None:
                producer.begin_transaction()
                for value in batch:
                    producer.produce("theirs", value, keys[value], timestamp=1_000)
                producer.commit_transaction(30)

            return write

        def shown(ours: bool) -> list[Any]:
            return sorted(messages(address, "ours" if ours else "theirs"))

        return sink, peer, shown, BATCH

    with KafkaProcess(folder / "kafka", props=KEEPING) as apache, BrokerProcess(folder / "broker") as broker:
        yield {
            "KafkaTopic (Apache Kafka)": made(apache.address),
            "KafkaTopic (semel broker)": made(broker.address),
        }


SYSTEMS = {"postgres": postgres, "sqlite": sqlite, "mariadb": mariadb, "objects": objects, "kafka": kafka}


def measure(made: Made, rounds: int) -> tuple[list[float], list[float]]:
    """Rows per second, ours and the peer's, in turns; the first round is not counted."""
    sink, peer, shown, size = made
    ours, theirs = Ours(sink), peer()
    encoded = values(ROWS)
    keyed = [(sink.encode_key(_decode(value)), value) for value in encoded]  # as they lie in the outbox
    starts = range(0, ROWS, size)
    batches = {True: [keyed[at : at + size] for at in starts], False: [encoded[at : at + size] for at in starts]}
    figures: dict[bool, list[float]] = defaultdict(list)
    for turn in range(rounds + 1):
        for mine in (True, False) if turn % 2 else (False, True):
            write: Any = ours.write if mine else theirs
            began = time.perf_counter()
            for batch in batches[mine]:
                write(batch)
            took = time.perf_counter() - began
            if turn:
                figures[mine].append(ROWS / took)
    ours.connection.close()
    assert shown(True) == shown(False), f"{sink.where}: its rows differ from the peer's"
    return figures[True], figures[False]


def run(rounds: int) -> None:
    chosen = os.environ.get("SINKS", " ".join(SYSTEMS)).split()
    rows: dict[str, Sequence[str]] = {}
    for system in chosen:
        with tempfile.TemporaryDirectory(prefix="semel-bench-") as folder, SYSTEMS[system](Path(folder)) as sinks:
            for name, made in sinks.items():
                ours, theirs = measure(made, rounds)
                rows[name] = [spread(ours), spread(theirs), ratios(theirs, ours)]
    columns = ["semel, rows/s", "fastest plain writer, rows/s", "plain / semel (the bar: 1.25)"]
    print(table(f"Sinks: {ROWS:,} rows a turn, batches of {BATCH:,}", columns, rows), flush=True)
