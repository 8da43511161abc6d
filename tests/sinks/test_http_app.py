"""A whole app with an HTTP sink: `semel run` on an embedded log and a receiver, both killed again and again."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.receiver.served import Served
from tests.support.commands import World

pytestmark = pytest.mark.long

APP = """\
from msgspec import Struct
from semel import App, Builder, Topic
from semel.sinks import HTTP

class Order(Struct, frozen=True):
    customer: str
    amount: int

class Entry(Struct, frozen=True):
    id: str
    n: int

orders = Topic("orders", key=str, value=Order)

def build(b: Builder) -> None:
    b.read(orders).map(lambda key, o: Entry(o.customer, o.amount)).write(HTTP("URL", name="hook"MORE))

app = App("billing", build, commit_interval_ms=20)
"""
ORDERS = 200


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def entries(database: Path) -> Counter[int]:
    """How often each order has arrived, as the receiver's own database says."""
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as db:
        return Counter(n for (n,) in db.execute("SELECT n FROM entries"))


def delivered(world: World, served: Served, database: Path, more: str, seed: int) -> Counter[int]:
    """Kills app and receiver at steps and moments of the seed's choosing, then lets both finish."""
    dice = random.Random(seed)
    world.orders(*range(ORDERS))
    text = APP.replace("URL", f"http://127.0.0.1:{served.port}/hook").replace("MORE", more)
    for _ in range(5):
        step = dice.choice(["sink.before", "sink.after", "rows.before", "rows.after"])
        count = dice.randint(1, 60) if step.startswith("sink") else 1
        app = world.app(text, SEMEL_KILL=f"{step}:{count}")
        for _ in range(3):  # then it may get on, also on a slow machine
            time.sleep(dice.uniform(0.05, 0.6))
            served.restart()
        assert app.ended().code == -signal.SIGKILL, app.said
    world.orders(ORDERS)  # behind all the others: when it has arrived, they have been delivered again
    app = world.app(text)
    app.until(lambda: ORDERS in entries(database))
    assert app.left().code == 0
    return entries(database)


def test_each_order_arrives_once(world: World, tmp_path: Path) -> None:
    """Our receiver, whose keys expire after half a second: what was answered is known by the floor."""
    database = tmp_path / "hook.db"
    with Served("ours", str(database), tmp_path, "tests.sinks.hook") as served:
        found = delivered(world, served, database, "", seed=1)
    assert found == Counter(range(ORDERS + 1))


def test_without_the_receiver_they_repeat(world: World, tmp_path: Path) -> None:
    """The same app, the same kills, a plain endpoint: orders arrive, and some of them twice."""
    database = tmp_path / "hook.db"
    with Served("naive", str(database), tmp_path, "tests.sinks.hook") as served:
        found = delivered(world, served, database, ", forgets_after_s=3600", seed=1)
    assert set(found) == set(range(ORDERS + 1)) and max(found.values()) > 1


def test_a_refused_record_stops_the_app_and_is_named(world: World, tmp_path: Path) -> None:
    """S11: 422 from the application: which record, why, and what next; the records before it are there."""
    database = tmp_path / "hook.db"
    world.orders(1, 2)
    with Served("ours", str(database), tmp_path, "tests.sinks.hook") as served:
        url = f"http://127.0.0.1:{served.port}/hook"
        text = APP.replace("URL", url).replace("MORE", ", in_flight=1").replace("    n: int", "    n: int | None")
        text = text.replace("o.amount)", "o.amount if o.amount < 2 else None)")
        ended = world.app(text).ended()
        assert ended.code == 1 and "Traceback" not in ended.said, ended.said
        assert "refuses the record of billing-hook-outbox-0 at offset" in ended.said and "422" in ended.said
        assert entries(database) == Counter([1])
