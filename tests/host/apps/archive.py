"""A small app for tests with real processes: every order goes to objects in a folder."""

from __future__ import annotations

import os

from msgspec import Struct

from semel import App, Builder, Topic
from semel.sinks import Objects


class Order(Struct, frozen=True):
    id: int
    customer: str


orders = Topic("orders", key=str, value=Order, partitions=2)


def build(b: Builder) -> None:
    b.read(orders).write(Objects(os.environ.get("ARCHIVE", "s3://bucket/orders"), records=50, seconds=0.3))


app = App("archive", build, commit_interval_ms=50)
