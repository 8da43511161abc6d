"""What the type checker lets through and what it refuses, on the API as users see it (mypy --strict, one run for all).

A right program infers every lambda; each wrong line below is refused, at that line, and nothing else is.
"""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from mypy import api

import semel.sinks

# By one worker: two of them, with one cache, lock each other out of it.
pytestmark = pytest.mark.xdist_group("typing")

OPENING = """
from __future__ import annotations
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import Generic, TypeVar, assert_type
from semel import App, AtLeastOnce, AtMostOnce, Builder, Stream, Table, TestDriver, Topic
from semel.contract import (
    Contract, Deduplicated, Guarantee, Keyed, Kind, Transactional, TwoPhase, Versioned, Weak, Windowed
)
from semel.ports import SinkConnection, Steps
from semel.sinks import (
    HTTP, ClickHouse, ClickHouseAppended, DeltaLake, DuckDB, Files, Iceberg, KafkaTopic, Lines, MariaDB,
    MariaDBTwoPhase, MongoDB, MultipartObjects, Objects, OpenSearch, Postgres, PostgresAppended, PostgresTwoPhase,
    PostgresVersioned, Prometheus, Redis, SQLite
)
from semel.sinks.positions import transactional

K = TypeVar("K", bound=Kind)

@dataclass(frozen=True, slots=True)
class Order:
    customer: str
    amount: Decimal

@dataclass(frozen=True, slots=True)
class Total:
    customer: str
    total: Decimal

orders = Topic("orders", key=int, value=Order, time=lambda o: int(o.amount))
class Of(Generic[K]):
    # A sink of which only the contract's type counts.

    name = where = "x"
    key = None

    def __init__(self, kind: type[K], contract: Contract) -> None:
        self.kind, self.contract = kind, contract

    def encode_key(self, value: object) -> bytes | None: return None
    def encode_deleted(self, key: object) -> bytes: return b""
    def encode_value(self, value: object) -> bytes: return b""
    def renamed(self, suffix: str) -> Of[K]: raise NotImplementedError
    def open(self, steps: Steps) -> SinkConnection: raise NotImplementedError

def of(kind: type[K], guarantee: Guarantee) -> Of[K]:
    made = Of(kind, replace(transactional("x"), guarantee=guarantee))
    made.name = kind.__name__
    return made

totals = Topic("totals", key=str, value=Total)
names = Topic("names", key=int, value=str)
"""

RIGHT = """
def everywhere(b: Builder) -> None:
    # Every exported sink but the weak one is written without accept=; the weak one with it.
    t = b.read(orders).key_by(lambda o: o.customer).fold(Decimal(0), lambda acc, o: acc + o.amount, name="e").changes()
    s = t.map(Total)
    s.write(Postgres("postgresql://h/d", "a", key="customer"))
    s.write(PostgresVersioned("postgresql://h/d", "b", key="customer"))
    s.write(PostgresAppended("postgresql://h/d", "c"))
    s.write(PostgresTwoPhase("postgresql://h/d", "d"))
    s.write(MariaDB("mysql://u:p@h/d", "e"))
    s.write(MariaDBTwoPhase("mysql://u:p@h/d", "f"))
    s.write(SQLite("f.db", "g"))
    s.write(DuckDB("f.duckdb", "h"))
    s.write(DeltaLake("lake/i"))
    s.write(Iceberg("sales.j"))
    s.write(Objects("archive", name="k"))
    s.write(MultipartObjects("s3://bucket/l", name="l"))
    s.write(Files("files", name="m"))
    s.write(HTTP("http://h/n", name="n"))
    s.write(HTTP("http://h/o", name="o", forgets_after_s=60))
    s.write(Redis("redis://h/0", "p", key="customer"))
    s.write(OpenSearch("http://h:9200", "q", key="customer"))
    s.write(MongoDB("mongodb://h/d", "r", key="customer"))
    s.write(ClickHouse("http://h:8123/d", "u"))
    s.write(ClickHouseAppended("http://h:8123/d", "v"))
    s.write(Prometheus("http://h:9090", "w", value="total", labels=["customer"]))
    s.write(KafkaTopic("kafka://h:9092", "x", key="customer"))
    s.write(Lines("s"), accept=AtLeastOnce("lines may repeat"))
    s.write(Lines("t"), accept=AtMostOnce("lines may be missing"))
    s.write(of(Weak, Guarantee.AT_MOST_ONCE), accept=AtMostOnce("some may be missing"))

App("everywhere", everywhere).graph()

def billing(b: Builder) -> None:
    read = b.read(orders)
    assert_type(read, Stream[int, Order])
    table = read.key_by(lambda o: o.customer).fold(Decimal(0), lambda acc, o: acc + o.amount, name="totals")
    assert_type(table, Table[str, Decimal])
    t = table.changes().map(Total)
    assert_type(t, Stream[str, Total])
    t.write(totals)
    t.write(Postgres("postgresql://h/d", "t", key="customer"))
    t.write(SQLite("f.db", "u"))
    t.write(Lines("f"), accept=AtLeastOnce("lines may repeat"))
    t.write(of(Transactional, Guarantee.EXACTLY_ONCE))
    t.write(of(Versioned, Guarantee.EFFECTIVELY_ONCE))
    t.write(of(Keyed, Guarantee.EFFECTIVELY_ONCE))
    t.write(of(Windowed, Guarantee.ONCE_IN_WINDOW))
    t.write(of(TwoPhase, Guarantee.EXACTLY_ONCE))
    t.write(of(Deduplicated, Guarantee.EFFECTIVELY_ONCE))
    t.write(of(Weak, Guarantee.AT_LEAST_ONCE), accept=AtLeastOnce("it may repeat"))
    assert_type(read.key_by(lambda o: o.customer).count(name="n"), Table[str, int])
    assert_type(read.map_values(lambda o: o.amount).reduce(lambda a, b: a + b, name="sum"), Table[int, Decimal])
    several = read.flat_map(lambda k, o: [o.customer] * k)
    assert_type(several, Stream[int, str])
    several.write(names)
    big, small = read.branch(lambda o: o.amount > 10)
    both = big.merge(small)
    assert_type(both, Stream[int, Order])
    both.count(name="all")
    one, two, rest = read.branch(lambda o: o.amount > 10, lambda o: o.customer == "a")
    rest.filter(lambda o: o.amount > 0).map_values(lambda o: o.customer).write(names)
    one.key_by(lambda o: (o.customer, 1)).count(name="pairs")
    own = read.distinct(name="d1")
    assert_type(own, Stream[int, Order])
    own.count(name="own")
    first = read.distinct(key=lambda o: o.customer, window=timedelta(hours=1), name="d2")
    assert_type(first, Stream[str, Order])
    first.count(name="firsts")
    read.distinct(name="d3").write(Postgres("postgresql://h/d", "first"))

driver = TestDriver(App("billing", billing))
driver.put(orders, 1, Order("a", Decimal(1)))
assert_type(driver.take(totals), list[tuple[str, Total]])
"""

WRONG = """
def wrong(b: Builder) -> None:
    t = b.read(orders).key_by(lambda o: o.customer).fold(Decimal(0), lambda acc, o: acc + o.amount, name="t").changes()
    t.write(totals)  # error: Decimal is no Total
    t.map(Total).write(names)  # error: not a topic of Total
    t.map(Total).write(Lines("f"))  # error: a weak sink wants accept=
    t.map(Total).write(Lines())  # error: so does standard output
    t.map(Total).write(of(Weak, Guarantee.AT_LEAST_ONCE))  # error: so does any other
    t.map(Total).write(of(Weak, Guarantee.AT_MOST_ONCE))  # error: and one that loses
    t.map(Total).write(of(Weak, Guarantee.EXACTLY_ONCE))  # error: whatever its contract says
    t.map(Total).write(Lines("f"), accept="yes")  # error: a reason, as AtLeastOnce or AtMostOnce
    t.map(Total).write(of(Kind, Guarantee.EXACTLY_ONCE))  # error: a kind that says nothing
    b.read(names).filter(lambda name: name.amount > 0)  # error: str has no amount
    b.read(orders).key_by(lambda o: o.client)  # error: no such field
    b.read(orders).fold(0, lambda acc, o: acc + o.customer, name="u")  # error: int + str
    b.read(orders).merge(b.read(names))  # error: other values
    b.read(orders).map(lambda o: o.amount)  # error: map takes key and value
    b.read(orders).reduce(lambda a, o: a.amount, name="v")  # error: not an Order
    b.read(orders).write(totals)  # error: other keys and values
    b.read(orders).distinct(name="d", window=10)  # error: a timedelta
    b.read(orders).distinct(key=lambda o: o.client, name="e")  # error: no such field
    b.read(orders).distinct()  # error: a state has a name

TestDriver(App("x", wrong)).put(orders, "a", Order("a", Decimal(1)))  # error: int keys
Topic("x", key=str, value=Order, time=lambda o: o.customer)  # error: no time
Topic("x", key=str, value=Order, on_error="skip")  # error: not a choice
App("x", lambda: None)  # error: takes a Builder
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> str:
    """mypy's answer for both programs."""
    folder = tmp_path_factory.mktemp("typing")
    (folder / "right.py").write_text(OPENING + RIGHT)
    (folder / "wrong.py").write_text(OPENING + WRONG)
    source = Path(__file__).parent.parent.parent
    out, err, _ = api.run(
        [
            "--strict",
            f"--config-file={source / 'pyproject.toml'}",
            f"--cache-dir={source / '.mypy_cache'}",
            "--no-error-summary",
            str(folder / "right.py"),
            str(folder / "wrong.py"),
        ]
    )
    assert not err, err
    return str(out)


def lines_of(told: str, name: str) -> dict[int, str]:
    found = re.findall(rf"{name}:(\d+): error: (.*)", told)
    return {int(line): message for line, message in found}


def test_a_right_program_type_checks_and_every_lambda_is_inferred(told: str) -> None:
    """No annotation, no cast, no ignore."""
    assert lines_of(told, "right.py") == {}


def test_each_wrong_line_is_refused_and_no_other(told: str) -> None:
    """A weak sink without accept=, wrong keys, values, functions, states."""
    expected = {n for n, line in enumerate((OPENING + WRONG).splitlines(), 1) if "# error" in line}
    assert set(lines_of(told, "wrong.py")) == expected, told


def test_every_exported_sink_is_in_the_programs() -> None:
    """A sink that is added is written there, too: without accept=, unless its contract is weak."""
    for name in semel.sinks.__all__:
        (first, *_) = re.findall(rf"    s\.write\({name}\(.*", RIGHT)
        assert ("accept=" in first) == (name == "Lines"), first


def test_the_right_program_also_builds(tmp_path: Path) -> None:
    """The same text runs: types that the checker infers are found at build time too."""
    (tmp_path / "right.py").write_text(OPENING + RIGHT)
    runpy.run_path(str(tmp_path / "right.py"), run_name="right")
