"""`semel check` and sources: the path begins at the source, and its label at the fields of the source's contract."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from semel import App, Builder, Topic
from semel.contract import Guarantee, RecordIdentity, Replay, SourceContract, SourceFence, SourcePosition
from semel.guarantees import Circumstances, analyse
from semel.guarantees.rules import lowered_source
from semel.sources import Files
from semel.sources.files import CONTRACT

WORSE = {
    "identity": (RecordIdentity.NONE, Guarantee.AT_LEAST_ONCE),
    "replay": (Replay.NONE, Guarantee.AT_MOST_ONCE),
    "position": (SourcePosition.BESIDE, Guarantee.AT_LEAST_ONCE),
    "fence": (SourceFence.NONE, Guarantee.AT_LEAST_ONCE),
    "boundary": ("", Guarantee.UNKNOWN),
    "guarantee": (Guarantee.AT_LEAST_ONCE, Guarantee.AT_LEAST_ONCE),
}


class Contracted(Files):
    """Files of which only the contract is another."""

    given: SourceContract = CONTRACT

    @property
    def contract(self) -> SourceContract:
        return type(self).given


def label(contract: SourceContract) -> Guarantee:
    source = type("Some", (Contracted,), {"given": contract})("in/*.jsonl", key="x")
    orders = Topic("orders", key=str, value=dict[str, int], source=source)

    def build(b: Builder) -> None:
        b.read(orders).write(Topic("copies", key=str, value=dict[str, int]))

    report = analyse(App("copy", build).graph(), Circumstances())
    return report.weakest


def test_every_field_carries_the_label() -> None:
    """A contract whose field is missing is not what it says, whatever it says."""
    assert label(CONTRACT) is Guarantee.EXACTLY_ONCE and lowered_source(CONTRACT) is None
    assert set(WORSE) == {field.name for field in fields(SourceContract)} - {"name"}
    for name, (value, allowed) in WORSE.items():
        assert label(replace(CONTRACT, **{name: value})) is allowed, name  # type: ignore[arg-type]


@pytest.mark.parametrize("with_source", [True, False])
def test_the_path_begins_at_the_source(with_source: bool) -> None:
    """Named first, with what it does not see; a topic of others is none of it."""
    source = Files("in/*.jsonl", key="id") if with_source else None
    orders = Topic("orders", key=str, value=dict[str, int], source=source, on_error="dead-letter")

    def build(b: Builder) -> None:
        b.read(orders).write(Topic("copies", key=str, value=dict[str, int]))

    report = analyse(App("copy", build).graph(), Circumstances())
    (path,) = report.paths
    assert path.source == ("files in/*.jsonl → topic orders" if with_source else "topic orders")
    assert path.boundary.startswith("2 transactions" if with_source else "the log's transaction")
    assert any("orders-refused" in reason for reason in path.reasons) is with_source
    assert any("copy of a file" in reason for reason in path.reasons) is with_source
    assert any("restoring a source" in text for text in report.boundaries) is with_source
