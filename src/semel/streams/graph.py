"""The topology as plain, frozen data: what `check` walks, `verify` recomputes and the compiler compiles.

`Builder` (builder.py) makes a Graph; nothing changes it afterwards. How to walk it:

- `graph.nodes[i].id == i`; a node's `upstream` are ids smaller than its own. `graph.children(i)` are those below it.
- Sources of records: `Read` (a user's topic) and `Repartition` (an internal topic: an output of the sub-topology above
  it and the source of the one below it). Ends: `Write` to a Topic (inside the transaction) or to a Sink (into its
  outbox).
- `graph.subtopologies`: the parts between repartition topics. A task is one of them for one partition number. Its name
  is made of its source topics, so it survives changes elsewhere in the program.
- `graph.internal`: the internal topics with the configuration that they must have, by full name.
- `graph.topics`: the user's topics by name; `graph.sinks`: the sinks by name.

Names of topics here carry no prefix (verify's runs add one when they talk to the log).

Invariant: no durable name depends on a position in the graph. Node ids do: they never leave the process, except in
`semel-origin` headers within one run of verify.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from semel.contract import Accept
from semel.ports import Sink
from semel.streams.place import Place, describe
from semel.streams.serde import Serde
from semel.streams.topic import Topic

AnyTopic = Topic[Any, Any]
AnySink = Sink[Any, Any]


@dataclass(frozen=True, slots=True)
class Read:
    """Records of a user's topic. One per topic, however often the program reads it."""

    id: int
    place: Place
    topic: AnyTopic
    upstream: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Map:
    """One value for one value. `with_key`: the function is called with (key, value), else with (value)."""

    id: int
    place: Place
    upstream: tuple[int, ...]
    function: Callable[..., Any]
    with_key: bool


@dataclass(frozen=True, slots=True)
class FlatMap:
    """Any number of values for one value."""

    id: int
    place: Place
    upstream: tuple[int, ...]
    function: Callable[..., Any]
    with_key: bool


@dataclass(frozen=True, slots=True)
class Filter:
    """Only the records for which function(value) is true."""

    id: int
    place: Place
    upstream: tuple[int, ...]
    function: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Branch:
    """Each record goes to the first Arm whose predicate(value) is true, else to the last, which has none."""

    id: int
    place: Place
    upstream: tuple[int, ...]
    predicates: tuple[Callable[[Any], bool], ...]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way out of a Branch; `index` counts its predicates, the last arm is the rest."""

    id: int
    place: Place
    upstream: tuple[int, ...]
    index: int


@dataclass(frozen=True, slots=True)
class KeyBy:
    """A new key, from function(value). Below it a stateful operator reads through a Repartition."""

    id: int
    place: Place
    upstream: tuple[int, ...]
    function: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Merge:
    """The records of all its upstreams, in the order in which the task takes them."""

    id: int
    place: Place
    upstream: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Repartition:
    """Through an internal topic (`topic`, full name), so that all records of one key are in one partition."""

    id: int
    place: Place
    upstream: tuple[int, ...]
    name: str
    topic: str
    key: Serde
    value: Serde


class FoldKind(StrEnum):
    FOLD = "fold"
    COUNT = "count"
    REDUCE = "reduce"
    DISTINCT = "distinct"


@dataclass(frozen=True, slots=True)
class Fold:
    """State per key: state = function(state or zero(), value), kept under `name`, its changelog in `topic`.

    count: function ignores the value; reduce: the first value of a key is its first state (`zero` is None).
    A state of None is a deletion: the next record of the key starts from zero again.
    distinct: the state is the time, in ms, of the record of its key that has passed; below it, without Changes between,
    are the records that pass: the first of a key, or (`window_ms`) the first that is so much later than it.
    """

    id: int
    place: Place
    upstream: tuple[int, ...]
    kind: FoldKind
    name: str
    topic: str
    function: Callable[[Any, Any], Any] | None
    zero: Callable[[], Any] | None
    key: Serde
    state: Serde
    window_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """The updates of a Fold as a stream: each of them, or (coalesce) the last one per key and commit."""

    id: int
    place: Place
    upstream: tuple[int, ...]
    coalesce: bool


@dataclass(frozen=True, slots=True)
class Write:
    """An end. `topic` is set for a user's topic, `sink` and `outbox` (full topic name) for an outside system.

    `key`, `value`: the types of what arrives here; for a sink None where it cannot be told from the program.
    """

    id: int
    place: Place
    upstream: tuple[int, ...]
    topic: AnyTopic | None
    sink: AnySink | None
    outbox: str
    accept: Accept | None
    key: Any | None
    value: Any | None
    on_error: str = "stop"  # what becomes of a record that the sink will never take: topic.OnError

    @property
    def target(self) -> str:
        """The name of the user's topic or of the sink."""
        return self.topic.name if self.topic is not None else self.sink.name if self.sink is not None else ""


Node = Read | Map | FlatMap | Filter | Branch | Arm | KeyBy | Merge | Repartition | Fold | Changes | Write


class InternalKind(StrEnum):
    CHANGELOG = "changelog"
    REPARTITION = "repartition"
    OUTBOX = "outbox"
    DEAD_LETTER = "dlq"
    ORDER = "order"


# What an internal topic must be set to. No retention limit where records wait for a reader of the app's own: a record
# deleted before it was read is lost, silently.
CONFIGS: Mapping[InternalKind, Mapping[str, str]] = {
    InternalKind.CHANGELOG: {"cleanup.policy": "compact"},
    InternalKind.REPARTITION: {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
    InternalKind.OUTBOX: {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
    InternalKind.DEAD_LETTER: {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
    InternalKind.ORDER: {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
}


def internal_name(app: str, name: str, kind: InternalKind) -> str:
    """`APP-NAME-changelog`, …; `APP.dlq` and `APP-order`, of which an app has one."""
    match kind:
        case InternalKind.DEAD_LETTER:
            return f"{app}.dlq"
        case InternalKind.ORDER:
            return f"{app}-order"
    return f"{app}-{name}-{kind}"


@dataclass(frozen=True, slots=True)
class InternalTopic:
    """`sized_by`: the source topics whose largest partition count it has when it is created; an existing one is
    kept as it is. A changelog's count must equal its task count for ever: keys do not move between partitions."""

    name: str
    kind: InternalKind
    place: Place
    sized_by: tuple[str, ...]
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Subtopology:
    """What lies between repartition topics. `nodes` in topological order, without the Repartition that it reads;
    the ones that it writes are in. `copartitioned`: source topics that meet in one state; their counts are equal."""

    name: str
    sources: tuple[str, ...]
    nodes: tuple[int, ...]
    states: tuple[str, ...]
    copartitioned: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """One app's topology."""

    app: str
    nodes: tuple[Node, ...]
    subtopologies: tuple[Subtopology, ...]
    topics: Mapping[str, AnyTopic]
    sinks: Mapping[str, AnySink]
    internal: Mapping[str, InternalTopic]

    def children(self, id: int) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if id in node.upstream)

    def upstreams(self, node: Node) -> tuple[Node, ...]:
        return tuple(self.nodes[i] for i in node.upstream)

    def writes(self) -> Iterator[Write]:
        return (node for node in self.nodes if isinstance(node, Write))

    def folds(self) -> Iterator[Fold]:
        return (node for node in self.nodes if isinstance(node, Fold))

    def source_nodes(self) -> Mapping[str, Read | Repartition]:
        """By topic: where its records enter a sub-topology."""
        found: dict[str, Read | Repartition] = {}
        for node in self.nodes:
            if isinstance(node, Read):
                found[node.topic.name] = node
            elif isinstance(node, Repartition):
                found[node.topic] = node
        return found

    def ancestors(self, id: int) -> Iterator[Node]:
        """Every node above, each once, nearest first; through repartition topics too."""
        seen: set[int] = set()
        queue = list(self.nodes[id].upstream)
        while queue:
            at = queue.pop(0)
            if at not in seen:
                seen.add(at)
                yield self.nodes[at]
                queue.extend(self.nodes[at].upstream)


def label(node: Node) -> str:
    """What a person calls the node in a message: kind, name or function, place."""
    match node:
        case Read():
            what = f"read {node.topic.name}"
        case Map():
            what = f"{'map' if node.with_key else 'map_values'} {describe(node.function)}"
        case FlatMap():
            what = f"flat_map {describe(node.function)}"
        case Filter():
            what = f"filter {describe(node.function)}"
        case KeyBy():
            what = f"key_by {describe(node.function)}"
        case Repartition():
            what = f"repartition {node.name}"
        case Fold():
            what = f"{node.kind} {node.name}"
        case Write():
            what = f"write {node.target}"
        case Branch() | Arm() | Merge() | Changes():
            what = type(node).__name__.lower()
    return f"{what} ({node.place})"
