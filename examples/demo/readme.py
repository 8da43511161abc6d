"""Puts real output into the README: `python -m examples.demo.readme DEMO_OUTPUT.txt`, with what `make demo` printed.

Between the marks `<!-- demo -->` goes the table with the line below it, between `<!-- check -->` what check prints.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
GOLDEN = ROOT / "tests" / "guarantees" / "flights.txt"


def table(printed: str) -> str:
    """From the table's title to the sentence on the kills."""
    found = re.search(r"Input against output.*?(?=\n\n\$ semel check)", printed, re.S)
    if found is None:
        raise SystemExit("error: this is not what `make demo` prints: no table and no check in it")
    return "\n".join(line.rstrip() for line in found.group().splitlines())


def between(text: str, mark: str, content: str) -> str:
    block = f"<!-- {mark} -->\n```\n{content.strip()}\n```\n<!-- /{mark} -->"
    replaced, times = re.subn(rf"<!-- {mark} -->.*?<!-- /{mark} -->", lambda _: block, text, flags=re.S)
    assert times == 1, mark
    return replaced


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m examples.demo.readme FILE, where FILE holds what `make demo` printed")
    text = between(README.read_text(), "demo", table(Path(sys.argv[1]).read_text()))
    README.write_text(between(text, "check", GOLDEN.read_text()))
