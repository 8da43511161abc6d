"""Input against output. Pure: what was read at the end goes in, the lines of the table come out.

Counted in units of the output. *lost*: expected and not there; *repeated*: there more often than expected; *wrong*:
there, and nothing that this input could have made. A flight counted twice inside a total does not repeat a row: it
makes the row wrong, and `counted` says by how many flights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from examples.demo.data import Alert, Day, Expected, Total


@dataclass(frozen=True, slots=True)
class Line:
    mode: str
    output: str
    compared: str  # how: "every update", "last value per key", "multiset"
    input: int
    expected: int
    present: int
    lost: int
    repeated: int
    wrong: int
    counted: int | None = None  # flights counted by the totals, minus flights put in

    @property
    def clean(self) -> bool:
        return self.expected == self.present and not (self.lost or self.repeated or self.wrong or self.counted)

    def as_json(self) -> dict[str, str | int | None]:
        return asdict(self)


def topic(mode: str, expected: Expected, records: Iterable[tuple[Day, Total]]) -> Line:
    """The totals' topic, read committed, in order. Each record must be the fold of a prefix of its day's flights, no
    prefix may come again after it, and the last one must be the whole day."""
    repeated = 0
    last: dict[Day, Total] = {}
    furthest: dict[Day, int] = {}
    wrong: set[Day] = set()
    for day, total in records:
        last[day] = total
        prefixes = expected.prefixes.get(day, [])
        if not 0 < total.flights <= len(prefixes) or prefixes[total.flights - 1] != total:
            wrong.add(day)
        elif total.flights <= furthest.get(day, 0):
            repeated += 1
        else:
            furthest[day] = total.flights
    wrong |= {day for day, total in last.items() if [total] != expected.prefixes.get(day, [])[-1:]}
    return Line(
        mode=mode,
        output="topic totals",
        compared="last per key, prefix folds",
        input=expected.flights,
        expected=len(expected.prefixes),
        present=len(last),
        lost=sum(day not in last for day in expected.prefixes),
        repeated=repeated,
        wrong=len(wrong),
        counted=sum(total.flights for total in last.values()) - expected.flights,
    )


def table(mode: str, expected: Expected, rows: Mapping[Day, Total], present: int) -> Line:
    """The totals' table, a row per carrier and day; `present` counts the rows before they became a mapping."""
    return Line(
        mode=mode,
        output="Postgres totals",
        compared="row per key",
        input=expected.flights,
        expected=len(expected.prefixes),
        present=present,
        lost=sum(day not in rows for day in expected.prefixes),
        repeated=present - len(rows),
        wrong=sum([total] != expected.prefixes.get(day, [])[-1:] for day, total in rows.items()),
        counted=sum(total.flights for total in rows.values()) - expected.flights,
    )


def alerts(mode: str, expected: Expected, rows: Iterable[Alert]) -> Line:
    """The alerts' table, rows without a key: a multiset."""
    held = Counter(rows)
    return Line(
        mode=mode,
        output="SQLite alerts",
        compared="multiset",
        input=expected.flights,
        expected=expected.alerts.total(),
        present=held.total(),
        lost=(expected.alerts - held).total(),
        repeated=sum(n - expected.alerts[alert] for alert, n in held.items() if n > expected.alerts[alert] > 0),
        wrong=sum(n for alert, n in held.items() if alert not in expected.alerts),
    )


def verdict(lines: Iterable[Line]) -> list[str]:
    """What is not as told, in sentences: none when exactly-once is clean and the other two show what they cost."""
    by_mode: dict[str, list[Line]] = {}
    for line in lines:
        by_mode.setdefault(line.mode, []).append(line)
    complaints = [
        f"exactly-once: {line.output}: {line.present:,} of {line.expected:,}, {line.lost:,} lost, "
        f"{line.repeated:,} repeated, {line.wrong:,} wrong"
        for line in by_mode.get("exactly-once", [])
        if not line.clean
    ]
    if len(by_mode.get("exactly-once", [])) != 3:
        complaints.append("exactly-once: an output was not reckoned")
    if not any(line.lost for line in by_mode.get("at-most-once", []) if line.compared == "multiset"):
        complaints.append("at-most-once lost no alert: the kills proved nothing there")
    if not any(line.repeated for line in by_mode.get("at-least-once", []) if line.compared == "multiset"):
        complaints.append("at-least-once repeated no alert: the kills proved nothing there")
    for mode in ("at-most-once", "at-least-once"):
        if not any(line.wrong for line in by_mode.get(mode, [])):
            complaints.append(f"{mode}: every total is right: the kills proved nothing there")
    return complaints
