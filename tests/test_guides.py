"""The guides of docs/sinks and docs/sources cannot rot: there is one for each sink and source, its example builds and
checks, and what it says of the contract is the contract's data. (tests/servers/test_guides.py plays them again.)"""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import semel.sinks
import semel.sources
from semel.contract import Contract, Guarantee, SourceContract
from semel.guarantees import Circumstances, LogKind, analyse
from semel.streams.graph import Graph, Read
from tests.support.guides import NOT_OPERATED, ROOT, Guide, guides, loaded, operated, source_told, told

SINKS, SOURCES = guides("sinks"), guides("sources")
EMBEDDED = Circumstances(log=LogKind.EMBEDDED)


def named(guide: Guide) -> str:
    return guide.name


def graph_of(guide: Guide, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Graph:
    monkeypatch.chdir(folder)
    return loaded(guide, folder).graph()


def test_every_sink_and_source_has_its_guide() -> None:
    """And no guide is left of one that is no more."""
    assert sorted(guide.name for guide in SINKS) == sorted(semel.sinks.__all__)
    assert {guide.name for guide in SOURCES} == set(semel.sources.__all__) - {"Change"}
    for guide in [*SINKS, *SOURCES]:
        assert guide.path.stem.replace("-", "") == guide.name.lower()


@pytest.mark.parametrize("guide", SINKS, ids=named)
def test_a_sinks_example_checks_and_its_contract_is_the_data(
    guide: Guide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Field by field, in the data's own words; the boundary is what `semel check` prints of the example."""
    graph = graph_of(guide, tmp_path, monkeypatch)
    (write,) = [write for write in graph.writes() if write.sink is not None]
    assert write.sink is not None
    assert type(write.sink).__name__ == guide.name
    (path,) = analyse(graph, EMBEDDED).paths
    assert guide.between("contract") == told(write.sink.contract, path.boundary)
    assert path.guarantee is write.sink.contract.guarantee


@pytest.mark.parametrize("guide", SOURCES, ids=named)
def test_a_sources_example_checks_and_its_contract_is_the_data(
    guide: Guide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Field by field, in the data's own words."""
    graph = graph_of(guide, tmp_path, monkeypatch)
    (source,) = [node.topic.source for node in graph.nodes if isinstance(node, Read)]
    assert source is not None and type(source).__name__ == guide.name
    assert guide.between("contract") == source_told(source.contract)
    assert analyse(graph, EMBEDDED).paths


@pytest.mark.parametrize("guide", SINKS, ids=named)
def test_what_operates_it_is_said(guide: Guide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`semel sink show` where it knows the sink's position; where it does not, the page says so."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.chdir(tmp_path)
    known = operated(guide, tmp_path)
    assert ("$ semel sink show app.py" in guide.text) == known
    assert (NOT_OPERATED in guide.text) != known


@pytest.mark.parametrize("guide", [*SINKS, *SOURCES], ids=named)
def test_a_guide_is_about_a_screen_and_its_links_lead_somewhere(guide: Guide) -> None:
    """Each part is there; what breaks it has a consequence beside it; links name files and headings that exist."""
    assert len(guide.text.splitlines()) <= 90
    for part in ("## What it promises", "## Under which settings", "## What breaks it", "## How to see it"):
        assert part in guide.text
    rows = guide.text.partition("## What breaks it")[2].partition("## How")[0].strip().splitlines()[2:]
    assert len(rows) >= 4
    assert all(len([cell for cell in row.split("|") if cell.strip()]) == 2 for row in rows), rows
    for file, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", guide.text):
        there = (guide.path.parent / file).resolve()
        assert there.is_file(), file
        headings = {slug(line) for line in there.read_text().splitlines() if line.startswith("#")}
        assert not heading or heading in headings, f"{guide.path.name}: {file}#{heading}"


def slug(line: str) -> str:
    return re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")


def test_the_overview_has_every_sink_and_source() -> None:
    """docs/sinks.md: one row per sink with its contract, its guarantee and a link to its guide; sources likewise."""
    overview = (ROOT / "docs" / "sinks.md").read_text()
    for guide in SINKS:
        assert f"| [`{guide.name}`](sinks/{guide.path.name}) |" in overview
    overview = (ROOT / "docs" / "sources.md").read_text()
    for guide in SOURCES:
        assert f"(sources/{guide.path.name})" in overview


def test_a_field_that_changes_is_found() -> None:
    """The table holds every field of the contract: whichever changes, the page is no more the code's."""
    contract = semel.sinks.Postgres("postgresql://h/d", "t").contract
    changed: dict[str, Any] = {
        "name": "Keyed", "guarantee": Guarantee.UNKNOWN, "remembers_position": False, "durability": "never",
        "through": "a view", "window": semel.sinks.HTTP("http://h", forgets_after_s=60).contract.window,
    }  # fmt: skip
    for field in fields(Contract):
        held = getattr(contract, field.name)
        other = changed[field.name] if field.name in changed else next(m for m in type(held) if m is not held)
        assert told(replace(contract, **{field.name: other}), "") != told(contract, ""), field.name
    of_files = source_told(semel.sources.Files("x").contract)
    assert {field.name for field in fields(SourceContract)} == set(re.findall(r"`(\w+)`", of_files)) | {"guarantee"}


def test_the_readme_names_and_counts_every_sink_and_source() -> None:
    """One row each; the weak one is not counted among those under contracts that hold."""
    rows = (ROOT / "README.md").read_text().splitlines()
    (sinks,) = [row for row in rows if row.startswith("| `semel.sinks` |")]
    (sources,) = [row for row in rows if row.startswith("| `semel.sources` |")]
    weak = [guide.name for guide in SINKS if "contract, `name` | AtLeastOnce" in guide.text]
    assert weak == ["Lines"]
    assert f"| {len(SINKS) - len(weak)} of them under contracts, and a weak one," in sinks
    assert all(f"`{guide.name}`" in sinks for guide in SINKS if guide.name not in weak)
    assert all(f"`{guide.name}`" in sources for guide in SOURCES)
