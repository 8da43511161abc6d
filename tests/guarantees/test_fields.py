"""Every field of a contract carries something: taken out of a real sink's or source's contract, it is refused by the
contract kit, it changes what `check` says of the path, and it changes the report of `semel verify`, whose verdict is
not "holds" any more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest

from semel import App, AtLeastOnce, Builder, Topic, sinks, sources
from semel.contract import (
    Atomicity,
    Contract,
    Fence,
    Guarantee,
    Identity,
    PositionIn,
    RecordIdentity,
    Replay,
    Resolution,
    Settlement,
    SourceContract,
    SourceFence,
    SourcePosition,
)
from semel.guarantees import Circumstances, analyse
from semel.guarantees.words import disagreement, source_disagreement
from semel.testing.contracts import Refused
from semel.testing.trials import agreement
from semel.verify.promises import NOTHING, OF_SINKS, OF_SOURCES, Ran, disagreements, promises

# What a field is without what it says; the guarantee is weakened instead, as a path without one is none.
WITHOUT: dict[str, Any] = {
    "name": "",
    "guarantee": Guarantee.AT_LEAST_ONCE,
    "identity": Identity.NONE,
    "atomicity": Atomicity.NONE,
    "remembers_position": False,
    "fence": Fence.NONE,
    "resolution": Resolution.NONE,
    "durability": "",
    "position": PositionIn.GROUP_OFFSETS,
    "settlement": Settlement.NONE,
    "window": None,
    "through": "",
}
WITHOUT_SOURCE: dict[str, Any] = {
    "name": "",
    "guarantee": Guarantee.AT_LEAST_ONCE,
    "identity": RecordIdentity.NONE,
    "replay": Replay.NONE,
    "position": SourcePosition.BESIDE,
    "fence": SourceFence.NONE,
    "boundary": "",
}
# Of which sinks a field may be taken, and the kit's answer stays the same; why.
NO_MATTER = {
    ("PostgresVersioned", "position"): "by version rows need no position at the sink: the group's offsets would do; "
    "`position`, the trial, then asks for none",
}
NO_MATTER |= {(name, "position"): NO_MATTER["PostgresVersioned", "position"] for name in (
    "Redis", "OpenSearch", "MongoDB", "PostgresAppended",
)}  # fmt: skip

SINKS: list[Any] = [
    sinks.Postgres("postgresql://h/d", "t", key="k"),
    sinks.PostgresVersioned("postgresql://h/d", "t", key="k"),
    sinks.PostgresAppended("postgresql://h/d", "t"),
    sinks.PostgresTwoPhase("postgresql://h/d", "t"),
    sinks.MariaDB("mysql://h/d", "t", key="k"),
    sinks.MariaDBTwoPhase("mysql://h/d", "t"),
    sinks.SQLite("/d.db", "t"),
    sinks.DuckDB("/d.duckdb", "t"),
    sinks.DeltaLake("/t", key="k"),
    sinks.Iceberg("a.b", key="k"),
    sinks.Redis("redis://h", "t", key="k"),
    sinks.OpenSearch("http://h", "t", key="k"),
    sinks.MongoDB("mongodb://h/d", "t", key="k"),
    sinks.Objects("s3://bucket/t"),
    sinks.MultipartObjects("s3://bucket/t"),
    sinks.Files("/f"),
    sinks.HTTP("http://h/hook"),
    sinks.HTTP("http://h/hook", forgets_after_s=3_600),
    sinks.KafkaTopic("kafka://h:9092", "t", key="k"),
    sinks.ClickHouse("http://h:8123/d", "t"),
    sinks.ClickHouseAppended("http://h:8123/d", "t"),
    sinks.Prometheus("http://h:9090", "m", value="v"),
]


class Less:
    """A sink or source of which only the contract is another."""

    def __init__(self, of: Any, contract: Any) -> None:
        self._of, self.contract = of, contract
        self.kind = getattr(of, "kind", None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


def graph_of(sink: Any = None, source: Any = None) -> Any:
    said = {} if source is None else {"source": source}
    orders: Any = Topic("orders", key=str, value=dict[str, int], **said)

    def build(b: Builder) -> None:
        read: Any = b.read(orders)
        if sink is None:
            read.write(Topic("copies", key=str, value=dict[str, int]))
        else:
            weak = sink.contract.guarantee.rank <= Guarantee.AT_LEAST_ONCE.rank  # not taken without a word
            read.write(sink, **({"accept": AtLeastOnce("tried here")} if weak else {}))

    return App("copy", build).graph()


def checked(graph: Any) -> Any:
    (path,) = analyse(graph, Circumstances()).paths
    return path.guarantee, path.boundary, path.reasons


def reported(graph: Any) -> Any:
    return promises(graph, Ran({}, {}, 7, 3, 3, {}))


def cases() -> Iterator[Any]:
    for sink in SINKS:
        for field in fields(Contract):
            if getattr(sink.contract, field.name) != WITHOUT[field.name]:
                yield pytest.param(sink, field.name, id=f"{type(sink).__name__}-{sink.contract.name}-{field.name}")


def test_no_sink_and_no_field_is_forgotten() -> None:
    """A field that is added wants a line in each of the three, and a sink that says something in it."""
    strong = {name for name in sinks.__all__ if name != "Lines"}  # weak: it claims nothing that could be taken out
    assert strong <= {type(sink).__name__ for sink in SINKS}
    names = {field.name for field in fields(Contract)}
    assert names == WITHOUT.keys() == OF_SINKS.keys()
    assert {field.name for field in fields(SourceContract)} == WITHOUT_SOURCE.keys() == OF_SOURCES.keys()
    told = {name for sink in SINKS for name in names if getattr(sink.contract, name) != WITHOUT[name]}
    assert told == names


@pytest.mark.parametrize(("sink", "field"), list(cases()))
def test_a_field_taken_out_of_a_sinks_contract_is_missed(sink: Any, field: str) -> None:
    """By the kit, by `check` and by `verify`."""
    less = Less(sink, replace(sink.contract, **{field: WITHOUT[field]}))
    kind: str = sink.kind.__name__
    assert disagreement(sink.contract, kind) == ""
    # The kit.
    said = disagreement(less.contract, kind)
    stand: Any = type("Stand", (), {"contract": less.contract, "sink": less, "require": staticmethod(required)})
    if (type(sink).__name__, field) in NO_MATTER:
        assert said == ""
    else:
        assert said
        with pytest.raises(Refused):
            agreement(stand)
    # check.
    before, after = graph_of(sink), graph_of(less)
    assert checked(before) != checked(after)
    # verify: the report's line, and a doubt, with which no verdict is "holds".
    lines, fewer = reported(before), reported(after)
    changed = [one.field for one, other in zip(lines, fewer, strict=True) if one != other]
    assert field in changed
    assert disagreements(before) == []
    assert bool(disagreements(after)) == bool(said)
    (line,) = [one for one in fewer if one.field == field]
    assert field in ("guarantee", "position") or line.says == NOTHING


def required(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Refused(otherwise)


@pytest.mark.parametrize("field", [field.name for field in fields(SourceContract)])
@pytest.mark.parametrize("name", ["files", "http_endpoint", "postgres_changes", "postgres_table"])
def test_a_field_taken_out_of_a_sources_contract_is_missed(name: str, field: str) -> None:
    """There is no kit for the sources of others; what it would refuse is `source_disagreement`, and `verify` doubts."""
    from importlib import import_module

    contract: SourceContract = import_module(f"semel.sources.{name}").CONTRACT
    assert source_disagreement(contract) == ""
    source = sources.Files("in/*.jsonl", key="x")
    less = replace(contract, **{field: WITHOUT_SOURCE[field]})
    assert source_disagreement(less)
    before, after = graph_of(source=Less(source, contract)), graph_of(source=Less(source, less))
    lines, fewer = reported(before), reported(after)
    assert field in [one.field for one, other in zip(lines, fewer, strict=True) if one != other]
    assert disagreements(before) == [] and disagreements(after)
    assert checked(before) != checked(after)


def test_a_weak_sink_has_its_lines_too() -> None:
    """What it does not claim stands there as nothing, and nothing of it counts as tried."""

    def build(b: Builder) -> None:
        b.read(Topic("orders", key=str, value=int)).write(sinks.Lines("/l"), accept=AtLeastOnce("a file for people"))

    graph = App("copy", build).graph()
    assert disagreements(graph) == []
    lines = {one.field: one for one in reported(graph)}
    assert lines["identity"].says == lines["fence"].says == NOTHING and lines["identity"].untried
