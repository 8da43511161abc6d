"""Orders into sinks that prepare: Postgres (TWO_PHASE_POSTGRES), each one and the latest per customer; MariaDB
(TWO_PHASE_MARIADB), the latest per customer; files (TWO_PHASE_FILES), each one; S3 in parts
(TWO_PHASE_S3, its endpoint), each one."""

from __future__ import annotations

import os

from msgspec import Struct

from semel import App, Builder, Topic
from semel.sinks import Files, MariaDBTwoPhase, MultipartObjects, PostgresTwoPhase


class Order(Struct, frozen=True):
    customer: str
    number: int
    amount: int


orders = Topic("orders", key=str, value=Order)


def phases(b: Builder) -> None:
    read = b.read(orders)
    if dsn := os.environ.get("TWO_PHASE_POSTGRES"):
        read.write(PostgresTwoPhase(dsn, "orders", name="each", seconds=0.1))
        read.write(PostgresTwoPhase(dsn, "latest", key="customer", name="latest", seconds=0.1))
    if url := os.environ.get("TWO_PHASE_MARIADB"):
        read.write(MariaDBTwoPhase(url, "latest", key="customer", name="mariadb", seconds=0.1))
    if folder := os.environ.get("TWO_PHASE_FILES"):
        read.write(Files(folder, name="files", seconds=0.1))
    if endpoint := os.environ.get("TWO_PHASE_S3"):
        options = {"endpoint": endpoint, "region": "us-east-1"}  # the keys are in AWS_…
        read.write(MultipartObjects("s3://semel-test/verify", name="parts", options=options, seconds=0.1))


def some_orders() -> dict[Topic[str, Order], list[tuple[str, Order]]]:
    customers = [f"customer-{n % 17}" for n in range(10_000)]
    return {orders: [(c, Order(c, n, n % 101)) for n, c in enumerate(customers)]}


app = App("phases", phases, sample=some_orders)
