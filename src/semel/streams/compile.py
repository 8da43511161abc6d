"""A sub-topology becomes one function per source: Python text, compiled once, made anew for each task.

Per record it does what the topology says and no more: decode, the operators (a call of the user's function each),
encode, write. No object per record, no dispatch, no counter; where a function failed is found from the line of the
generated text in the traceback. Tracing (`semel-origin`) is other text, so it costs nothing when off.

The text has one function `make`, which gives, for one task, a function per source topic
`(offsets, timestamps, keys, values) -> largest record time` and `flush()`, which emits coalesced changes. Variables in
it: o offset, t time, kb and k the key's bytes and the key, vb and v the value's, a a state, og the origin.

Invariant: what a record causes depends on the record and the state alone, not on how records were batched (coalesced
changes depend on the commits, as they say).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from semel.ports import Write as Writer
from semel.streams import graph as g
from semel.streams.deletes import deletion
from semel.streams.serde import Serde
from semel.streams.state import State
from semel.streams.topic import milliseconds
from semel.streams.trace import ORIGIN, node_name

Source = Callable[[Sequence[int], Sequence[int], Sequence[bytes | None], Sequence[bytes | None]], int]
DEPTH_MAX = 40  # nested blocks before a node becomes a function of its own; Python allows 100 levels of indentation


class WrongType(Exception):
    """A value of another type than the topic has; whoever knows the record adds where."""


class NoKey(Exception):
    """A record without a key, where a state is kept by key."""


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled sub-topology. `make(partition, writers, states, dead, fail)`; `nodes`: line of `text` -> its node."""

    sub: g.Subtopology
    text: str
    file: str
    nodes: Mapping[int, g.Node]
    make: Callable[
        [
            int,
            Callable[[str], Writer],  # by topic
            Mapping[str, State],  # by name
            Callable[[str, int, int, bytes | None, bytes | None, Exception], None],  # a record that cannot be decoded
            Callable[[Exception, str, int], None],  # the topology failed at (topic, offset); raises
        ],
        tuple[Mapping[str, Source], Callable[[], None]],
    ]
    folds: tuple[g.Fold, ...]
    trace: bool


@dataclass(frozen=True, slots=True)
class _At:
    """What generated code holds at one point, by the names of its variables; None where there is none."""

    v: str
    k: str | None  # the key, decoded
    kb: str | None  # the key's bytes
    key: Serde | None  # and their serde
    vb: str | None = None  # the value's bytes, as long as the value is the one that was read
    value: Serde | None = None  # and their serde


@dataclass
class _Text:
    """The text while it is written. A line remembers the node that it belongs to."""

    graph: g.Graph
    inside: frozenset[int]
    trace: bool
    lines: list[str] = field(default_factory=list)
    nodes: dict[int, g.Node] = field(default_factory=dict)
    scope: dict[str, Any] = field(default_factory=dict)
    shared: dict[int, g.Node] = field(default_factory=dict)  # nodes that become functions of their own
    topics: dict[str, str] = field(default_factory=dict)

    def line(self, depth: int, text: str, node: g.Node | None = None) -> None:
        self.lines.append("    " * depth + text)
        if node is not None:
            self.nodes[len(self.lines)] = node

    def bind(self, name: str, value: Any) -> str:
        self.scope[name] = value
        return name

    def writer(self, topic: str) -> str:
        return self.topics.setdefault(topic, f"w{len(self.topics)}")

    def children(self, node: g.Node) -> list[g.Node]:
        return [child for child in self.graph.children(node.id) if child.id in self.inside]


def compile_subtopology(graph: g.Graph, sub: g.Subtopology, *, trace: bool) -> Program:
    """Writes and compiles the text of one sub-topology."""
    folds = tuple(node for i in sub.nodes if isinstance(node := graph.nodes[i], g.Fold))
    sources = graph.source_nodes()
    text = _Text(graph, frozenset(sub.nodes), trace)
    text.scope.update(NoKey=NoKey, _wrong=_wrong, _none=_none, _key=key_bytes, _ms=milliseconds)
    text.line(0, "def make(p, writers, states, dead, fail):")
    for index, name in enumerate(sub.sources):
        _source(text, index, name, sources[name])
    _flush(text, folds)
    written: set[int] = set()
    while todo := [node for id, node in text.shared.items() if id not in written]:
        written.add(todo[0].id)
        _function(text, todo[0])
    if trace:
        text.line(1, "xs = {}")
    for topic, writer in text.topics.items():
        text.line(1, f"{writer} = writers({topic!r})")
    for fold in folds:
        i = fold.id
        text.line(1, f"s = states[{fold.name!r}]; c{i} = s.cache; g{i} = c{i}.get; l{i} = s.load")
        text.line(1, f"d{i} = s.dirty; u{i} = s.origins")
    text.line(1, f"return {{{', '.join(f'{n!r}: s{i}' for i, n in enumerate(sub.sources))}}}, flush")

    file = f"<semel {graph.app}: {sub.name}>"
    source = "\n".join(text.lines) + "\n"
    scope = text.scope
    exec(compile(source, file, "exec"), scope)
    return Program(sub, source, file, text.nodes, scope["make"], folds, trace)


# --- where records enter ---


def _source(text: _Text, index: int, name: str, node: g.Read | g.Repartition) -> None:
    match node:
        case g.Read():
            key, value, time = node.topic.key_serde, node.topic.value_serde, node.topic.time
            nullable = node.topic.nullable
        case g.Repartition():
            key, value, time, nullable = node.key, node.value, None, True
    below = text.children(node)
    must, wants = _key_must(text, below), _key_wanted(text, below, key)
    i = node.id
    text.line(1, f"def s{index}(offsets, timestamps, keys, values):")
    text.line(2, "o = -1")
    text.line(2, "m = -1" if time else "m = max(timestamps, default=-1)")
    text.line(2, "try:")
    text.line(3, "for o, t, kb, vb in zip(offsets, timestamps, keys, values):")
    text.line(4, "try:")
    decode = f"{text.bind(f'dv{i}', value.decode)}(vb)"
    if value.type is str:  # inline: a call less
        decode = "str(vb, 'utf-8')"
    if nullable:
        decode = f"None if vb is None else {decode}"
    text.line(5, f"v = {decode}")
    if must:
        text.line(5, "if kb is None: raise NoKey('it has no key, and a state below is kept by key: use key_by')")
    if wants:
        text.line(5, f"k = {_decode_key(text, i, key, 'kb', null=not must)}")
    if time:
        given = "if v is not None: " if nullable else ""
        text.line(5, f"{given}t = _ms({text.bind(f'ti{i}', time)}(v))")
        text.line(5, "if t > m: m = t")
    text.line(4, "except Exception as why:")
    text.line(5, f"dead({name!r}, o, t, kb, vb, why)")
    text.line(5, "continue")
    if text.trace:
        text.line(4, f"og = {text.bind(f'or{i}', f'|{name}|%d|%d|'.encode())} % (p, o); xs.clear()")
    at = _At("v", "k" if wants else None, "kb", key, "vb", value)
    for child in below:
        _emit(text, 4, child, at, node)
    text.line(2, "except Exception as why:")
    text.line(3, f"fail(why, {name!r}, o)")
    text.line(2, "return m")


def _flush(text: _Text, folds: Sequence[g.Fold]) -> None:
    """Coalesced changes, in topological order: what they cause in a later state is emitted with that one."""
    text.line(1, "def flush():")
    text.line(2, "pass")
    for fold in folds:
        coalesced = [c for c in text.children(fold) if isinstance(c, g.Changes) and c.coalesce]
        if not coalesced:
            continue
        i = fold.id
        wants = _key_wanted(text, [child for c in coalesced for child in text.children(c)], fold.key)
        text.line(2, "kb = None")
        text.line(2, "try:")
        text.line(3, f"for kb, t in d{i}.items():")
        text.line(4, f"a = c{i}[kb]")
        if wants:
            text.line(4, f"k = {_decode_key(text, i, fold.key, 'kb', null=False)}")
        if text.trace:
            text.line(4, f"og = u{i}[kb]; xs.clear()")
        at = _At("a", "k" if wants else None, "kb", fold.key)
        for changes in coalesced:
            for child in text.children(changes):
                _emit(text, 4, child, at, changes)
        text.line(2, "except Exception as why:")
        text.line(3, f"fail(why, {f'changes of {fold.name}'!r}, kb)")


def _function(text: _Text, node: g.Node) -> None:
    """A node with several ways into it, as a function: what is known of the record is normalised by its callers."""
    text.line(1, f"def f{node.id}(k, kb, v, t{', og' if text.trace else ''}):")
    text.line(2, "pass")
    key = _fold_key(text, node)
    _body(text, 2, node, _At("v", "k", "kb", key))


def _fold_key(text: _Text, node: g.Node) -> Serde | None:
    """The serde of the key bytes at a shared node: all that flows together there has one key type."""
    for above in text.graph.ancestors(node.id):
        match above:
            case g.KeyBy():
                return None
            case g.Read():
                return above.topic.key_serde
            case g.Repartition() | g.Fold():
                return above.key
    return None


# --- operators ---


def _emit(text: _Text, depth: int, node: g.Node, at: _At, above: g.Node) -> None:
    """The code by which a record reaches `node`: inline, or a call where several ways lead to it."""
    if isinstance(node, g.Arm):  # its Branch has chosen
        return
    if len(node.upstream) == 1 and depth < DEPTH_MAX:
        _body(text, depth, node, at)
        return
    text.shared[node.id] = node
    k, kb = at.k, at.kb
    if k is None:
        assert at.key is not None and kb is not None
        k = _decode_key(text, above.id, at.key, kb, null=True) if _key_wanted(text, [node], None) else "None"
    if kb is None:
        kb = f"_key({k})"
    text.line(depth, f"f{node.id}({k}, {kb}, {at.v}, t{', og' if text.trace else ''})", node)


def _body(text: _Text, depth: int, node: g.Node, at: _At) -> None:
    i = node.id
    match node:
        case g.Map():
            f = text.bind(f"f_{i}", node.function)
            text.line(depth, f"v{i} = {f}({_key_var(at)}, {at.v})" if node.with_key else f"v{i} = {f}({at.v})", node)
            _below(text, depth, node, replace(at, v=f"v{i}", vb=None, value=None))
        case g.FlatMap():
            f = text.bind(f"f_{i}", node.function)
            call = f"{f}({_key_var(at)}, {at.v})" if node.with_key else f"{f}({at.v})"
            text.line(depth, f"for v{i} in {call}:", node)
            text.line(depth + 1, "pass")
            _below(text, depth + 1, node, replace(at, v=f"v{i}", vb=None, value=None))
        case g.Filter():
            text.line(depth, f"if {text.bind(f'f_{i}', node.function)}({at.v}):", node)
            text.line(depth + 1, "pass")
            _below(text, depth + 1, node, at)
        case g.Branch():
            _branch(text, depth, node, at)
        case g.KeyBy():
            text.line(depth, f"k{i} = {text.bind(f'f_{i}', node.function)}({at.v})", node)
            _below(text, depth, node, replace(at, k=f"k{i}", kb=None, key=None))
        case g.Merge() | g.Arm():
            text.line(depth, "pass")
            _below(text, depth, node, at)
        case g.Repartition():
            _through(text, depth, node, at)
        case g.Fold():
            _fold(text, depth, node, at)
        case g.Write():
            _write(text, depth, node, at)
        case g.Read() | g.Changes():
            raise AssertionError(f"{node} has no code of its own")


def _below(text: _Text, depth: int, node: g.Node, at: _At) -> None:
    for child in text.children(node):
        _emit(text, depth, child, at, node)


def _branch(text: _Text, depth: int, node: g.Branch, at: _At) -> None:
    arms = {child.index: child for child in text.children(node) if isinstance(child, g.Arm)}
    for index, predicate in enumerate(node.predicates):
        test = f"{text.bind(f'f_{node.id}_{index}', predicate)}({at.v})"
        text.line(depth, f"{'if' if index == 0 else 'elif'} {test}:", node)
        text.line(depth + 1, "pass")
        _below(text, depth + 1, arms[index], at)
    text.line(depth, "else:")
    text.line(depth + 1, "pass")
    _below(text, depth + 1, arms[len(node.predicates)], at)


def _fold(text: _Text, depth: int, node: g.Fold, at: _At) -> None:
    i = node.id
    assert at.kb is not None, f"{node.name}: the key's bytes are not at hand"
    text.line(depth, f"a{i} = g{i}({at.kb})", node)
    text.line(depth, f"if a{i} is None: a{i} = l{i}({at.kb})", node)
    if node.kind is g.FoldKind.DISTINCT:
        later = "" if node.window_ms is None else f" or t - a{i} >= {node.window_ms}"
        text.line(depth, f"if a{i} is None{later}:", node)
        text.line(depth + 1, f"c{i}[{at.kb}] = d{i}[{at.kb}] = t")
        if text.trace:
            text.line(depth + 1, f"u{i}[{at.kb}] = og")
        _below(text, depth + 1, node, at)
        return
    match node.kind:
        case g.FoldKind.COUNT:
            text.line(depth, f"a{i} += 1", node)
        case g.FoldKind.FOLD:
            text.line(depth, f"a{i} = {text.bind(f'f_{i}', node.function)}(a{i}, {at.v})", node)
        case g.FoldKind.REDUCE:
            f = text.bind(f"f_{i}", node.function)
            text.line(depth, f"a{i} = {at.v} if a{i} is None else {f}(a{i}, {at.v})", node)
    text.line(depth, f"c{i}[{at.kb}] = a{i}")
    text.line(depth, f"d{i}[{at.kb}] = t")
    if text.trace:
        text.line(depth, f"u{i}[{at.kb}] = og")
    for child in text.children(node):
        if isinstance(child, g.Changes) and not child.coalesce:
            _below(text, depth, child, replace(at, v=f"a{i}", vb=None, value=None))


def _through(text: _Text, depth: int, node: g.Repartition, at: _At) -> None:
    i = node.id
    kb = _encoded_key(text, depth, node, node.key, at)
    text.line(depth, f"if {kb} is None: _wrong('repartition {node.name}', 'a key', None)", node)
    if at.vb is not None and at.value is node.value:
        text.line(depth, f"b{i} = {at.vb}")  # the value as it was read
    else:
        check = _check(text, node, node.value, at.v, f"repartition {node.name}")
        if check:
            text.line(depth, f"if {at.v} is not None and {check}", node)
        encode = text.bind(f"e_{i}", node.value.encode)
        text.line(depth, f"b{i} = None if {at.v} is None else {encode}({at.v})", node)
    text.line(depth, f"{text.writer(node.topic)}(-1, {kb}, b{i}, t, {_headers(text, depth, node, node.name)})", node)


def _write(text: _Text, depth: int, node: g.Write, at: _At) -> None:
    i = node.id
    if node.topic is not None:
        serde = node.topic.value_serde
        writer = text.writer(node.topic.name)
        kb = _encoded_key(text, depth, node, node.topic.key_serde, at)
        deletes = f"b{i} = None" if node.topic.nullable else f"_none({node.topic.name!r}, {serde.name!r})"
        text.line(depth, f"if {at.v} is None: {deletes}", node)
        text.line(depth, "else:")
        check = _check(text, node, serde, at.v, f"topic {node.topic.name}") if at.value is not serde else ""
        if check:
            text.line(depth + 1, f"if {check}", node)
        encode = f"{at.v}.encode()" if serde.type is str else f"{text.bind(f'e_{i}', serde.encode)}({at.v})"
        text.line(depth + 1, f"b{i} = {encode}", node)
    else:
        assert node.sink is not None
        deleted = text.bind(f"k_{i}", deletion(node.sink, node.value, _wrong))
        writer = text.writer(node.outbox)
        own = at.kb if at.kb is not None else f"_key({at.k})"
        kb = f"q{i}"
        text.line(depth, f"if {at.v} is None:")
        text.line(depth + 1, f"b{i} = None; q{i} = {deleted}({_decoded(text, node, at)})", node)
        text.line(depth, "else:")
        # A sink that replaces nothing may want an order of its own all the same: samples of one series, say.
        if not node.sink.key and not getattr(node.sink, "partitions_outbox", False):
            text.line(depth + 1, f"q{i} = {own}", node)
        else:
            text.line(depth + 1, f"q{i} = {text.bind(f'ek_{i}', node.sink.encode_key)}({at.v})", node)
        text.line(depth + 1, f"b{i} = {text.bind(f'e_{i}', node.sink.encode_value)}({at.v})", node)
    text.line(depth, f"{writer}(-1, {kb}, b{i}, t, {_headers(text, depth, node, node.target)})", node)


# --- expressions ---


def _headers(text: _Text, depth: int, node: g.Node, name: str) -> str:
    if not text.trace:
        return "None"
    i = node.id
    text.line(depth, f"x{i} = xs[{i}] = xs.get({i}, -1) + 1")
    label = text.bind(f"nn{i}", node_name(i, name))
    return f"[({ORIGIN!r}, {label} + og + b'%d' % x{i})]"


def _check(text: _Text, node: g.Node, serde: Serde, v: str, what: str) -> str:
    """`condition: refuse` for a value of another type; "" where the type cannot be checked cheaply."""
    if serde.check is None:
        return ""
    of = text.bind(f"t_{node.id}", serde.check)
    return f"{v}.__class__ is not {of} and not isinstance({v}, {of}): _wrong({what!r}, {serde.name!r}, {v})"


def _key_var(at: _At) -> str:
    assert at.k is not None, "the key was not decoded"
    return at.k


def _decoded(text: _Text, node: g.Node, at: _At) -> str:
    if at.k is not None:
        return at.k
    assert at.key is not None and at.kb is not None
    return _decode_key(text, node.id, at.key, at.kb, null=True)


def _decode_key(text: _Text, i: int, key: Serde, kb: str, *, null: bool) -> str:
    decode = f"str({kb}, 'utf-8')" if key.type is str else f"{text.bind(f'dk{i}', key.decode)}({kb})"
    return f"None if {kb} is None else {decode}" if null else decode


def _encoded_key(text: _Text, depth: int, node: g.Node, key: Serde, at: _At) -> str:
    """The key's bytes for a topic: those that were read, where they are of the same serde."""
    if at.kb is not None and at.key is key:
        return at.kb
    k, i = _decoded(text, node, at), node.id
    text.line(depth, f"j{i} = {k}")
    check = _check_key(text, node, key, f"j{i}")
    if check:
        text.line(depth, check, node)
    text.line(depth, f"q{i} = None if j{i} is None else {text.bind(f'ek_{i}', key.encode)}(j{i})", node)
    return f"q{i}"


def _check_key(text: _Text, node: g.Node, key: Serde, k: str) -> str:
    if key.check is None:
        return ""
    of = text.bind(f"tk_{node.id}", key.check)
    what = f"the key of {node.topic if isinstance(node, g.Repartition) else _target(node)}"
    return f"if {k} is not None and not isinstance({k}, {of}): _wrong({what!r}, {key.name!r}, {k})"


def _target(node: g.Node) -> str:
    return node.target if isinstance(node, g.Write) else g.label(node)


# --- what is needed of the key ---


def _key_must(text: _Text, nodes: Sequence[g.Node]) -> bool:
    """Whether a state below is kept by the key as it was read: then it must be there."""
    for node in nodes:
        if isinstance(node, g.Fold):
            return True
        if not isinstance(node, g.KeyBy | g.Repartition) and _key_must(text, text.children(node)):
            return True
    return False


def _key_wanted(text: _Text, nodes: Sequence[g.Node], key: Serde | None) -> bool:
    """Whether something on every record's way below uses the key decoded, not just its bytes."""
    for node in nodes:
        match node:
            case g.KeyBy() | g.Repartition():
                if isinstance(node, g.Repartition) and node.key is not key:
                    return True
                continue
            case g.Map() | g.FlatMap():
                if node.with_key:
                    return True
            case g.Write():
                # Without a known serde the key cannot be decoded later, where a deletion at a sink needs it.
                if key is None or (node.topic is not None and node.topic.key_serde is not key):
                    return True
                continue
            case g.Changes():
                if node.coalesce:
                    continue
        if _key_wanted(text, text.children(node), key):
            return True
    return False


_generic = msgspec.json.Encoder(order="deterministic").encode


def key_bytes(key: Any) -> bytes | None:
    """What the serde of the key's type would give: for streams whose key type is not told."""
    if key is None or isinstance(key, bytes):
        return key
    return key.encode() if isinstance(key, str) else _generic(key)


def _wrong(what: str, wanted: str, value: Any) -> None:
    raise WrongType(f"{what} wants {wanted}, got {type(value).__name__}: {value!r:.200}")


def _none(topic: str, wanted: str) -> None:
    raise WrongType(
        f"topic {topic} wants {wanted}, got None, which would delete the key (a function without a return gives None). "
        f"If deleting is meant, the type says so: Topic({topic!r}, …, value={wanted} | None)"
    )
