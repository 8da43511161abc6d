"""DuckDB, Delta Lake and Iceberg as subjects of the contract kit. `make` functions stand at module level: processes
that are killed import them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
from deltalake import DeltaTable
from pyiceberg.catalog import load_catalog
from sqlalchemy.exc import OperationalError

from semel.ports import SinkConnection
from semel.sinks import DeltaLake, DuckDB, Iceberg
from semel.testing.contracts import IN_PROCESS, Subject, lost_at_the_call, over_the_wire, tried
from tests.sinks.subjects import S3_BUCKET, s3_options

Commit = Callable[[], Any]


def held(subject: Subject) -> dict[str, str]:
    """What the trials in this process found wrong: none needs minutes, as the ones with killed processes do."""
    found = tried(subject, IN_PROCESS)
    return {name: told for name, told in found.items() if told and not told.startswith("not tried")}


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
        hand_over_s=20.0,  # there is no lock: time for the successor's commits
    )


S3_DELTA = f"s3://{S3_BUCKET}/delta"


def delta_options(address: str) -> dict[str, str]:
    # After a crash SeaweedFS answers 500 until its volumes have come back to its master.
    return {**s3_options(address), "allow_http": "true", "max_retries": "100", "retry_timeout": "60s"}


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
    )


# --- Iceberg ---------------------------------------------------------------------------------------------------------


def iceberg_options(address: str) -> dict[str, str]:
    """A catalog in SQLite in the folder `address`; or, where a file `uri` lies there, in the database that it names."""
    said = Path(address) / "uri"
    uri = said.read_text() if said.exists() else f"sqlite:///{address}/catalog.db"
    return {"type": "sql", "uri": uri, "warehouse": f"file://{address}/warehouse"}


def iceberg_keyed(address: str, suffix: str) -> Iceberg:
    options = iceberg_options(address)
    return Iceberg("kit.entries", key="id", name="entries", seconds=0, options=options).renamed(suffix)


def iceberg_appended(address: str, suffix: str) -> Iceberg:
    return Iceberg("kit.entries", name="entries", seconds=0, options=iceberg_options(address)).renamed(suffix)


def read_iceberg(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    catalog: Any = load_catalog("default", **iceberg_options(address))
    try:
        return [
            (row["id"], row["n"]) for row in catalog.load_table(f"kit.entries{suffix}").scan().to_arrow().to_pylist()
        ]
    finally:
        catalog.engine.dispose()


def left_in_iceberg(address: str, suffix: str) -> Sequence[str]:
    catalog: Any = load_catalog("default", **iceberg_options(address))
    try:
        made = catalog.list_tables("kit") if catalog.namespace_exists("kit") else []
        tables = [".".join(name) for name in made if name[-1].endswith(suffix)]
    finally:
        catalog.engine.dispose()
    return tables + [str(file) for file in Path(address).rglob(f"*{suffix}/*")]


def iceberg_subject(make: Callable[[str, str], Any], folder: Path, uri: str = "") -> Subject:
    if uri:
        (folder / "uri").write_text(uri)
    address = str(folder)
    return Subject(
        make=make,
        address=address,
        read=read_iceberg,
        orphans=left_in_iceberg,
        loses=lambda: lost_at_the_call(address, arm, lambda: OperationalError("COMMIT", None, Exception("gone"))),
    )
