"""The batch step keeps one row per event id, on Postgres, DuckDB and Parquet: whenever it is ended, however often it is
run, whatever is appended meanwhile."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pyarrow as pa
import pytest
from pyarrow import parquet

from semel.host.postgres import PostgresServer
from semel.sinks import dedup, dedup_duckdb, dedup_parquet, dedup_postgres
from semel.sinks.dedup import EVENT, Removed
from semel.sinks.sink import SinkError
from tests.sinks.conftest import database

Rows = list[tuple[str, int]]  # (event id, a value)
At = Callable[[str], None]


@dataclass
class Store:
    """One place of rows with event ids, and its step."""

    append: Callable[[Iterable[tuple[Any, Any]]], None]
    read: Callable[[], Rows]
    run: Callable[[At], Removed]
    stages: tuple[str, ...]

    def again(self) -> Removed:
        return self.run(dedup.no_at)


def on_postgres(dsn: str) -> Store:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            f"CREATE TABLE events (n bigint, arrived timestamptz DEFAULT clock_timestamp(), {EVENT} text)"
        )

    def append(rows: Iterable[tuple[Any, Any]]) -> None:
        with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
            cursor.executemany(f"INSERT INTO events ({EVENT}, n) VALUES (%s, %s)", list(rows))

    def read() -> Rows:
        with psycopg.connect(dsn) as connection:
            return connection.execute(f"SELECT {EVENT}, n FROM events").fetchall()  # type: ignore[arg-type]

    stages = ("chosen", "deleted", "committed")
    return Store(append, read, lambda at: dedup_postgres.deduplicate(dsn, ("events",), at=at), stages)


def on_duckdb(folder: Path) -> Store:
    """Its step runs within one process; the others append by connections of the same one."""
    main = duckdb.connect(str(folder / "events.duckdb"))
    main.execute(f"CREATE TABLE events (n bigint, arrived timestamptz DEFAULT now(), {EVENT} varchar)")

    def append(rows: Iterable[tuple[Any, Any]]) -> None:
        with main.cursor() as cursor:
            cursor.executemany(f"INSERT INTO events ({EVENT}, n) VALUES (?, ?)", [list(row) for row in rows])

    def read() -> Rows:
        with main.cursor() as cursor:
            return cursor.execute(f"SELECT {EVENT}, n FROM events").fetchall()

    def run(at: At) -> Removed:
        with main.cursor() as cursor:
            return dedup_duckdb.within(cursor, "DuckDB table events", ("events",), (EVENT,), (), at)

    return Store(append, read, run, ("chosen", "deleted", "committed"))


def on_parquet(folder: Path) -> Store:
    files = iter(random.Random(1).sample(range(10_000), 1_000))  # their names are in no order

    def append(rows: Iterable[tuple[Any, Any]]) -> None:
        rows = list(rows)
        for start in range(0, len(rows), 40):
            part = rows[start : start + 40]
            table = pa.table({EVENT: [id for id, _ in part], "n": [n for _, n in part]})
            place = folder / f"day={start % 3}"
            place.mkdir(exist_ok=True)
            parquet.write_table(table, place / f"part-{next(files):04}.parquet", compression="ZSTD")

    def read() -> Rows:
        found = [parquet.read_table(file, partitioning=None) for file in sorted(folder.glob("*/[!.]*.parquet"))]
        return [(row[EVENT], row["n"]) for table in found for row in table.to_pylist()]

    stages = ("chosen", "written", "replaced")
    return Store(append, read, lambda at: dedup_parquet.deduplicate(folder, at=at), stages)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("dedup")) as server:
        yield server
        server.kill()


@pytest.fixture(params=["postgres", "duckdb", "parquet"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("server")
        return on_postgres(database(server))
    return on_duckdb(tmp_path) if request.param == "duckdb" else on_parquet(tmp_path)


def events(start: int, end: int) -> Rows:
    return [(f"app/sink/1/{n % 4}/{n}", n) for n in range(start, end)]


def repeated(rows: Rows, seed: int = 7) -> Rows:
    """Some of them twice or more, in another order."""
    dice = random.Random(seed)
    found = [*rows, *dice.choices(rows, k=len(rows) // 2)]
    dice.shuffle(found)
    return found


def once(store: Store, rows: Rows) -> None:
    """The check that everything here rests on: each event is there, and once."""
    found, wanted = Counter(store.read()), Counter(rows)
    assert not wanted - found, f"lost: {sorted((wanted - found).elements())[:5]}"
    assert not found - wanted, f"more than once: {sorted((found - wanted).elements())[:5]}"


class Ended(Exception):
    """Stands for the end of a process; tests/servers/test_dedup_kills.py ends real ones."""


def ending(stage: str, nth: int = 1) -> At:
    left = [nth]

    def at(reached: str) -> None:
        left[0] -= reached == stage
        if reached == stage and left[0] == 0:
            raise Ended(stage)

    return at


def test_one_row_per_event_stays(store: Store) -> None:
    """It says how many there were; run again it finds nothing; a row without an id is nobody's repeat."""
    store.append(repeated(events(0, 200)))
    store.append([(None, 1), (None, 1)])
    done = store.again()
    assert (done.rows, done.removed, done.left) == (302, 100, 202)
    assert store.again() == Removed(202, 0)
    once(store, [*events(0, 200), (None, 1), (None, 1)])  # type: ignore[list-item]


def test_it_can_be_ended_at_any_moment(store: Store) -> None:
    """At each stage, twice; what is there then holds each event at least once, and the next run finishes."""
    rows = events(0, 120)
    store.append(repeated(rows))
    for stage in store.stages * 2:
        store.append(repeated(rows[:40], seed=len(stage)))
        with pytest.raises(Ended):
            store.run(ending(stage, nth=2 if stage in ("written", "replaced") else 1))
        assert set(store.read()) == set(rows)
    store.again()
    once(store, rows)


def appended_meanwhile(store: Store) -> None:
    """New events and repeats come at every stage of a run; after another run each is there, once."""
    rows = events(0, 100)
    store.append(repeated(rows))

    def at(stage: str) -> None:
        if len(rows) < 400:
            more = events(len(rows), len(rows) + 30)
            rows.extend(more)
            store.append([*more, *rows[:20]])

    store.run(at)
    assert set(store.read()) == set(rows), f"lost: {sorted(set(rows) - set(store.read()))[:5]}"
    store.again()
    once(store, rows)


def test_what_is_appended_meanwhile_stays(store: Store) -> None:
    appended_meanwhile(store)


def test_rows_of_one_id_that_differ_are_refused(store: Store) -> None:
    """They are no repeats: one of them would be lost. Columns that fill themselves are not compared."""
    store.append([*events(0, 50), ("app/sink/1/0/8", 9)])
    with pytest.raises(SinkError, match=r"differ in other columns \(app/sink/1/0/8\).*Nothing was removed"):
        store.again()
    assert len(store.read()) == 51


# --- planted: steps that lose what comes meanwhile --------------------------------------------------------------------


def _swapping_postgres(dsn: str) -> Callable[[At], Removed]:
    """What people write: a table without repeats, put in the place of the one with."""

    def run(at: At) -> Removed:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS fresh")
            connection.execute(f"CREATE TABLE fresh AS SELECT DISTINCT ON ({EVENT}) * FROM events")
            at("chosen")
            connection.execute("BEGIN; DROP TABLE events; ALTER TABLE fresh RENAME TO events; COMMIT")
        return Removed(0, 0)

    return run


def _swapping_duckdb(folder: Path) -> Callable[[At], Removed]:
    def run(at: At) -> Removed:
        with duckdb.connect(str(folder / "events.duckdb")) as connection:
            connection.execute(f"CREATE OR REPLACE TABLE fresh AS SELECT DISTINCT ON ({EVENT}) * FROM events")
            at("chosen")
            connection.execute("DROP TABLE events; ALTER TABLE fresh RENAME TO events")
        return Removed(0, 0)

    return run


def _one_file(folder: Path) -> Callable[[At], Removed]:
    """All that is there into one file, then everything else is removed."""

    def run(at: At) -> Removed:
        seen: dict[str, int] = {}
        for file in folder.glob("*/*.parquet"):
            seen.update((row[EVENT], row["n"]) for row in parquet.read_table(file, partitioning=None).to_pylist())
        at("chosen")
        for file in folder.glob("*/*.parquet"):
            file.unlink()
        parquet.write_table(pa.table({EVENT: list(seen), "n": list(seen.values())}), folder / "day=0" / "all.parquet")
        return Removed(0, 0)

    return run


def test_a_step_that_loses_concurrent_appends_is_found(server: PostgresServer, tmp_path: Path) -> None:
    """On each of the three; without anything meanwhile they are right, which is why they are written."""
    dsn = database(server)
    for made, bad in (
        (on_postgres(dsn), _swapping_postgres(dsn)),
        (on_duckdb(tmp_path), _swapping_duckdb(tmp_path)),
        (on_parquet(tmp_path), _one_file(tmp_path)),
    ):
        made.append(repeated(events(0, 50)))
        made.run = bad
        made.again()
        once(made, events(0, 50))
        with pytest.raises(AssertionError, match="lost"):
            appended_meanwhile(made)


def test_a_step_that_forgets_who_stays_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the file that holds the first row is written anew without it, when the step is ended in between."""
    store = on_parquet(tmp_path)
    store.append(repeated(events(0, 120)))
    monkeypatch.setattr(dedup_parquet.pc, "not_equal", lambda row, first: pa.array([True] * len(row)))
    with pytest.raises(AssertionError, match="lost"):
        store.again()
        once(store, events(0, 120))


# --- what is particular to one ----------------------------------------------------------------------------------------


def test_two_runs_at_once_are_told_apart(store: Store) -> None:
    """The second one says that another is at work (or, in one DuckDB, loses the race and changes nothing)."""
    store.append(repeated(events(0, 60)))
    second: list[Exception] = []

    def at(stage: str) -> None:
        if stage == "chosen" and not second:
            try:
                store.again()
                second.append(Ended())
            except (SinkError, duckdb.Error) as why:
                second.append(why)

    with contextlib.suppress(duckdb.Error):
        store.run(at)
    store.again()
    once(store, events(0, 60))
    assert second


def test_files_that_are_being_written_are_left_alone(tmp_path: Path) -> None:
    """One without a footer, hidden ones, and what a run that was ended left behind, which goes."""
    store = on_parquet(tmp_path)
    store.append(repeated(events(0, 60)))
    (tmp_path / "day=0" / "half.parquet").write_bytes(b"PAR1 and not yet more")
    (tmp_path / "day=0" / "_temporary.parquet").write_bytes(b"x")
    left = tmp_path / "day=0" / f".part.parquet{dedup_parquet.BESIDE}"
    left.write_bytes(b"x")
    done = dedup_parquet.deduplicate(tmp_path)
    assert done.removed == 30 and len(done.notes) == 1 and "half.parquet was left alone" in done.notes[0]
    assert not left.exists() and (tmp_path / "day=0" / "half.parquet").read_bytes() == b"PAR1 and not yet more"


def test_a_file_that_was_changed_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """It is no longer the one that was read."""
    store = on_parquet(tmp_path)
    store.append([*events(0, 10), *events(0, 10)])
    (file,) = tmp_path.glob("*/*.parquet")

    def at(stage: str) -> None:
        if stage == "written":
            parquet.write_table(pa.table({EVENT: ["new"], "n": [1]}), file)

    done = dedup_parquet.deduplicate(tmp_path, at=at)
    assert done.removed == 0 and "changed it meanwhile" in done.notes[0]
    assert store.read() == [("new", 1)]


def test_a_file_keeps_its_form_and_columns_that_others_lack(tmp_path: Path) -> None:
    """Compression, types and metadata; a column that came later is NULL in older files, also to the comparison."""
    old = pa.table({EVENT: ["a", "b"], "n": [1, 2]})
    new = pa.table({EVENT: ["b", "c", "c"], "n": [2, 3, 3], "more": pa.array([None, "x", "x"], pa.string())})
    parquet.write_table(old, tmp_path / "1.parquet")
    parquet.write_table(new.replace_schema_metadata({"who": "me"}), tmp_path / "2.parquet", compression="GZIP")
    assert dedup_parquet.deduplicate(tmp_path).removed == 2
    found = parquet.ParquetFile(tmp_path / "2.parquet")
    assert found.read().to_pylist() == [{EVENT: "c", "n": 3, "more": "x"}]
    assert found.metadata.row_group(0).column(0).compression == "GZIP"
    assert found.schema_arrow.metadata[b"who"] == b"me"


def test_ignored_columns_may_differ(tmp_path: Path) -> None:
    """When a row arrived is another time in each repeat."""
    parquet.write_table(pa.table({"id": [1, 1], "k": ["x", "x"], "at": [10, 20]}), tmp_path / "1.parquet")
    with pytest.raises(SinkError, match=r"differ .*--ignore COLUMN"):
        dedup_parquet.deduplicate(tmp_path, ids=("id", "k"))
    assert dedup_parquet.deduplicate(tmp_path, ids=("id", "k"), ignore=("at",)).removed == 1


def test_what_cannot_be_is_said(server: PostgresServer, tmp_path: Path) -> None:
    """No table, no column, no file: each by name, and never a password."""
    dsn = database(server)
    on_postgres(dsn)
    for run, says in (
        (lambda: dedup_postgres.deduplicate(dsn, ("none",)), "there is no such table"),
        (lambda: dedup_postgres.deduplicate(dsn, ("events",), ids=("id",)), "no column 'id'"),
        (lambda: dedup_postgres.deduplicate("postgresql://me:s3cret@127.0.0.1:1/d", ("t",)), "127.0.0.1:1/d: "),
        (lambda: dedup_duckdb.deduplicate(tmp_path / "none", ("t",)), "no such file"),
        (lambda: dedup_parquet.deduplicate(tmp_path / "none"), "no such folder"),
    ):
        with pytest.raises(SinkError, match=says) as refused:
            run()
        assert "s3cret" not in str(refused.value)
