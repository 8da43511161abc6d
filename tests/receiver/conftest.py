"""The same promises on each kind of keys: SQLite, Postgres with psycopg's blocking connections and its async ones."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from semel.host.postgres import PostgresServer
from semel.receiver import AsyncPostgresKeys, PostgresKeys, SQLiteKeys
from tests.receiver.asgi import Counting

_numbers = itertools.count()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
        yield server
        server.kill()  # a clean end would write out every test's database first


@pytest.fixture
def dsn(server: PostgresServer) -> str:
    """A fresh database with the handler's table."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    found = server.dsn.rpartition("/")[0] + "/" + name
    with psycopg.connect(found) as connection:
        connection.execute("CREATE TABLE effects (name text NOT NULL)")
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "app.db") as connection:
        connection.execute("CREATE TABLE effects (name text NOT NULL)")
    connection.close()
    return tmp_path / "app.db"


class Place(NamedTuple):
    """The application's database, and how the receiver keeps its keys there."""

    kind: str
    keys: Callable[..., Any]
    app: Callable[[], Counting]
    query: Callable[[str], list[tuple[Any, ...]]]

    def effects(self, key: str = "") -> int:
        rows = self.query("SELECT name FROM effects")
        return sum(1 for (name,) in rows if not key or name.partition("|")[2].partition("|")[2] == key)


def place_of(kind: str, address: Any) -> Place:
    def query(text: str) -> list[tuple[Any, ...]]:
        if kind == "sqlite":
            connection = sqlite3.connect(address)
            try:
                return connection.execute(text).fetchall()
            finally:
                connection.close()
        with psycopg.connect(address) as held:
            done = held.execute(text)
            return done.fetchall() if done.description else []

    keys = {"sqlite": SQLiteKeys, "postgres": PostgresKeys, "async-postgres": AsyncPostgresKeys}[kind]
    mark = "?" if kind == "sqlite" else "%s"
    insert = f"INSERT INTO effects (name) VALUES ({mark})"
    return Place(kind, lambda **said: keys(address, **said), lambda: Counting(insert), query)


@pytest.fixture(params=["sqlite", "postgres", "async-postgres"])
def place(request: pytest.FixtureRequest) -> Place:
    return place_of(request.param, request.getfixturevalue("file" if request.param == "sqlite" else "dsn"))
