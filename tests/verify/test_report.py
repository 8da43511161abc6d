"""What a person reads: where a number could be taken for more than it says, a sentence stands beside it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from semel.cli.verify import show
from semel.verify.verdict import Output, Report


def report(taken: Output) -> Report:
    state = Output("state sums", "state", 5, 5, 0, 0, 0)
    return Report("app", "broker", "at-least-once", 1, 5, 1, 0, 0, {}, (taken, state))


def test_what_was_taken_twice_is_explained_beside_states_without_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    """The story: `input taken … 1286 repeated` above `state sums … 0 wrong` read as if each had counted once."""
    show(report(Output("input taken", "append", 9, 12, 0, 3, 0)))
    assert "how to read this: each step is compared with what it took" in capsys.readouterr().out
    show(report(Output("input taken", "append", 9, 9, 0, 0, 0)))
    assert "how to read" not in capsys.readouterr().out


def test_the_help_says_whose_databases_are_used() -> None:
    """Real ones: tables of the run's own are made beside the user's, and removed."""
    said = subprocess.run(
        [sys.executable, "-m", "semel.cli.main", "verify", "--help"], capture_output=True, text=True, timeout=60
    ).stdout
    said = " ".join(said.split())
    assert "in the very databases that the app names" in said and "all of them are removed" in said
