"""DuckDB, Delta Lake and Iceberg as subjects of the contract kit. `make` functions stand at module level: processes
that are killed import them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
from deltalake import DeltaTable

from semel.ports import SinkConnection
from semel.sinks import DeltaLake, DuckDB
from semel.testing.contracts import Subject, lost_at_the_call, over_the_wire
from tests.sinks.subjects import S3_BUCKET, s3_options

Commit = Callable[[], Any]


def arm(connection: SinkConnection, instead: Callable[[Commit], Any]) -> None:
    """The next commit is done by `instead`; the ones after it as ever."""
    held: Any = connection
    real = held._commit

    def once(*words: Any, **more: Any) -> Any:
        held._commit = real
        return instead(lambda: real(*words, **more))

    held._commit = once


# --- DuckDB ----------------------------------------------------------------------------------------------------------


def duckdb_keyed(address: str, suffix: str) -> DuckDB:
    return DuckDB(address, "entries", key="id").renamed(suffix)


def duckdb_appended(address: str, suffix: str) -> DuckDB:
    return DuckDB(address, "entries").renamed(suffix)


def query(address: str, statement: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(address) as connection:
        return connection.execute(statement).fetchall()


def read_duckdb(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    return [(row[0], row[1]) for row in query(address, f'SELECT id, n FROM "entries{suffix}"')]


def left_in_duckdb(address: str, suffix: str) -> Sequence[str]:
    """Tables that were not dropped; temporary files beside the database."""
    tables = query(address, f"SELECT table_name FROM duckdb_tables() WHERE table_name LIKE '%{suffix}'")
    return [str(row[0]) for row in tables] + [str(file) for file in Path(address).parent.glob("*.tmp")]


def duckdb_subject(make: Callable[[str, str], Any], folder: Path) -> Subject:
    address = str(folder / "kit.duckdb")

    def crash() -> None:
        """What a kill leaves: the file as it is, its log not folded in. (A copy of both, put in their place.)"""
        with duckdb.connect(address) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS beside (x INTEGER); INSERT INTO beside VALUES (1)")
            copied = {end: Path(address + end).read_bytes() for end in ("", ".wal")}
        for end, content in copied.items():
            Path(address + end).write_bytes(content)

    return Subject(
        make=make,
        address=address,
        read=read_duckdb,
        orphans=left_in_duckdb,
        loses=lambda: lost_at_the_call(address, arm, lambda: duckdb.IOException("IO Error: Could not write")),
        crash=crash,
    )


# --- Delta Lake ------------------------------------------------------------------------------------------------------


def delta_keyed(address: str, suffix: str) -> DeltaLake:
    return DeltaLake(address, key="id", name="entries", seconds=0).renamed(suffix)


def delta_appended(address: str, suffix: str) -> DeltaLake:
    return DeltaLake(address, name="entries", seconds=0).renamed(suffix)


def read_delta(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    return [(row["id"], row["n"]) for row in DeltaTable(address + suffix).to_pyarrow_table().to_pylist()]


def left_in_folder(address: str, suffix: str) -> Sequence[str]:
    return [str(file) for file in Path(address + suffix).rglob("*")]


def delta_subject(make: Callable[[str, str], Any], folder: Path) -> Subject:
    address = str(folder / "kit")
    return Subject(
        make=make,
        address=address,
        read=read_delta,
        orphans=left_in_folder,
        loses=lambda: lost_at_the_call(address, arm, lambda: OSError("Generic LocalFileSystem error")),
        hand_over_s=2.0,
    )


S3_DELTA = f"s3://{S3_BUCKET}/delta"


def delta_options(address: str) -> dict[str, str]:
    return {**s3_options(address), "allow_http": "true"}


def delta_s3_keyed(address: str, suffix: str) -> DeltaLake:
    """`address` is the server's endpoint."""
    url = f"{S3_DELTA}/kit"
    return DeltaLake(url, key="id", name="entries", seconds=0, options=s3_options(address)).renamed(suffix)


def delta_s3_appended(address: str, suffix: str) -> DeltaLake:
    return DeltaLake(f"{S3_DELTA}/kit", name="entries", seconds=0, options=s3_options(address)).renamed(suffix)


def read_delta_s3(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    table = DeltaTable(f"{S3_DELTA}/kit{suffix}", storage_options=delta_options(address))
    return [(row["id"], row["n"]) for row in table.to_pyarrow_table().to_pylist()]


def left_in_delta_s3(address: str, suffix: str) -> Sequence[str]:
    import obstore

    from tests.sinks.subjects import _bucket

    return [one["path"] for chunk in obstore.list(_bucket(address), prefix=f"delta/kit{suffix}") for one in chunk]


def delta_s3_subject(make: Callable[[str, str], Any], port: int, crash: Callable[[], None]) -> Subject:
    def at(port: int) -> str:
        return f"http://127.0.0.1:{port}"

    return Subject(
        make=make,
        address=at(port),
        read=read_delta_s3,
        orphans=left_in_delta_s3,
        loses=lambda: over_the_wire(port, b"_delta_log/0000000000000000000", at),
        crash=crash,
        hand_over_s=2.0,
    )
