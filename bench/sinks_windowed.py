"""Sinks that forget: ClickHouse (the engine behind HTTP) beside its own client's insert, column by column."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.sinks_common import BATCH, FIELDS, Made, Peer, decoded


@contextlib.contextmanager
def clickhouse(folder: Path) -> Iterator[dict[str, Made]]:
    """The engine (chdb) behind HTTP; the peer inserts by the same client, column by column, into an equal table. Ours
    asks for the table's last block and window before each cut, as a delivery does, and once more before it sends."""
    from tests.support.clickhouse import ClickHouseProcess

    from semel.sinks import ClickHouse, ClickHouseAppended

    with ClickHouseProcess(folder / "clickhouse") as server:
        client = server.client()
        types = ["String", "String", "String", "Int64", "Int64", "String"]
        settings = "fsync_after_insert = 1, fsync_part_directory = 1"

        def peer(name: str) -> Callable[[], Peer]:
            def made() -> Peer:
                columns = ", ".join(f"{n} {k}" for n, k in zip(FIELDS, types, strict=True))
                client.command(
                    f"CREATE TABLE {name}_peer ({columns}) ENGINE = MergeTree ORDER BY () SETTINGS {settings}"
                )

                def write(batch: list[bytes]) -> None:
                    client.insert(
                        f"{name}_peer", list(zip(*decoded(batch), strict=True)), column_names=list(FIELDS),
                        column_type_names=types, column_oriented=True, settings={"async_insert": 0},
                    )  # fmt: skip

                return write

            return made

        def shown(name: str, ours: str) -> Callable[[bool], list[Any]]:
            def read(mine: bool) -> list[Any]:
                return sorted(
                    client.query(f"SELECT {', '.join(FIELDS)} FROM {ours if mine else name + '_peer'}").result_rows
                )

            return read

        yield {
            "ClickHouse, tokens": Made(
                ClickHouse(server.url, "added"), peer("added"), shown("added", "added"), 4 * BATCH,
            ),
            "ClickHouseAppended": Made(
                ClickHouseAppended(server.url, "events"), peer("events"), shown("events", "events_once"), 4 * BATCH,
            ),
        }  # fmt: skip
        client.close()
