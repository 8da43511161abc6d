"""From a list of nodes to a Graph: sub-topologies, internal topics, and the mistakes that only the whole shows.

Invariant: each source topic belongs to exactly one sub-topology, because one group reads each partition once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from semel.streams import graph as g
from semel.streams.place import GraphError, Place
from semel.streams.topic import NAME_LENGTH_MAX


def finish(
    app: str,
    nodes: tuple[g.Node, ...],
    topics: Mapping[str, g.AnyTopic],
    sinks: Mapping[str, g.AnySink],
) -> g.Graph:
    """The Graph of these nodes, or a GraphError naming the line."""
    if not any(isinstance(node, g.Read) for node in nodes):
        raise GraphError(Place(app, 0), "the topology reads no topic: b.read(TOPIC) is missing.")
    _refuse_dead_ends(nodes)
    subtopologies = _subtopologies(nodes)
    _refuse_loops(nodes, subtopologies)
    internal = _internal(app, nodes, subtopologies)
    for name, topic in internal.items():
        if len(name) > NAME_LENGTH_MAX:
            raise GraphError(topic.place, f"internal topic {name[:40]}… has {len(name)} characters; at most 249.")
        if name in topics:
            raise GraphError(topic.place, f"{name} is the app's own {topic.kind} topic and also a Topic of yours.")
    return g.Graph(app, nodes, subtopologies, dict(topics), dict(sinks), internal)


def _refuse_dead_ends(nodes: Sequence[g.Node]) -> None:
    """A stream that nothing takes is a forgotten `.write`. A state may be an end: it is kept, under its name, and its
    changelog is committed like any output. So may one way out of a branch, where another leads on."""
    taken = {up for node in nodes for up in node.upstream}
    ways = {node.upstream[0] for node in nodes if isinstance(node, g.Arm) and node.id in taken}
    for node in nodes:
        if node.id in taken and not isinstance(node, g.Branch):
            continue
        if isinstance(node, g.Fold) and node.kind is not g.FoldKind.DISTINCT:
            continue
        if isinstance(node, g.Write) or (isinstance(node, g.Arm) and node.upstream[0] in ways):
            continue
        if isinstance(node, g.Branch) and node.id in ways:
            continue
        after = ".count(name=…), .fold(…) or .write(…)" if isinstance(node, g.Read | g.KeyBy) else ".write(…)"
        raise GraphError(node.place, f"what {g.label(node)} gives goes nowhere: {after} is missing behind it.")


def source_topic(node: g.Node) -> str | None:
    match node:
        case g.Read():
            return node.topic.name
        case g.Repartition():
            return node.topic
    return None


def _subtopologies(nodes: Sequence[g.Node]) -> tuple[g.Subtopology, ...]:
    """Connected parts, cut below each Repartition: there its records are read back from a topic."""
    above: dict[int, int] = {}  # node as an output (or inner node) -> representative
    below: dict[int, int] = {}  # Repartition as a source -> representative
    parent = list(range(2 * len(nodes)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for node in nodes:
        above[node.id] = node.id
        below[node.id] = len(nodes) + node.id if isinstance(node, g.Repartition) else node.id
        for up in node.upstream:
            parent[find(node.id)] = find(below[up])

    members: dict[int, list[int]] = {}
    sources: dict[int, list[g.Node]] = {}
    for node in nodes:
        members.setdefault(find(above[node.id]), []).append(node.id)
        if isinstance(node, g.Read | g.Repartition):
            sources.setdefault(find(below[node.id]), []).append(node)

    made = []
    for root, entries in sources.items():
        ids = tuple(sorted(members.get(root, [])))
        names = tuple(sorted(name for node in entries if (name := source_topic(node)) is not None))
        states = tuple(n.name for i in ids if isinstance(n := nodes[i], g.Fold))
        made.append(g.Subtopology("+".join(names), names, ids, states, _copartitioned(nodes, ids)))
    return tuple(made)


def _copartitioned(nodes: Sequence[g.Node], ids: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """For each state, the source topics that reach it, where there are several."""
    reached: dict[int, frozenset[str]] = {}
    groups: dict[tuple[str, ...], None] = {}

    def sources(i: int, as_input: bool) -> frozenset[str]:
        node = nodes[i]
        if isinstance(node, g.Read) or (as_input and isinstance(node, g.Repartition)):
            return frozenset([source_topic(node) or ""])
        return reached.get(i, frozenset())

    for i in ids:
        node = nodes[i]
        if not isinstance(node, g.Read):
            reached[i] = frozenset().union(*(sources(up, True) for up in node.upstream))
        if isinstance(node, g.Fold) and len(reached[i]) > 1:
            groups[tuple(sorted(reached[i]))] = None
    return tuple(groups)


def _refuse_loops(nodes: Sequence[g.Node], subtopologies: Sequence[g.Subtopology]) -> None:
    """A topic whose records end up in it again grows for ever."""
    home = {source: sub.name for sub in subtopologies for source in sub.sources}
    edges: dict[str, set[str]] = {sub.name: set() for sub in subtopologies}
    for sub in subtopologies:
        for i in sub.nodes:
            node = nodes[i]
            written = node.topic.name if isinstance(node, g.Write) and node.topic is not None else source_topic(node)
            if isinstance(node, g.Write | g.Repartition) and written in home:
                edges[sub.name].add(home[written])
    for sub in subtopologies:
        for i in sub.nodes:
            node = nodes[i]
            if isinstance(node, g.Write) and node.topic is not None and node.topic.name in home:
                start = home[node.topic.name]
                if sub.name == start or sub.name in _reachable(edges, start):
                    raise GraphError(
                        node.place,
                        f"write to {node.topic.name} is a loop: the app reads that topic, and what it reads there ends "
                        "up here again. Write to another topic, or read it in another app.",
                    )


def _reachable(edges: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    queue = [start]
    while queue:
        for to in edges[queue.pop()]:
            if to not in seen:
                seen.add(to)
                queue.append(to)
    return seen


def _internal(
    app: str, nodes: Sequence[g.Node], subtopologies: Sequence[g.Subtopology]
) -> Mapping[str, g.InternalTopic]:
    found: dict[str, g.InternalTopic] = {}

    def add(name: str, kind: g.InternalKind, place: Place, sized_by: tuple[str, ...]) -> None:
        known = found.get(name)
        if known is not None:
            sized_by = tuple(sorted({*known.sized_by, *sized_by}))
            place = known.place
            if known.kind is not kind:
                raise GraphError(place, f"{name} would be a {known.kind} and a {kind} topic at once: rename one.")
        found[name] = g.InternalTopic(name, kind, place, sized_by, g.CONFIGS[kind])

    for sub in subtopologies:
        for i in sub.nodes:
            match nodes[i]:
                case g.Fold() as fold:
                    add(fold.topic, g.InternalKind.CHANGELOG, fold.place, sub.sources)
                case g.Repartition() as through:
                    add(through.topic, g.InternalKind.REPARTITION, through.place, sub.sources)
                case g.Write() as write if write.sink is not None:
                    add(write.outbox, g.InternalKind.OUTBOX, write.place, sub.sources)
    for node in nodes:
        if isinstance(node, g.Read) and node.topic.on_error == "dead-letter":
            kind = g.InternalKind.DEAD_LETTER
            add(g.internal_name(app, "", kind), kind, node.topic.place, (node.topic.name,))
    for sub in subtopologies:
        for i in sub.nodes:
            one = nodes[i]
            if isinstance(one, g.Write) and one.on_error == "dead-letter":
                kind = g.InternalKind.DEAD_LETTER
                add(g.internal_name(app, "", kind), kind, one.place, sub.sources)
    return found
