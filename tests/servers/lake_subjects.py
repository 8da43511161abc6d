"""DuckDB, Delta Lake and Iceberg as subjects of the contract kit. `make` functions stand at module level: processes
that are killed import them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb

from semel.ports import SinkConnection
from semel.sinks import DuckDB
from semel.testing.contracts import Subject, lost_at_the_call

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
