"""From a source record to its visible row: p50 and p99 in ms at 1,000 records/s, for some sinks and both kinds of log.

    BENCH=sinks BENCH_SINKS=latency make bench       LATENCY_SECONDS, LATENCY_SINKS ("postgres sqlite …")

The app passes each record on, with a commit interval of 100 ms, as `semel run` does it in a process of its own. A
record carries the time of its making; a reader in another process looks for new rows every few milliseconds, and takes
the time when it sees each. The first second is not counted. Whatever was fed must be seen, each record once.

HTTP is fed 100 records/s: it is a request each. Objects are listed by their manifests; a cut is due after 0.1 s.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from bench.table import table

RATE, HTTP_RATE = 1_000, 100
SECONDS = float(os.environ.get("LATENCY_SECONDS", "6"))
LOOK_S = 0.003
TICK_S = 0.005
PATIENCE_S = 60.0


class Entry(msgspec.Struct, frozen=True):
    id: str
    n: int
    at_us: int


class Place(NamedTuple):
    """`sink`: how an app writes it; `seen`: the entries past the first `count`, and maybe more, in any order."""

    sink: str
    seen: Callable[[int], Sequence[Entry]]
    rate: int = RATE


# --- the child: an app, and for an embedded log, which has one process, its feeder ------------------------------------


def feed(
    send: Callable[[bytes, bytes, int], None], flush: Callable[[], None], count: int, rate: int, begin: Path
) -> None:
    """One record, and the others once that one was seen (`begin` is there): then the app runs, and owns its sink."""
    encode = msgspec.json.Encoder().encode

    def made(n: int) -> None:
        now_us = time.time_ns() // 1_000
        send(b"e-%07d" % n, encode(Entry(f"e-{n:07}", n, now_us)), now_us // 1_000)

    made(0)
    flush()
    while not begin.exists():
        time.sleep(TICK_S)
    began, sent = time.monotonic(), 1
    while sent < count:
        due = min(count, int((time.monotonic() - began) * rate) + 1)
        for n in range(sent, due):
            made(n)
        sent = max(sent, due)
        flush()
        time.sleep(TICK_S)


def child(url: str, sink: str, count: int, rate: int, begin: Path) -> None:
    from semel import App, Builder, Topic, sinks
    from semel.host import engine as engines
    from semel.host.worker import run_app

    source: Topic[str, Entry] = Topic("in", key=str, value=Entry)
    target = eval(sink, vars(sinks))

    def build(b: Builder) -> None:
        b.read(source).write(target)

    app = App("latency", build, commit_interval_ms=100)
    if url.startswith("embedded:"):
        from semel.host.embedded import EmbeddedLog
        from semel.ports import NewTopic

        made = engines.Engine

        def engine(*words: Any, **more: Any) -> Any:
            opened = made(*words, **more)
            log = EmbeddedLog(opened)
            log.create([NewTopic("in", 1)])
            write = log.writer("in")

            def run() -> None:
                feed(lambda key, value, ms: write(0, key, value, ms, None), log.flush, count, rate, begin)

            threading.Thread(target=run, daemon=True).start()
            return opened

        engines.Engine = engine  # type: ignore[assignment, misc]
    run_app(app, url)


# --- where the rows appear --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[Place]:
    import psycopg

    from semel.host.postgres import PostgresServer

    with PostgresServer(folder / "postgres") as server, psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE entries (id text, n bigint, at_us bigint)")
        connection.execute("CREATE INDEX ON entries (n)")
        query = "SELECT id, n, at_us FROM entries WHERE n >= %s"
        yield Place(
            f"Postgres({server.dsn!r}, 'entries')",
            lambda count: [Entry(*row) for row in connection.execute(query, (count,))],
        )


@contextlib.contextmanager
def sqlite(folder: Path) -> Iterator[Place]:
    path = folder / "entries.db"
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE entries (id TEXT, n INTEGER, at_us INTEGER)")
    query = "SELECT id, n, at_us FROM entries WHERE rowid > ?"
    yield Place(
        f"SQLite({str(path)!r}, 'entries')",
        lambda count: [Entry(*row) for row in connection.execute(query, (count,)).fetchall()],
    )
    connection.close()


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[Place]:
    from tests.support.redis import RedisProcess, redis_server

    with RedisProcess(redis_server(), folder / "redis") as server:
        client: Any = server.client()

        def seen(count: int) -> Sequence[Entry]:
            found = client.mget([f"e:e-{n:07}" for n in range(count, count + 300)])
            return [msgspec.json.decode(text, type=Entry) for text in found if text is not None]

        yield Place(f"Redis({server.url!r}, 'e', key='id', form='json')", seen)


@contextlib.contextmanager
def http(folder: Path) -> Iterator[Place]:
    from tests.receiver.served import Served

    path = folder / "hook.db"
    with Served("ours", str(path), folder, "bench.hook") as served:
        connection = sqlite3.connect(path, isolation_level=None, timeout=30)

        def seen(count: int) -> Sequence[Entry]:
            found = connection.execute("SELECT body FROM entries WHERE rowid > ?", (count,)).fetchall()
            return [msgspec.json.decode(body, type=Entry) for (body,) in found]

        yield Place(f"HTTP('http://127.0.0.1:{served.port}/hook')", seen, HTTP_RATE)
        connection.close()


@contextlib.contextmanager
def objects(folder: Path) -> Iterator[Place]:
    import obstore
    from obstore.store import S3Store
    from tests.sinks.subjects import S3_BUCKET
    from tests.support.seaweed import SeaweedProcess

    from semel.sinks import Objects

    with SeaweedProcess(folder / "seaweed") as server:
        options: Any = server.options()
        store = S3Store(S3_BUCKET, config=options, client_options={"allow_http": True})
        sink = Objects(f"s3://{S3_BUCKET}/entries", options=options, seconds=0.1)
        known: set[str] = set()

        def seen(count: int) -> Sequence[Entry]:
            found: list[Entry] = []
            for one in sink.complete():
                if one.key not in known:
                    known.add(one.key)
                    body = bytes(obstore.get(store, f"entries/{one.key}").bytes())
                    found += [msgspec.json.decode(line, type=Entry) for line in body.splitlines()]
            return found

        yield Place(f"Objects('s3://{S3_BUCKET}/entries', options={options!r}, seconds=0.1)", seen)


PLACES: Mapping[str, Callable[[Path], contextlib.AbstractContextManager[Place]]] = {
    "postgres": postgres, "sqlite": sqlite, "redis": redis, "objects": objects, "http": http,
}  # fmt: skip


# --- a run ------------------------------------------------------------------------------------------------------------


def measured(log: str, place: Place, folder: Path) -> list[float]:
    """The latencies in ms, of all but the first second, sorted."""
    from tests.support.broker import BrokerProcess

    count, begin = int(SECONDS * place.rate), folder / "begin"
    with contextlib.ExitStack() as stack:
        url = f"embedded:{folder / 'log'}"
        feeding: Callable[[], None] = lambda: None  # noqa: E731
        if log != "embedded":
            from confluent_kafka import Producer
            from confluent_kafka.admin import AdminClient, NewTopic

            broker = stack.enter_context(BrokerProcess(folder / "broker"))
            url = f"kafka://{broker.address}"
            admin = AdminClient({"bootstrap.servers": broker.address})
            admin.create_topics([NewTopic("in", 1, 1)])["in"].result(30)
            producer = Producer({"bootstrap.servers": broker.address, "linger.ms": 1, "enable.idempotence": True})

            def sent(key: bytes, value: bytes, ms: int) -> None:
                producer.produce("in", value, key, timestamp=ms)

            def feeding() -> None:
                feed(sent, lambda: producer.flush(0), count, place.rate, begin)
                producer.flush(30)

        words = [sys.executable, "-m", "bench.sink_latency", url, place.sink, str(count), str(place.rate), str(begin)]
        said = folder / f"said-{log}"
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=said.open("wb"), cwd=Path.cwd())
        feeder = threading.Thread(target=feeding, daemon=True)
        feeder.start()
        taken: dict[int, float] = {}
        try:
            deadline = time.monotonic() + SECONDS + PATIENCE_S
            seen = 0
            while len(taken) < count:
                for entry in place.seen(seen):
                    seen += 1
                    assert entry.n not in taken or entry.n < seen, f"{entry} came twice"
                    taken.setdefault(entry.n, time.time_ns() / 1e6 - entry.at_us / 1e3)
                seen = len(taken)
                if seen and not begin.exists():
                    begin.touch()
                assert process.poll() is None and time.monotonic() < deadline, (len(taken), said.read_text())
                time.sleep(LOOK_S)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        feeder.join(30)
    return sorted(ms for n, ms in taken.items() if n >= place.rate)


def run() -> None:
    chosen = os.environ.get("LATENCY_SINKS", " ".join(PLACES)).split()
    rows: dict[str, Sequence[str]] = {}
    for name in chosen:
        for log in ("embedded", "semel broker"):
            with tempfile.TemporaryDirectory(prefix="semel-bench-") as at, PLACES[name](Path(at)) as place:
                found = measured(log, place, Path(at))
                p50, p99 = found[len(found) // 2], found[int(len(found) * 0.99)]
                rows[f"{name}, {log}, {place.rate}/s"] = [f"{p50:.0f}", f"{p99:.0f}", f"{found[-1]:.0f}"]
                print(f"{name}, {log}: {rows[f'{name}, {log}, {place.rate}/s']}", flush=True)
    title = "From source record to visible row, commit interval 100 ms"
    print(table(title, ["p50 ms", "p99 ms", "max ms"], rows), flush=True)


if __name__ == "__main__":
    child(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
