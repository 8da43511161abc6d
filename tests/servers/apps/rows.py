"""Orders that are plainly inserted into Postgres (ROWS_POSTGRES), SQLite (ROWS_SQLITE) or both: only semel's position
keeps a row from coming twice."""

from __future__ import annotations

import os

from msgspec import Struct

from semel import App, Builder, Topic
from semel.sinks import Postgres, SQLite


class Order(Struct, frozen=True):
    number: int
    amount: int


orders = Topic("orders", key=str, value=Order)


def rows(b: Builder) -> None:
    read = b.read(orders)
    if dsn := os.environ.get("ROWS_POSTGRES"):
        read.write(Postgres(dsn, "orders_pg", name="pg"))
    if path := os.environ.get("ROWS_SQLITE"):
        read.write(SQLite(path, "orders_lite", name="lite"))


def some_orders() -> dict[Topic[str, Order], list[tuple[str, Order]]]:
    return {orders: [(f"customer-{n % 17}", Order(n, n % 101)) for n in range(20_000)]}


app = App("rows", rows, sample=some_orders)
