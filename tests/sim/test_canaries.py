"""Planted bugs, each found by the simulator: a checker is worth what it catches.

A canary is a patch under `tests/canaries/sim/`, with its reason on top, applied to a copy of `src/semel`; `semel sim`
runs there and must break a law. Nothing is planted in `src/` itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CANARIES = sorted((ROOT / "tests" / "canaries" / "sim").glob("*.patch"))
SEEDS_MAX = 200
LAWS = {
    "abort-not-indexed": {3},
    "dedup-window-not-replayed": {2},
    "fencing-not-replayed": {1, 5},
    "fencing-told-early": {1, 5},
    "generation-not-checked": {4, 5},
    "late-requests-accepted": {3, 4},
    "markers-without-prepare": {3, 4},
    "produce-epoch-not-checked": {3, 5},
    "reply-before-sync": {1},
    "tail-trusted": {1},
    "timeout-ignored": {3},
    "used-sequence-taken": {2},
}


class DoesNotApply(Exception):
    """The code that the canary is planted in has changed: plant it anew."""


def plant(patch: Path, target: Path) -> None:
    """Applies a unified diff by its text: each hunk's old lines, wherever they stand, exactly once, in their file."""
    path, old, new = "", "", ""

    def finish() -> None:
        nonlocal old, new
        if not old and not new:
            return
        file = target / path
        text = file.read_text()
        if text.count(old) != 1:
            raise DoesNotApply(
                f"{patch.name}: these lines stand {text.count(old)} times in src/{path}, not once. Change the patch so "
                f"that it plants the same bug in the code of today:\n{old}"
            )
        file.write_text(text.replace(old, new))
        old = new = ""

    for line in patch.read_text().splitlines(keepends=True):
        if line.startswith("--- a/"):
            finish()
            path = line[6:].strip()
        elif line.startswith("@@"):
            finish()
        elif path and not line.startswith("+++ "):
            old += line[1:] if line[0] in " -" else ""
            new += line[1:] if line[0] in " +" else ""
    finish()


def test_every_canary_is_known() -> None:
    """The table above names each patch, with the laws that it breaks."""
    assert {patch.stem for patch in CANARIES} == set(LAWS)


@pytest.mark.parametrize("patch", CANARIES, ids=lambda patch: patch.stem)
def test_a_planted_bug_is_found(patch: Path, tmp_path: Path) -> None:
    """Within 200 seeds a law is broken, and one of those that the bug is about."""
    shutil.copytree(ROOT / "src" / "semel", tmp_path / "semel", ignore=shutil.ignore_patterns("__pycache__"))
    plant(patch, tmp_path)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "semel.cli.main", "sim"),
            *("--seeds", f"1:{SEEDS_MAX + 1}", "--stop-at-first", "--json", "--workers", "2"),
        ],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, f"{patch.stem} was not found:\n{done.stdout}\n{done.stderr}"
    found = json.loads(done.stdout)
    assert {broken["law"] for broken in found["broken"]} & LAWS[patch.stem], found["broken"]


def test_a_canary_whose_code_has_changed_says_so(tmp_path: Path) -> None:
    """A patch that no longer applies is a failure that names the patch, the file and the lines."""
    (tmp_path / "semel" / "broker").mkdir(parents=True)
    for name in ("node", "transactions"):
        (tmp_path / "semel" / "broker" / f"{name}.py").write_text("nothing of it is left\n")
    with pytest.raises(
        DoesNotApply, match=r"reply-before-sync.patch: these lines stand 0 times in src/semel/broker/node"
    ):
        plant(ROOT / "tests" / "canaries" / "sim" / "reply-before-sync.patch", tmp_path)
