"""docs/proof/sinks.md says what the tests are, and what was found."""

from __future__ import annotations

from tests.proof.sinks import PAGE, results
from tests.support.campaigns import IMITATED, SINKS
from tests.support.put_through import canaries, page


def test_the_page_is_true() -> None:
    """Written anew it is the same."""
    assert PAGE.read_text() == page(results()), "write it anew: python -m tests.proof.sinks --page"


def test_a_sink_that_was_not_tried_is_missing() -> None:
    """Without its result, or with one that left something behind, its line says so."""
    told = results()
    some = next(name for name in told if name in SINKS)
    kills = f"{told[some]['kills']} kills: holds"
    line = next(line for line in page(told).splitlines() if line.startswith(f"| {SINKS[some].title} |"))
    assert kills in line
    left = {**told, some: {**told[some], "left": ["table left_behind"]}}
    line = next(line for line in page(left).splitlines() if line.startswith(f"| {SINKS[some].title} |"))
    assert kills not in line and "1 left behind" in line
    del left[some]
    assert f"- {SINKS[some].title}: verify, 100" in page(left)
    assert set(SINKS) | set(IMITATED)


def test_planted_bugs_are_found_by_the_file_they_change() -> None:
    assert "S10: the rows are committed before the position" in canaries(["sinks/sqlite_connection.py"])
    assert canaries(["sinks/no-such-file.py"]) == []
