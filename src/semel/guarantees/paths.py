"""Every path of a graph, from each source to each end, with what the rules make of it.

Invariant: as many paths as there are pairs of a user's source topic and a write that its records can reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from semel.contract import Atomicity, Contract, Guarantee, Mode, Settlement
from semel.guarantees import rules
from semel.guarantees.rules import Facts, Finding, LogKind, combined
from semel.streams.graph import Fold, Graph, InternalKind, Node, Read, Repartition, Write


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the graph does not say: how and on what it will run."""

    mode: Mode = Mode.EXACTLY_ONCE
    log: LogKind = LogKind.UNTOLD
    durability: str = ""


@dataclass(frozen=True, slots=True)
class Path:
    source: str
    sink: str
    guarantee: Guarantee
    boundary: str  # where the atomic commit ends, in words
    reasons: tuple[str, ...]
    raises: tuple[str, ...]  # what would raise it; empty where nothing is above it
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Report:
    app: str
    circumstances: Circumstances
    paths: tuple[Path, ...]
    outputs: tuple[str, ...]  # topics that others read, of this log and of others
    boundaries: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def weakest(self) -> Guarantee:
        """Of all paths; an app without one has promised nothing."""
        return min((path.guarantee for path in self.paths), key=lambda g: g.rank, default=Guarantee.UNKNOWN)


def analyse(graph: Graph, circumstances: Circumstances) -> Report:
    """The paths in the order in which the program writes them; the topics others read; what is outside."""
    paths = [_path(graph, write, read, circumstances) for write in graph.writes() for read in _reads(graph, write)]
    dead_letters = [topic.name for topic in graph.internal.values() if topic.kind is InternalKind.DEAD_LETTER]
    written = dict.fromkeys(write.topic.name for write in graph.writes() if write.topic is not None)
    elsewhere = dict.fromkeys(topic for write in graph.writes() if (topic := rules.topic_elsewhere(write)))
    return Report(
        app=graph.app,
        circumstances=circumstances,
        paths=tuple(paths),
        outputs=(*written, *dead_letters, *elsewhere),
        boundaries=rules.BOUNDARIES + _sources(graph) + (rules.ON_KAFKA if circumstances.log is LogKind.KAFKA else ()),
        notes=tuple(_notes(circumstances)),
    )


def _reads(graph: Graph, write: Write) -> Sequence[Read]:
    above = [node for node in graph.ancestors(write.id) if isinstance(node, Read)]
    return sorted(above, key=lambda read: read.id)


def _path(graph: Graph, write: Write, read: Read, given: Circumstances) -> Path:
    facts = Facts(
        read=read,
        through=_between(graph, read, write),
        write=write,
        contract=write.sink.contract if write.sink is not None else None,
        mode=given.mode,
        log=given.log,
        durability=given.durability,
    )
    findings = [finding for rule in rules.RULES if (finding := rule.look(facts)) is not None]
    guarantee = combined(findings)
    raises = dict.fromkeys(f.raises for f in findings if f.raises and (f.allows is None or f.allows is guarantee))
    if guarantee is Guarantee.UNKNOWN:
        raises = dict.fromkeys(f.raises for f in findings if f.raises)
    return Path(
        source=_source(read),
        sink=f"topic {write.topic.name}" if write.topic is not None else _outside(write),
        guarantee=guarantee,
        boundary=_boundary(facts, guarantee),
        reasons=tuple(finding.reason for finding in findings),
        raises=tuple(raises),
        file=PurePath(write.place.file).as_posix(),
        line=write.place.line,
    )


def _between(graph: Graph, read: Read, write: Write) -> tuple[Node, ...]:
    """The nodes below `read` and above `write`, in the program's order."""
    below = {read.id}
    for node in graph.nodes:  # ids grow downwards
        if below.intersection(node.upstream):
            below.add(node.id)
    above = {node.id for node in graph.ancestors(write.id)}
    return tuple(node for node in graph.nodes if node.id in below & above and node.id != read.id)


def _source(read: Read) -> str:
    topic = f"topic {read.topic.name}"
    return topic if read.topic.source is None else f"{read.topic.source.where} → {topic}"


def _sources(graph: Graph) -> tuple[str, ...]:
    fed = any(isinstance(node, Read) and node.topic.source is not None for node in graph.nodes)
    return rules.WITH_SOURCES if fed else ()


def _outside(write: Write) -> str:
    """The sink for people: never with a secret in it."""
    return write.sink.where if write.sink is not None else ""


def _boundary(f: Facts, guarantee: Guarantee) -> str:
    hops = 1 + sum(isinstance(node, Repartition) for node in f.through)
    hops += f.read.topic.source is not None  # the ingest's
    log = "the log's transaction" if hops == 1 else f"{hops} transactions of the log, one after the other"
    if f.mode is not Mode.EXACTLY_ONCE:
        log = "none: offsets, outputs and state are written one after the other"
        if any(isinstance(node, Fold) for node in f.through):
            return log
        return log if f.contract is None else f"{log}; then the sink"
    if f.contract is None:
        return f"{log}, up to the reader of {f.write.target}, who must read committed"
    if guarantee.rank < Guarantee.ONCE_IN_WINDOW.rank:
        return f"{log}, up to {f.write.outbox}; behind it the sink is on its own"
    return f"{log}, then {_at_the_sink(f.contract)}"


def _at_the_sink(c: Contract) -> str:
    """Where the effect of a record is once, when the log's transaction has ended."""
    if c.remembers_position:
        return "one of the sink with rows and position"
    if c.settlement is Settlement.DECIDED:
        return "one of the sink that is prepared first and decided by a record of the log"
    if c.through:
        return f"up to {c.through}: before it rows can be there twice"
    what = "each batch" if c.atomicity is Atomicity.BATCH else "each record"
    forgets = f", until it forgets ({c.window})" if c.window is not None else ""
    return f"{what} at the sink by {c.identity}{forgets}"


def _notes(given: Circumstances) -> Sequence[str]:
    if given.log is LogKind.EMBEDDED:
        return (rules.EMBEDDED_NOTE,)
    if given.log is LogKind.UNTOLD:
        return (rules.UNTOLD_NOTE,)
    return (rules.KAFKA_V1, rules.KAFKA_SYNC) if given.mode is Mode.EXACTLY_ONCE else (rules.KAFKA_SYNC,)


__all__ = ["Circumstances", "Finding", "LogKind", "Path", "Report", "analyse"]
