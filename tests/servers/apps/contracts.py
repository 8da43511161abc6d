"""Orders into MariaDB, each one and the latest per customer (CONTRACTS_MARIADB), and the latest ones into Postgres by
version (CONTRACTS_POSTGRES)."""

from __future__ import annotations

import os

from msgspec import Struct

from semel import App, Builder, Topic
from semel.sinks import MariaDB, PostgresVersioned


class Order(Struct, frozen=True):
    customer: str
    number: int
    amount: int


orders = Topic("orders", key=str, value=Order)


def contracts(b: Builder) -> None:
    read = b.read(orders)
    if url := os.environ.get("CONTRACTS_MARIADB"):
        read.write(MariaDB(url, "orders", name="each"))
        read.write(MariaDB(url, "latest", key="customer", name="latest"))
    if dsn := os.environ.get("CONTRACTS_POSTGRES"):
        read.write(PostgresVersioned(dsn, "latest", key="customer", name="versioned"))


def some_orders() -> dict[Topic[str, Order], list[tuple[str, Order]]]:
    customers = [f"customer-{n % 17}" for n in range(10_000)]
    return {orders: [(c, Order(c, n, n % 101)) for n, c in enumerate(customers)]}


app = App("contracts", contracts, sample=some_orders)
