"""docs/faults.md names, for each failure of the field that is due, tests and planted bugs that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
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

ROOT = Path(__file__).parents[1]
DUE = [
    "B1",
    "B2",
    "B9",
    "B10",
    "B11",
    "B12",
    "B15",
    "B16",
    "B18",
    "B19",
    "B21",
    "B24",
    "B25",
    "B26",
    "B27",
    "P1",
    "P2",
    "P3",
    "P4",
    "P5",
    "P11",
    "P14",
    *(f"S{number}" for number in range(1, 19)),
    *(f"E{number}" for number in range(1, 8)),
]
TRIED = (test_broker, test_cuts, test_processor_and_sinks, test_receiver, test_sinks, test_sources, test_two_phase)
PLANTED = {bug.name for tried in TRIED for bug in tried.BUGS}


def rows() -> dict[str, list[str]]:
    """The cells of each row, by fault."""
    lines = (ROOT / "docs" / "faults.md").read_text().splitlines()
    lines = [line for line in lines if re.match(r"\| [BPSE]\d+ ", line)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({row[0] for row in cells}) == len(cells), "a fault has two rows"
    return {row[0]: row[1:] for row in cells}


ROWS = rows()


@cache
def functions(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_due_fault_has_its_row() -> None:
    """With a scenario or test, the mechanism, and a planted bug."""
    assert not set(DUE) - set(ROWS)
    for fault in DUE:
        _, tests, mechanism, planted = ROWS[fault]
        assert "`tests/" in tests and mechanism, fault
        assert re.search(r'"[^"]+"', planted), f"{fault}: no planted bug is named"


@pytest.mark.parametrize("fault", ROWS)
def test_what_a_row_names_is_there(fault: str) -> None:
    """Files, test functions and planted bugs; and a planted bug that is named belongs to this fault."""
    text = " | ".join(ROWS[fault])
    for name in re.findall(r"`(tests/[^`]+)`", text):
        path, _, function = name.partition("::")
        assert (ROOT / path).is_file(), name
        assert not function or function in functions(path), name
    for bug in re.findall(r'"([^"]+)"', text):
        assert bug in PLANTED, f"{bug!r} is planted nowhere"
        # Those of the sources have the source's name, not the fault's.
        assert fault[0] == "E" or fault in bug.partition(":")[0].split(", "), f"{bug!r} is no bug of {fault}"


def test_every_planted_bug_of_a_fault_is_on_the_page() -> None:
    text = (ROOT / "docs" / "faults.md").read_text()
    assert not [bug for bug in PLANTED if f'"{bug}"' not in text]


def test_every_fault_at_the_sink_is_in_its_one_table() -> None:
    """S1 to S18 in order, in the table that asks for a test, a mechanism and a planted bug of each."""
    text = (ROOT / "docs" / "faults.md").read_text()
    table = text.partition("## At the sink")[2].partition("\n## ")[0]
    assert re.findall(r"^\| (S\d+) ", table, re.MULTILINE) == [f"S{number}" for number in range(1, 19)]


def test_every_scenario_is_on_the_page() -> None:
    text = (ROOT / "docs" / "faults.md").read_text()
    found = [path.name for path in (ROOT / "tests" / "scenarios").glob("*.txt") if path.name not in text]
    assert not found
