"""What the contracts of a run's sinks and sources say, field by field, and how the run put each to the test.

Pure over the graph and what was counted. Invariants: every field of a contract has a line, so one that is deleted or
weakened shows in the report; a contract that does not hold together is a doubt, so its run is never "holds"; and what
no run of `semel verify` tries says so, and who does. Steps are counted by their name, for the run: of an app with
several sinks or sources nobody tells at which of them a process was struck.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from semel.contract import Contract, PositionIn, Settlement, SourceContract
from semel.guarantees.words import disagreement, source_disagreement
from semel.ports import Step
from semel.streams import graph as g
from semel.verify.verdict import Promise

NOTHING = "nothing"
NOT_CLAIMED = "nothing is claimed, so nothing was tried"


@dataclass(frozen=True, slots=True)
class Ran:
    """What was counted in a run."""

    struck: Mapping[Step, int]  # how often a process was killed or stopped at a step
    hits: Mapping[Step, int]
    kills: int
    zombies: int
    refused: int
    stored: Mapping[str, int]  # by sink: rows before the view

    def at(self, *steps: Step) -> int:
        return sum(self.struck.get(step, 0) for step in steps)


Tried = tuple[str, int | None]


def _name(c: Contract, ran: Ran, sink: str) -> Tried:
    return "compared with the other fields, and with the type that `write` sees", 1


def _guarantee(c: Contract, ran: Ran, sink: str) -> Tried:
    return "what is there was compared with every committed record, after kills of its workers", ran.kills


def _identity(c: Contract, ran: Ran, sink: str) -> Tried:
    again = ran.at(Step.SINK_BEFORE, Step.SINK_AFTER, Step.POSITION_BEFORE, Step.OBJECT_AFTER, Step.SETTLE_AFTER)
    return "ended where the next owner writes the same again", again


def _atomicity(c: Contract, ran: Ran, sink: str) -> Tried:
    inside = ran.at(Step.ROWS_BEFORE, Step.ROWS_AFTER, Step.OBJECT_BEFORE, Step.OBJECT_AFTER, Step.PREPARE_BEFORE)
    return "ended within a batch", inside


def _remembers_position(c: Contract, ran: Ran, sink: str) -> Tried:
    return "ended between rows and position, and around them", ran.at(
        Step.ROWS_AFTER, Step.POSITION_BEFORE, Step.POSITION_AFTER, Step.SINK_BEFORE
    )


def _position(c: Contract, ran: Ran, sink: str) -> Tried:
    steps: tuple[Step, ...]
    match c.position:
        case PositionIn.DELIVERY_TOPIC:
            steps = (Step.CUT_BEFORE, Step.CUT_AFTER, Step.POSITION_BEFORE, Step.POSITION_AFTER)
        case PositionIn.SINK:
            steps = (Step.CLAIM_AFTER, Step.POSITION_BEFORE, Step.POSITION_AFTER, Step.SINK_AFTER)
        case _:
            steps = (Step.CLAIM_AFTER, Step.SINK_BEFORE, Step.SINK_AFTER)
    return "ended where it is read or written", ran.at(*steps)


def _fence(c: Contract, ran: Ran, sink: str) -> Tried:
    return f"{ran.zombies} owners resumed after their successor's commit; of them seen to be refused", ran.refused


def _resolution(c: Contract, ran: Ran, sink: str) -> Tried:
    return "ended around the sink's commit, where the next owner cannot know (answers lost on the wire: the contract "\
        "kit)", ran.at(Step.SINK_BEFORE, Step.SINK_AFTER, Step.DECIDE_AFTER)  # fmt: skip


def _settlement(c: Contract, ran: Ran, sink: str) -> Tried:
    if c.settlement is Settlement.DECIDED:
        steps = (Step.PREPARE_AFTER, Step.DECIDE_BEFORE, Step.DECIDE_AFTER, Step.SETTLE_BEFORE, Step.SETTLE_AFTER)
        return "ended with something prepared, or while it is settled; what is left in doubt was counted", ran.at(
            *steps
        )
    return "ended with something begun and not done", ran.at(
        Step.ROWS_BEFORE, Step.ROWS_AFTER, Step.CUT_AFTER, Step.OBJECT_BEFORE, Step.SINK_BEFORE
    )


def _durability(c: Contract, ran: Ran, sink: str) -> Tried:
    return "no run crashes the sink itself: the contract kit does (durable)", None


def _window(c: Contract, ran: Ran, sink: str) -> Tried:
    return "no run waits until a sink forgets: the contract kit does (forgets)", None


def _through(c: Contract, ran: Ran, sink: str) -> Tried:
    return "compared behind it; rows before it, repeats among them", ran.stored.get(sink)


OF_SINKS: Mapping[str, Callable[[Contract, Ran, str], Tried]] = {
    "name": _name,
    "guarantee": _guarantee,
    "identity": _identity,
    "atomicity": _atomicity,
    "remembers_position": _remembers_position,
    "fence": _fence,
    "resolution": _resolution,
    "durability": _durability,
    "position": _position,
    "settlement": _settlement,
    "window": _window,
    "through": _through,
}
_READ = (Step.INGEST_READ, Step.INGEST_RECORDS)
_POSITION = (Step.INGEST_RECORDS, Step.INGEST_POSITION, Step.INGEST_COMMIT)
OF_SOURCES: Mapping[str, Callable[[SourceContract, Ran], Tried]] = {
    "name": lambda c, ran: ("compared with the other fields", 1),
    "guarantee": lambda c, ran: ("the topic was compared with what the source was given, after kills", ran.kills),
    "identity": lambda c, ran: ("ended between reading and commit, where the next owner reads again", ran.at(*_READ)),
    "replay": lambda c, ran: ("ended with what was read and not committed", ran.at(*_READ, Step.INGEST_POSITION)),
    "position": lambda c, ran: ("ended around the position, and before the source has heard of it", ran.at(*_POSITION)),
    "fence": lambda c, ran: ("superseded ingests that the log refused", ran.hits.get(Step.SOURCE_FENCED, 0)),
    "boundary": lambda c, ran: ("named, and tried by nothing: it is what the source cannot see", None),
}


def promises(graph: g.Graph, ran: Ran) -> tuple[Promise, ...]:
    return (*_of_sinks(graph, ran), *_of_sources(graph, ran))


def _of_sinks(graph: g.Graph, ran: Ran) -> Iterator[Promise]:
    for name, sink in graph.sinks.items():
        for one in fields(Contract):
            said = getattr(sink.contract, one.name)
            tried, times = OF_SINKS[one.name](sink.contract, ran, name)
            yield _line(f"sink {name}", one.name, said, tried, times)


def _of_sources(graph: g.Graph, ran: Ran) -> Iterator[Promise]:
    for name, source in _sources(graph):
        for one in fields(SourceContract):
            tried, times = OF_SOURCES[one.name](source.contract, ran)
            yield _line(f"source of {name}", one.name, getattr(source.contract, one.name), tried, times)


def _sources(graph: g.Graph) -> Iterator[tuple[str, Any]]:
    topics = {node.topic.name: node.topic for node in graph.nodes if isinstance(node, g.Read)}
    for name, topic in topics.items():
        if topic.source is not None:
            yield name, topic.source


def _line(of: str, field: str, said: object, tried: str, times: int | None) -> Promise:
    if said in (None, "", False, "none", NOTHING):
        return Promise(of, field, NOTHING, NOT_CLAIMED, None)
    return Promise(of, field, "yes" if said is True else str(said), tried, times)


def disagreements(graph: g.Graph) -> list[str]:
    """Why a run with these contracts proves nothing about them."""
    found = []
    for name, sink in graph.sinks.items():
        if told := disagreement(sink.contract, sink.kind.__name__):
            found.append(f"sink {name}: its contract does not hold together: {told}")
    for name, source in _sources(graph):
        if told := source_disagreement(source.contract):
            found.append(f"source of {name}: its contract does not hold together: {told}")
    return found
