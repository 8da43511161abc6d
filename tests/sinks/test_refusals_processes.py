"""A whole app whose sinks refuse records, under on_error="dead-letter": killed around each refusal (FAULTS S11).

Postgres refuses by a CHECK that only the server knows, the objects by their columns, the receiver by 422.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from semel.host.postgres import PostgresServer
from semel.ports import TopicPartition
from semel.sinks.refusals import SINK
from semel.streams.task import ERRORS
from tests.receiver.served import Served
from tests.sinks.conftest import database
from tests.support.commands import World

pytestmark = pytest.mark.long

APP = """\
from msgspec import Struct
from semel import App, Builder, Topic
from semel.sinks import HTTP, Objects, Postgres

class Order(Struct, frozen=True):
    customer: str
    amount: int

class Entry(Struct, frozen=True):
    id: str
    n: int

class Loose(Struct, frozen=True):
    id: str
    n: int | None

orders = Topic("orders", key=str, value=Order)

def columns(o):
    return {"id": o.customer, "n": o.amount, **({"more": 1} if o.amount % 10 == 4 else {})}

def build(b: Builder) -> None:
    read = b.read(orders)
    rows = Postgres("DSN", "entries", hand_over_s=2.0)
    read.map(lambda key, o: Entry(o.customer, o.amount)).write(rows, on_error="dead-letter")
    files = Objects("FOLDER/objects", format="csv", columns=["id", "n"], records=7, seconds=0.2)
    read.map_values(columns).write(files, on_error="dead-letter")
    hook = HTTP("URL", name="hook")
    loose = read.map(lambda key, o: Loose(o.customer, None if o.amount % 10 == 5 else o.amount))
    loose.write(hook, on_error="dead-letter")

app = App("billing", build, commit_interval_ms=20)
"""
ORDERS = 60
REFUSED = {"entries": 3, "objects": 4, "hook": 5}  # by the last digit


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def letters(world: World) -> dict[str, Counter[int]]:
    """The records in the dead letters, by sink: of the offsets that their headers name."""
    found: dict[str, Counter[int]] = {}
    with world.log() as log:
        for partition in range(log.topics()["billing.dlq"].partitions):
            at = TopicPartition("billing.dlq", partition)
            for records in log.read(at, 0, log.ends([at])[at]):
                for headers, value in zip(records.headers or [], records.values, strict=True):
                    said = dict(headers or ())
                    name = (said[SINK] or b"").decode()
                    assert b"refuses it" in (said[ERRORS + "message"] or b"")
                    fields = json.loads(value or b"null")
                    origin = int(said[ERRORS + "offset"] or b"-1") if fields["n"] is None else fields["n"]
                    found.setdefault(name, Counter())[origin] += 1
    return found


def in_postgres(dsn: str) -> Counter[int]:
    with psycopg.connect(dsn) as db:
        return Counter(n for (n,) in db.execute("SELECT n FROM entries").fetchall())


def in_objects(folder: Path) -> Counter[int]:
    files = [file for file in (folder / "objects").rglob("*.csv") if "_semel" not in file.parts]
    lines = [line for file in files for line in file.read_text().splitlines()[1:]]
    return Counter(int(line.split(",")[1]) for line in lines)


def at_hook(path: Path) -> Counter[int]:
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as db:
        return Counter(n for (n,) in db.execute("SELECT n FROM entries"))


def test_killed_around_each_refusal(world: World, tmp_path: Path, server: PostgresServer) -> None:
    """The refused records are in the dead letters once, the others at their sinks once; and what the table takes in
    the end stays in the dead letters."""
    dsn, hook = database(server), tmp_path / "hook.db"
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("CREATE TABLE entries (id text NOT NULL, n bigint NOT NULL CHECK (n % 10 <> 3))")
    world.orders(*range(ORDERS))
    with Served("ours", str(hook), tmp_path, "tests.sinks.hook", KEPT="1") as served:
        url = f"http://127.0.0.1:{served.port}/hook"
        text = APP.replace("DSN", dsn).replace("FOLDER", str(tmp_path)).replace("URL", url)
        for kill in ("refuse.before:1", "refuse.after:1", "refuse.before:2", "refuse.after:3", "refuse.before:4"):
            ended = world.app(text, SEMEL_KILL=kill).ended()
            assert ended.code == -signal.SIGKILL, ended.said
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute("ALTER TABLE entries DROP CONSTRAINT entries_n_check")  # later ones are taken, and may be
        world.orders(1000)
        app = world.app(text)
        app.until(lambda: 1000 in in_postgres(dsn) and 1000 in in_objects(tmp_path) and 1000 in at_hook(hook))
        ended = app.left()
        assert ended.code == 0 and "Traceback" not in ended.said, ended.said
        assert "refuses the record of billing-hook-outbox-0 at offset" in ended.said and "billing.dlq" in ended.said
    dead, every = letters(world), Counter([*range(ORDERS), 1000])
    for name, held in (("entries", in_postgres(dsn)), ("objects", in_objects(tmp_path))):
        assert held + dead[name] == every, name
        assert all(n % 10 == REFUSED[name] for n in dead[name])
    assert dead["entries"], "none was refused before the constraint went"
    assert sorted(dead["objects"]) == [n for n in range(ORDERS) if n % 10 == 4]
    # Of a refused request the receiver has no row, and its letter no number: its offset in the outbox stands for it.
    assert at_hook(hook) == Counter(n for n in every if n % 10 != 5)
    assert sorted(dead["hook"].values()) == [1] * 6
