"""Every sink and source under `semel verify` against its real server: one way to run it, few kills in `make
test-servers`, 100 in `make proof WHAT=sinks`.

A campaign is data: which sinks of tests/servers/apps/every.py (or which app of sources), the system that they write to,
how that system looks from outside, and the bytes of a commit on its wire. Invariant: what is counted comes from
verify's own report and from the system itself, never from the sink; whatever the system holds afterwards that it did
not hold before is left behind, and named.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from semel.ports import Step
from semel.sinks.redis_scripts import ROWS
from semel.testing.proxy import TcpProxy
from semel.verify.schedule import SINK_STEPS
from tests.support import inventories
from tests.support.planted import ROOT

LOSE_EVERY_S = 1.5
FINISHING = "finishing the rest of the input"  # verify says it when the storm is over


@dataclass(frozen=True)
class Wire:
    """A system on 127.0.0.1:`port`, whose address is in `variable`. `at(port)`: its address elsewhere. `answered`: its
    requests come in pieces, so an answer is lost when it comes, not when the needle has passed. `through`: the proxy
    that is in front of it anyway, because it tells its clients where they find it."""

    variable: str
    port: int
    at: Callable[[int], str]
    answered: bool = False
    through: TcpProxy | None = None


@dataclass(frozen=True)
class Place:
    """A system that serves: its addresses for the app, and everything that is in it."""

    environ: Mapping[str, str]
    look: Callable[[], set[str]]
    wires: tuple[Wire, ...] = ()


System = Callable[[Path], AbstractContextManager[Place]]


@dataclass(frozen=True)
class Campaign:
    """`title`: the class in semel.sinks (or semel.sources), with what else there is to say. `outputs`: the lines of
    verify's report that must be there, with something in them."""

    title: str
    system: System
    sinks: tuple[str, ...] = ()
    app: str = "every"
    outputs: tuple[str, ...] = ()
    needles: tuple[tuple[str, bytes], ...] = ()  # by the variable of a wire: what is in each request that commits

    @property
    def wanted(self) -> tuple[str, ...]:
        return self.outputs or tuple(f"sink {name}" for name in self.sinks)


@dataclass
class Result:
    """What became of one campaign."""

    title: str
    on: str
    crashes: int
    seed: int
    verdict: str = ""  # of verify; "none": it ended without a report
    kills: int = 0
    struck: int = 0  # different steps at which a process was killed or stopped
    zombies: int = 0
    refused: int = 0
    refused_by_the_sink: int = 0  # hits of fenced.sink and stale.sink, over all processes
    lost_requests: int = 0
    lost_answers: int = 0
    unharmed: list[str] = field(default_factory=list)  # wires on which something was to be lost, and nothing was
    rows: dict[str, int] = field(default_factory=dict)  # by output, in the end
    kinds: dict[str, str] = field(default_factory=dict)  # by output: how it was compared
    never: list[str] = field(default_factory=list)  # steps of a delivery that no process reached
    lost: int = 0
    repeated: int = 0
    wrong: int = 0
    left: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    counterexample: str | None = None
    seconds: float = 0.0
    said: str = ""

    @property
    def holds(self) -> bool:
        # An embedded log has one owner; with sources no zombie is made of a copy of it.
        refused = self.refused > 0 or (self.on == "embedded" and not self.zombies)
        return self.verdict == "holds" and not self.left and self.kills >= self.crashes and refused

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "said"}


def run(
    campaign: Campaign, folder: Path, *, crashes: int, seed: int, on: str = "broker", lossy: bool = False
) -> Result:
    """Verify in a process of its own; `lossy`: requests and answers are lost on the wire meanwhile, where there is
    one. Afterwards the system is looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    result = Result(campaign.title, on, crashes, seed)
    began, mark = time.monotonic(), secrets.token_hex(6)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(campaign.system(folder))
        environ = {**os.environ, "EVERY_SINKS": " ".join(campaign.sinks), **place.environ}
        environ |= inventories.environment(folder, mark)
        needles = [(wire, [n for v, n in campaign.needles if v == wire.variable]) for wire in place.wires]
        losers = [stack.enter_context(Loser(wire, those)) for wire, those in needles if lossy and those]
        environ |= {one.wire.variable: one.wire.at(one.proxy.port) for one in losers}
        before = place.look()
        _verify(campaign, environ, folder, result, losers)
        result.lost_requests, result.lost_answers = sum(o.requests for o in losers), sum(o.answers for o in losers)
        result.unharmed = [one.wire.variable for one in losers if not one.requests + one.answers]
        result.left = inventories.left(before, place.look)
        result.left += inventories.left(set(), lambda: inventories.processes(mark))
        result.left += sorted(inventories.files(folder / "tmp"))
    result.seconds = time.monotonic() - began
    return result


def _verify(
    campaign: Campaign, environ: Mapping[str, str], folder: Path, result: Result, losers: Sequence[Loser]
) -> None:
    command = [sys.executable, "-m", "semel.cli.main", "verify", f"tests/servers/apps/{campaign.app}.py"]
    command += ["--on", result.on, f"--crashes={result.crashes}", f"--seed={result.seed}", "--json"]
    limit_s = 300 + 20 * result.crashes
    with (folder / "report.json").open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True
        )
    ended = threading.Timer(limit_s, process.kill)
    ended.start()
    said = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            for one in losers:
                one.begin()  # it has made its tables
                if FINISHING in line:
                    one.rest()
        code = process.wait()
    finally:
        ended.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()
    text = (folder / "report.json").read_text()
    result.said = "".join(said[-60:]) + text
    if not text.strip():
        result.verdict, result.doubts = "none", [f"exit code {code}: {' '.join(said[-3:]).strip()}"]
        return
    report = json.loads(text)
    steps = report["steps"]
    result.verdict, result.doubts, result.counterexample = report["verdict"], report["doubts"], report["counterexample"]
    result.kills = report["kills"]["worker"] + report["kills"]["broker"]
    result.struck = len(report["struck"])
    result.zombies, result.refused = report["zombies"], report["refused"]
    result.refused_by_the_sink = sum(steps.get(s.value, 0) for s in (Step.SINK_FENCED, Step.SINK_STALE))
    for what in ("lost", "repeated", "wrong"):
        setattr(result, what, sum(output[what] for output in report["outputs"].values()))
    result.rows = {name: report["outputs"].get(name, {}).get("present", 0) for name in campaign.wanted}
    result.kinds = {name: report["outputs"].get(name, {}).get("kind", "") for name in campaign.wanted}
    result.never = [step.value for step in SINK_STEPS if not steps.get(step.value)]
    empty = [name for name, count in result.rows.items() if not count]
    if empty:
        result.verdict = "unknown"
        result.doubts = [*result.doubts, f"nothing arrived: {', '.join(empty)}"]


class Loser:
    """Between the workers and their sink: now a request that commits does not arrive, now its answer is lost."""

    def __init__(self, wire: Wire, needles: Sequence[bytes]) -> None:
        self.wire, self.proxy = wire, wire.through or TcpProxy(wire.port)
        self._answer = self.proxy.lose_answer_when_it_comes if wire.answered else self.proxy.lose_answer
        self.requests = self.answers = 0
        self._needles = itertools.cycle(needles)
        self._begun, self._resting = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._lose, name="loses-answers", daemon=True)

    def _lose(self) -> None:
        self._begun.wait()
        while not self._resting.wait(LOSE_EVERY_S):
            seen, answer = self.proxy.cuts, self.answers <= self.requests
            (self._answer if answer else self.proxy.lose_request)(next(self._needles))
            given_up = time.monotonic() + 2 * LOSE_EVERY_S
            while self.proxy.cuts == seen and time.monotonic() < given_up and not self._resting.wait(0.05):
                pass
            if self.proxy.cuts > seen:
                self.answers += answer
                self.requests += not answer

    def begin(self) -> None:
        self._begun.set()

    def rest(self) -> None:
        """From now on nothing is lost any more: verify reads back what there is."""
        self._resting.set()
        self._begun.set()
        if self._thread.is_alive():
            self._thread.join()
        self.proxy.calm()

    def __enter__(self) -> Loser:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.rest()
        if self.wire.through is None:
            self.proxy.close()


# --- the systems -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[Place]:
    from semel.host.postgres import PostgresServer
    from tests.sinks.subjects import at_port

    with PostgresServer(folder / "postgres") as server:
        dsn = server.dsn
        wire = Wire("EVERY_POSTGRES", server.port, lambda port: at_port(dsn, port))
        yield Place({"EVERY_POSTGRES": dsn}, lambda: inventories.postgres(dsn), (wire,))
        server.kill()


@contextlib.contextmanager
def mariadb(folder: Path) -> Iterator[Place]:
    from tests.support.mariadb import MariaDBServer

    with MariaDBServer(folder / "mariadb") as server:
        url = server.url
        wire = Wire("EVERY_MARIADB", server.port, lambda port: url.replace(f":{server.port}/", f":{port}/"))
        yield Place({"EVERY_MARIADB": url}, lambda: inventories.mariadb(url), (wire,))


@contextlib.contextmanager
def sqlite(folder: Path) -> Iterator[Place]:
    import sqlite3

    path = folder / "sqlite" / "orders.db"
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as connection:  # somebody's, with a table of his
        connection.execute("CREATE TABLE mine (x)")
    yield Place({"EVERY_SQLITE": str(path)}, lambda: inventories.sqlite(str(path)))


@contextlib.contextmanager
def duckdb(folder: Path) -> Iterator[Place]:
    import duckdb as client

    path = folder / "duckdb" / "orders.duckdb"
    path.parent.mkdir()
    with client.connect(str(path)) as connection:
        connection.execute("CREATE TABLE mine (x INTEGER)")
    yield Place({"EVERY_DUCKDB": str(path)}, lambda: inventories.duckdb(str(path)))


@contextlib.contextmanager
def lake(folder: Path) -> Iterator[Place]:
    at = folder / "lake"
    (at / "warehouse" / "sales").mkdir(parents=True)  # the namespace's folder: pyiceberg leaves it, empty
    yield Place({"EVERY_LAKE": str(at)}, lambda: inventories.lake(at))


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[Place]:
    from tests.sinks.subjects import S3_KEY, S3_SECRET
    from tests.support.seaweed import SeaweedProcess

    with SeaweedProcess(folder / "seaweed") as server:
        endpoint = server.endpoint
        keys = {"AWS_ACCESS_KEY_ID": S3_KEY, "AWS_SECRET_ACCESS_KEY": S3_SECRET}
        wire = Wire("EVERY_S3", server.port, lambda port: f"http://127.0.0.1:{port}")
        yield Place({"EVERY_S3": endpoint, **keys}, lambda: inventories.s3(endpoint), (wire,))


@contextlib.contextmanager
def a_folder(folder: Path) -> Iterator[Place]:
    at = folder / "files"
    at.mkdir()
    yield Place({"EVERY_FILES": str(at)}, lambda: inventories.files(at))


@contextlib.contextmanager
def receiver(folder: Path) -> Iterator[Place]:
    from tests.receiver.served import Served

    with Served("ours", str(folder / "hook.db"), folder, "tests.sinks.hook") as served:
        wire = Wire("EVERY_HTTP", served.port, lambda port: f"http://127.0.0.1:{port}")
        yield Place(
            {"EVERY_HTTP": f"http://127.0.0.1:{served.port}"}, lambda: inventories.receiver(folder / "hook.db"), (wire,)
        )


@contextlib.contextmanager
def _redis_like(folder: Path, program: Path, variable: str) -> Iterator[Place]:
    from tests.support.redis import RedisProcess

    with RedisProcess(program, folder / variable.lower()) as server:
        wire = Wire(variable, server.port, lambda port: f"redis://127.0.0.1:{port}/0")
        yield Place({variable: server.url}, lambda: inventories.redis(server.url), (wire,))


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Place]:
    from tests.support.redis import redis_server

    with _redis_like(folder, redis_server(), "EVERY_REDIS") as place:
        yield place


@contextlib.contextmanager
def valkey(folder: Path) -> Iterator[Place]:
    from tests.support.redis import valkey_server

    with _redis_like(folder, valkey_server(), "EVERY_VALKEY") as place:
        yield place


@contextlib.contextmanager
def opensearch(folder: Path) -> Iterator[Place]:
    from tests.support.opensearch import OpenSearchProcess

    with OpenSearchProcess(folder / "opensearch") as node:
        wire = Wire("EVERY_OPENSEARCH", node.port, lambda port: f"http://127.0.0.1:{port}")
        yield Place({"EVERY_OPENSEARCH": node.url}, lambda: inventories.opensearch(node.url), (wire,))


@contextlib.contextmanager
def mongodb(folder: Path) -> Iterator[Place]:
    from tests.support.ferretdb import FerretProcess

    with FerretProcess(folder / "ferretdb") as server:

        def at(port: int) -> str:
            return f"mongodb://127.0.0.1:{port}/test?directConnection=true"

        wire = Wire("EVERY_MONGODB", server.port, at)
        yield Place({"EVERY_MONGODB": server.url}, lambda: inventories.mongodb(server.url), (wire,))


@contextlib.contextmanager
def clickhouse(folder: Path) -> Iterator[Place]:
    from tests.support.clickhouse import ClickHouseProcess

    with ClickHouseProcess(folder / "clickhouse", merges=True) as server:
        wire = Wire("EVERY_CLICKHOUSE", server.port, lambda port: f"http://127.0.0.1:{port}/default", answered=True)
        yield Place({"EVERY_CLICKHOUSE": server.url}, lambda: inventories.clickhouse(server.url), (wire,))


@contextlib.contextmanager
def prometheus(folder: Path) -> Iterator[Place]:
    from tests.support.prometheus import PrometheusProcess

    with PrometheusProcess(folder / "prometheus") as server:
        wire = Wire("EVERY_PROMETHEUS", server.port, lambda port: f"http://127.0.0.1:{port}", answered=True)
        # Equal samples are one: a record that came twice, as those of a small sample do, would prove nothing.
        environ = {"EVERY_PROMETHEUS": server.url, "EVERY_ORDERS": "300000"}
        yield Place(environ, lambda: inventories.prometheus(server.url), (wire,))


@contextlib.contextmanager
def other_kafka(folder: Path) -> Iterator[Place]:
    """Apache Kafka as a target. It tells its clients the proxy's address, so everybody goes through that."""
    from tests.servers.kafka_subjects import KEEPING, ready
    from tests.support.kafka import KafkaProcess

    kafka = KafkaProcess(folder / "other-kafka", props=KEEPING)
    with _in_front("EVERY_KAFKA", kafka.port) as place:
        kafka.props["advertised.listeners"] = f"PLAINTEXT://{place.environ['EVERY_KAFKA']}"
        with kafka:
            ready(place.environ["EVERY_KAFKA"])
            yield place


@contextlib.contextmanager
def other_broker(folder: Path) -> Iterator[Place]:
    """`semel broker` as a target, beside the one that is the log."""
    from semel.host.free_port import free_port
    from tests.support.broker import BrokerProcess

    port = free_port()
    with (
        _in_front("EVERY_BROKER", port) as place,
        BrokerProcess(folder / "other-broker", port, advertise=place.environ["EVERY_BROKER"]),
    ):
        yield place


@contextlib.contextmanager
def _in_front(variable: str, port: int) -> Iterator[Place]:
    proxy = TcpProxy(port)
    try:
        address = f"127.0.0.1:{proxy.port}"
        wire = Wire(variable, port, lambda port: f"127.0.0.1:{port}", through=proxy)
        yield Place({variable: address}, lambda: inventories.kafka(address), (wire,))
    finally:
        proxy.close()


@contextlib.contextmanager
def clusters(folder: Path) -> Iterator[Place]:
    with together(folder, [other_kafka, other_broker]) as place:
        yield place


SOURCE_TABLES = (
    "CREATE TABLE events (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text, amount bigint)",
    "CREATE TABLE items (id bigint PRIMARY KEY, customer text, amount bigint)",
)


@contextlib.contextmanager
def sources(folder: Path) -> Iterator[Place]:
    import psycopg

    from semel.host.postgres import PostgresServer

    at = folder / "sources"
    at.mkdir()
    with PostgresServer(folder / "postgres", settings={"wal_level": "logical"}) as server:
        with psycopg.connect(server.dsn) as connection:
            for statement in SOURCE_TABLES:
                connection.execute(statement)

        def look() -> set[str]:
            return inventories.postgres(server.dsn) | inventories.files(at)

        yield Place({"SOURCES_FOLDER": str(at), "SOURCES_POSTGRES": server.dsn}, look)
        server.kill()


@contextlib.contextmanager
def together(folder: Path, systems: Sequence[System]) -> Iterator[Place]:
    """Several at once, for a run that costs less."""
    with contextlib.ExitStack() as stack:
        places = [stack.enter_context(system(folder)) for system in systems]
        environ = {name: value for place in places for name, value in place.environ.items()}
        wires = tuple(wire for place in places for wire in place.wires)
        yield Place(environ, lambda: {one for place in places for one in place.look()}, wires)


def all_of(campaigns: Sequence[Campaign]) -> Campaign:
    """These sinks in one app, in one run."""
    systems = list(dict.fromkeys(one.system for one in campaigns))
    return Campaign(
        " + ".join(one.title for one in campaigns),
        lambda folder: together(folder, systems),
        tuple(name for one in campaigns for name in one.sinks),
        needles=tuple(dict.fromkeys(needle for one in campaigns for needle in one.needles)),
    )


def _commits(system: str, *needles: bytes) -> tuple[tuple[str, bytes], ...]:
    return tuple((f"EVERY_{system}", needle) for needle in needles)


SCRIPT = hashlib.sha1(ROWS.encode()).hexdigest().encode()  # Redis is asked for it by its name
END_TXN = b"\x00\x1a\x00\x01\x00\x00"  # key 26, version 1, and the half of a correlation id that stays 0
COMMIT = _commits("POSTGRES", b"COMMIT")
PUT = _commits("S3", b"PUT /semel-test/every")
INSERT = _commits("CLICKHOUSE", b"INSERT INTO")
SINKS = {
    "postgres": Campaign("Postgres", postgres, ("postgres-each", "postgres-latest"), needles=COMMIT),
    "versioned": Campaign("PostgresVersioned", postgres, ("versioned",), needles=COMMIT),
    "appended": Campaign("PostgresAppended", postgres, ("appended",), needles=COMMIT),
    "two-phase": Campaign(
        "PostgresTwoPhase", postgres, ("two-phase-each", "two-phase-latest"),
        needles=_commits("POSTGRES", b"COMMIT PREPARED", b"PREPARE TRANSACTION"),
    ),
    "mariadb": Campaign(
        "MariaDB", mariadb, ("mariadb-each", "mariadb-latest"), needles=_commits("MARIADB", b"COMMIT")
    ),
    "xa": Campaign(
        "MariaDBTwoPhase", mariadb, ("xa-latest",), needles=_commits("MARIADB", b"XA COMMIT", b"XA PREPARE")
    ),
    "sqlite": Campaign("SQLite", sqlite, ("sqlite-each", "sqlite-latest")),
    "duckdb": Campaign("DuckDB", duckdb, ("duckdb-each", "duckdb-latest")),
    "delta": Campaign("DeltaLake", lake, ("delta-each", "delta-latest")),
    "delta-s3": Campaign(
        "DeltaLake on S3", s3, ("delta-s3",), needles=_commits("S3", b"_delta_log/0000000000000000000")
    ),
    "iceberg": Campaign("Iceberg", lake, ("iceberg-each", "iceberg-latest")),
    "objects": Campaign("Objects", s3, ("objects",), needles=PUT),
    "multipart": Campaign(
        "MultipartObjects", s3, ("multipart",), needles=_commits("S3", b"<CompleteMultipartUpload>")
    ),
    "files": Campaign("Files", a_folder, ("files",)),
    "http": Campaign("HTTP", receiver, ("http",), needles=_commits("HTTP", b'{"id":')),
    "redis": Campaign("Redis", redis, ("redis",), needles=_commits("REDIS", SCRIPT)),
    "valkey": Campaign("Redis on Valkey", valkey, ("valkey",), needles=_commits("VALKEY", SCRIPT)),
    "opensearch": Campaign(
        "OpenSearch", opensearch, ("opensearch",), needles=_commits("OPENSEARCH", b'"version_type":"external"')
    ),
    "kafka-topic": Campaign(
        "KafkaTopic", clusters, ("bridged", "bridged-by-field"),
        needles=_commits("KAFKA", END_TXN) + _commits("BROKER", END_TXN),
    ),
    "clickhouse": Campaign("ClickHouse (chdb behind HTTP)", clickhouse, ("tokens",), needles=INSERT),
    "clickhouse-appended": Campaign("ClickHouseAppended (chdb behind HTTP)", clickhouse, ("events",), needles=INSERT),
    "prometheus": Campaign(
        "Prometheus", prometheus, ("samples",), needles=_commits("PROMETHEUS", b"Remote-Write-Version")
    ),
}  # fmt: skip
# A Go build: only where it is asked for.
IMITATED = {"mongodb": Campaign("MongoDB", mongodb, ("mongodb",), needles=_commits("MONGODB", b"semel_incarnation"))}
SOURCE_OUTPUTS = {
    "Files": "source orders",
    "PostgresTable": "source events",
    "HTTPEndpoint": "source calls",
    "PostgresChanges": "source items",
}
SOURCES = {
    "sources": Campaign(
        "Files, PostgresTable, HTTPEndpoint, PostgresChanges", sources, app="sources",
        outputs=tuple(SOURCE_OUTPUTS.values()),
    ),
}  # fmt: skip
