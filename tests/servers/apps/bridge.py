"""Orders into topics of other clusters, by the stream's key, with deletes (BRIDGE_KAFKA), and by a field of the value
(BRIDGE_BROKER)."""

from __future__ import annotations

import os

from msgspec import Struct

from semel import App, Builder, Topic
from semel.sinks import KafkaTopic


class Order(Struct, frozen=True):
    customer: str
    number: int


orders = Topic("orders", key=str, value=Order | None)


def bridge(b: Builder) -> None:
    read = b.read(orders)
    if at := os.environ.get("BRIDGE_KAFKA"):
        read.write(KafkaTopic(f"kafka://{at}", "orders", name="bridged", partitions=3))
    if at := os.environ.get("BRIDGE_BROKER"):
        read.write(KafkaTopic(f"kafka://{at}", "orders", key="customer", name="by-customer"))


def some_orders() -> dict[Topic[str, Order | None], list[tuple[str, Order | None]]]:
    customers = [f"customer-{n % 17}" for n in range(10_000)]
    return {orders: [(c, None if n % 23 == 0 else Order(c, n)) for n, c in enumerate(customers)]}


app = App("bridge", bridge, sample=some_orders)
