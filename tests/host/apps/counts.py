"""A small app for tests with real processes: amounts summed per customer, to a topic and to SQLite."""

from __future__ import annotations

import os

from msgspec import Struct

from semel import App, Builder, Topic
from semel.sinks import SQLite


class Order(Struct, frozen=True):
    customer: str
    amount: int


class Total(Struct, frozen=True):
    customer: str
    total: int


orders = Topic("orders", key=str, value=Order, partitions=4)
totals = Topic("totals", key=str, value=Total)


def build(b: Builder) -> None:
    sums = b.read(orders).key_by(lambda o: o.customer).fold(0, lambda acc, o: acc + o.amount, name="sums")
    sums.changes().map(Total).write(totals)
    if path := os.environ.get("COUNTS_DB"):
        sums.changes().map(Total).write(SQLite(path, "totals", key="customer"))


app = App("counts", build, commit_interval_ms=int(os.environ.get("COUNTS_INTERVAL_MS", "50")))
