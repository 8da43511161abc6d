"""Orders into the sinks that EVERY_SINKS names (a space between), each at the address that its system has in
EVERY_<SYSTEM>: each order, or the latest per customer."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from semel import App, Builder, Topic
from semel.sinks import (
    HTTP,
    ClickHouse,
    ClickHouseAppended,
    DeltaLake,
    DuckDB,
    Files,
    Iceberg,
    KafkaTopic,
    MariaDB,
    MariaDBTwoPhase,
    MongoDB,
    MultipartObjects,
    Objects,
    OpenSearch,
    Postgres,
    PostgresAppended,
    PostgresTwoPhase,
    PostgresVersioned,
    Prometheus,
    Redis,
    SQLite,
)


class Order(Struct, frozen=True):
    customer: str
    number: int
    amount: int


class Entry(Struct, frozen=True):
    """What the receiver of tests/sinks/hook.py takes."""

    id: str
    n: int


orders = Topic("orders", key=str, value=Order)
BUCKET = "s3://semel-test/every"
CUTS: dict[str, Any] = {"records": 2_000, "seconds": 0.1}
DELTA = {"allow_http": "true"}


def at(system: str) -> str:
    return os.environ[f"EVERY_{system}"]


def s3() -> dict[str, str]:
    return {"endpoint": at("S3"), "region": "us-east-1"}  # the keys are in AWS_…


def catalog() -> dict[str, str]:
    return {"type": "sql", "uri": f"sqlite:///{at('LAKE')}/catalog.db", "warehouse": f"file://{at('LAKE')}/warehouse"}


SINKS: dict[str, Callable[[str], Any]] = {
    "postgres-each": lambda name: Postgres(at("POSTGRES"), "orders", name=name),
    "postgres-latest": lambda name: Postgres(at("POSTGRES"), "latest", key="customer", name=name),
    "versioned": lambda name: PostgresVersioned(at("POSTGRES"), "versioned", key="customer", name=name),
    "appended": lambda name: PostgresAppended(at("POSTGRES"), "appended", name=name),
    "two-phase-each": lambda name: PostgresTwoPhase(at("POSTGRES"), "orders2", name=name, seconds=0.1),
    "two-phase-latest": lambda name: PostgresTwoPhase(
        at("POSTGRES"), "latest2", key="customer", name=name, seconds=0.1
    ),
    "mariadb-each": lambda name: MariaDB(at("MARIADB"), "orders", name=name),
    "mariadb-latest": lambda name: MariaDB(at("MARIADB"), "latest", key="customer", name=name),
    "xa-latest": lambda name: MariaDBTwoPhase(at("MARIADB"), "latest2", key="customer", name=name, seconds=0.1),
    "sqlite-each": lambda name: SQLite(at("SQLITE"), "orders", name=name),
    "sqlite-latest": lambda name: SQLite(at("SQLITE"), "latest", key="customer", name=name),
    "duckdb-each": lambda name: DuckDB(at("DUCKDB"), "orders", name=name),
    "duckdb-latest": lambda name: DuckDB(at("DUCKDB"), "latest", key="customer", name=name),
    "delta-each": lambda name: DeltaLake(f"{at('LAKE')}/orders", name=name, seconds=0.2),
    "delta-latest": lambda name: DeltaLake(f"{at('LAKE')}/latest", key="customer", name=name, seconds=0.2),
    "delta-s3": lambda name: DeltaLake(f"{BUCKET}/delta", name=name, seconds=0.2, options=s3() | DELTA),
    "iceberg-each": lambda name: Iceberg("sales.orders", name=name, seconds=0.2, options=catalog()),
    "iceberg-latest": lambda name: Iceberg("sales.latest", key="customer", name=name, seconds=0.2, options=catalog()),
    "objects": lambda name: Objects(f"{BUCKET}/objects", name=name, options=s3(), **CUTS),
    "multipart": lambda name: MultipartObjects(f"{BUCKET}/parts", name=name, options=s3(), **CUTS),
    "files": lambda name: Files(f"{at('FILES')}/orders", name=name, seconds=0.1),
    "http": lambda name: HTTP(f"{at('HTTP')}/hook", name=name, rows_url=f"{at('HTTP')}/rows"),
    "redis": lambda name: Redis(at("REDIS"), "latest", key="customer", name=name),
    "valkey": lambda name: Redis(at("VALKEY"), "latest", key="customer", form="json", name=name),
    "opensearch": lambda name: OpenSearch(at("OPENSEARCH"), "latest", key="customer", name=name),
    "mongodb": lambda name: MongoDB(at("MONGODB"), "latest", key="customer", name=name),
    "bridged": lambda name: KafkaTopic(f"kafka://{at('KAFKA')}", "orders", name=name, partitions=3),
    "bridged-by-field": lambda name: KafkaTopic(f"kafka://{at('BROKER')}", "orders", key="customer", name=name),
    "tokens": lambda name: ClickHouse(at("CLICKHOUSE"), "orders", seconds=0.1, name=name),
    "events": lambda name: ClickHouseAppended(at("CLICKHOUSE"), "events", seconds=0.1, name=name),
    # The number is a total that grows, and stands for the time, too: each sample is another one.
    "samples": lambda name: Prometheus(
        at("PROMETHEUS"), "last_order", value="amount", labels=["customer"], at="number", name=name
    ),
}


def with_deletes(key: str, o: Order) -> Order | None:
    return None if o.number % 23 == 0 else o


def build(b: Builder) -> None:
    read = b.read(orders)
    for name in os.environ.get("EVERY_SINKS", "").split():
        sink = SINKS[name](name)
        if isinstance(sink, HTTP):
            read.map(lambda key, o: Entry(f"{o.customer}/{o.number}", o.number)).write(sink)
        elif isinstance(sink, KafkaTopic):
            read.map(with_deletes).write(sink)
        else:
            read.write(sink)


def some_orders() -> dict[Topic[str, Order], list[tuple[str, Order]]]:
    customers = [f"customer-{n % 17}" for n in range(int(os.environ.get("EVERY_ORDERS", "10000")))]
    return {orders: [(c, Order(c, n, n % 101)) for n, c in enumerate(customers)]}


app = App("every", build, sample=some_orders)
