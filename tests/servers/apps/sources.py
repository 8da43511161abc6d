"""Records from files, and where SOURCES_POSTGRES names a database from a table, to a topic and to a table."""

from __future__ import annotations

import os
from dataclasses import dataclass

from semel import App, Builder, Topic
from semel.sinks import SQLite
from semel.sources import Files


@dataclass(frozen=True)
class Order:
    id: int
    customer: str
    amount: int


@dataclass(frozen=True)
class Total:
    customer: str
    total: int


FOLDER = os.environ["SOURCES_FOLDER"]
orders = Topic("orders", key=str, value=Order, partitions=2, source=Files(f"{FOLDER}/in/*.csv", key="customer"))


def build(b: Builder) -> None:
    totals = (
        b.read(orders)
        .key_by(lambda order: order.customer, key=str)
        .fold(0, lambda total, order: total + order.amount, name="sum")
        .changes()
        .map(Total)
    )
    totals.write(SQLite(f"{FOLDER}/shop.db", "totals", key="customer"))


app = App("shop", build, commit_interval_ms=50)
