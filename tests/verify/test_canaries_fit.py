"""The planted bugs of `semel verify` still fit the code. tests/servers/test_canaries.py shows that each is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.planted import CANARIES, planted

PATCHES = sorted((CANARIES / "verify").glob("*.patch"))


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_it_applies_and_compiles(patch: Path, tmp_path: Path) -> None:
    """Each hunk is found exactly once, and what comes out is Python."""
    planted(patch, tmp_path)
    for line in patch.read_text().splitlines():
        if line.startswith("+++ "):
            path = tmp_path / line.split()[1].removeprefix("b/")
            compile(path.read_text(), str(path), "exec")
