"""Any history of sends, repetitions, overtakings, crashes, lost answers and years gone by, against a model."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from semel.receiver import Receiver, SQLiteKeys
from tests.receiver.asgi import Counting, Gone, Got, post

EXPIRES_S = 60.0
OFFSETS = 6
CRASHES = ["none", "none", "none", "before the commit", "after the commit", "the answer is lost"]


class Message(NamedTuple):
    """A request on its way: the network may deliver it later, after others, and twice."""

    offset: int
    incarnation: int
    floor: int


class Histories(RuleBasedStateMachine):
    """One sender with requests in parallel, one foreign client, one database; every delivery meets a fresh process."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "app.db"
        with sqlite3.connect(self.path) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE effects (name text NOT NULL)")
        connection.close()
        self.clock_s = 1_000_000.0
        self.network: list[Message] = []
        self.incarnation = 0
        self.answered: dict[tuple[int, int], int] = {}  # (incarnation, offset) -> status
        self.foreign: dict[int, tuple[float, bytes]] = {}  # key -> until when it is kept, its answer

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def floor(self) -> int:
        """The lowest offset without a final answer."""
        return next(n for n in range(OFFSETS + 1) if (self.incarnation, n) not in self.answered)

    async def _request(self, status: int, crash: str, **said: Any) -> Got | None:
        keys = SQLiteKeys(self.path)
        app = Counting()
        app.status = status
        begin = keys.begin

        async def begin_to_crash(sent: Any, now_ms: int) -> Any:
            held = await begin(sent, now_ms)
            assert held is not None
            commit = held.commit

            async def crashing(kept: Any, *, undo: bool = False) -> None:
                if crash == "before the commit":
                    await held.rollback()  # as the database does when the process has gone
                    raise Gone
                await commit(kept, undo=undo)
                if crash == "after the commit":
                    raise Gone

            held.commit = crashing  # type: ignore[method-assign]
            return held

        keys.begin = begin_to_crash  # type: ignore[method-assign]
        receiver = Receiver(app, keys, expires_s=EXPIRES_S, purge_every_s=1e12, now=lambda: self.clock_s)
        try:
            got = await post(receiver, **said)
        except Gone:
            return None
        return None if crash == "the answer is lost" else got

    @rule(offset=st.integers(0, OFFSETS - 1))
    def send(self, offset: int) -> None:
        """For the first time or again: whatever has no answer yet."""
        if (self.incarnation, offset) not in self.answered and len(self.network) < 30:
            self.network.append(Message(offset, self.incarnation, min(self.floor(), offset)))

    @precondition(lambda self: self.network)
    @rule(which=st.integers(0, 29), twice=st.booleans(), status=st.sampled_from([201, 201, 404, 503]), data=st.data())
    def deliver(self, which: int, twice: bool, status: int, data: Any) -> None:
        message = self.network[which % len(self.network)]
        if not twice:
            self.network.remove(message)
        crash = data.draw(st.sampled_from(CRASHES))
        name = f"i{message.incarnation}/0/{message.offset}"
        got = asyncio.run(
            self._request(status, crash, body=name.encode(), key=f'"{name}"', floor=f'{message.floor};sender="s"')
        )
        if got is None or got.status >= 500:
            return
        at = (message.incarnation, message.offset)
        if got.answer == "done":
            assert at in self.answered, f"{name} was taken for done, and its sender never had an answer"
        else:
            assert self.answered.setdefault(at, got.status) == got.status, f"{name} was answered in two ways"

    @rule(key=st.integers(0, 2), status=st.sampled_from([201, 201, 503]), data=st.data())
    def foreign_client(self, key: int, status: int, data: Any) -> None:
        """The plain draft: within its time a key has one answer; afterwards it is a new one."""
        crash = data.draw(st.sampled_from(CRASHES))
        was = self.foreign_count(key)
        got = asyncio.run(self._request(status, crash, body=b"x", key=f'"f{key}"'))
        ran = self.foreign_count(key) - was
        until_s, body = self.foreign.get(key, (0.0, b""))
        if until_s > self.clock_s:
            assert ran == 0, "a kept key ran again"
            assert got is None or not body or got.body == body
        elif ran:
            self.foreign[key] = (self.clock_s + EXPIRES_S, b"" if got is None else got.body)
        assert ran == int(until_s <= self.clock_s and status < 400 and crash != "before the commit")

    @rule(seconds=st.sampled_from([1.0, 59.0, 61.0, 1e7]), purged=st.booleans())
    def time_passes(self, seconds: float, purged: bool) -> None:
        self.clock_s += seconds
        if purged:
            asyncio.run(SQLiteKeys(self.path).purge(int(self.clock_s * 1000), 100))

    @rule()
    def rewind(self) -> None:
        """Delivers everything again, on purpose: as another incarnation. What is on its way may still arrive."""
        if self.incarnation < 2:
            self.incarnation += 1

    def foreign_count(self, key: int) -> int:
        return self._names().count(f"||f{key}")

    def _names(self) -> list[str]:
        connection = sqlite3.connect(self.path)
        try:
            return [name for (name,) in connection.execute("SELECT name FROM effects")]
        finally:
            connection.close()

    @invariant()
    def each_delivery_has_its_effect_once(self) -> None:
        names = self._names()
        for incarnation in range(self.incarnation + 1):
            for offset in range(OFFSETS):
                count = names.count(f"|s|i{incarnation}/0/{offset}")
                assert count <= 1, f"offset {offset} of incarnation {incarnation} has {count} effects"
                status = self.answered.get((incarnation, offset))
                if status is not None:
                    assert count == int(status == 201), (
                        f"offset {offset} was answered {status}, and has {count} effects"
                    )


# A planted bug shall be found; nobody reads its shortest history, which takes a minute.
SHRINKS = "HISTORIES_AS_FOUND" not in os.environ
TestHistories = Histories.TestCase
TestHistories.settings = settings(
    phases=[phase for phase in Phase if SHRINKS or phase not in (Phase.shrink, Phase.explain)],
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
