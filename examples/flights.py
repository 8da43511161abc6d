"""Per carrier and day: flights, cancelled, minutes of delay, the worst one. And an alert per flight two hours late.

    python examples/load_flights.py kafka://127.0.0.1:9092
    semel run examples/flights.py --on kafka://127.0.0.1:9092

Totals go to the topic `totals` and to a table in Postgres; alerts are plainly inserted into SQLite, where only semel's
position beside the rows keeps them from coming twice. The same file runs on `embedded:DIR`, `semel broker` and Kafka.
"""

from __future__ import annotations

import os

from msgspec import Struct

from semel import App, Builder, Topic
from semel.sinks import Postgres, SQLite

LATE_MIN = 120


class Flight(Struct, frozen=True):
    year: int
    month: int
    day: int
    carrier: str
    flight: int
    origin: str
    dest: str
    dep_delay: int | None  # minutes; None: cancelled
    tailnum: str | None = None


class Tally(Struct, frozen=True):
    """What is kept per carrier and day. The mean is delay / (flights - cancelled), divided by who reads it."""

    flights: int = 0
    cancelled: int = 0
    delay: int = 0
    worst: int = 0


class Total(Struct, frozen=True):
    carrier: str
    day: str
    flights: int
    cancelled: int
    delay: int
    worst: int


class Alert(Struct, frozen=True):
    day: str
    carrier: str
    flight: int
    origin: str
    dest: str
    delay: int


def date(f: Flight) -> str:
    return f"{f.year}-{f.month:02}-{f.day:02}"


def carrier_day(f: Flight) -> str:
    return f"{f.carrier} {date(f)}"


def add(t: Tally, f: Flight) -> Tally:
    if f.dep_delay is None:
        return Tally(t.flights + 1, t.cancelled + 1, t.delay, t.worst)
    return Tally(t.flights + 1, t.cancelled, t.delay + f.dep_delay, max(t.worst, f.dep_delay))


def total(key: str, t: Tally) -> Total:
    carrier, day = key.split(" ")
    return Total(carrier, day, t.flights, t.cancelled, t.delay, t.worst)


def late(f: Flight) -> bool:
    return f.dep_delay is not None and f.dep_delay > LATE_MIN


def alert(f: Flight) -> Alert:
    return Alert(date(f), f.carrier, f.flight, f.origin, f.dest, f.dep_delay or 0)


flights = Topic("flights", key=str, value=Flight)
totals = Topic("totals", key=str, value=Total)
totals_table = Postgres(
    os.environ.get("FLIGHTS_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres"),
    os.environ.get("FLIGHTS_TABLE", "totals"),
    key=("carrier", "day"),
)
alerts_table = SQLite(os.environ.get("FLIGHTS_SQLITE", "alerts.db"), "alerts")


def delays(b: Builder) -> None:
    read = b.read(flights)
    per_day = read.key_by(carrier_day).fold(Tally(), add, name="days").changes().map(total)
    per_day.write(totals)
    per_day.write(totals_table)
    read.filter(late).map_values(alert).write(alerts_table)


def some_flights() -> dict[Topic[str, Flight], list[tuple[str, Flight]]]:
    """Input for `semel verify`: small, with late and cancelled flights in it."""
    return {flights: [(f.carrier, f) for f in map(some_flight, range(20_000))]}


def some_flight(n: int) -> Flight:
    carrier = ("AA", "B6", "DL", "EV", "UA", "WN")[n * 7919 % 6]
    delay = None if n % 41 == 0 else n * 37 % 190 - 20
    return Flight(2013, 1 + n % 3, 1 + n % 7, carrier, n, ("EWR", "JFK", "LGA")[n % 3], "BOS", delay)


app = App("flights", delays, sample=some_flights)

if __name__ == "__main__":
    app.run(os.environ.get("FLIGHTS_LOG", "embedded:./data"))
