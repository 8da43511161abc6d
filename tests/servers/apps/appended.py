"""The first order of each number to a topic; all of them to Postgres (APPENDED_POSTGRES), each with its event id."""

from __future__ import annotations

import os

from msgspec import Struct

from semel import App, Builder, Topic
from semel.sinks import PostgresAppended, dedup

if os.environ.get("APPENDED_PLANTED"):  # a view that removes nothing
    real_view = dedup.view
    dedup.view = lambda *a, **k: real_view(*a, **k).replace('DISTINCT ON ("semel_event")', "")  # type: ignore[assignment]


class Order(Struct, frozen=True):
    customer: str
    number: int


orders = Topic("orders", key=str, value=Order)
firsts = Topic("firsts", key=int, value=Order)


def build(b: Builder) -> None:
    read = b.read(orders)
    read.distinct(key=lambda o: o.number % 5_000, name="seen").write(firsts)
    read.write(PostgresAppended(os.environ["APPENDED_POSTGRES"], "orders", name="each"))


def some_orders() -> dict[Topic[str, Order], list[tuple[str, Order]]]:
    customers = [f"customer-{n % 17}" for n in range(10_000)]
    return {orders: [(c, Order(c, n)) for n, c in enumerate(customers)]}


app = App("appended", build, sample=some_orders)
