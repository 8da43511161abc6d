"""The two topologies of the benchmark as semel apps: `map_app` (parse, filter, a smaller JSON) and `totals_app`
(running sum per customer, state with changelog, one update per changed customer and commit)."""

from __future__ import annotations

import os

import msgspec

from semel import App, Builder, Topic

OUT = os.environ.get("BENCH_OUT", "out")


class Order(msgspec.Struct):
    id: str
    customer: str
    amount: int
    ts: int


class Small(msgspec.Struct):
    id: str
    customer: str
    amount: int


class Total(msgspec.Struct):
    customer: str
    total: int


orders = Topic("in", key=str, value=Order)
small = Topic(f"{OUT}-map", key=str, value=Small, partitions=4)
totals = Topic(f"{OUT}-totals", key=str, value=Total, partitions=4)


def reduced(b: Builder) -> None:
    kept = b.read(orders).filter(lambda o: o.amount > 0)
    kept.map_values(lambda o: Small(o.id, o.customer, o.amount)).write(small)


def summed(b: Builder) -> None:
    def add(total: int, order: Order) -> int:
        return total + order.amount

    b.read(orders).fold(0, add, name="totals").changes(coalesce=True).map(Total).write(totals)


map_app = App(f"{OUT}-map", reduced, commit_interval_ms=100)
totals_app = App(f"{OUT}-totals", summed, commit_interval_ms=100)
