"""DuckDB, Delta Lake and Iceberg beside their own client's fastest writer: an Arrow table, appended or merged.

The plain writers keep file, table and catalog open. Delta and Iceberg: a commit per 10,000 rows, as `records=` has it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.sinks_common import CUT, FIELDS, Made, Peer, arrow_table


def rows_of(table: Any) -> list[Any]:
    return sorted(tuple(row[f] for f in FIELDS) for row in table.to_pylist())


@contextlib.contextmanager
def duckdb(folder: Path) -> Iterator[dict[str, Made]]:
    import duckdb as client

    from semel.sinks import DuckDB

    path = folder / "peer.duckdb"
    connection = client.connect(str(path))
    columns = ", ".join(
        f"{f} {'BIGINT' if f in ('amount', 'price') else 'VARCHAR'}{'{}' if f == 'order_id' else ''}" for f in FIELDS
    )

    def peer(name: str, key: bool) -> Callable[[], Peer]:
        def made() -> Peer:
            connection.execute(f"CREATE TABLE {name} ({columns.format(' PRIMARY KEY' if key else '')})")
            insert = f"INSERT INTO {name} SELECT * FROM batch"
            if key:
                insert += " ON CONFLICT (order_id) DO UPDATE SET " + ", ".join(
                    f"{f} = excluded.{f}" for f in FIELDS[1:]
                )

            def write(batch: list[bytes]) -> None:
                connection.register("batch", arrow_table(batch, key))
                connection.execute(insert)
                connection.unregister("batch")

            return write

        return made

    def shown(name: str) -> Callable[[bool], list[Any]]:
        def read(ours: bool) -> list[Any]:
            query = f"SELECT {', '.join(FIELDS)} FROM {name}"
            if not ours:
                return sorted(connection.execute(query).fetchall())
            with client.connect(str(folder / "ours.duckdb")) as theirs:
                return sorted(theirs.execute(query).fetchall())

        return read

    ours = folder / "ours.duckdb"
    yield {
        "DuckDB, append": Made(DuckDB(ours, "added"), peer("added", False), shown("added"), CUT),
        "DuckDB, upsert": Made(DuckDB(ours, "kept", key="order_id"), peer("kept", True), shown("kept"), CUT, 40_000),
    }
    connection.close()


@contextlib.contextmanager
def delta(folder: Path) -> Iterator[dict[str, Made]]:
    from deltalake import DeltaTable, write_deltalake

    from semel.sinks import DeltaLake

    def peer(name: str, key: bool) -> Callable[[], Peer]:
        def made() -> Peer:
            path = str(folder / f"peer-{name}")
            table: list[DeltaTable] = []

            def write(batch: list[bytes]) -> None:
                rows = arrow_table(batch, key)
                if not table:
                    write_deltalake(path, rows, mode="append")
                    table.append(DeltaTable(path))
                elif not key:
                    write_deltalake(table[0], rows, mode="append")
                else:
                    merge = table[0].merge(rows, "t.order_id = s.order_id", source_alias="s", target_alias="t")
                    merge.when_matched_update_all().when_not_matched_insert_all().execute()

            return write

        return made

    def shown(name: str) -> Callable[[bool], list[Any]]:
        def read(ours: bool) -> list[Any]:
            path = folder / (name if ours else f"peer-{name}")
            return rows_of(DeltaTable(str(path)).to_pyarrow_table())

        return read

    yield {
        "Delta Lake, append": Made(DeltaLake(folder / "added"), peer("added", False), shown("added"), CUT),
        "Delta Lake, upsert": Made(
            DeltaLake(folder / "kept", key="order_id"), peer("kept", True), shown("kept"), CUT, 40_000
        ),
    }


@contextlib.contextmanager
def iceberg(folder: Path) -> Iterator[dict[str, Made]]:
    import warnings

    from pyiceberg.catalog import load_catalog
    from pyiceberg.expressions import In

    from semel.sinks import Iceberg

    options = {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}
    catalog: Any = load_catalog("default", **options)
    catalog.create_namespace("peer")
    member_of: Any = In  # pyiceberg's models take their fields by position, too; their types do not tell
    # As semel has it in a table that it creates.
    settings = {
        "write.metadata.delete-after-commit.enabled": "true",
        "write.metadata.previous-versions-max": "20",
        "commit.manifest-merge.enabled": "true",
    }

    def peer(name: str, key: bool) -> Callable[[], Peer]:
        def made() -> Peer:
            table: list[Any] = []

            def write(batch: list[bytes]) -> None:
                rows = arrow_table(batch, key)
                if not table:
                    table.append(catalog.create_table(f"peer.{name}", schema=rows.schema, properties=settings))
                if not key:
                    table[0].append(rows)
                    return
                # Three times as fast as pyiceberg's own `upsert`, which compares row by row.
                with table[0].transaction() as transaction, warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    transaction.delete(member_of("order_id", rows.column("order_id").to_pylist()))
                    transaction.append(rows)

            return write

        return made

    def shown(name: str) -> Callable[[bool], list[Any]]:
        def read(ours: bool) -> list[Any]:
            return rows_of(catalog.load_table(f"{'ours' if ours else 'peer'}.{name}").scan().to_arrow())

        return read

    def sink(name: str, **how: Any) -> Any:
        return Iceberg(f"ours.{name}", options=options, **how)

    yield {
        "Iceberg, append": Made(sink("added"), peer("added", False), shown("added"), CUT),
        "Iceberg, upsert": Made(sink("kept", key="order_id"), peer("kept", True), shown("kept"), CUT, 30_000),
    }
    catalog.engine.dispose()
