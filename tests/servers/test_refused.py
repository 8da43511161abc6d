"""Dead letters of sinks over a log that others share: semel's broker and Apache Kafka (FAULTS S11).

A SQLite file refuses by a CHECK that only it knows. The app is killed around refusals, and stopped there while another
worker takes over; the constraint goes while it stands, so that what was refused would be taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from semel.host.cluster import open_cluster
from semel.ports import NewTopic, TopicPartition
from semel.sinks.refusals import SINK
from tests.support.commands import Running, World
from tests.support.kafka import KafkaProcess

APP = """\
from msgspec import Struct
from semel import App, Builder, Topic
from semel.sinks import SQLite

class Order(Struct, frozen=True):
    customer: str
    amount: int

orders = Topic("orders", key=str, value=Order)

def build(b: Builder) -> None:
    b.read(orders).write(SQLite("FILE", "orders", name="rows"), on_error="dead-letter")

app = App("billing", build, commit_interval_ms=20)
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["broker", "kafka"])
def url(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Iterator[str]:
    if request.param == "broker":
        yield f"kafka://{world.broker().address}"
        return
    with KafkaProcess(tmp_path / "kafka", props={"group.min.session.timeout.ms": "500"}) as kafka:
        yield f"kafka://{kafka.address}"


def feed(url: str, numbers: range) -> None:
    log = open_cluster(url)
    log.create([NewTopic("orders", 1)])
    write = log.writer("orders")
    for n in numbers:
        write(0, b'"k"', json.dumps({"customer": "ann", "amount": n}).encode(), 1_700_000_000_000 + n, None)
    log.flush()
    log.close()


def letters(url: str) -> Counter[int]:
    log = open_cluster(url)
    found: Counter[int] = Counter()
    for partition in range(log.topics()["billing.dlq"].partitions):
        at = TopicPartition("billing.dlq", partition)
        for records in log.read(at, log.starts([at])[at], log.ends([at])[at]):
            for headers, value in zip(records.headers or [], records.values, strict=True):
                assert dict(headers or ())[SINK] == b"rows"
                found[json.loads(value or b"")["amount"]] += 1
    log.close()
    return found


def held(file: Path) -> Counter[int]:
    with contextlib.closing(sqlite3.connect(file, timeout=30)) as db:
        return Counter(n for (n,) in db.execute("SELECT amount FROM orders"))


def table(file: Path, check: str) -> None:
    """Made, or made without its constraint, the rows kept."""
    with contextlib.closing(sqlite3.connect(file, timeout=30)) as db:
        db.executescript(
            f"BEGIN; CREATE TABLE made (customer text NOT NULL, amount integer NOT NULL {check});"
            "CREATE TABLE IF NOT EXISTS orders (customer text, amount integer);"
            "INSERT INTO made SELECT * FROM orders; DROP TABLE orders; ALTER TABLE made RENAME TO orders; COMMIT;"
        )


def stopped(app: Running) -> None:
    _, status = os.waitpid(app.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), app.said


def test_killed_and_overtaken_around_a_refusal(world: World, url: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.db"
    table(file, "CHECK (amount % 10 <> 3)")
    feed(url, range(40))
    name = world.file(APP.replace("FILE", str(file)))

    def run(**env: str) -> Running:
        return world.started("run", name, "--on", url, "--session-timeout-ms", "2000", **env)

    for kill in ("refuse.before:1", "refuse.after:1"):
        ended = run(SEMEL_KILL=kill).ended()
        assert ended.code == -signal.SIGKILL, ended.said
    # It has been refused a record and stands; its successor writes that off or, the constraint gone, takes it.
    zombie = run(SEMEL_STOP="refuse.before:1")
    stopped(zombie)
    table(file, "")
    heir = run()
    heir.until(lambda: len(held(file)) >= 40 - 3)
    zombie.process.send_signal(signal.SIGCONT)
    time.sleep(1.0)  # it tries
    feed(url, range(1000, 1001))
    heir.until(lambda: 1000 in held(file))
    for app in (zombie, heir):
        assert app.left().code == 0, app.said
    dead = letters(url)
    assert held(file) + dead == Counter([*range(40), 1000])
    assert dead and all(n % 10 == 3 for n in dead)
    assert "another owner has taken over" in zombie.said or "epoch" in zombie.said, zombie.said
