"""One real Postgres for the session, with a schema per test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import psycopg
import pytest

from semel.host.postgres import PostgresServer

_numbers = itertools.count()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    settings = {"wal_level": "logical", "max_prepared_transactions": "8", "fsync": "off"}
    with PostgresServer(tmp_path_factory.mktemp("postgres"), settings=settings) as server:
        yield server
        server.kill()


@pytest.fixture
def dsn(server: PostgresServer) -> str:
    """Of a fresh schema."""
    name = f"source_{next(_numbers)}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")
    return f"{server.dsn}?options=-csearch_path%3D{name}"
