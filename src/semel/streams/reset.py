"""Starting an app anew, beginning a state in an app that goes on, and giving up what a removed operator, state or sink
left behind: decided here, asked for by a person.

Invariant: a reset that does not come to its end stops every later start. Its first act is to move the group to a
position that no log holds, its last to set the real one; between them the states are made anew, and no worker can go
on with old state at new positions, or the reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from semel.errors import SemelError, UsageError
from semel.ports import Done, Fenced, Log, NewTopic, Position, TopicInfo, TopicPartition
from semel.streams import graph as g
from semel.streams.layout import UNFINISHED, Delivered, Layout, lay_out, leftovers

COUNT_MAX = 100_000  # records are counted for a person up to here


class ResetFailed(SemelError):
    """The log did not do as asked; the app does not start until a reset has come to its end."""


class To(StrEnum):
    """Where the app goes on reading."""

    EARLIEST = "earliest"
    LATEST = "latest"


@dataclass(frozen=True, slots=True)
class Waiting:
    """An internal topic and the records in it that nobody has read or delivered yet, counted up to COUNT_MAX."""

    name: str  # without prefix
    kind: g.InternalKind
    records: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a reset is going to do. Names without prefix, positions as the log names them."""

    now: Mapping[TopicPartition, Position | None]
    then: Mapping[TopicPartition, int]
    emptied: Sequence[Waiting]  # made anew; what waits in them is given up
    kept: Sequence[Waiting]


def plan(graph: g.Graph, log: Log, to: To, *, prefix: str, delivered: Delivered) -> Plan:
    """States and what lies between operators are emptied. An outbox is emptied only if what waits in it is going to be
    computed again (`earliest`); else it is kept, and so is the sink's position in it. Changes nothing; raises what the
    app's next start would raise, because a reset that cannot finish must not begin."""
    there = log.topics()
    asked = []
    for name in (node.topic.name for node in graph.nodes if isinstance(node, g.Read)):
        if prefix + name not in there:
            raise UsageError(
                f"{log.name}: there is no topic {prefix}{name}, which the app reads: nothing to reset. `semel topics "
                f"--on {log.name}` lists what is there; `semel write {prefix}{name} FILE --on {log.name}` makes it."
            )
        asked += _partitions(prefix + name, there[prefix + name].partitions)
    emptied: list[Waiting] = []
    kept: list[Waiting] = []
    for topic in graph.internal.values():
        if prefix + topic.name not in there:
            continue
        partitions = _partitions(prefix + topic.name, there[prefix + topic.name].partitions)
        positions: Mapping[TopicPartition, Position | None] = {}
        if topic.kind is g.InternalKind.REPARTITION:
            positions = log.committed(partitions)
        elif topic.kind is g.InternalKind.OUTBOX:
            positions = delivered(_between(graph.app, topic.name, topic.kind), partitions)
        elif topic.kind is not g.InternalKind.CHANGELOG:
            continue  # dead letters are for people
        unread = 0 if topic.kind is g.InternalKind.CHANGELOG else _count(log, positions, partitions)
        again = topic.kind is not g.InternalKind.OUTBOX or (to is To.EARLIEST and unread > 0)
        (emptied if again else kept).append(Waiting(topic.name, topic.kind, unread))
    without = _Without(log, {prefix + waiting.name for waiting in emptied})
    lay_out(graph, without, prefix=prefix, may_begin=_states(graph).values())  # type: ignore[arg-type]
    then = log.starts(asked) if to is To.EARLIEST else log.ends(asked)
    return Plan(log.committed(asked), then, emptied, kept)


def perform(graph: g.Graph, log: Log, plan: Plan, *, prefix: str, delete: Callable[[Sequence[str]], None]) -> Layout:
    """Does it. `delete` returns when the topics are gone. Run again after any failure it does the rest."""
    _set(log, dict.fromkeys(plan.then, UNFINISHED))
    delete([prefix + waiting.name for waiting in plan.emptied])
    layout = lay_out(graph, log, prefix=prefix, may_begin=_states(graph).values())
    positions = {at: Position(offset) for at, offset in plan.then.items()}
    for name, topic in graph.internal.items():
        if topic.kind is g.InternalKind.REPARTITION:
            positions |= dict.fromkeys(layout.all(name), Position(0))
    _set(log, positions)
    return layout


def beginning(
    graph: g.Graph, log: Log, state: str, *, prefix: str
) -> tuple[NewTopic, Mapping[TopicPartition, Position]]:
    """The changelog that lets one state of the program begin empty, and the positions that its input is at: what lies
    before them will not be in it. Changes nothing; raises UsageError when there is nothing to begin."""
    states = _states(graph)
    if state not in states:
        raise UsageError(
            f"app {graph.app} has no state {state!r}. " + (f"It has {', '.join(states)}." if states else "It has none.")
        )
    name = states[state]
    there = log.topics()
    if prefix + name in there:
        raise UsageError(
            f"{log.name}: the state {state!r} has its topic {prefix}{name}: there is nothing to begin. To start the "
            "app anew, with every state empty: `semel app reset`."
        )
    without = _Without(log, ())
    lay_out(graph, without, prefix=prefix, may_begin=states.values())  # type: ignore[arg-type]
    node = next(fold.id for fold in graph.folds() if fold.name == state)
    inputs = sorted({above.topic.name for above in graph.ancestors(node) if isinstance(above, g.Read)})
    asked = [at for topic in inputs if prefix + topic in there for at in _all(there[prefix + topic])]
    found = log.committed(asked)
    if UNFINISHED in found.values():
        raise UsageError(
            f"{log.name}: a reset of app {graph.app} has not finished. Run it again: every state begins then."
        )
    made = next(new for new in without.created if new.name == prefix + name)
    return made, {at: position for at, position in found.items() if position is not None}


def left_by_others(graph: g.Graph, log: Log, *, prefix: str, delivered: Delivered) -> list[str]:
    """What removed or renamed operators, states and sinks have left and the next start will stop for, each with the
    command that gives it up."""
    names = [*graph.topics, *graph.internal]
    return leftovers(graph, log, Layout(prefix, dict.fromkeys(names, 1), {}), delivered)


def _states(graph: g.Graph) -> Mapping[str, str]:
    """Name -> changelog."""
    return {fold.name: fold.topic for fold in graph.folds()}


def _all(topic: TopicInfo) -> list[TopicPartition]:
    return _partitions(topic.name, topic.partitions)


class _Without:
    """As much of a log as `lay_out` asks of, as if some topics were not there; making topics is only noted."""

    def __init__(self, log: Log, hidden: Collection[str]) -> None:
        self.created: list[NewTopic] = []
        self.name = log.name
        self.config = log.config
        self._topics = {name: info for name, info in log.topics().items() if name not in hidden}

    def topics(self) -> Mapping[str, TopicInfo]:
        return self._topics

    def create(self, topics: Sequence[NewTopic]) -> None:
        self.created += topics
        self._topics |= {new.name: TopicInfo(new.name, "", new.partitions) for new in topics}


def _set(log: Log, positions: Mapping[TopicPartition, Position]) -> None:
    outcome = log.commit_offsets(positions)
    if isinstance(outcome, Fenced):
        raise ResetFailed(
            f"{log.name}: the group has members again ({outcome.reason}). End the app's workers, then run the reset "
            "again: until one has finished, the app does not start."
        )
    if not isinstance(outcome, Done):
        raise ResetFailed(f"{log.name}: the positions were not set: {outcome.reason}. Run the reset again.")
    # A transaction that was already decided may still have set its own.
    found = log.committed(list(positions))
    if wrong := [at for at, position in positions.items() if found.get(at) != position]:
        raise ResetFailed(
            f"{log.name}: somebody else has set the position in {wrong[0].topic} partition {wrong[0].partition} "
            "meanwhile. End the app's workers, then run the reset again."
        )


def leftover(graph: g.Graph, log: Log, name: str, *, prefix: str, delivered: Delivered) -> Waiting:
    """What `layout.leftovers` stops the start for: a topic of this app that no node of the program owns any more.
    Raises UsageError for every other one."""
    there = log.topics()
    opening = f"{graph.app}-"
    if prefix + name not in there:
        raise UsageError(f"{log.name}: there is no topic {prefix}{name}. `semel topics --on {log.name}` lists them.")
    if name in graph.topics:
        raise UsageError(
            f"topic {name} is the user's own ({graph.topics[name].place}), not one that {graph.app} made for itself: "
            "its records are never given up here. `semel app reset` reads it from its start or its end again."
        )
    if name in graph.internal:
        raise UsageError(
            f"topic {name} belongs to the program as it is: running the app empties it. `semel app reset` starts anew."
        )
    partitions = _partitions(prefix + name, there[prefix + name].partitions)
    positions: Mapping[TopicPartition, Position | None] = {}
    for kind in (g.InternalKind.REPARTITION, g.InternalKind.CHANGELOG, g.InternalKind.OUTBOX):
        if name.startswith(opening) and name.endswith(f"-{kind}"):
            if kind is g.InternalKind.OUTBOX:
                positions = delivered(_between(graph.app, name, kind), partitions)
            else:
                positions = log.committed(partitions)
            break
    # The name alone does not tell: `a-b-x-outbox` may belong to app `a` or `a-b`.
    if not any(position is not None for position in positions.values()):
        raise UsageError(
            f"{log.name}: nothing says that topic {prefix}{name} is an outbox, a changelog or a repartition topic of "
            f"app {graph.app}: no group of the app has a position in it. Left alone."
        )
    return Waiting(name, kind, _count(log, positions, partitions))


def _partitions(topic: str, count: int) -> list[TopicPartition]:
    return [TopicPartition(topic, p) for p in range(count)]


def _between(app: str, name: str, kind: g.InternalKind) -> str:
    return name[len(app) + 1 : -len(kind) - 1]


def _count(log: Log, positions: Mapping[TopicPartition, Position | None], partitions: Sequence[TopicPartition]) -> int:
    """Committed records that were not read, up to COUNT_MAX; what lies behind an open transaction is not counted."""
    starts, ends = log.starts(partitions), log.ends(partitions)
    count = 0
    for at in partitions:
        position = max(starts[at], known.offset if (known := positions.get(at)) is not None else 0)
        for records in log.read(at, position, ends[at]):
            count += len(records.offsets)
            if records.undecided or count > COUNT_MAX:
                break
    return count
