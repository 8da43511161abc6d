"""Bugs on purpose: a copy of semel with a canary's patch in it, for a child process.

A patch is a unified diff under tests/canaries, with a line or two before it that say what is broken. Line numbers do
not count: each hunk is found by its text, which must be there exactly once. So a patch goes on to fit while other
parts of its file change, and one that no longer fits fails loudly.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CANARIES = ROOT / "tests" / "canaries"


def planted(patch: Path, folder: Path) -> Path:
    """Copies semel into `folder` with the patch applied. Returns what to put into PYTHONPATH."""
    shutil.copytree(ROOT / "src" / "semel", folder / "semel", ignore=shutil.ignore_patterns("__pycache__"))
    plant(patch.read_text(), folder)
    return folder


def plant(patch: str, root: Path) -> None:
    """Applies a unified diff to the files below `root`; AssertionError where it does not fit."""
    target: Path | None = None
    old: list[str] = []
    new: list[str] = []

    def finish() -> None:
        if target is None or not (old or new):
            return
        text = target.read_text()
        before, after = "".join(old), "".join(new)
        assert text.count(before) == 1, f"{target}: {text.count(before)} places for the hunk\n{before}"
        target.write_text(text.replace(before, after))
        old.clear()
        new.clear()

    for line in patch.splitlines(keepends=True):
        if line.startswith("--- "):
            finish()
            target = None
        elif line.startswith("+++ "):
            target = root / line.split()[1].removeprefix("b/")
        elif line.startswith("@@"):
            finish()
        elif target is not None and line[0] in " -+":
            if line[0] in " -":
                old.append(line[1:])
            if line[0] in " +":
                new.append(line[1:])
    finish()
