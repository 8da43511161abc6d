"""`TestDriver`: an app in a test, without a broker, a clock or a thread.

It runs the same compiled code as a worker does, each topic having one partition. `put` is a record that arrives, `take`
what the app has written since the last `take`. A transaction lasts from one commit to the next; `take`, `state` and
`advance` commit first, so they see what a reader of committed records sees. A `put` that fails undoes all since the
last commit, as an aborted transaction does.

Invariant: for a topology that is a function of its input, what the driver shows is what a real run commits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

import msgspec

from semel.errors import UsageError
from semel.ports import Headers, Position, Records, Sink, TopicPartition, Write
from semel.streams import graph as g
from semel.streams.serde import Serde
from semel.streams.state import MemoryStore
from semel.streams.task import ERRORS, Task, compile_graph
from semel.streams.topic import Topic, milliseconds

if TYPE_CHECKING:
    from semel.streams.compile import Program

K = TypeVar("K")
V = TypeVar("V")


class Written(NamedTuple):
    """One record of a topic, as bytes."""

    key: bytes | None
    value: bytes | None
    time_ms: int
    headers: Headers | None


class DeadLetter(NamedTuple):
    """A record that could not be decoded."""

    topic: str
    offset: int
    key: bytes | None
    value: bytes | None
    reason: str


class TestDriver:
    """Drives an `App` (or anything with a `graph()`)."""

    __test__ = False  # for pytest: not a test

    def __init__(self, app: Any, *, now_ms: int = 0, trace: bool = False) -> None:
        self._graph: g.Graph = app.graph()
        self._programs = compile_graph(self._graph, trace=trace)
        self.now_ms = now_ms
        self._stores: dict[str, MemoryStore] = {fold.name: MemoryStore() for fold in self._graph.folds()}
        self._home = {topic: sub.name for sub in self._graph.subtopologies for topic in sub.sources}
        self._positions: dict[str, Position] = {topic: Position(0) for topic in self._home}
        self._ends: dict[str, int] = {}
        self._committed: dict[str, list[Written]] = {}  # not yet taken
        self._written: dict[str, list[Written]] = {}  # in the open transaction
        self._queue: deque[tuple[str, Written]] = deque()
        self._tasks = self._fresh()

    def put(self, topic: Topic[K, V], key: K | None, value: V | None, *, time: datetime | int | None = None) -> None:
        """One record arrives, at `time` (the driver's clock by default)."""
        if topic.name not in self._home or topic.name not in self._graph.topics:
            raise UsageError(f"TestDriver: the app does not read {topic.name}. It reads {', '.join(self._reads())}.")
        key_data = None if key is None else _encoded(topic, "key", topic.key_serde, key)
        value_data = None if value is None else _encoded(topic, "value", topic.value_serde, value)
        at = self.now_ms if time is None else milliseconds(time)
        self.put_bytes(topic.name, key_data, value_data, time_ms=at)

    def put_bytes(self, topic: str, key: bytes | None, value: bytes | None, *, time_ms: int | None = None) -> None:
        """The same with bytes as they lie in the topic: for records that cannot be decoded."""
        at = self.now_ms if time_ms is None else time_ms
        self._queue.append((topic, Written(key, value, at, None)))
        self._run()

    @overload
    def take(self, of: Topic[K, V]) -> list[tuple[K, V]]: ...
    @overload
    def take(self, of: Sink[Any, Any]) -> list[tuple[bytes | None, Any]]: ...
    def take(self, of: Any) -> list[tuple[Any, Any]]:
        """What was committed since the last `take`: (key, value) of a topic, (key bytes, row) of a sink's outbox, where
        a row is what its JSON says. None is a deletion. UsageError for what the app does not write."""
        self.commit()
        written = {write.target: write.sink is None for write in self._graph.writes()}
        if written.get(of.name) is not isinstance(of, Topic):
            names = ", ".join(sorted(written)) or "nothing (what a state holds: .state(NAME))"
            raise UsageError(f"TestDriver: the app does not write to {of.name}. It writes to {names}.")
        if isinstance(of, Topic):
            key, value = of.key_serde.decode, of.value_serde.decode
            return [
                (None if r.key is None else key(r.key), None if r.value is None else value(r.value))
                for r in self.take_bytes(of.name)
            ]
        outbox = g.internal_name(self._graph.app, of.name, g.InternalKind.OUTBOX)
        return [(r.key, None if r.value is None else msgspec.json.decode(r.value)) for r in self.take_bytes(outbox)]

    def take_bytes(self, topic: str) -> list[Written]:
        """The same for any topic by its full name, internal ones included, as bytes with time and headers."""
        self.commit()
        return self._committed.pop(topic, [])

    def dead_letters(self) -> list[DeadLetter]:
        """What could not be decoded since the last call, with the reason."""
        found = []
        for record in self.take_bytes(g.internal_name(self._graph.app, "", g.InternalKind.DEAD_LETTER)):
            told = {name: (value or b"").decode() for name, value in record.headers or ()}
            where, offset = told[ERRORS + "topic"], int(told[ERRORS + "offset"])
            found.append(DeadLetter(where, offset, record.key, record.value, told[ERRORS + "message"]))
        return found

    def advance(self, ms: int = 0) -> None:
        """The clock goes on; the commit interval ends."""
        assert ms >= 0, f"time does not go back ({ms})"
        self.now_ms += ms
        self.commit()

    def state(self, name: str) -> dict[Any, Any]:
        """The committed state of a fold, by key."""
        fold = next((fold for fold in self._graph.folds() if fold.name == name), None)
        if fold is None:
            names = ", ".join(fold.name for fold in self._graph.folds()) or "none"
            raise UsageError(f"TestDriver: the app has no state {name!r}. It has: {names}.")
        self.commit()
        decode = fold.key.decode
        return {decode(key): fold.state.decode(data) for key, data in self._stores[name].items()}

    def commit(self) -> None:
        """Ends the transaction: coalesced changes flow, repartition topics are read to their end, states are kept."""
        changed = True
        while changed:
            before = sum(map(len, self._written.values()))
            for task in self._tasks.values():
                self._guarded(task.flush)
            self._run()
            changed = sum(map(len, self._written.values())) > before
        for topic, records in self._written.items():
            self._committed.setdefault(topic, []).extend(records)
        self._written.clear()
        for task in self._tasks.values():
            self._positions.update({at.topic: position for at, position in task.positions().items()})
            for state in task.states.values():
                state.committed(0, self._ends.get(f"{self._graph.app}-{state.name}-changelog", 0), self.now_ms)

    # --- inside ---

    def _reads(self) -> list[str]:
        return [topic for topic in self._home if topic in self._graph.topics]

    def _fresh(self) -> dict[str, Task]:
        return {
            name: Task(self._graph, program, 0, self._of(program), self._writer, lambda state, _: self._stores[state])
            for name, program in self._programs.items()
        }

    def _of(self, program: Program) -> dict[str, Position]:
        return {topic: self._positions[topic] for topic in program.sub.sources}

    def _writer(self, topic: str) -> Write:
        reads_it = topic in self._home

        def write(partition: int, key: bytes | None, value: bytes | None, ms: int, headers: Headers | None) -> None:
            record = Written(key, value, ms, headers)
            self._written.setdefault(topic, []).append(record)
            self._ends[topic] = self._ends.get(topic, 0) + (not reads_it)
            if reads_it:
                self._queue.append((topic, record))

        return write

    def _run(self) -> None:
        while self._queue:
            topic, record = self._queue.popleft()
            offset = self._ends.get(topic, 0)
            self._ends[topic] = offset + 1
            headers = None if record.headers is None else [record.headers]
            at = TopicPartition(topic, 0)
            columns = Records(
                at, [offset], [record.time_ms], [record.key], [record.value], headers, offset + 1, leader_epoch=-1
            )
            self._guarded(partial(self._tasks[self._home[topic]].process, columns))

    def _guarded(self, do: Callable[[], None]) -> None:
        try:
            do()
        except BaseException:
            self._queue.clear()
            self._written.clear()
            self._positions = {t: Position(self._ends.get(t, 0), p.metadata) for t, p in self._positions.items()}
            self._tasks = self._fresh()
            raise


def _encoded(topic: Topic[Any, Any], what: str, serde: Serde, of: Any) -> bytes:
    """As a producer with the topic's types writes it. What they do not give back was put wrongly by the test."""
    try:
        data = serde.encode(of)
        serde.decode(data)
    except Exception as why:
        raise UsageError(
            f"TestDriver: put to {topic.name}: {what} {of!r:.200} is no {serde.name} ({type(why).__name__}: {why}). "
            "A record that cannot be decoded is put as it lies in the topic: put_bytes(TOPIC_NAME, key, value)."
        ) from None
    return data
