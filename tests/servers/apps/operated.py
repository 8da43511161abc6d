"""Orders into the sinks of which a process on this machine is the server: below the folder OPERATED."""

from __future__ import annotations

import os

from msgspec import Struct

from semel import App, Builder, Topic
from semel.sinks import DeltaLake, DuckDB, Files, Iceberg


class Order(Struct, frozen=True):
    id: int
    customer: str


folder = os.environ.get("OPERATED", "/nowhere")
orders = Topic("orders", key=str, value=Order)


def lake(b: Builder) -> None:
    read = b.read(orders)
    read.write(Files(f"{folder}/files", seconds=0.2))
    read.write(DuckDB(f"{folder}/orders.duckdb", "orders", name="duck"))
    read.write(DeltaLake(f"{folder}/delta", seconds=0.2))
    options = {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}
    read.write(Iceberg("sales.orders", catalog="lake", name="iceberg", seconds=0.2, options=options))


app = App("lake", lake)
