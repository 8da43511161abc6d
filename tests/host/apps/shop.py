"""A small app for tests with real processes: every order to a table, to objects, to a receiver and to a file."""

from __future__ import annotations

import os

from msgspec import Struct

from semel import App, AtLeastOnce, Builder, Topic
from semel.sinks import HTTP, Lines, Objects, SQLite


class Order(Struct, frozen=True):
    id: int
    customer: str


FOLDER = os.environ.get("SHOP", "shop")
orders = Topic("orders", key=str, value=Order, partitions=2)


def build(b: Builder) -> None:
    read = b.read(orders)
    read.write(SQLite(f"{FOLDER}/orders.db", "orders", name=os.environ.get("SHOP_SINK", "orders")))
    read.write(Objects(f"{FOLDER}/archive", records=5, seconds=0.2))
    read.write(Lines(f"{FOLDER}/lines"), accept=AtLeastOnce("a file"))
    if url := os.environ.get("SHOP_HOOK"):
        read.write(HTTP(url, name="hook", forgets_after_s=86_400))


app = App("shop", build, commit_interval_ms=50)
