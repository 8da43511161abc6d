"""Orders into DuckDB, Delta and Iceberg below the folder LAKE: each one, and the latest per customer."""

from __future__ import annotations

import os

from msgspec import Struct

from semel import App, Builder, Topic
from semel.sinks import DeltaLake, DuckDB, Iceberg


class Order(Struct, frozen=True):
    customer: str
    number: int
    amount: int


orders = Topic("orders", key=str, value=Order)


def lake(b: Builder) -> None:
    folder = os.environ["LAKE"]
    catalog = {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}
    sinks = [
        DuckDB(f"{folder}/orders.duckdb", "orders", name="duck-each"),
        DuckDB(f"{folder}/orders.duckdb", "latest", key="customer", name="duck-latest"),
        DeltaLake(f"{folder}/orders", name="delta-each", seconds=0.2),
        DeltaLake(f"{folder}/latest", key="customer", name="delta-latest", seconds=0.2),
        Iceberg("sales.orders", name="ice-each", seconds=0.2, options=catalog),
        Iceberg("sales.latest", key="customer", name="ice-latest", seconds=0.2, options=catalog),
    ]
    named = os.environ.get("LAKE_SINKS", "").split()
    read = b.read(orders)
    for sink in sinks:
        if not named or sink.name in named:
            read.write(sink)


def some_orders() -> dict[Topic[str, Order], list[tuple[str, Order]]]:
    customers = [f"customer-{n % 17}" for n in range(4_000)]
    return {orders: [(c, Order(c, n, n % 101)) for n, c in enumerate(customers)]}


app = App("lake", lake, sample=some_orders)
