"""The checkers: what was expected against what is there. Pure; each docstring is its checker's specification.

Every checker counts three things and never nets one against another: *lost* (expected, not there), *repeated* (there
more often than expected) and *wrong* (there under the right identity with another content, or there without any
reason). Examples name the record, so that a reader can look it up.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from semel.verify.verdict import Output

EXAMPLES_MAX = 5


class Entry(NamedTuple):
    """One committed record of an output. `origin` is the identity of the step that wrote it
    (`node|topic|partition|offset|index`, header `semel-origin`); "" when it carries none."""

    origin: str
    key: bytes | None
    value: bytes | None
    where: str = ""  # topic-partition@offset, for examples


def append_output(name: str, expected: Sequence[Entry], present: Sequence[Entry]) -> Output:
    """A multiset: every expected origin once, with the expected key and value, and nothing else.

    Lost: an expected origin that is absent. Repeated: the second and later appearance of an origin. Wrong: an origin
    whose key or value differs from the run without faults, or an origin that such a run does not have.
    """
    wanted = {e.origin: e for e in expected}
    assert len(wanted) == len(expected), f"{name}: two expected records of one origin"
    seen: Counter[str] = Counter()
    lost = repeated = wrong = 0
    examples: list[str] = []
    for entry in present:
        seen[entry.origin] += 1
        if seen[entry.origin] > 1:
            repeated += 1
            examples.append(f"repeated: {_told(entry)}")
            continue
        want = wanted.get(entry.origin)
        if want is None:
            wrong += 1
            examples.append(f"without a reason: {_told(entry)}")
        elif (want.key, want.value) != (entry.key, entry.value):
            wrong += 1
            examples.append(f"wrong: {_told(entry)}, expected value {_short(want.value)}")
    for origin, want in wanted.items():
        if origin not in seen:
            lost += 1
            examples.append(f"lost: {_told(want)}")
    return Output(name, "append", len(expected), len(present), lost, repeated, wrong, _some(examples))


def keyed_output(name: str, expected: Sequence[Entry], present: Sequence[Entry]) -> Output:
    """Updates of keys, where a commit may leave earlier ones out (coalescing).

    Per key the last value present equals the last expected (lost when the key is absent, wrong when the value
    differs); every value present is one that the run without faults also has for that origin (else wrong); no origin
    twice (repeated). Expected and present count keys.
    """
    by_origin = {e.origin: e for e in expected}
    last_wanted: dict[bytes | None, Entry] = {e.key: e for e in expected}
    last_present: dict[bytes | None, Entry] = {e.key: e for e in present}
    seen: set[str] = set()
    lost = repeated = wrong = 0
    examples: list[str] = []
    wrong_keys: set[bytes | None] = set()
    for entry in present:
        if entry.origin in seen:
            repeated += 1
            examples.append(f"repeated: {_told(entry)}")
            continue
        seen.add(entry.origin)
        want = by_origin.get(entry.origin)
        if want is None or (want.key, want.value) != (entry.key, entry.value):
            wrong_keys.add(entry.key)
            expected_value = "nothing" if want is None else _short(want.value)
            examples.append(f"wrong: {_told(entry)}, expected {expected_value}")
    for key, want in last_wanted.items():
        have = last_present.get(key)
        if have is None:
            lost += 1
            examples.append(f"lost: {_told(want)}")
        elif have.value != want.value:
            wrong_keys.add(key)
            examples.append(f"wrong: the last of key {_short(key)} is {_short(have.value)}, not {_short(want.value)}")
    wrong += len(wrong_keys)
    return Output(name, "keyed", len(last_wanted), len(last_present), lost, repeated, wrong, _some(examples))


def last_per_key(
    name: str, kind: str, expected: Mapping[bytes, bytes | None], present: Mapping[bytes, bytes | None]
) -> Output:
    """Two maps compared: state against the fold of its committed input (law 6), a keyed sink against the last value
    per key of its outbox (law 7). A value of None is an absent key. Extra keys are wrong."""
    want = {k: v for k, v in expected.items() if v is not None}
    have = {k: v for k, v in present.items() if v is not None}
    lost = wrong = 0
    examples: list[str] = []
    for key, value in want.items():
        if key not in have:
            lost += 1
            examples.append(f"lost: key {_short(key)}, expected {_short(value)}")
        elif have[key] != value:
            wrong += 1
            examples.append(f"wrong: key {_short(key)} is {_short(have[key])}, expected {_short(value)}")
    for key in have.keys() - want.keys():
        wrong += 1
        examples.append(f"without a reason: key {_short(key)} is {_short(have[key])}")
    return Output(name, kind, len(want), len(have), lost, 0, wrong, _some(examples))


def multiset(
    name: str,
    kind: str,
    expected: Counter[bytes],
    present: Counter[bytes],
    records: Callable[[bytes], str] = lambda row: "",
) -> Output:
    """Rows without identity of their own (a plain insert): each as often as in the committed log. `records` names the
    committed records that a row stands for, for examples."""
    missing, extra = expected - present, present - expected
    # A row that was never expected is wrong; one that was, but not as often, is repeated.
    repeated = sum(n for row, n in extra.items() if row in expected)
    wrong = sum(n for row, n in extra.items() if row not in expected)
    examples = [f"lost: {_short(row)}{records(row)}" for row in list(missing)[:EXAMPLES_MAX]]
    for row in list(extra)[:EXAMPLES_MAX]:
        what = f"repeated: {_short(row)}, there {present[row]} times" if row in expected else f"wrong: {_short(row)}"
        examples.append(f"{what}{records(row)}")
    total, there = sum(expected.values()), sum(present.values())
    return Output(name, kind, total, there, sum(missing.values()), repeated, wrong, _some(examples))


def offsets(name: str, expected: Mapping[str, int], present: Mapping[str, int]) -> Output:
    """The committed position of every source partition is the end of what was read (law 4): behind it, records
    would be read again; beyond it, some were never read. Counts are partitions."""
    lost = repeated = 0
    examples: list[str] = []
    for at, end in expected.items():
        have = present.get(at, 0)
        if have < end:
            repeated += 1
            examples.append(f"{at}: committed {have}, behind the end {end}")
        elif have > end:
            lost += 1
            examples.append(f"{at}: committed {have}, beyond the end {end}")
    return Output(name, "offsets", len(expected), len(present), lost, repeated, 0, _some(examples))


def monotonic(name: str, history: Mapping[str, Sequence[int]]) -> Output:
    """Committed positions as read during the run never go back (a zombie's commit would show here, B14)."""
    wrong = 0
    examples: list[str] = []
    observed = 0
    for at, seen in history.items():
        observed += len(seen)
        for before, after in itertools.pairwise(seen):
            if after < before:
                wrong += 1
                examples.append(f"{at}: committed position went back from {before} to {after}")
    return Output(name, "monotonic", observed, observed, 0, 0, wrong, _some(examples))


def by_key(entries: Sequence[Entry]) -> dict[bytes | None, list[Entry]]:
    grouped: dict[bytes | None, list[Entry]] = defaultdict(list)
    for entry in entries:
        grouped[entry.key].append(entry)
    return grouped


def _told(entry: Entry) -> str:
    at = f" at {entry.where}" if entry.where else ""
    return f"{entry.origin or 'a record'}{at}, key {_short(entry.key)}, value {_short(entry.value)}"


def _short(data: bytes | None, limit: int = 120) -> str:
    if data is None:
        return "null"
    text = data.decode("utf-8", "backslashreplace")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _some(examples: list[str]) -> tuple[str, ...]:
    return tuple(examples[:EXAMPLES_MAX])
