"""Where each plane was last seen: a table whose key is not the stream's key.

The stream is keyed by destination, the table by plane, so writes of one row come out of many partitions. The outbox in
front of the table is partitioned by the table's key: all writes of one plane lie in one partition, in one order, and
the last of them wins. Partitioned by the stream's key, an older one could come last and stay (FAULTS S15).
"""

from __future__ import annotations

import os

from msgspec import Struct

from semel import App, Builder, Topic
from semel.sinks import SQLite


class Flight(Struct, frozen=True):
    year: int
    month: int
    day: int
    carrier: str
    flight: int
    dest: str
    tailnum: str | None


class Seen(Struct, frozen=True):
    plane: str
    at: str
    visits: int  # of all planes to this place, up to and with this one
    day: str
    flight: int


class Place(Struct, frozen=True):
    visits: int = 0
    last: Flight | None = None


def destination(f: Flight) -> str:
    return f.dest


def arrive(place: Place, f: Flight) -> Place:
    return Place(place.visits + 1, f)


def seen(dest: str, place: Place) -> list[Seen]:
    f = place.last
    if f is None or f.tailnum is None:
        return []
    return [Seen(f.tailnum, dest, place.visits, f"{f.year}-{f.month:02}-{f.day:02}", f.flight)]


flights = Topic("flights", key=str, value=Flight)
planes = SQLite(os.environ.get("LATEST_SQLITE", "planes.db"), "planes", key="plane")


def latest(b: Builder) -> None:
    b.read(flights).key_by(destination).fold(Place(), arrive, name="places").changes().flat_map(seen).write(planes)


def some_flights() -> dict[Topic[str, Flight], list[tuple[str, Flight]]]:
    """Input for `semel verify`: few planes, many places, so that each plane's row is written from every partition."""
    return {flights: [(f.carrier, f) for f in map(some_flight, range(20_000))]}


def some_flight(n: int) -> Flight:
    carrier = ("AA", "B6", "DL", "EV", "UA", "WN")[n * 7919 % 6]
    place = ("ATL", "BOS", "CLT", "DCA", "DFW", "LAX", "MIA", "ORD", "PHL", "SEA", "SFO")[n * 31 % 11]
    return Flight(2013, 1 + n % 12, 1 + n % 28, carrier, n, place, f"N{n * 17 % 40:03}")


app = App("latest", latest, sample=some_flights)

if __name__ == "__main__":
    app.run(os.environ.get("LATEST_LOG", "embedded:./data"))
