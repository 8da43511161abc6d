"""A task: one sub-topology for one partition number. It owns the state of that partition and decides nothing else.

Its life: made with the committed positions, `restore`d, then per transaction any number of `process`, one `flush`, and
`committed` once the log said so. There is no way back: a task whose transaction was aborted, is unknown or failed, or
whose partitions are gone, is dropped and made anew from what is committed.

Topics here have no prefix; the worker adds it.

Invariant: state, positions and partition time move together: after `process` they are those of the input taken so far.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import msgspec

from semel.errors import SemelError
from semel.ports import Headers, Position, Records, Stores, TopicPartition, Write
from semel.streams import graph as g
from semel.streams.compile import NoKey, Program, WrongType, compile_subtopology
from semel.streams.layout import command
from semel.streams.place import describe
from semel.streams.state import State
from semel.streams.trace import Taken, encode_taken

# Kafka Streams' names (KIP-1034), so that its tools read our dead letters.
ERRORS = "__streams.errors."
REASON_LENGTH_MAX = 1_000


class ProcessingError(SemelError):
    """A record at which the app stopped. Nothing of its transaction is committed: all of it is read again next time."""

    def __init__(self, message: str, at: TopicPartition, offset: int) -> None:
        super().__init__(message)
        self.at = at
        self.offset = offset


class TaskId(NamedTuple):
    """Stable over restarts and changes elsewhere in the program."""

    subtopology: str
    partition: int

    def __str__(self) -> str:
        return f"{self.subtopology}|{self.partition}"


class Travelling(msgspec.Struct, frozen=True):
    """What travels with a committed offset, as its metadata."""

    time: int = -1  # partition time: the largest record time seen in this partition (FAULTS P13)
    topic: str = ""  # the id of the topic that the offset counts in: one of that name made anew has another


_encode_metadata = msgspec.json.Encoder().encode
_decode_metadata = msgspec.json.Decoder(Travelling).decode


def read_metadata(text: str) -> Travelling:
    """Empty or foreign metadata (offsets set by another tool) carries nothing."""
    try:
        return _decode_metadata(text.encode())
    except msgspec.MsgspecError:
        return Travelling()


def compile_graph(graph: g.Graph, *, trace: bool = False) -> Mapping[str, Program]:
    """One program per sub-topology, by its name."""
    return {sub.name: compile_subtopology(graph, sub, trace=trace) for sub in graph.subtopologies}


class Task:
    """One sub-topology for one partition number."""

    def __init__(
        self,
        graph: g.Graph,
        program: Program,
        partition: int,
        positions: Mapping[str, Position],  # by source topic: those of its partitions that this task reads
        writers: Callable[[str], Write],
        stores: Stores,
        log_name: str = "URL",
        topic_ids: Mapping[str, str] | None = None,
    ) -> None:
        self.id = TaskId(program.sub.name, partition)
        self.touched = False  # whether anything was taken, written or must be sent since the last commit
        self.told = False  # whether a commit has said which histories its changelogs have now
        self._app = graph.app
        self._log_name = log_name
        self._topic_ids = topic_ids or {}
        self._reset = command("reset", graph, log_name)
        self._program = program
        self._topics = graph.topics
        self._partition = partition
        self._offsets = {topic: position.offset for topic, position in positions.items()}
        self._times = {topic: read_metadata(position.metadata).time for topic, position in positions.items()}
        self.states = {fold.name: State(fold, stores(fold.name, partition)) for fold in program.folds}
        self._changelogs = [(self.states[fold.name], writers(fold.topic)) for fold in program.folds]
        dlq = g.internal_name(graph.app, "", g.InternalKind.DEAD_LETTER)
        wants_dlq = any(t in graph.topics and graph.topics[t].on_error == "dead-letter" for t in program.sub.sources)
        self._dead_letters = writers(dlq) if wants_dlq else None
        order = g.internal_name(graph.app, "", g.InternalKind.ORDER)
        self._order = writers(order) if program.trace else None
        self._functions, self._emit_changes = program.make(partition, writers, self.states, self._dead, self._fail)

    @property
    def sources(self) -> tuple[TopicPartition, ...]:
        return tuple(TopicPartition(topic, self._partition) for topic in self._offsets)

    @property
    def stream_time(self) -> int:
        """The largest record time seen in any of its partitions; -1 before the first record."""
        return max(self._times.values(), default=-1)

    def process(self, records: Records) -> None:
        """Takes records of one of its partitions: outputs are written, state and position move."""
        topic = records.source.topic
        assert records.source.partition == self._partition and topic in self._offsets, (self.id, records.source)
        self.touched = True
        if records.offsets:
            assert records.offsets[0] >= self._offsets[topic], (
                f"{records.source}: offset {records.offsets[0]} again, this task is at {self._offsets[topic]}"
            )
            if self._order is not None:
                offsets = records.offsets
                taken = Taken(str(self.id), topic, self._partition, offsets[0], offsets[-1], len(offsets))
                self._order(-1, *encode_taken(taken), records.timestamps[-1], None)
            latest = self._functions[topic](records.offsets, records.timestamps, records.keys, records.values)
            if latest > self._times[topic]:
                self._times[topic] = latest
        assert records.next_offset >= self._offsets[topic], (self.id, records.next_offset, self._offsets[topic])
        self._offsets[topic] = records.next_offset

    def flush(self) -> None:
        """Writes what waits for the end of the transaction: coalesced changes, then one changelog record per dirty
        key."""
        self._emit_changes()
        for state, write in self._changelogs:
            state.flush(write, self._partition, trace=self._program.trace)

    def positions(self) -> dict[TopicPartition, Position]:
        """For the transaction that contains everything processed so far: all of its partitions, moved or not. They are
        the fence of what this task wrote (FAULTS P11)."""
        return {
            TopicPartition(topic, self._partition): Position(
                offset, _encode_metadata(Travelling(self._times[topic], self._topic_ids.get(topic, ""))).decode()
            )
            for topic, offset in self._offsets.items()
        }

    def close(self) -> None:
        for state in self.states.values():
            state.close()

    # --- what goes wrong, called by the compiled code ---

    def _dead(
        self, topic: str, offset: int, time_ms: int, key: bytes | None, value: bytes | None, why: Exception
    ) -> None:
        """A record that cannot be decoded: a dead letter in this transaction, or the end."""
        if value is None and not isinstance(why, NoKey):
            reason = "it has no value (a deletion), and a stream of values cannot carry one"
        else:
            reason = _reason(why)
        declared = self._topics.get(topic)
        if declared is not None and declared.on_error == "dead-letter":
            assert self._dead_letters is not None
            headers: Headers = [
                (ERRORS + "exception", type(why).__name__.encode()),
                (ERRORS + "message", reason[:REASON_LENGTH_MAX].encode()),
                (ERRORS + "stacktrace", "".join(traceback.format_exception_only(why)).strip().encode()),
                (ERRORS + "topic", topic.encode()),
                (ERRORS + "partition", str(self._partition).encode()),
                (ERRORS + "offset", str(offset).encode()),
            ]
            self._dead_letters(-1, key, value, time_ms, headers)
            return
        where = f"{topic} partition {self._partition} offset {offset}"
        if declared is None:
            what = "an internal topic holds what this program cannot read: were the types changed?"
            after = f"Go back to the types it was written with, or start anew: {self._reset}."
        else:
            what = f"Topic({topic!r}) at {declared.place} has {_types(declared)}"
            after = (
                f"Mend the Topic's types, or let such records go to {self._app}.dlq: on_error='dead-letter'. "
                f"{self._seen_by(topic, offset)}"
            )
        raise ProcessingError(
            f"{where} cannot be decoded: {reason}. {what}. {after}", TopicPartition(topic, self._partition), offset
        ) from why

    def _seen_by(self, topic: str, offset: int) -> str:
        where = f"--partition {self._partition} --from {offset}"
        return f"See the record: `semel read {topic} {where} --max 1 --on {self._log_name}`."

    def _fail(self, why: Exception, topic: str, at: Any) -> NoReturn:
        """The topology failed at a record: names the node, the user's line and the record."""
        if isinstance(why, ProcessingError):
            raise why
        node, inner = self._where(why)
        if node is None:
            raise why
        offset = at if isinstance(at, int) else -1
        record, see = f"{topic}, key {at!r}", ""
        if offset >= 0:
            record, see = f"{topic} partition {self._partition} offset {at}", f" {self._seen_by(topic, offset)}"
        line = f" (raised at {inner})" if inner else ""
        raise ProcessingError(
            f"{g.label(node)} failed at {record}: {_reason(why)}{line}. Nothing of this transaction is committed: "
            f"mend the program and start it again, it takes this transaction's records again from the first.{see}",
            TopicPartition(topic, self._partition),
            offset,
        ) from why

    def _where(self, why: Exception) -> tuple[g.Node | None, str]:
        """The node whose code was running, and the innermost line below it, where that is the user's."""
        node: g.Node | None = None
        inner = ""
        for frame, line in traceback.walk_tb(why.__traceback__):
            file = frame.f_code.co_filename
            if file == self._program.file:
                node, inner = self._program.nodes.get(line, node), ""
            else:
                inner = f"{file}:{line}"
        return node, "" if isinstance(why, WrongType | SemelError) else inner


def _reason(why: Exception) -> str:
    text = str(why).strip().rstrip(".")
    if isinstance(why, NoKey | WrongType | SemelError | msgspec.MsgspecError):
        return text
    return f"{type(why).__name__}: {text}" if text else type(why).__name__


def _types(topic: g.AnyTopic) -> str:
    time = f" and time={describe(topic.time)}" if topic.time is not None else ""
    return f"keys of type {topic.key_serde.name} and values of type {topic.value_serde.name}{time}"


__all__ = ["ProcessingError", "Task", "TaskId", "compile_graph", "read_metadata"]
