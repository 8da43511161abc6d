"""Postgres by semel beside Debezium's JDBC sink on Kafka Connect: the same topic, the same Apache Kafka, in turns.

    BENCH=sinks BENCH_SINKS=connect make bench       CONNECT_RECORDS, CONNECT_ROUNDS

Each side runs in a process of its own over a full topic of JSON (4 partitions), and writes into an empty table; the
clock runs from the first rows that a reader sees to the last. semel runs an app that passes each record on
(`read(topic).write(Postgres(…))`): a transaction into its outbox, then COPY and position in one transaction. Connect
runs standalone with two tasks, 5,000 records a poll and a batch, and the driver's reWriteBatchedInserts; its JSON
converter is given the schema (schema.content), so that the records need not carry it. CPU is the process's own until
the last row, its start included. What both leave is compared.

What they promise differs: semel's rows come once; the connector is at least once, its upsert idempotent by key.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bench.servers import cpu_s
from bench.sinks_common import FIELDS, Order, decode, values
from bench.table import ratios, spread, table

HERE = Path(__file__).resolve().parent / "connect"
RECORDS = int(os.environ.get("CONNECT_RECORDS", "200000"))
ROUNDS = int(os.environ.get("CONNECT_ROUNDS", "2"))
PARTITIONS = 4
PATIENCE_S = 180.0


def libs() -> Path:
    folder = HERE / "libs"
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} is not on the PATH: this benchmark needs a JDK 17 or newer and Maven")
    with open(HERE / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob("debezium-connector-jdbc-*.jar")):
            subprocess.run(["mvn", "-B", "-ntp", "-q", "-f", str(HERE / "pom.xml"), "package"], check=True, timeout=900)
    return folder


def child(url: str, dsn: str, name: str, key: str) -> None:
    """semel's side."""
    from semel import App, Builder, Topic
    from semel.host.worker import run_app
    from semel.sinks import Postgres

    topic: Topic[str, Order] = Topic("in", key=str, value=Order)

    def build(b: Builder) -> None:
        b.read(topic).write(Postgres(dsn, name, key=key or None))

    run_app(App(f"app-{name}", build, commit_interval_ms=100), url)


def connect_words(folder: Path, kafka: str, dsn: str, name: str, key: str) -> list[str]:
    """Kafka Connect, standalone."""
    from semel.host.free_port import free_port

    at = urlsplit(dsn)
    kinds = ["int64" if f in ("amount", "price") else "string" for f in FIELDS]
    fields = [{"field": f, "type": kind, "optional": False} for f, kind in zip(FIELDS, kinds, strict=True)]
    worker = {
        "bootstrap.servers": kafka,
        "listeners": f"http://127.0.0.1:{free_port()}",
        "offset.storage.file.filename": folder / f"offsets-{name}",
        "key.converter": "org.apache.kafka.connect.storage.StringConverter",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "true",
        "value.converter.schema.content": json.dumps({"type": "struct", "name": "order", "fields": fields}),
        "consumer.auto.offset.reset": "earliest",
        "consumer.max.poll.records": 5_000,
        "consumer.fetch.max.bytes": 20_000_000,
        "consumer.max.partition.fetch.bytes": 5_000_000,
        "plugin.discovery": "hybrid_warn",
    }
    sink = {
        "name": name,
        "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
        "tasks.max": 2,
        "topics": "in",
        "connection.url": f"jdbc:postgresql://{at.hostname}:{at.port}{at.path}?reWriteBatchedInserts=true",
        "connection.username": at.username,
        "connection.password": at.password,
        "insert.mode": "upsert" if key else "insert",
        "primary.key.mode": "record_value" if key else "none",
        "schema.evolution": "none",
        "collection.name.format": name,
        "batch.size": 5_000,
    }
    if key:
        sink |= {"primary.key.fields": key, "use.reduction.buffer": "true"}
    for file, said in ((f"worker-{name}", worker), (f"sink-{name}", sink)):
        (folder / f"{file}.properties").write_text("".join(f"{k}={v}\n" for k, v in said.items()))
    from tests.support.kafka import HERE as KAFKA
    from tests.support.kafka import libs as kafka_libs

    path = ":".join([f"{libs()}/*", *map(str, kafka_libs().glob("log4j-*.jar"))])
    return [
        "java", "-Xmx768m", "-Xms512m", f"-Dlog4j2.configurationFile={KAFKA}/log4j2.properties", "-cp", path,
        "org.apache.kafka.connect.cli.ConnectStandalone", str(folder / f"worker-{name}.properties"),
        str(folder / f"sink-{name}.properties"),
    ]  # fmt: skip


def fill(address: str, encoded: Sequence[bytes]) -> None:
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": address})  # alive until its answer is there
    admin.create_topics([NewTopic("in", PARTITIONS, 1)])["in"].result(30)
    producer = Producer({"bootstrap.servers": address, "enable.idempotence": True, "batch.size": 1_000_000,
                         "linger.ms": 50, "queue.buffering.max.messages": 1_000_000})  # fmt: skip
    for value in encoded:
        producer.produce("in", value, decode(value).order_id)
        producer.poll(0)
    assert producer.flush(120) == 0


class Turn(NamedTuple):
    rate: float  # rows/s
    later: float  # of the second half of an insert, when a JVM is warmer; 0: not to be told
    cpu: float  # s per million records


def turn(words: Sequence[str], name: str, connection: Any, wanted: int, folder: Path) -> Turn:
    """`wanted`: what the column `amount` of a whole table adds up to."""
    said = folder / f"said-{name}"
    process = subprocess.Popen(words, stdout=said.open("wb"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        first, began = 0, 0.0
        half, halfway = 0, 0.0
        while True:
            count, there = connection.execute(f"SELECT count(*), coalesce(sum(amount), 0) FROM {name}").fetchone()
            now = time.perf_counter()
            if there and not began:
                first, began = count, now
            if count >= RECORDS // 2 and not halfway:
                half, halfway = count, now
            if there == wanted:
                break
            assert process.poll() is None and time.monotonic() < deadline, (count, there, said.read_text()[-3_000:])
            time.sleep(0.02)
        later = (RECORDS - half) / (now - halfway) if half and now > halfway else 0.0
        return Turn((RECORDS - first) / (now - began), later, cpu_s(process.pid) / RECORDS * 1e6)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run() -> None:
    import psycopg
    from tests.support.kafka import KafkaProcess

    from semel.host.postgres import PostgresServer

    libs()
    encoded = values(RECORDS)
    # Of an upsert: what the table adds up to when each key has its last value.
    last = {order.order_id: order.amount for order in map(decode, encoded)}
    wanted = {"": RECORDS * (RECORDS - 1) // 2, "order_id": sum(last.values())}
    found: dict[tuple[str, str], list[Turn]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="semel-bench-")))
        kafka = stack.enter_context(KafkaProcess(folder / "kafka"))
        server = stack.enter_context(PostgresServer(folder / "postgres"))
        connection: Any = stack.enter_context(psycopg.connect(server.dsn, autocommit=True))
        fill(kafka.address, encoded)
        for number in range(ROUNDS):
            for key in ("", "order_id"):
                made = []
                for side in ("semel", "connect") if number % 2 else ("connect", "semel"):
                    name = f"{side}_{'kept' if key else 'added'}_{number}"
                    columns = ", ".join(f"{f} {'bigint' if f in ('amount', 'price') else 'text'}" for f in FIELDS)
                    connection.execute(f"CREATE TABLE {name} ({columns}{', PRIMARY KEY (order_id)' if key else ''})")
                    if side == "semel":
                        words = [sys.executable, "-m", "bench.sink_connect", f"kafka://{kafka.address}", server.dsn]
                        words += [name, key]
                    else:
                        words = connect_words(folder, kafka.address, server.dsn, name, key)
                    one = turn(words, name, connection, wanted[key], folder)
                    found[side, key].append(one)
                    print(f"{name}: {one.rate:,.0f} rows/s, {one.cpu:.1f} CPU s per million", flush=True)
                    query = f"SELECT {', '.join(FIELDS)} FROM {name} ORDER BY 1, 4"
                    made.append(connection.execute(query).fetchall())
                assert made[0] == made[1], "they leave different rows"
    rows: dict[str, Sequence[str]] = {}
    for key, what in (("", "insert"), ("order_id", "upsert")):
        ours, theirs = (list(zip(*found[side, key], strict=True)) for side in ("semel", "connect"))
        told = [0, 2] if key else [0, 1, 2]
        for side, figures in ((f"{what}: semel", ours), (f"{what}: Debezium JDBC on Connect", theirs)):
            rows[side] = [spread(figures[at]) if at in told else "" for at in range(3)]
        rows[f"{what}: ratio semel / Debezium"] = [
            ratios(ours[at], theirs[at]) if at in told else "" for at in range(3)
        ]
    columns_ = ["rows/s, source topic to table", "rows/s, second half", "CPU s per million, of the process"]
    print(table(f"Postgres from Apache Kafka, {RECORDS:,} records", columns_, rows), flush=True)


if __name__ == "__main__":
    child(*sys.argv[1:5])
