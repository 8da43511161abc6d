"""What readers saw of a sink while processes died: each reading must be a moment of a run in which nobody did.

After a run only the end can be compared; a row that was there twice for a second, or an older value that stood again
until the next one came, is gone by then, and somebody has read it. So the sink is read all through the storm, and each
reading is held to what was committed, in its order:

- of rows that are appended none goes away, none is there more often than it was committed;
- of a row with a key the values come in the order in which they were committed: none is put back (FAULTS S9, S12);
- where the contract says that a batch is visible as a whole, with its position, a reading holds a prefix of each
  partition: no record without those before it (the bank's invariant: no transfer is seen half).

Pure. Invariant: what cannot be told (equal rows, whose order nobody knows) is not judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from semel.verify.verdict import Output

KIND = "sink, read meanwhile"


class Written(NamedTuple):
    """A committed record of the outbox as the sink shows it."""

    partition: str
    offset: int
    key: bytes  # of the row; b"" where rows have none
    row: bytes | None  # None: the row goes away

    @property
    def where(self) -> str:
        return f"{self.partition}@{self.offset}"


class Watch:
    """Of one sink, what came and what went from one reading to the next."""

    def __init__(self) -> None:
        self.readings: list[tuple[Counter[bytes], Counter[bytes]]] = []
        self._last: Counter[bytes] = Counter()

    def look(self, rows: Sequence[bytes]) -> None:
        now = Counter(rows)
        self.readings.append((now - self._last, self._last - now))
        self._last = now


def appended(name: str, watch: Watch, committed: Sequence[Written], *, whole: bool) -> Output:
    """Rows without a key. `whole`: each reading is of one moment, and batches are visible as a whole."""
    wanted = Counter(w.row for w in committed if w.row is not None)
    places = {w.row: w for w in committed if w.row is not None and wanted[w.row] == 1}
    order = _numbered(committed)
    there: Counter[bytes] = Counter()
    held: Counter[str] = Counter()  # by partition, how many records
    last: dict[str, Written] = {}  # by partition, the last of them
    torn: set[str] = set()
    judged = whole and len(places) == sum(wanted.values())
    found = _Found()
    for number, (came, went) in enumerate(watch.readings, 1):
        for row in went:
            found.wrong(f"reading {number} no longer has {_short(row)}, which an earlier one had")
        there.update(came)
        there.subtract(went)
        for row, count in came.items():
            if not wanted[row]:
                found.wrong(f"reading {number} has {_short(row)}, which was never committed")
            elif there[row] > wanted[row]:
                found.repeated(
                    count, f"reading {number} has {_short(row)} {there[row]} times, committed: {wanted[row]}"
                )
            elif (one := places.get(row)) is not None:
                held[one.partition] += 1
                if one.partition not in last or one.offset > last[one.partition].offset:
                    last[one.partition] = one
        for partition, one in last.items() if judged and not went else ():
            missing = order[one.partition, one.offset] + 1 - held[partition]
            if missing > 0 and partition not in torn:
                torn.add(partition)  # told once: what follows sees the same gap
                found.wrong(f"reading {number} has the record {one.where}, and {missing} before it are not there")
    return found.output(name, len(watch.readings))


def keyed(
    name: str, watch: Watch, committed: Sequence[Written], key_of: Callable[[bytes], bytes], *, whole: bool
) -> Output:
    """Rows that a later one of the same key replaces."""
    history: dict[bytes, list[Written]] = {}
    for one in committed:
        history.setdefault(one.key, []).append(one)
    # A key that is not there may not have been written yet, or be deleted already: it tells no place in the history.
    clear = {key for key, those in history.items() if len({w.row for w in those} | {None}) == len(those) + 1}
    stands: dict[bytes, int] = dict.fromkeys(history, -1)  # index into the key's history; -1: not written yet
    torn: set[str] = set()
    found = _Found()
    for number, (came, went) in enumerate(watch.readings, 1):
        changed: dict[bytes, bytes | None] = {key_of(row): None for row in went}
        for row, count in came.items():
            key = key_of(row)
            if count > 1 or changed.get(key) is not None:
                found.repeated(1, f"reading {number} has two rows of the key {_short(key)}")
            changed[key] = row
        for key, now in changed.items():
            those, at = history.get(key, []), stands.get(key, -1)
            after = next((n for n in range(at + 1, len(those)) if those[n].row == now), None)
            if after is not None:
                stands[key] = after
                continue
            before = next((w for w in those[: at + 1] if w.row == now), None)
            told = "gone" if now is None else _short(now)
            if now is None and before is None:
                found.wrong(f"at reading {number} the row of {_short(key)} is gone, and no committed record deletes it")
            elif before is None:
                found.wrong(f"reading {number} has {told}, which was never committed")
            else:
                stood = those[at].where
                found.wrong(f"at reading {number} {_short(key)} is {told} again, of {before.where}, after {stood}")
        if whole:
            for partition, told in _half(history, clear, stands):
                if partition not in torn:
                    torn.add(partition)
                    found.wrong(f"reading {number} {told}")
    return found.output(name, len(watch.readings))


def _half(
    history: Mapping[bytes, Sequence[Written]], clear: set[bytes], stands: Mapping[bytes, int]
) -> list[tuple[str, str]]:
    """The partitions of which no prefix is what was seen: one key is past a record that another has not seen."""
    latest: dict[str, Written] = {}
    earliest_missing: dict[str, Written] = {}
    for key in clear:
        those, at = history[key], stands[key]
        if at >= 0 and (those[at].partition not in latest or those[at].offset > latest[those[at].partition].offset):
            latest[those[at].partition] = those[at]
        if at + 1 < len(those):
            following = those[at + 1]
            known = earliest_missing.get(following.partition)
            if known is None or following.offset < known.offset:
                earliest_missing[following.partition] = following
    return [
        (partition, f"has the record {latest[partition].where}, and not yet {missing.where}, which comes before it")
        for partition, missing in earliest_missing.items()
        if partition in latest and missing.offset < latest[partition].offset
    ]


class _Found:
    def __init__(self) -> None:
        self._repeated = self._wrong = 0
        self._examples: list[str] = []

    def wrong(self, example: str) -> None:
        self._wrong += 1
        self._examples.append(example)

    def repeated(self, count: int, example: str) -> None:
        self._repeated += count
        self._examples.append(example)

    def output(self, name: str, readings: int) -> Output:
        return Output(
            f"{name}, read meanwhile", KIND, readings, readings, 0, self._repeated, self._wrong,
            tuple(self._examples[:3]),
        )  # fmt: skip


def _numbered(committed: Sequence[Written]) -> dict[tuple[str, int], int]:
    """How many rows come before each record in its partition."""
    counts: Counter[str] = Counter()
    found = {}
    for one in sorted(committed, key=lambda w: (w.partition, w.offset)):
        if one.row is not None:
            found[one.partition, one.offset] = counts[one.partition]
            counts[one.partition] += 1
    return found


def _short(data: bytes, limit: int = 80) -> str:
    text = data.decode(errors="replace")
    return text if len(text) <= limit else text[:limit] + "…"
