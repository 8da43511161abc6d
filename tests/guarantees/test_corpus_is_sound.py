"""The corpus holds together before any rule is tried on it: what it quotes stands where it says, and nothing in it
contradicts itself. What a rule answers is not looked at here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from semel.contract import Guarantee
from tests.guarantees import corpus_schema
from tests.guarantees.corpus_schema import CORPUS, Expected, ExpectedPath, cases, files

CASES, TRAPS, MUTANTS, BAD = 130, 50, 300, 12
LABELLED = (Guarantee.EXACTLY_ONCE, Guarantee.EFFECTIVELY_ONCE)
# What a label says of repeats and losses. Unknown says nothing, or both: then no label has a name for it.
CAN = {
    Guarantee.EXACTLY_ONCE: {(False, False)},
    Guarantee.EFFECTIVELY_ONCE: {(False, False)},
    Guarantee.ONCE_IN_WINDOW: {(True, False)},
    Guarantee.AT_LEAST_ONCE: {(True, False)},
    Guarantee.AT_MOST_ONCE: {(False, True)},
    Guarantee.UNKNOWN: {(None, None), (True, True)},
}
# The corpus names pages, never a place to install from.
HOSTS = ("pypi", "pythonhosted", "npmjs", "repo1.maven", "mvnrepository", "crates.io", "docker.io", "hub.docker")
HOSTS += ("quay.io", "ghcr.io", "gcr.io", "rubygems", "proxy.golang", "packages.confluent")


def wrong_path(path: ExpectedPath, texts: dict[str, str]) -> Iterator[str]:
    name = f"{path.source} -> {path.sink}"
    for end in (path.source, path.sink):
        if end not in texts and not any(end in text for text in texts.values()):
            yield f"{name}: {end!r} stands in no file"
    if (path.repeats, path.loses) not in CAN[path.guarantee]:
        yield f"{name}: {path.guarantee} cannot have repeats={path.repeats}, loses={path.loses}"
    if (path.raises == "") != (path.guarantee is Guarantee.EXACTLY_ONCE):
        yield f"{name}: what raises it is empty for exactly-once, and only there"
    if (path.question != "") != (path.guarantee is Guarantee.UNKNOWN and path.repeats is None):
        yield f"{name}: a question belongs to what is not known, and only there"
    if not path.because or not path.boundary:
        yield f"{name}: no reason or no boundary"
    for file, text in path.because:
        if text not in texts.get(file, ""):
            yield f"{name}: {file} has no {text!r}"


def wrong(case: Expected, texts: dict[str, str]) -> Iterator[str]:
    """Everything in one case that does not hold together."""
    if not case.title or not case.sources or not all(case.sources) or not texts:
        yield "no title, no source or no file"
    if not case.path and not case.error:
        yield "nothing is expected"
    for path in case.path:
        yield from wrong_path(path, texts)
        if case.trap and path.guarantee in LABELLED:
            yield f"a trap is never {path.guarantee}: {path.source} -> {path.sink}"
    mutated = {mutant.path for mutant in case.mutant if mutant.matters}
    for number, path in enumerate(case.path):
        if path.guarantee in LABELLED and number not in mutated:
            yield f"path {number} is {path.guarantee}, and no mutant that matters tries it"
    for mutant in case.mutant:
        if mutant.path not in range(len(case.path)) or case.path[mutant.path].guarantee not in LABELLED:
            yield f"the mutant {mutant.why!r} is of no path that can fall"
            continue
        before = case.path[mutant.path].guarantee
        if mutant.matters != (mutant.guarantee.rank < before.rank) or mutant.guarantee.rank > before.rank:
            yield f"the mutant {mutant.why!r} goes from {before} to {mutant.guarantee}, matters={mutant.matters}"
        if texts.get(mutant.file, "").count(mutant.replace) != 1 or mutant.replace == mutant.by or not mutant.why:
            yield f"{mutant.file}: not one place of {mutant.replace!r}, no change, or no why"
    for error in case.error:
        lines = texts.get(error.file, "").splitlines()
        if not 1 <= error.line <= len(lines) or not error.says:
            yield f"{error.file} has no line {error.line}, or nothing is to be said of it"
        if error.never_shown and not any(error.never_shown in text for text in texts.values()):
            yield f"{error.never_shown!r} stands nowhere"
        if error.never_shown and any(error.never_shown in word for word in error.says):
            yield "what is never shown is to be said"


@pytest.fixture(scope="module")
def corpus() -> dict[str, tuple[Expected, dict[str, str]]]:
    return {name: (case, files(name)) for name, case in cases().items()}


def test_every_case_holds_together(corpus: dict[str, tuple[Expected, dict[str, str]]]) -> None:
    """What a case quotes stands in its files, its labels and mutants do not contradict each other."""
    assert [f"{name}: {what}" for name, (case, texts) in corpus.items() for what in wrong(case, texts)] == []


def test_there_is_enough_of_it(corpus: dict[str, tuple[Expected, dict[str, str]]]) -> None:
    """As much as was demanded; of the mutants a quarter to a half change nothing, to catch rules that fall at all."""
    found = [case for case, _ in corpus.values()]
    mutants = [mutant for case in found for mutant in case.mutant]
    assert len(found) >= CASES
    assert sum(case.trap for case in found) >= TRAPS
    assert len(mutants) >= MUTANTS
    assert sum(bool(case.error) for case in found) >= BAD
    assert 0.25 < sum(not mutant.matters for mutant in mutants) / len(mutants) < 0.5
    assert {path.guarantee for case in found for path in case.path} == set(Guarantee)


def test_every_folder_is_a_case_and_no_title_is_there_twice(corpus: dict[str, tuple[Expected, dict[str, str]]]) -> None:
    assert {folder.name for folder in CORPUS.iterdir() if folder.is_dir()} == set(corpus)
    titles = [case.title for case, _ in corpus.values()]
    assert len(set(titles)) == len(titles)


def test_no_place_to_install_from_is_named() -> None:
    texts = {file: file.read_text(encoding="utf-8").lower() for file in CORPUS.rglob("*") if file.is_file()}
    assert [(str(file), host) for file, text in texts.items() for host in HOSTS if host in text] == []


GOOD = """
title = "t"
sources = ["s"]
trap = false
[[path]]
from = "a"
to = "b"
guarantee = "exactly-once"
repeats = false
loses = false
boundary = "b"
because = [["f", "x=1"]]
raises = ""
[[mutant]]
file = "f"
replace = "x=1"
by = "x=2"
matters = true
path = 0
guarantee = "at-least-once"
why = "w"
"""
FILES = {"f": "x=1 of a and b"}


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("trap = false", "trap = true", "a trap is never exactly-once"),
        ('["s"]', "[]", "no source"),
        ('"x=1"]]', '"x=3"]]', "f has no 'x=3'"),
        ('replace = "x=1"', 'replace = "x=9"', "not one place"),
        ("matters = true", "matters = false", "matters=False"),
        ('to = "b"', 'to = "nowhere"', "stands in no file"),
        ("loses = false", "loses = true", "cannot have"),
        ('raises = ""', 'raises = "more"', "what raises it"),
    ],
)
def test_what_is_wrong_is_seen(old: str, new: str, complaint: str) -> None:
    """The checker catches a planted contradiction, and finds nothing where there is none."""
    assert GOOD.count(old) == 1
    read = msgspec.toml.decode(GOOD, type=Expected)
    assert list(wrong(read, FILES)) == []
    changed = msgspec.toml.decode(GOOD.replace(old, new), type=Expected)
    assert any(complaint in what for what in wrong(changed, FILES)), list(wrong(changed, FILES))


@pytest.mark.parametrize(
    ("old", "new"), [('"exactly-once"', '"once"'), ('why = "w"', 'why = "w"\nx = 1'), ('title = "t"', "")]
)
def test_the_schema_is_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """An unknown label, an unknown field or a missing one is refused."""
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "expected.toml").write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    monkeypatch.setattr(corpus_schema, "CORPUS", tmp_path)
    with pytest.raises(msgspec.ValidationError):
        cases()
