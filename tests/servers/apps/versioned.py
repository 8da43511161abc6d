"""The latest order per customer into Redis (VERSIONED_REDIS), Valkey as strings (VERSIONED_VALKEY), OpenSearch
(VERSIONED_OPENSEARCH) and MongoDB (VERSIONED_MONGODB), each by version."""

from __future__ import annotations

import os

from msgspec import Struct

from semel import App, Builder, Topic
from semel.sinks import MongoDB, OpenSearch, Redis


class Order(Struct, frozen=True):
    customer: str
    number: int
    amount: int


orders = Topic("orders", key=str, value=Order)


def versioned(b: Builder) -> None:
    read = b.read(orders)
    if url := os.environ.get("VERSIONED_REDIS"):
        read.write(Redis(url, "latest", key="customer", name="redis"))
    if url := os.environ.get("VERSIONED_VALKEY"):
        read.write(Redis(url, "latest", key="customer", form="json", name="valkey"))
    if url := os.environ.get("VERSIONED_OPENSEARCH"):
        read.write(OpenSearch(url, "latest", key="customer", name="opensearch"))
    if url := os.environ.get("VERSIONED_MONGODB"):
        read.write(MongoDB(url, "latest", key="customer", name="mongodb"))


def some_orders() -> dict[Topic[str, Order], list[tuple[str, Order]]]:
    customers = [f"customer-{n % 17}" for n in range(10_000)]
    return {orders: [(c, Order(c, n, n % 101)) for n, c in enumerate(customers)]}


app = App("versioned", versioned, sample=some_orders)
