"""Real sinks: a SQLite file per test, and one Postgres for the session with a schema per test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from semel.host.postgres import PostgresServer
from semel.sinks import Postgres, SQLite

_numbers = itertools.count()

MakeSink = Callable[..., Any]  # (table="totals", key=None, **more) -> Postgres | SQLite


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
        yield server
        server.kill()  # a clean end would write out every test's database first


def database(server: PostgresServer) -> str:
    """The dsn of a fresh database."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.dsn.rpartition("/")[0] + "/" + name


@pytest.fixture
def make_postgres(server: PostgresServer) -> MakeSink:
    dsn = database(server)

    def make(table: str = "totals", **said: Any) -> Postgres:
        return Postgres(said.pop("dsn", dsn), table, **{"hand_over_s": 2.0, **said})

    return make


@pytest.fixture
def make_sqlite(tmp_path: Path) -> MakeSink:
    return lambda table="totals", **said: SQLite(tmp_path / "sink.db", table, **said)


@pytest.fixture(params=["sqlite", "postgres"])
def make_sink(request: pytest.FixtureRequest) -> MakeSink:
    """The same promise, on both."""
    made: MakeSink = request.getfixturevalue(f"make_{request.param}")
    return made
