"""Every order into ClickHouse under tokens (WINDOWED_CLICKHOUSE), appended with its event id beside them, and as a
sample per order into Prometheus (WINDOWED_PROMETHEUS)."""

from __future__ import annotations

import os

from msgspec import Struct

from semel import App, Builder, Topic
from semel.sinks import ClickHouse, ClickHouseAppended, Prometheus


class Order(Struct, frozen=True):
    customer: str
    number: int
    amount: int


orders = Topic("orders", key=str, value=Order)


def windowed(b: Builder) -> None:
    read = b.read(orders)
    if url := os.environ.get("WINDOWED_CLICKHOUSE"):
        read.write(ClickHouse(url, "orders", seconds=0.05, name="tokens"))
        read.write(ClickHouseAppended(url, "events", seconds=0.05, name="appended"))
    if url := os.environ.get("WINDOWED_PROMETHEUS"):
        # The number is a total that grows, and stands for the time, too: each sample is another one.
        read.write(Prometheus(url, "last_order", value="amount", labels=["customer"], at="number", name="samples"))


def some_orders() -> dict[Topic[str, Order], list[tuple[str, Order]]]:
    customers = [f"customer-{n % 17}" for n in range(60_000)]
    return {orders: [(c, Order(c, n, n % 101)) for n, c in enumerate(customers)]}


app = App("windowed", windowed, sample=some_orders)
