"""The oracle: what each sub-topology should have written, recomputed from its committed inputs alone.

Stage by stage over the committed log (DESIGN §7): every task is run again, without faults, over the input that it has
committed, in the order in which it took it (`APP-order`, streams/trace.py); what it writes then must be what is
committed in its output topics: nothing lost, repeated or wrong. State (law 6) is compared with the changelogs, each
sink (law 7) with its outbox.

Invariant: the expectation is computed from committed inputs, never from outputs; what cannot be recomputed is said
to be unknown.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec

from semel.contract import Identity
from semel.ports import Connection, Headers, Position, Records, TopicPartition, Write
from semel.sinks.refusals import SINK as REFUSED_BY
from semel.streams import graph as g
from semel.streams.state import MemoryStore
from semel.streams.task import ERRORS, Task, TaskId, compile_graph
from semel.streams.trace import ORIGIN, Taken, parse_taken
from semel.verify import checkers
from semel.verify.checkers import Entry
from semel.verify.verdict import Output
from semel.verify.watched import Written


class Row(NamedTuple):
    """One committed record as it was read back."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    origin: str
    refused: tuple[str, int, int] | None = None  # a sink's dead letter: sink, partition and offset of the outbox


@dataclass
class Committed:
    """What a read_committed reader sees after the run, topics without the run's prefix.

    `ends`: where reading ended in each partition (past markers and aborted records).
    """

    records: dict[TopicPartition, list[Row]] = field(default_factory=dict)
    ends: dict[TopicPartition, int] = field(default_factory=dict)
    positions: dict[TopicPartition, int] = field(default_factory=dict)  # the group's, stable

    def topic(self, name: str) -> list[Entry]:
        """All records of a topic, partition by partition, in order."""
        found = []
        for at in sorted(self.records):
            if at.topic == name:
                found += [
                    Entry(r.origin, r.key, r.value, f"{at.topic}-{at.partition}@{r.offset}") for r in self.records[at]
                ]
        return found

    def refused(self, dlq: str, sink: str) -> dict[str, list[Row]]:
        """The dead letters of a sink, by the place of the record that each is of."""
        found: dict[str, list[Row]] = {}
        for at, rows in self.records.items():
            for row in rows if at.topic == dlq else ():
                if row.refused is not None and row.refused[0] == sink:
                    found.setdefault(f"{row.refused[1]}@{row.refused[2]}", []).append(row)
        return found

    def unasked(self, dlq: str, sinks: Collection[str]) -> list[Entry]:
        """The dead letters of everything but these sinks."""
        return [
            Entry(row.origin, row.key, row.value, f"{at.topic}-{at.partition}@{row.offset}")
            for at, rows in sorted(self.records.items())
            for row in rows
            if at.topic == dlq and (row.refused is None or row.refused[0] not in sinks)
        ]


def reckon(graph: g.Graph, committed: Committed) -> list[Output]:
    """Every output of the app inside the log: topics, repartition topics, outboxes, changelogs and positions."""
    uncoalesced = _uncoalesced(graph)
    programs = compile_graph(uncoalesced, trace=True)
    taken = _order(graph, committed)
    wanted: dict[str, list[Entry]] = {}
    states: dict[str, dict[bytes, bytes | None]] = {}
    outputs: list[Output] = [_taken_once(graph, committed, taken)]
    for sub in graph.subtopologies:
        partitions = {at.partition for at in committed.ends if at.topic in sub.sources}
        for partition in sorted(partitions):
            sources = [t for t in sub.sources if TopicPartition(t, partition) in committed.ends]
            task = Task(
                uncoalesced,
                programs[sub.name],
                partition,
                {topic: Position(0) for topic in sources},
                _collector(wanted),
                lambda name, partition: MemoryStore(),
            )
            _run(task, sub, partition, taken.get(str(TaskId(sub.name, partition)), []), committed)
            task.flush()
            for fold in (f for f in graph.folds() if f.name in sub.states):
                held = states.setdefault(fold.name, {})
                for key, state in task.states[fold.name].items():
                    held[key] = fold.state.encode(state)
            task.close()
    dlq = g.internal_name(graph.app, "", g.InternalKind.DEAD_LETTER)
    for topic, kind, coalesced in _written(graph):
        expected, present = wanted.get(topic, []), committed.topic(topic)
        if topic == dlq:
            continue
        if coalesced:
            output = checkers.keyed_output(topic, _without_index(expected), _without_index(present, last_only=False))
            if unclear := _folded_from_coalesced(graph, topic):
                output = replace(output, lost=0, repeated=0, wrong=0, examples=(), unknown=unclear)
            outputs.append(output)
        else:
            outputs.append(replace(checkers.append_output(topic, expected, present), kind=kind))
    for fold in graph.folds():
        present_state: dict[bytes, bytes | None] = {}
        for entry in committed.topic(fold.topic):
            if entry.key is not None:
                present_state[entry.key] = entry.value
        unclear = _depends_on_commits(graph, fold)
        found = checkers.last_per_key(f"state {fold.name}", "state", states.get(fold.name, {}), present_state)
        if unclear:
            found = replace(found, lost=0, repeated=0, wrong=0, unknown=unclear)
        outputs.append(found)
    asked = {w.sink.name: w.outbox for w in graph.writes() if w.sink is not None and w.on_error == "dead-letter"}
    unasked = committed.unasked(dlq, asked)
    if dlq in wanted or unasked:
        outputs.append(
            checkers.multiset(
                dlq, "append", Counter(_letter(e) for e in wanted.get(dlq, [])), Counter(_letter(e) for e in unasked)
            )
        )
    for sink, outbox in asked.items():
        if letters := committed.refused(dlq, sink):
            outputs.append(_letters(sink, letters, committed.topic(outbox)))
    sources_of = {topic for sub in graph.subtopologies for topic in sub.sources}
    ends = {f"{at.topic}-{at.partition}": end for at, end in committed.ends.items() if at.topic in sources_of}
    have = {f"{at.topic}-{at.partition}": offset for at, offset in committed.positions.items()}
    outputs.append(checkers.offsets("positions", ends, have))
    return outputs


def _letters(sink: str, letters: Mapping[str, Sequence[Row]], outbox: Sequence[Entry]) -> Output:
    """Each record that the sink has refused is in the dead letters once, as the outbox has it. Whether it was lost is
    told where the sink is compared: what is not there and in no letter is missing."""
    there = {_place(entry): entry for entry in outbox}
    expected = Counter(_placed(place, there[place]) for place in letters if place in there)
    present = Counter(_placed(place, Entry("", r.key, r.value)) for place, rows in letters.items() for r in rows)
    return checkers.multiset(f"dead letters of sink {sink}", "append", expected, present)


def _place(entry: Entry) -> str:
    """PARTITION@OFFSET"""
    return entry.where.rpartition("-")[2]


def _placed(place: str, entry: Entry) -> bytes:
    return b"%b|%b" % (place.encode(), _letter(entry))


def refused_of(headers: Headers | None) -> tuple[str, int, int] | None:
    """Of a sink's dead letter: which record it is of."""
    said = {name: (value or b"").decode() for name, value in headers or ()}
    if REFUSED_BY not in said:
        return None
    return said[REFUSED_BY], int(said[ERRORS + "partition"]), int(said[ERRORS + "offset"])


def input_record(key: bytes | None, value: bytes | None) -> bytes:
    """One input record as it is counted."""
    return b"%d %d %b %b" % (
        -1 if key is None else len(key),
        -1 if value is None else len(value),
        key or b"",
        value or b"",
    )


def reckon_input(graph: g.Graph, fed: Mapping[str, Counter[bytes]], committed: Committed) -> list[Output]:
    """What was fed and acknowledged is in its topic, once (laws 1 and 2). All else is reckoned from what lies there, so
    a log that loses its input would go unseen. Of a topic that the app itself writes to only what is lost is told."""
    outputs = []
    own = {w.topic.name for w in graph.writes() if w.topic is not None}
    for topic, expected in sorted(fed.items()):
        present = Counter(input_record(e.key, e.value) for e in committed.topic(topic))
        outputs.append(
            checkers.multiset(f"input {topic}", "append", expected, present & expected if topic in own else present)
        )
    return outputs


def reckon_source(
    topic: str, rows: Sequence[tuple[bytes | None, bytes | None]], committed: Committed, ordered: bool = True
) -> Output:
    """The source's own rows = the topic (laws 4 and 7, before the log): as a multiset, and the values of each key in
    the source's order where it has one."""
    entries = committed.topic(topic)
    expected = Counter(input_record(key, value) for key, value in rows)
    found = checkers.multiset(
        f"source {topic}", "source rows, appended", expected, Counter(input_record(e.key, e.value) for e in entries)
    )
    return _in_order(found, rows, [(e.key, e.value) for e in entries], "the source's") if ordered else found


def reckon_log_sink(
    name: str, committed: Sequence[Entry], there: Sequence[tuple[bytes | None, bytes | None]]
) -> Output:
    """f(committed outbox) = sink (law 7) where the sink is a log: every record with its key, deletes among them, as a
    multiset; and the records of each key in the order of the outbox. `there`: partition by partition, in order."""
    wanted = [(entry.key, entry.value) for entry in committed]
    places: dict[bytes, list[str]] = {}
    for entry in committed:
        places.setdefault(input_record(entry.key, entry.value), []).append(entry.where)
    found = checkers.multiset(
        f"sink {name}",
        "sink, records by key and order",
        Counter(input_record(*one) for one in wanted),
        Counter(input_record(*one) for one in there),
        lambda row: f" (committed as {'; '.join(places[row][:2])})" if row in places else "",
    )
    return _in_order(found, wanted, there, "the outbox's")


Pairs = Sequence[tuple[bytes | None, bytes | None]]


def _in_order(found: Output, wanted: Pairs, there: Pairs, whose: str) -> Output:
    """The same, and the values of each key in one order; told of what is otherwise whole only."""
    if found.lost or found.repeated or found.wrong:
        return found
    expected, present = _values(wanted), _values(there)
    astray = sorted(key for key, values in expected.items() if present[key] != values)
    examples = tuple(f"the values of key {key!r} are not in {whose} order" for key in astray[:3])
    return replace(found, wrong=len(astray), examples=examples) if astray else found


def _values(rows: Pairs) -> dict[bytes, list[bytes | None]]:
    found: dict[bytes, list[bytes | None]] = {}
    for key, value in rows:
        if key is not None:
            found.setdefault(key, []).append(value)
    return found


def reckon_sink(graph: g.Graph, name: str, committed: Committed, connection: Connection) -> Output:
    """f(committed outbox) = sink (law 7): for rows that are appended the multiset of all, for rows with a key the last
    value per key."""
    sink = graph.sinks[name]
    outbox = next(w.outbox for w in graph.writes() if w.sink is not None and w.sink.name == name)
    # What the sink refused is accounted for in the dead letters (`reckon`), and must not be at the sink.
    refused = committed.refused(g.internal_name(graph.app, "", g.InternalKind.DEAD_LETTER), name)
    entries = [entry for entry in committed.topic(outbox) if _place(entry) not in refused]
    if hasattr(connection, "entries"):  # `ports.LogConnection`
        return reckon_log_sink(name, entries, list(connection.entries()))
    if sink.key is None:
        values = [e.value for e in entries if e.value is not None]
    else:
        last: dict[bytes | None, bytes | None] = {}
        places: dict[bytes, set[str]] = {}
        for entry in entries:
            last[entry.key] = entry.value
            if entry.value is not None:
                key = _columns(connection.canonical(entry.value), sink.key)
                places.setdefault(key, set()).add(entry.where.rpartition("@")[0])
        values = [v for v in last.values() if v is not None]
        if astray := {key: sorted(where) for key, where in places.items() if len(where) > 1}:
            return _unordered(f"sink {name}", astray, len(places))
    expected = Counter(connection.canonical(v) for v in values)
    if sink.contract.identity is Identity.SAMPLE:  # equal samples are one, also of two records
        expected = Counter(dict.fromkeys(expected, 1))
    present = Counter(bytes(row) for row in connection.rows())
    kind = "sink, appended rows" if sink.key is None else "sink, last row per key"

    def records(row: bytes) -> str:
        """Of one row in an example: looked for only then."""
        those = [e for e in entries if e.value is not None and connection.canonical(e.value) == row]
        told = [f"{e.where}{f', written by {e.origin}' if e.origin else ''}" for e in those[:2]]
        return (
            f" (committed once as {told[0]})"
            if len(those) == 1
            else f" (committed as {'; '.join(told)})"
            if told
            else ""
        )

    return checkers.multiset(f"sink {name}", kind, expected, present, records)


def history(
    graph: g.Graph, name: str, committed: Committed, connection: Connection
) -> tuple[list[Written], Callable[[bytes], bytes]]:
    """Every committed record that a sink did not refuse, as the sink shows it, and the key of a row it shows."""
    sink = graph.sinks[name]
    outbox = next(w.outbox for w in graph.writes() if w.sink is not None and w.sink.name == name)
    refused = committed.refused(g.internal_name(graph.app, "", g.InternalKind.DEAD_LETTER), name)
    entries = [entry for entry in committed.topic(outbox) if _place(entry) not in refused]
    shown: dict[bytes | None, bytes] = {}  # the row's key by the record's: a delete has no row to tell it

    def key_of(row: bytes) -> bytes:
        return b"" if sink.key is None else _columns(row, sink.key)

    rows = [None if e.value is None else connection.canonical(e.value) for e in entries]
    for entry, row in zip(entries, rows, strict=True):
        if row is not None:
            shown.setdefault(entry.key, key_of(row))
    found = []
    for entry, row in zip(entries, rows, strict=True):
        partition, _, offset = entry.where.rpartition("@")
        found.append(Written(partition, int(offset), shown.get(entry.key, b""), row))
    return found, key_of


def untried(graph: g.Graph, committed: Committed) -> list[str]:
    """The ends and states that no record has reached, each with what to do: equal to nothing is nothing proved."""
    ends = [(w.target, w.outbox if w.topic is None else w.topic.name) for w in graph.writes()]
    ends += [(f"state {fold.name}", fold.topic) for fold in graph.folds()]
    sources = sorted({n.topic.name for n in graph.nodes if isinstance(n, g.Read)})
    files = " ".join(f"--input {topic}=FILE" for topic in sources)
    return [
        f"nothing reached {name}: this path was not tried; give records that do with {files} or App(sample=…)"
        for name, topic in dict.fromkeys(ends)
        if not committed.topic(topic)
    ]


def _columns(row: bytes, key: Sequence[str]) -> bytes:
    held = msgspec.json.decode(row)
    return msgspec.json.encode([held[column] for column in key])


def _unordered(name: str, astray: Mapping[bytes, list[str]], keys: int) -> Output:
    """All writes of one sink key lie in one partition of the outbox, or they have no order, and which of them stays in
    the sink is decided by who delivers first (FAULTS S15)."""
    examples = [
        f"key {key.decode()} is written from {' and '.join(where)}: which of its rows stays is chance"
        for key, where in list(astray.items())[:3]
    ]
    return Output(name, "sink, one order per key", keys, keys, 0, 0, len(astray), tuple(examples))


# --- the parts ---


def _collector(into: dict[str, list[Entry]]) -> Callable[[str], Write]:
    def writers(topic: str) -> Write:
        entries = into.setdefault(topic, [])

        def write(partition: int, key: bytes | None, value: bytes | None, ms: int, headers: Headers | None) -> None:
            entries.append(Entry(origin_of(headers), key, value))

        return write

    return writers


def origin_of(headers: Headers | None) -> str:
    """The record's origin, or ""."""
    for name, value in headers or ():
        if name == ORIGIN and value is not None:
            return bytes(value).decode()
    return ""


def _order(graph: g.Graph, committed: Committed) -> dict[str, list[Taken]]:
    found: dict[str, list[Taken]] = {}
    topic = g.internal_name(graph.app, "", g.InternalKind.ORDER)
    for entry in committed.topic(topic):
        assert entry.key is not None and entry.value is not None, entry
        taken = parse_taken(entry.key, entry.value)
        found.setdefault(taken.task, []).append(taken)
    return found


def _taken_once(graph: g.Graph, committed: Committed, taken: Mapping[str, Sequence[Taken]]) -> Output:
    """Each committed input record was taken by exactly one committed transaction of its task, in offset order."""
    expected = present = lost = repeated = 0
    examples: list[str] = []
    for sub in graph.subtopologies:
        for at, rows in committed.records.items():
            if at.topic not in sub.sources:
                continue
            expected += len(rows)
            batches = [
                t for t in taken.get(str(TaskId(sub.name, at.partition)), []) if (t.topic, t.partition) == tuple(at)
            ]
            seen: Counter[int] = Counter()
            offsets = [r.offset for r in rows]
            for batch in batches:
                covered = offsets[bisect_left(offsets, batch.first_offset) : bisect_right(offsets, batch.last_offset)]
                present += len(covered)
                seen.update(covered)
            for offset in offsets:
                if seen[offset] == 0:
                    lost += 1
                    examples.append(f"never taken: {at.topic}-{at.partition}@{offset} by {sub.name}")
                elif seen[offset] > 1:
                    repeated += seen[offset] - 1
                    examples.append(f"taken {seen[offset]} times: {at.topic}-{at.partition}@{offset} by {sub.name}")
    return Output("input taken", "append", expected, present, lost, repeated, 0, tuple(examples[:5]))


def _run(task: Task, sub: g.Subtopology, partition: int, taken: Sequence[Taken], committed: Committed) -> None:
    """Feeds the task what it took, in its order; what was taken twice is fed once (it is counted elsewhere)."""
    at_offset: dict[str, int] = {}
    offsets = {topic: [r.offset for r in committed.records.get(TopicPartition(topic, partition), [])]
               for topic in sub.sources}  # fmt: skip
    for batch in taken:
        source = TopicPartition(batch.topic, partition)
        begin = max(batch.first_offset, at_offset.get(batch.topic, 0))
        known = offsets[batch.topic]
        rows = committed.records.get(source, [])[bisect_left(known, begin) : bisect_right(known, batch.last_offset)]
        if not rows:
            continue
        at_offset[batch.topic] = batch.last_offset + 1
        task.process(
            Records(
                source,
                [r.offset for r in rows],
                [r.timestamp for r in rows],
                [r.key for r in rows],
                [r.value for r in rows],
                None,
                batch.last_offset + 1,
                -1,
            )
        )


def _written(graph: g.Graph) -> list[tuple[str, str, bool]]:
    """(topic, how it is compared, whether commits decide which updates it has), each output topic once."""
    found: dict[str, tuple[str, str, bool]] = {}
    for node in graph.nodes:
        if isinstance(node, g.Repartition):
            topic = node.topic
        elif isinstance(node, g.Write):
            topic = node.topic.name if node.topic is not None else node.outbox
        else:
            continue
        coalesced = _coalesced_above(graph, node) or found.get(topic, ("", "", False))[2]
        found[topic] = (topic, "keyed" if coalesced else "append", coalesced)
    return list(found.values())


def _coalesced_above(graph: g.Graph, node: g.Node) -> bool:
    """Whether a coalescing Changes lies above, below the next repartition topic."""
    queue = list(node.upstream)
    while queue:
        above = graph.nodes[queue.pop()]
        if isinstance(above, g.Changes) and above.coalesce:
            return True
        if not isinstance(above, g.Repartition):
            queue.extend(above.upstream)
    return False


def _depends_on_commits(graph: g.Graph, fold: g.Fold) -> str:
    if _coalesced_above(graph, fold):
        return "it is folded from coalesced changes of its own task: it depends on when commits fell"
    return ""


def _folded_from_coalesced(graph: g.Graph, topic: str) -> str:
    """Whether what goes to this topic comes out of a state (of a distinct: which record passes) that depends on
    when commits fell."""
    ends: list[g.Node] = [n for n in graph.nodes if isinstance(n, g.Repartition) and n.topic == topic]
    ends += [write for write in graph.writes() if _topic_of(write) == topic]
    queue = [up for node in ends for up in node.upstream]
    while queue:
        above = graph.nodes[queue.pop()]
        if isinstance(above, g.Fold) and (unclear := _depends_on_commits(graph, above)):
            return unclear
        if not isinstance(above, g.Repartition):
            queue.extend(above.upstream)
    return ""


def _topic_of(write: g.Write) -> str:
    return write.topic.name if write.topic is not None else write.outbox


def _uncoalesced(graph: g.Graph) -> g.Graph:
    """The same graph with every update: the committed ones are among them."""
    nodes = tuple(replace(n, coalesce=False) if isinstance(n, g.Changes) else n for n in graph.nodes)
    return replace(graph, nodes=nodes)


def _without_index(entries: Sequence[Entry], *, last_only: bool = True) -> list[Entry]:
    """Origins without their index: of several updates of one key by one input a coalescing commit keeps the last."""
    cut = [e._replace(origin=f"{e.origin.rpartition('|')[0]}|{_short_key(e.key)}") for e in entries]
    return list({e.origin: e for e in cut}.values()) if last_only else cut


def _short_key(key: bytes | None) -> str:
    return "null" if key is None else key.hex()


def _letter(entry: Entry) -> bytes:
    return b"%b|%b" % (entry.key or b"", entry.value or b"")
