"""`semel` commands as a person gives them: real processes in a folder of their own, over an embedded log or a broker.

world = World(tmp_path)
world.orders(1, 2)                      # into the embedded log, in this process
app = world.app()                       # `semel run app.py --on embedded:DIR`
app.until(lambda: world.sums() == {"ann": 3})
assert app.left().code == 0             # SIGTERM
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from semel.host.embedded import EmbeddedLog
from semel.host.engine import Engine
from semel.ports import NewTopic
from tests.support.broker import BrokerProcess

WAIT_S = 60.0

# One app for most cases: orders, their sum per customer, the sums to a topic and to SQLite.
APP = """\
from msgspec import Struct
from semel import App, Builder, Topic
from semel.sinks import SQLite

class Order(Struct, frozen=True):
    customer: str
    amount: int

class Total(Struct, frozen=True):
    customer: str
    total: int

orders = Topic("orders", key=str, value=Order)

def build(b: Builder) -> None:
    sums = b.read(orders).key_by(lambda o: o.customer).fold(0, lambda acc, o: acc + o.amount, name="sums")
    sums.changes().map(Total).write(SQLite("totals.db", "totals", key="customer"))

app = App("billing", build, commit_interval_ms=20)
"""
ON_BROKEN = APP.replace("value=Order)", 'value=Order, on_error="dead-letter")')


class Ended(NamedTuple):
    code: int
    said: str  # on stderr


class Running:
    """A command that goes on until it is told to stop."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    @property
    def said(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something that it brings about; it must not end before."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert self.process.poll() is None, (self.process.returncode, self.said)
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)

    def ended(self) -> Ended:
        return Ended(self.process.wait(WAIT_S), self.said)

    def left(self) -> Ended:
        """SIGTERM, and its end."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()


class World:
    """A folder to work in, with an embedded log in `data`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.url = f"embedded:{self.data}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._brokers: list[BrokerProcess] = []
        self._cleanups = contextlib.ExitStack()

    def file(self, text: str, name: str = "app.py") -> str:
        (self.folder / name).write_text(text)
        return name

    def started(self, *words: str, python: Sequence[str] = (), **env: str) -> Running:
        log = self.folder / f"stderr-{len(self._processes)}"
        command = [sys.executable, *python, "-m", "semel.cli.main", *words]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SEMEL_")} | env
        with log.open("wb") as err:
            process = subprocess.Popen(
                command, cwd=self.folder, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err
            )
        self._processes.append(process)
        return Running(process, log)

    def semel(self, *words: str, python: Sequence[str] = (), **env: str) -> Ended:
        """A command that comes to its own end."""
        return self.started(*words, python=python, **env).ended()

    def app(self, text: str = APP, **env: str) -> Running:
        return self.started("run", self.file(text), "--on", self.url, **env)

    def broker(self, folder: Path | None = None, **said: Any) -> BrokerProcess:
        self._brokers.append(BrokerProcess(folder or self.folder / "broker", **said))
        return self._brokers[-1]

    def defer(self, undo: Callable[[], object]) -> None:
        self._cleanups.callback(undo)

    @contextlib.contextmanager
    def log(self) -> Iterator[EmbeddedLog]:
        """The embedded log, while no command has it."""
        engine = Engine(self.data)
        log = EmbeddedLog(engine)
        try:
            yield log
        finally:
            log.close()
            engine.close()

    def feed(self, *values: bytes, topic: str = "orders") -> None:
        with self.log() as log:
            if topic not in log.topics():
                log.create([NewTopic(topic, 1)])
            write = log.writer(topic)
            for number, value in enumerate(values):
                write(0, b"k", value, 1_700_000_000_000 + number, None)
            log.flush()

    def orders(self, *amounts: int, customer: str = "ann") -> None:
        self.feed(*(json.dumps({"customer": customer, "amount": n}).encode() for n in amounts))

    def sums(self, database: str = "totals.db") -> dict[str, int]:
        with contextlib.closing(sqlite3.connect(self.folder / database)) as rows:
            try:
                return dict(rows.execute("SELECT customer, total FROM totals").fetchall())
            except sqlite3.OperationalError:
                return {}  # not there yet

    def works_until(self, sums: dict[str, int]) -> None:
        """The app runs until these sums are in its sink, and leaves."""
        app = self.app()
        app.until(lambda: self.sums() == sums)
        assert app.left().code == 0

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for broker in self._brokers:
            broker.close()
        self._cleanups.close()
