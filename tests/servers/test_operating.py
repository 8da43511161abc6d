"""`semel sink`, with the app really run before and after: on an embedded log, `semel broker` and Apache Kafka."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from semel.cli.sink import adopt, drain, list_, rewind, show
from semel.errors import SemelError, UsageError
from semel.host.engine import Engine
from semel.host.groups import Tended, tend
from semel.ports import NewTopic, TopicPartition
from semel.sinks import SQLite
from semel.sinks.delivery import Delivery
from tests.support.broker import BrokerProcess
from tests.support.kafka import KafkaProcess

APP = str(Path(__file__).parent.parent / "host" / "apps" / "shop.py")
WAIT_S = 60.0
DAY_MS = 24 * 3_600_000


class Kept(Struct):
    id: int


class Hook(http.server.ThreadingHTTPServer):
    """A receiver that takes everything and remembers the keys."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Take)
        self.keys: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"


class _Take(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.append(self.headers["Idempotency-Key"])  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *given: object) -> None: ...


class Shop:
    """A log, the four sinks, and the app that lies between them."""

    def __init__(self, url: str, folder: Path, hook: Hook) -> None:
        self.url, self.folder, self.hook = url, folder, hook
        self.fed = 0

    def tended(self, do: Callable[[Tended], Any]) -> Any:
        with tend(self.url) as log:
            return do(log)

    def feed(self, count: int) -> None:
        def write(tended: Tended) -> None:
            log = tended.session("feeds")
            log.create([NewTopic("orders", 2)])
            to = log.writer("orders")
            for n in range(self.fed, self.fed + count):
                value = json.dumps({"id": n, "customer": f"c{n}"}).encode()
                to(n % 2, b"c%d" % n, value, int(time.time() * 1000), None)
            log.flush()

        self.tended(write)
        self.fed += count

    def run(self, until: Callable[[], object], **env: str) -> tuple[int, str]:
        """Runs the app until then; its exit code and what it said on stderr."""
        err = self.folder / "err"
        with err.open("w") as said:
            command = [sys.executable, "-m", "semel", "run", APP, "--on", self.url]
            command += ["--state", str(self.folder / "state"), "--session-timeout-ms", "1000"]
            process = subprocess.Popen(command, stderr=said, stdout=subprocess.DEVNULL, env={**os.environ, **env})
        try:
            deadline = time.monotonic() + WAIT_S
            while not until() and process.poll() is None:
                assert time.monotonic() < deadline, err.read_text()
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            process.wait(WAIT_S)
        finally:
            process.kill()
            process.wait()
        self.alone()
        return process.returncode, err.read_text()

    def alone(self) -> None:
        """A static member counts until its session times out."""

        def gone(tended: Tended) -> None:
            groups = ["shop", *(f"shop.{sink}" for sink in ("orders", "renamed", "archive", "lines", "hook"))]
            deadline = time.monotonic() + WAIT_S
            while any(tended.members(group) for group in groups):
                assert time.monotonic() < deadline
                time.sleep(0.05)

        self.tended(gone)

    def delivers(self) -> None:
        code, said = self.run(lambda: self.counts() >= (self.fed,) * 4 and min(self.counts()) >= self.fed)
        assert code == 0, said

    def counts(self) -> tuple[int, int, int, int]:
        """Rows, records in objects, lines, requests."""
        lines = self.folder / "lines"
        return (
            len(self.rows()),
            sum(len(path.read_text().splitlines()) for path in (self.folder / "archive").glob("0*/*.jsonl")),
            len(lines.read_text().splitlines()) if lines.exists() else 0,
            len(self.hook.keys),
        )

    def removed(self) -> None:
        def remove(tended: Tended) -> None:
            tended.delete([name for name in tended.session("x").topics() if not name.startswith("__")])

        self.tended(remove)

    def counts_of_others(self) -> tuple[int, int, int]:
        _, objects, lines, requests = self.counts()
        return objects, lines, requests

    def rows(self) -> list[int]:
        if not (self.folder / "orders.db").is_file():
            return []
        with contextlib.closing(sqlite3.connect(self.folder / "orders.db")) as database:
            try:
                return sorted(row[0] for row in database.execute("SELECT id FROM orders"))
            except sqlite3.OperationalError:
                return []


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with KafkaProcess(tmp_path_factory.mktemp("kafka"), props={"group.min.session.timeout.ms": "1000"}) as running:
        yield running.address


@pytest.fixture(params=["embedded", "broker", "kafka"])
def shop(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    with contextlib.ExitStack() as stack:
        if request.param == "embedded":
            Engine(tmp_path / "log").close()
            url = f"embedded:{tmp_path / 'log'}"
        elif request.param == "broker":
            broker = BrokerProcess(tmp_path / "log")
            stack.callback(broker.close)
            url = f"kafka://{broker.address}"
        else:
            url = f"kafka://{request.getfixturevalue('kafka')}"
        made = stack.enter_context(opened(url, tmp_path, monkeypatch))
        if request.param == "kafka":
            stack.callback(made.removed)  # one cluster for all tests
        yield made


@contextlib.contextmanager
def opened(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    hook = Hook()
    monkeypatch.setenv("SHOP", str(folder))
    monkeypatch.setenv("SHOP_HOOK", hook.url)
    yield Shop(url, folder, hook)
    hook.shutdown()
    hook.server_close()


def test_sinks_are_shown_rewound_and_drained(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """What is said is what happens: each sink is given again what lies behind the position, by drain as by a start; and
    while the app runs nothing is moved."""
    shop.feed(20)
    refused: list[str] = []

    def tried() -> bool:
        if shop.counts() != (20, 20, 20, 20):
            return False
        for command in (
            lambda: rewind(APP, "orders", on=shop.url, to_start=True, yes=True),
            lambda: adopt(APP, "orders", on=shop.url, stands="start", yes=True),
            lambda: drain(APP, "orders", on=shop.url),
        ):
            with pytest.raises(SemelError) as raised:
                command()
            refused.append(str(raised.value))
        return True

    code, said = shop.run(tried)
    assert code == 0 and "left shop: 20 records processed" in said, said
    assert all("already open by pid" in text or "The app runs, and delivers by itself" in text for text in refused)
    list_(APP, on=shop.url, json_lines=True)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["sink"], one["state"], one["waiting"]) for one in found] == [
        ("orders", "ok", 0), ("archive", "ok", 0), ("lines", "ok", 0), ("hook", "ok", 0)
    ]  # fmt: skip
    show(APP, "archive", on=shop.url)
    assert "contract Keyed, incarnation 1, the position is in the delivery topic" in capsys.readouterr().out

    for place, sink in enumerate(("orders", "archive", "lines", "hook")):
        rewind(APP, sink, on=shop.url, to="0:4")
        told = capsys.readouterr().out
        again, waits = (int(n) for n in re.findall(r"(\d+) records? delivered again; (\d+) record", told)[0])
        assert again == waits > 0 and told.endswith("Nothing has been done. To do it: --yes\n")
        before = shop.counts()
        rewind(APP, sink, on=shop.url, to="0:4", yes=True)
        renewed = "" if sink == "lines" else ", as incarnation 2"
        assert capsys.readouterr().out.endswith(f"Done: the next start delivers from there{renewed}.\n")
        drain(APP, sink, on=shop.url)
        assert f"{again} records delivered, nothing is left in shop-{sink}-outbox" in capsys.readouterr().out
        assert shop.counts() == tuple(n + again * (place == p) for p, n in enumerate(before))
    assert len(set(shop.hook.keys)) == len(shop.hook.keys), "a key was used twice: the receiver would do nothing"
    rewind(APP, "orders", on=shop.url, to="0:4", yes=True)
    with pytest.raises(UsageError, match="a rewind goes back"):
        rewind(APP, "orders", on=shop.url, to="0:6")
    with pytest.raises(UsageError, match="holds offsets"):
        rewind(APP, "orders", on=shop.url, to="1:99999")
    rewind(APP, "lines", on=shop.url, by_time="2999-01-01")
    assert "stands there already" in capsys.readouterr().out
    shop.feed(4)
    shop.run(lambda: set(shop.rows()) == set(range(24)))
    assert set(shop.rows()) == set(range(24))


@pytest.mark.parametrize("shop", ["embedded", "kafka"], indirect=True)
def test_a_sink_that_is_renamed_before_all_was_delivered_stops_the_start(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it never answered, so that nothing but its outbox tells of it. Its former program delivers what is
    left; or it is given up, by its name."""
    shop.feed(6)
    (shop.folder / "orders.db").mkdir()  # no file can be there: the sink waits
    code, said = shop.run(lambda: shop.counts_of_others() == (6, 6, 6))
    assert code == 0 and "6 records left in the outbox of orders for the next start" in said, said
    (shop.folder / "orders.db").rmdir()
    code, said = shop.run(lambda: False, SHOP_SINK="renamed")
    assert code == 1
    assert "no sink of the program has the name 'orders' any more, and it holds records that were not delivered" in said
    assert f"`semel sink drain FORMER.py orders --on {shop.url}`" in said
    assert f"`semel app discard {APP} shop-orders-outbox --on {shop.url}`" in said
    list_(APP, on=shop.url)
    assert re.search(r"^orders +Transactional +2 +6 +new", capsys.readouterr().out, re.M)
    drain(APP, "orders", on=shop.url)
    assert "6 records delivered, nothing is left" in capsys.readouterr().out
    assert shop.rows() == list(range(6))
    shop.feed(2)
    code, said = shop.run(lambda: shop.rows() == list(range(8)), SHOP_SINK="renamed")
    assert code == 0, said
    assert shop.rows() == list(range(8))


@pytest.mark.parametrize("shop", ["embedded", "kafka"], indirect=True)
def test_a_log_that_was_re_created_goes_on_where_a_person_says(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """S16. Without --at the choices are told; a start before stops and names the command."""
    shop.feed(6)
    shop.delivers()

    def made_anew(tended: Tended) -> None:
        log = tended.session("x")
        config = {name: value for name, value in log.config("shop-orders-outbox").items() if "retention" in name}
        tended.delete(["shop-orders-outbox"])
        log.create([NewTopic("shop-orders-outbox", 2, {"cleanup.policy": "delete", **config})])

    shop.tended(made_anew)
    shop.feed(2)
    code, said = shop.run(lambda: False)
    assert code == 1 and "re-created" in said and "`semel sink adopt APP.py orders`" in said, said
    show(APP, "orders", on=shop.url)
    told = capsys.readouterr().out
    assert "partition 0 is diverged" in told and f"`semel sink adopt {APP} orders --on {shop.url}`" in told
    with pytest.raises(SemelError, match="which one does, says `semel sink adopt"):
        rewind(APP, "orders", on=shop.url, to_start=True)
    adopt(APP, "orders", on=shop.url)
    told = capsys.readouterr().out
    assert "--at start:" in told and "--at end:" in told and "--at sink:" not in told
    assert told.endswith("Nothing has been done. Say which: --at WHICH; then --yes\n")
    adopt(APP, "orders", on=shop.url, stands="start", yes=True)
    code, said = shop.run(lambda: len(shop.rows()) >= 8)
    assert code == 0 and shop.rows() == list(range(8)), (said, shop.rows())


def test_an_outbox_is_truncated_a_week_behind_its_sink(shop: Shop) -> None:
    """On this log, really: what is below was deleted, what the sink has not taken was not, and the next delivery
    goes on."""
    outbox, at = "shop-kept-outbox", TopicPartition("shop-kept-outbox", 0)
    sink = SQLite(shop.folder / "kept.db", "kept")

    def worked(tended: Tended) -> None:
        log = tended.session("shop.kept")
        log.create([NewTopic(outbox, 1, {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"})])
        write = log.writer(outbox)

        def put(*numbers: int) -> None:
            for n in numbers:
                write(0, b"k", sink.encode_value({"id": n}), 1_000 + n, None)
            log.flush()

        now_ms = [int(time.time() * 1000)]

        def delivered(until: int) -> None:
            delivery = Delivery(log, SQLite(sink.path, "kept", value=Kept), app="shop", outbox=outbox)
            delivery.join()
            deadline = time.monotonic() + WAIT_S
            done = 0
            while done < until:
                assert time.monotonic() < deadline
                now_ms[0] += 1_000
                done += delivery.step(now_ms[0], 0.05)
            for _ in range(3):
                now_ms[0] += 61_000
                delivery.step(now_ms[0], 0.05)
            delivery.close()

        put(*range(10))
        delivered(10)
        assert log.starts([at])[at] == 0
        now_ms[0] += 8 * DAY_MS
        put(*range(10, 15))
        delivered(5)
        assert log.starts([at])[at] == 10
        put(15)
        delivered(1)

    shop.tended(worked)
    with contextlib.closing(sqlite3.connect(sink.path)) as database:
        assert [row[0] for row in database.execute("SELECT id FROM kept ORDER BY id")] == list(range(16))


def test_what_cannot_be_asked_is_said(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.feed(2)
    with pytest.raises(UsageError, match=r"has no sink 'none'. It has orders, archive, lines, hook"):
        show(APP, "none", on=shop.url)
    with pytest.raises(SemelError, match="there is no outbox shop-orders-outbox: nothing was written"):
        show(APP, "orders", on=shop.url)
    list_(APP, on=shop.url)
    assert len(re.findall(r"never run", capsys.readouterr().out)) == 4
    drain(APP, "orders", on=shop.url)
    assert "it has no outbox yet" in capsys.readouterr().out
    with pytest.raises(UsageError, match="Say how far"):
        rewind(APP, "orders", on=shop.url)
