"""ClickHouse as a subject of the contract kit. `make` functions stand at module level: processes import them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from semel.sinks import ClickHouse, ClickHouseAppended
from semel.testing.contracts import Subject, over_the_wire
from tests.support.clickhouse import ClickHouseProcess, client_at

WINDOW = 40  # inserts; every trial has a table of its own


def tokens(address: str, suffix: str) -> ClickHouse:
    return ClickHouse(address, "entries", window_inserts=WINDOW, seconds=0.001, timeout_s=10).renamed(suffix)


def appended(address: str, suffix: str) -> ClickHouseAppended:
    return ClickHouseAppended(address, "entries", seconds=0.001, timeout_s=10).renamed(suffix)


def asked(address: str, statement: str) -> Any:
    client = client_at(urlsplit(address).port or 0)
    try:
        return client.query(statement).result_rows
    finally:
        client.close()


def read(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    return [(id, n) for id, n in asked(address, f"SELECT id, n FROM `entries{suffix}` WHERE id != 'other'")]


def read_once(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    return [(id, n) for id, n in asked(address, f"SELECT id, n FROM `entries_once{suffix}`")]


def stored(address: str, suffix: str) -> int:
    return int(asked(address, f"SELECT count() FROM `entries{suffix}`")[0][0])


def left(address: str, suffix: str) -> Sequence[str]:
    return [str(row[0]) for row in asked(address, f"SELECT name FROM system.tables WHERE endsWith(name, '{suffix}')")]


def others_insert(address: str, suffix: str) -> None:
    """So many that the table has forgotten ours: what a busy table does in an hour."""
    client = client_at(urlsplit(address).port or 0)
    for n in range(WINDOW + 1):
        client.command(f"INSERT INTO `entries{suffix}` VALUES ('other', {n})", settings={"async_insert": 0})
    client.close()


def subject(make: Callable[[str, str], Any], server: ClickHouseProcess, **said: Any) -> Subject:
    def crash() -> None:
        server.kill()
        server.start()

    def at(port: int) -> str:
        return f"http://127.0.0.1:{port}/default"

    given: dict[str, Any] = {
        "make": make,
        "address": server.url,
        "read": read,
        "orphans": left,
        # In the body, which comes in a piece of its own behind the headers; an answer is lost when it comes.
        "loses": lambda: over_the_wire(server.port, b"INSERT INTO", at, answered=True),
        "crash": crash,
        "forget": others_insert,
        "hand_over_s": None,  # nothing is locked, so nothing has to be taken over
    }
    return Subject(**{**given, **said})
