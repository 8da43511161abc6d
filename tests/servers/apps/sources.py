"""Rows of files and of a table, requests, and changes of a table, each to a topic and further.

SOURCES_FOLDER is where the files and the SQLite file lie, SOURCES_POSTGRES names a database with the tables `events`
and `items`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from semel import App, Builder, Topic
from semel.sinks import SQLite
from semel.sources import Change, Files, HTTPEndpoint, PostgresChanges, PostgresTable


@dataclass(frozen=True)
class Order:
    id: int
    customer: str
    amount: int


@dataclass(frozen=True)
class Total:
    customer: str
    total: int


FOLDER, DATABASE = os.environ["SOURCES_FOLDER"], os.environ["SOURCES_POSTGRES"]
orders = Topic("orders", key=str, value=Order, partitions=2, source=Files(f"{FOLDER}/in/*.csv", key="customer"))
events = Topic(
    "events", key=str, value=Order, partitions=2, source=PostgresTable(DATABASE, "events", cursor="id", key="customer")
)
calls = Topic(
    "calls", key=str, value=Order, partitions=2, source=HTTPEndpoint("127.0.0.1:8080", "/calls", key="customer")
)
items = Topic("items", key=int, value=Change[Order], partitions=2, source=PostgresChanges(DATABASE, "items", key="id"))
copies = Topic("copies", key=int, value=Change[Order], partitions=2)


def build(b: Builder) -> None:
    for topic in (orders, events, calls):
        totals = (
            b.read(topic)
            .key_by(lambda order: order.customer, key=str)
            .fold(0, lambda total, order: total + order.amount, name=f"sum-{topic.name}")
            .changes()
            .map(Total)
        )
        totals.write(SQLite(f"{FOLDER}/shop.db", f"totals_{topic.name}", key="customer"))
    b.read(items).write(copies)


app = App("shop", build, commit_interval_ms=50)
