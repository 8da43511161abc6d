"""The topics of an app on a log: which must be there, which are created, which stop the start.

Invariant: a worker runs only if every internal topic is as the topology needs it, sized as it was when it was made;
what cannot be right (another partition count under existing state, a state that is gone while the app goes on behind
it, a retention limit on an outbox, a leftover topic with unread records) stops the start with a message, never a silent
repair.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from semel.errors import SemelError, UsageError
from semel.ports import Log, NewTopic, Position, TopicInfo, TopicPartition
from semel.streams import graph as g
from semel.streams.topic import NAME_LENGTH_MAX

# Where the group stands while a reset is under way: no log reaches it, so no worker starts from it.
UNFINISHED = Position(2**62, "a reset has not finished")


class LayoutError(SemelError):
    """The log's topics and the topology do not fit."""


def command(what: str, graph: g.Graph, where: str, name: str = "") -> str:
    """`semel app WHAT …` as it can be typed."""
    return f"`semel app {what} {graph.nodes[0].place.file}{name and ' '}{name} --on {where}`"


def sink_command(what: str, graph: g.Graph, where: str, sink: str) -> str:
    """`semel sink WHAT …` as it can be typed."""
    return f"`semel sink {what} {graph.nodes[0].place.file} {sink} --on {where}`"


@dataclass(frozen=True, slots=True)
class Layout:
    """What a worker knows of the log's topics, by names without prefix. `partitions`: of every topic it uses."""

    prefix: str
    partitions: Mapping[str, int]
    ids: Mapping[str, str]

    def at(self, topic: str, partition: int) -> TopicPartition:
        """As the log names it."""
        return TopicPartition(self.prefix + topic, partition)

    def bare(self, at: TopicPartition) -> TopicPartition:
        """As the topology names it."""
        assert at.topic.startswith(self.prefix), (at, self.prefix)
        return TopicPartition(at.topic[len(self.prefix) :], at.partition)

    def all(self, topic: str) -> list[TopicPartition]:
        return [self.at(topic, p) for p in range(self.partitions[topic])]


def known_again(log: Log, layout: Layout) -> Layout:
    """With the topics' ids as they are now. One that is not told keeps its own: a look will tell whether it is gone."""
    names = [layout.prefix + name for name in layout.ids]
    there = log.topic_ids(names)
    if there is None:
        there = {name: info.topic_id for name, info in log.topics().items()}
    return replace(layout, ids={name: there.get(layout.prefix + name, id) for name, id in layout.ids.items()})


def other_topics(
    graph: g.Graph, log: Log, layout: Layout, names: Sequence[str], there: Mapping[str, str], *, gone: bool
) -> str:
    """What a running app must stop for: another topic has the name of one of these, or, if `gone` counts, there is none
    of it. "" when all are who they were. `there`: ids by the log's names."""
    for name in names:
        known, now = layout.ids[name], there.get(layout.prefix + name)
        if known == now or (not gone if now is None else not (known and now)):
            continue
        found = "is not there any more: it was deleted" if now is None else "was deleted and made anew"
        return (
            f"{log.name}: topic {layout.prefix}{name} {found} while app {graph.app} runs. What was read of a new one "
            "may have begun in its middle, so the app stops. Decide where to go on: put the topic back, set the "
            f"group's offsets, or start anew: {command('reset', graph, log.name)}."
        )
    return ""


def lay_out(
    graph: g.Graph, log: Log, *, prefix: str = "", trace: bool = False, may_begin: Collection[str] = ()
) -> Layout:
    """Validates what is there, creates what is missing, and says what is there now. A changelog is created under an app
    that has read already only if it is in `may_begin`: its state would silently be short of all that was read."""
    there = _bare(log.topics(), prefix)
    counts = {name: info.partitions for name, info in there.items()}
    internal = dict(graph.internal)
    if trace:
        order = g.internal_name(graph.app, "", g.InternalKind.ORDER)
        first = next(graph.folds(), graph.nodes[0])
        sources = tuple(topic for sub in graph.subtopologies for topic in sub.sources)
        internal[order] = g.InternalTopic(
            order, g.InternalKind.ORDER, first.place, sources, g.CONFIGS[g.InternalKind.ORDER]
        )
    missing: dict[str, NewTopic] = {}

    def size(name: str) -> int:
        """The partition count that a topic has or is going to have."""
        if name in counts:
            return counts[name]
        if name in internal:
            count = max(size(source) for source in internal[name].sized_by)
            missing[name] = NewTopic(prefix + name, count, internal[name].config)
        else:
            count = _user_topic(graph, name, log.name, size)
            missing[name] = NewTopic(prefix + name, count)
        counts[name] = count
        return count

    for name, topic in graph.topics.items():
        if size(name) != topic.partitions and topic.partitions is not None:
            raise LayoutError(
                f"{log.name}: topic {name} has {counts[name]} partitions, the Topic at {topic.place} says "
                f"{topic.partitions}. Say partitions={counts[name]} there (`semel topics {name} --on {log.name}` shows "
                f"them); or, while nobody needs what is in it, make the topic anew: delete it, then `semel write "
                f"{name} FILE --partitions {topic.partitions} --on {log.name}`."
            )
    for name, made in internal.items():
        if len(prefix + name) > NAME_LENGTH_MAX:
            raise UsageError(f"topic {prefix + name}: a name has at most {NAME_LENGTH_MAX} characters.")
        if size(name) and name not in missing:
            _check_config(log, prefix + name, made)
    _check_counts(graph, counts, log.name)
    if missing:
        _no_state_is_gone(graph, log, prefix, there, set(missing).difference(may_begin))
        log.create(list(missing.values()))
        there = _bare(log.topics(), prefix)
        if absent := [name for name in missing if name not in there]:
            raise LayoutError(f"{log.name}: topic {absent[0]} was created and is not there.")
        counts.update({name: there[name].partitions for name in missing})
        _check_counts(graph, counts, log.name)
    used = [*graph.topics, *internal]
    return Layout(prefix, {name: counts[name] for name in used}, {name: there[name].topic_id for name in used})


def _no_state_is_gone(
    graph: g.Graph, log: Log, prefix: str, there: Mapping[str, TopicInfo], missing: Collection[str]
) -> None:
    """Before the creation: after it, the next start would find a topic and ask nothing."""
    for fold in graph.folds():
        if fold.topic not in missing:
            continue
        # All sources above it: a renamed state has a repartition topic without positions, too.
        above = [node for node in graph.ancestors(fold.id) if isinstance(node, g.Read | g.Repartition)]
        topics = [node.topic.name if isinstance(node, g.Read) else node.topic for node in above]
        sources = [TopicPartition(prefix + t, p) for t in topics if t in there for p in range(there[t].partitions)]
        stood = [(at, found) for at, found in log.committed(sources).items() if found not in (None, UNFINISHED)]
        read = next(((at, found.offset) for at, found in stood if found is not None and found.offset > 0), None)
        # Looked at again: another member that was faster has made its topics before its first commit.
        if read is None or prefix + fold.topic in log.topics():
            continue
        at, offset = read
        raise LayoutError(
            f"{log.name}: the state {fold.name!r} ({fold.place}) has no topic {prefix}{fold.topic}, and app "
            f"{graph.app} has read {at.topic} partition {at.partition} up to offset {offset} already: was the topic "
            f"deleted, or the state renamed, or is it new? Put the topic or the former name back; or start the app "
            f"anew: {command('reset', graph, log.name)}; or let this state begin empty where the app is now: "
            f"{command('begin', graph, log.name, fold.name)}."
        )


# Sink name, partitions of its outbox -> how far its delivery is (the offsets of group APP.SINK).
Delivered = Callable[[str, Sequence[TopicPartition]], Mapping[TopicPartition, Position | None]]


def leftovers(graph: g.Graph, log: Log, layout: Layout, delivered: Delivered | None = None) -> list[str]:
    """Messages about internal topics of this app that no node of the program owns any more and that hold records which
    were not read, or not delivered: what a removed operator or sink leaves behind.

    The name alone does not tell (`a-b-x-outbox` may belong to app `a` or `a-b`), so a topic counts only if a group of
    this app has a position in it. Without `delivered` outboxes are not looked at. A changelog counts with any record: a
    state that comes back under its former name would go on from what it was then."""
    found = []
    for name, kind, inner in _unowned(graph, log, layout, delivered):
        topic = f"{log.name}: topic {layout.prefix}{name} belongs to app {graph.app}, no "
        discard = command("discard", graph, log.name, name)
        if kind is g.InternalKind.OUTBOX:
            found.append(
                f"{topic}sink of the program has the name {inner!r} any more, and it holds records that were not "
                f"delivered. Was the sink removed or renamed? Deliver them first, with the program as it was: `semel "
                f"sink drain FORMER.py {inner} --on {log.name}`; or give up what is in it: {discard}."
            )
            continue
        told = "records that were not read" if kind is g.InternalKind.REPARTITION else f"the state {inner!r}"
        owner, back = ("operator", " and let it finish") if kind is g.InternalKind.REPARTITION else ("state", "")
        found.append(
            f"{topic}{owner} of the program owns it any more, and it holds {told}. Put the {owner} back{back}, or give "
            f"up what is in it: {discard}."
        )
    return found


def left_behind(
    graph: g.Graph, log: Log, prefix: str, sinks: Collection[str], delivered: Delivered
) -> list[tuple[str, str]]:
    """Outboxes with undelivered records of sinks that the program does not have: (topic without prefix, sink)."""
    layout = Layout(prefix, dict.fromkeys([*graph.topics, *graph.internal], 1), {})
    return [
        (name, inner)
        for name, kind, inner in _unowned(graph, log, layout, delivered)
        if kind is g.InternalKind.OUTBOX and inner not in sinks
    ]


def _unowned(
    graph: g.Graph, log: Log, layout: Layout, delivered: Delivered | None
) -> Iterator[tuple[str, g.InternalKind, str]]:
    """Topic without prefix, kind, and the name of the state, operator or sink."""
    opening = f"{graph.app}-"
    for name, info in sorted(_bare(log.topics(), layout.prefix).items()):
        if name in layout.partitions or not name.startswith(opening):
            continue
        partitions = [TopicPartition(layout.prefix + name, p) for p in range(info.partitions)]
        kind = next((kind for kind in _LEFT if name.endswith(f"-{kind}")), None)
        if kind is None or (kind is g.InternalKind.OUTBOX and delivered is None):
            continue
        inner = name[len(opening) : -len(f"-{kind}")]
        if kind is g.InternalKind.OUTBOX:
            assert delivered is not None
            positions = delivered(inner, partitions)
        else:
            positions = log.committed(partitions)
        begun = {at: position.offset for at in partitions if (position := positions.get(at)) is not None}
        if begun and any(holds_records(log, at, begun.get(at, 0)) for at in partitions):
            yield name, kind, inner


_LEFT = (g.InternalKind.REPARTITION, g.InternalKind.CHANGELOG, g.InternalKind.OUTBOX)


# Group without prefix, partitions -> its positions.
Asked = Callable[[str, Sequence[TopicPartition]], Mapping[TopicPartition, Position | None]]


def taken_by_others(graph: g.Graph, log: Log, layout: Layout, asked: Asked) -> list[str]:
    """Messages about internal topics of this app that another one uses under the same name: `a-b-x-changelog` is state
    `b-x` of app `a` and state `x` of app `a-b`. Asked of a topic that we have not committed in yet; two apps that first
    start at the same moment are not told apart (docs: Names are identity)."""
    others: dict[str, list[TopicPartition]] = {}
    for name, topic in graph.internal.items():
        if topic.kind not in (g.InternalKind.CHANGELOG, g.InternalKind.REPARTITION, g.InternalKind.OUTBOX):
            continue
        words = name.removesuffix(f"-{topic.kind}").split("-")
        groups = []
        for cut in range(1, len(words)):
            app, rest = "-".join(words[:cut]), "-".join(words[cut:])
            groups.append((app, f"{app}.{rest}" if topic.kind is g.InternalKind.OUTBOX else app))
        mine = [group for app, group in groups if app == graph.app]
        if len(groups) == 1:
            continue
        held = (
            asked(mine[0], layout.all(name)) if topic.kind is g.InternalKind.OUTBOX else log.committed(layout.all(name))
        )
        if not any(position is not None for position in held.values()):
            for group in {group for _, group in groups}.difference(mine):
                others.setdefault(group, []).extend(layout.all(name))
    return [
        f"{log.name}: group {layout.prefix}{group} uses the topic {at.topic}, which app {graph.app} has under the same "
        "name: two apps would write each other's state. Give the state, the sink or the app another name."
        for group, partitions in sorted(others.items())
        for at, position in list(asked(group, partitions).items())
        if position is not None
    ]


def holds_records(log: Log, at: TopicPartition, start: int | None = None) -> bool:
    """Whether a partition holds a committed record at or after `start`. What lies behind an open transaction is of now,
    not of a forgotten run, and is not waited for; a log that is slow to answer is."""
    position = max(log.starts([at])[at], start or 0)
    end = log.ends([at])[at]
    if end <= position:
        return False
    for records in log.read(at, position, end):
        if records.offsets or records.undecided:
            return bool(records.offsets)
    return False


def _bare(topics: Mapping[str, TopicInfo], prefix: str) -> dict[str, TopicInfo]:
    return {name[len(prefix) :]: info for name, info in topics.items() if name.startswith(prefix)}


def _user_topic(graph: g.Graph, name: str, where: str, size: object) -> int:
    """The count of a user's topic that is not there: as declared; an output has as many as what it is written from."""
    assert callable(size)
    topic = graph.topics[name]
    if topic.partitions is not None:
        return topic.partitions
    if any(isinstance(node, g.Read) and node.topic.name == name for node in graph.nodes):
        raise UsageError(
            f"topic {name} is not there at {where}, and the app reads it (Topic at {topic.place}). Write to it first "
            f"(`semel write {name} FILE --on {where}`), or say how many partitions it is created with: "
            f"Topic({name!r}, …, partitions=4)."
        )
    writers = {node.id for node in graph.writes() if node.topic is not None and node.topic.name == name}
    subs = [sub for sub in graph.subtopologies if writers.intersection(sub.nodes)]
    return max((int(size(source)) for sub in subs for source in sub.sources), default=1)


def _check_config(log: Log, name: str, made: g.InternalTopic) -> None:
    config = log.config(name)
    for key, wanted in made.config.items():
        got = config.get(key)
        if got is not None and got != wanted and set(got.split(",")) != set(wanted.split(",")):
            raise LayoutError(
                f"{log.name}: topic {name} ({made.kind} of {made.place}) has {key}={got}; it must be {wanted}, or "
                f"records could be gone before they were read. Set it: {key}={wanted}."
            )


def _check_counts(graph: g.Graph, counts: Mapping[str, int], where: str) -> None:
    for sub in graph.subtopologies:
        for group in sub.copartitioned:
            if len({counts[topic] for topic in group}) > 1:
                told = ", ".join(f"{topic} has {counts[topic]}" for topic in group)
                raise LayoutError(
                    f"{where}: {told} partitions, and they meet in one state: equal keys must be in equal partitions. "
                    "Give them equal counts, or put a key_by before the merge."
                )
        tasks = max(counts[source] for source in sub.sources)
        for node in (graph.nodes[i] for i in sub.nodes):
            if isinstance(node, g.Fold) and counts[node.topic] != tasks:
                raise LayoutError(
                    f"{where}: the state {node.name!r} ({node.place}) was kept in {counts[node.topic]} partitions "
                    f"(topic {node.topic}), its input {_join(sub.sources)} now has {tasks}: keys have moved to other "
                    f"partitions than their state. Go back to {counts[node.topic]}, or start anew: "
                    f"{command('reset', graph, where)}."
                )


def _join(names: Sequence[str]) -> str:
    return ", ".join(names)
