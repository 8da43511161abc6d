"""What it costs to read appended rows once each, and to take the repeats out: `python -m bench.dedup [ROWS]`.

Per system: a count over the table as it is, the same through the view, and the batch step; medians of turns that
alternate, as ratios to the plain count. A tenth of the rows are repeats, in an order of chance.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import psycopg
import pyarrow as pa
from pyarrow import parquet

from semel.host.postgres import PostgresServer
from semel.sinks import dedup, dedup_duckdb, dedup_parquet, dedup_postgres
from semel.sinks.dedup import EVENT, SqlDialect, event_id

TURNS = 5
FILES = 20
QUERY = "SELECT count(*), sum(amount) FROM {}"


def rows(count: int) -> list[tuple[str, int, str]]:
    dice = random.Random(1)
    events = [(event_id("shop", "orders", 1, n % 4, n), n, f"customer-{n % 9973}") for n in range(count * 10 // 11)]
    events += dice.choices(events, k=count - len(events))
    dice.shuffle(events)
    return events


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def turns(*acts: Callable[[], object]) -> list[float]:
    """The median seconds of each, in turns."""
    found = [[timed(act) for act in acts] for _ in range(TURNS)]
    return [statistics.median(column) for column in zip(*found, strict=True)]


def show(system: str, count: int, plain: float, others: dict[str, float]) -> None:
    print(f"{system}: {count:,} rows, a plain count {plain * 1000:,.0f} ms")
    for name, seconds in others.items():
        print(f"  {name:<44} {seconds * 1000:>8,.0f} ms  {seconds / plain:>6.1f} x  {count / seconds:>12,.0f} rows/s")


def postgres(folder: Path, given: list[tuple[str, int, str]]) -> None:
    with PostgresServer(folder / "postgres") as server:
        with psycopg.connect(server.dsn, autocommit=True) as client:
            client.execute(f'CREATE TABLE events ({EVENT} text COLLATE "C" NOT NULL, amount bigint, customer text)')
            with client.cursor() as cursor, cursor.copy("COPY events FROM STDIN") as copy:
                for row in given:
                    copy.write_row(row)
            client.execute("VACUUM ANALYZE events")
            client.execute(dedup.view(SqlDialect.POSTGRES, ("events",), [EVENT, "amount", "customer"]))  # type: ignore[arg-type]

            def query(of: str) -> Callable[[], object]:
                return lambda: client.execute(QUERY.format(of)).fetchone()  # type: ignore[arg-type]

            plain, view = turns(query("events"), query("events_once"))
            client.execute(f"CREATE INDEX ON events ({EVENT})")
            client.execute("VACUUM ANALYZE events")
            (indexed,) = turns(query("events_once"))
            one = f"SELECT * FROM events_once WHERE {EVENT} = '{given[0][0]}'"
            (point,) = turns(lambda: client.execute(one).fetchone())  # type: ignore[arg-type]
            client.execute(f"DROP INDEX events_{EVENT}_idx")
        step = timed(lambda: dedup_postgres.deduplicate(server.dsn, ("events",)))
        again = timed(lambda: dedup_postgres.deduplicate(server.dsn, ("events",)))
        found = {"through the view": view, "through the view, an index on the id": indexed}
        found |= {"one event through the view, with the index": point}
        show("Postgres", len(given), plain, found | {"semel dedup run": step, "… again, nothing to remove": again})


def duck(folder: Path, given: list[tuple[str, int, str]]) -> None:
    file = folder / "events.duckdb"
    with duckdb.connect(str(file)) as client:
        table = pa.table(dict(zip((EVENT, "amount", "customer"), map(list, zip(*given, strict=True)), strict=True)))
        client.register("given", table)
        client.execute("CREATE TABLE events AS SELECT * FROM given")
        client.execute(dedup.view(SqlDialect.DUCKDB, ("events",), None))
        plain, view = turns(
            lambda: client.execute(QUERY.format("events")).fetchone(),
            lambda: client.execute(QUERY.format("events_once")).fetchone(),
        )
    step = timed(lambda: dedup_duckdb.deduplicate(file, ("events",)))
    again = timed(lambda: dedup_duckdb.deduplicate(file, ("events",)))
    found = {"through the view": view, "semel dedup run": step, "… again, nothing to remove": again}
    show("DuckDB", len(given), plain, found)


def files(folder: Path, given: list[tuple[str, int, str]]) -> None:
    place = folder / "files"
    place.mkdir()
    size = -(-len(given) // FILES)
    for n in range(FILES):
        columns = map(list, zip(*given[n * size : (n + 1) * size], strict=True))
        table = pa.table(dict(zip((EVENT, "amount", "customer"), columns, strict=True)))
        parquet.write_table(table, place / f"{n:03}.parquet", compression="ZSTD")

    def whole() -> object:
        return sum(parquet.read_table(file, columns=["amount"]).num_rows for file in place.glob("*.parquet"))

    (plain,) = turns(whole)
    step = timed(lambda: dedup_parquet.deduplicate(place))
    again = timed(lambda: dedup_parquet.deduplicate(place))
    show(f"Parquet, {FILES} files", len(given), plain, {"semel dedup run": step, "… again, nothing to remove": again})


def main(count: int) -> None:
    given = rows(count)
    with tempfile.TemporaryDirectory(prefix="semel-bench-") as folder:
        for of in (postgres, duck, files):
            of(Path(folder), given)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
