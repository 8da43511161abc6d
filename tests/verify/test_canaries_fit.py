"""The planted bugs still fit the code. That each is found tests/servers/test_canaries.py and tests/canaries show."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.canaries import (
    test_broker,
    test_cuts,
    test_processor_and_sinks,
    test_receiver,
    test_sinks,
    test_sources,
    test_two_phase,
)
from tests.support.planted import CANARIES, ROOT, planted

PATCHES = sorted((CANARIES / "verify").glob("*.patch"))


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_it_applies_and_compiles(patch: Path, tmp_path: Path) -> None:
    """Each hunk is found exactly once, and what comes out is Python."""
    planted(patch, tmp_path)
    for line in patch.read_text().splitlines():
        if line.startswith("+++ "):
            path = tmp_path / line.split()[1].removeprefix("b/")
            compile(path.read_text(), str(path), "exec")


EDITS = [
    pytest.param(edit.file, edit.before, id=f"{bug.name}-{n}")
    for module in (test_cuts, test_processor_and_sinks, test_receiver, test_sinks, test_sources, test_two_phase)
    for bug in module.BUGS
    for n, edit in enumerate(bug.edits)
] + [pytest.param(bug.file, bug.before, id=bug.name) for bug in test_broker.BUGS]


@pytest.mark.parametrize(("file", "before"), EDITS)
def test_it_has_its_place(file: str, before: str) -> None:
    """The other planted bugs, which the long tier runs. Two that no longer fitted were once noticed only there."""
    assert (ROOT / "src" / "semel" / file).read_text().count(before) == 1
