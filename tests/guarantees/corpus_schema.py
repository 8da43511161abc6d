"""The corpus as data: what stands in an `expected.toml`, and where it lies. `corpus/README.md` says how it is read.

Invariant: an unknown field, a missing one or one of another type is refused; nothing here knows a rule.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from semel.contract import Guarantee

CORPUS = Path(__file__).parent / "corpus"


class ExpectedPath(msgspec.Struct, forbid_unknown_fields=True, frozen=True, rename={"source": "from", "sink": "to"}):
    source: str
    sink: str
    guarantee: Guarantee
    boundary: str
    because: list[tuple[str, str]]  # (file, a text as it stands there)
    raises: str  # "" when exactly-once
    repeats: bool | None = None  # None: unknown
    loses: bool | None = None
    question: str = ""


class Mutant(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    file: str
    replace: str  # stands once in the file
    by: str
    matters: bool
    path: int
    guarantee: Guarantee  # of that path, after the change
    why: str


class ExpectedError(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    file: str
    line: int
    says: list[str]
    never_shown: str


class Expected(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    title: str
    sources: list[str]
    trap: bool
    path: list[ExpectedPath] = []
    mutant: list[Mutant] = []
    error: list[ExpectedError] = []


def cases() -> dict[str, Expected]:
    """Every case of the corpus by the name of its folder."""
    found = sorted(CORPUS.glob("*/expected.toml"))
    return {file.parent.name: msgspec.toml.decode(file.read_bytes(), type=Expected) for file in found}


def files(case: str) -> dict[str, str]:
    """The configuration files of a case by their path within it. Only the expectation itself is left out."""
    folder = CORPUS / case
    return {
        file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8")
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "expected.toml"
    }
