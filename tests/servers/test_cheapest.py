"""The cheapest honest path, with real processes: `semel run --mode at-least-once` before PostgresVersioned, killed
again and again, ends with the rows of an exactly-once run. The line that it prints is the one in docs/versioned.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from semel.host.postgres import PostgresServer
from semel.ports import NewTopic, Step, TopicPartition
from tests.support.commands import World
from tests.support.guides import ROOT

APP = """\
import os
from msgspec import Struct
from semel import App, Builder, Topic
from semel.sinks import PostgresVersioned

class Order(Struct, frozen=True):
    customer: str
    amount: int

class Latest(Struct, frozen=True):
    customer: str
    doubled: int

orders = Topic("orders", key=str, value=Order, partitions=2)

def latest(customer: str, order: Order) -> Latest | None:
    return Latest(customer, order.amount * 2) if order.amount % 5 else None  # a fifth of them deletes

def build(b: Builder) -> None:
    b.read(orders).map(latest).write(PostgresVersioned(os.environ["DSN"], "latest", key="customer", hand_over_s=2))

app = App("cheap", build, commit_interval_ms=20)
"""
# Twice as often behind outputs whose offsets nobody has heard of: there at-least-once repeats them.
STEPS = (
    Step.OUTPUT_AFTER, Step.SINK_AFTER, Step.OFFSETS_BEFORE, Step.ROWS_BEFORE,
    Step.OUTPUT_AFTER, Step.POSITION_BEFORE, Step.OFFSETS_BEFORE, Step.BATCH_BEFORE,
)  # fmt: skip
KILLS, EACH, CUSTOMERS = 32, 40, 23
PAGE = ROOT / "docs" / "versioned.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("cheapest")) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            for name in ("alo", "eo"):
                connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        yield server
        server.kill()


class Run:
    """One mode in a folder and a database of its own."""

    def __init__(self, mode: str, folder: Path, dsn: str) -> None:
        folder.mkdir()
        self.world, self.mode, self.dsn = World(folder), mode, dsn
        self.fed = 0

    def feed(self) -> None:
        with self.world.log() as log:
            if "orders" not in log.topics():
                log.create([NewTopic("orders", 2)])
            write = log.writer("orders")
            for n in range(self.fed, self.fed + EACH):
                customer = f"c{n % CUSTOMERS}"
                order = json.dumps({"customer": customer, "amount": n}).encode()
                write(n % CUSTOMERS % 2, customer.encode(), order, 1_700_000_000_000 + n, None)
            log.flush()
        self.fed += EACH

    def killed(self, text: str) -> None:
        """32 lives, each ended by SIGKILL at its step; what they leave is found by the next."""
        app = self.world.file(text)
        words = ("run", app, "--on", self.world.url, "--mode", self.mode)
        self.feed()
        # Not before its first commit: without one nobody can tell a killed first start from lost positions (it asks).
        first = self.world.started(*words, DSN=self.dsn)
        first.until(lambda: bool(self.rows()))
        assert first.left().code == 0
        for life in range(KILLS):
            self.feed()
            env = {"SEMEL_KILL": f"{STEPS[life % len(STEPS)]}:1", "DSN": self.dsn}
            ended = self.world.semel(*words, **env)
            assert ended.code == -9, (env, ended)
        last = self.world.started(*words, DSN=self.dsn)
        last.until(self.processed)
        assert last.left().code == 0
        drained = self.world.semel("sink", "drain", app, "latest", "--on", self.world.url, DSN=self.dsn)
        assert drained.code == 0, drained

    def processed(self) -> bool:
        """The last record of every customer has come: seen at the sink, since the folder is locked."""
        return self.rows() == self.expected()

    def expected(self) -> dict[str, int]:
        last = {f"c{n % CUSTOMERS}": n for n in range(self.fed)}
        return {customer: n * 2 for customer, n in last.items() if n % 5}

    def rows(self) -> dict[str, int]:
        try:
            with psycopg.connect(self.dsn) as connection:
                return dict(connection.execute("SELECT customer, doubled FROM latest_live").fetchall())
        except psycopg.errors.UndefinedTable:
            return {}  # not there yet

    def written(self) -> int:
        """Records of the outbox that a reader sees."""
        with self.world.log() as log:
            ends = log.ends([TopicPartition("cheap-latest-outbox", n) for n in range(2)])
            return sum(len(records.values) for at, end in ends.items() for records in log.read(at, 0, end))


def both(text: str, folder: Path, server: PostgresServer) -> tuple[Run, Run]:
    base = server.dsn.rpartition("/")[0]
    folder.mkdir(exist_ok=True)
    runs = Run("at-least-once", folder / "alo", f"{base}/alo"), Run("exactly-once", folder / "eo", f"{base}/eo")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda run: run.killed(text), runs))
    return runs


def test_killed_at_least_once_ends_where_exactly_once_does(server: PostgresServer, tmp_path: Path) -> None:
    """32 kills in each mode, deletes among the records. The outbox of the one holds outputs several times, the rows of
    both are the same, and those that the input says."""
    cheap, dear = both(APP, tmp_path / "pure", server)
    fed = cheap.fed
    assert fed == dear.fed == (KILLS + 1) * EACH
    expected = dear.expected()
    assert 0 < len(expected) < CUSTOMERS, "some of them end deleted"
    repeated = cheap.written() - fed
    assert dear.written() == fed and repeated > 0
    assert cheap.rows() == dear.rows() == expected
    for run in (cheap, dear):
        run.world.close()
    told = (
        f"{fed} records, {KILLS} kills in each mode: the same {len(expected)} rows, {CUSTOMERS - len(expected)} deleted"
    )
    print(told, f"repeated outputs: {repeated}")
    assert told in PAGE.read_text(), told
