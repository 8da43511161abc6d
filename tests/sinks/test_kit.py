"""The built-in sinks go through the contract kit; sinks with a bug planted in them do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from semel.host.postgres import PostgresServer
from semel.testing.contracts import ContractTests, Subject
from tests.sinks import subjects
from tests.sinks.conftest import database


@pytest.fixture(scope="module")
def crashing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A server of the kit's own: it is killed, and nobody else's tests with it."""
    with PostgresServer(tmp_path_factory.mktemp("crashing")) as server:
        yield server
        server.kill()


class TestSQLite(ContractTests):
    """SQLite, by key and appended."""

    @pytest.fixture(params=[subjects.sqlite_keyed, subjects.sqlite_appended], ids=["keyed", "appended"])
    def subject(self, request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
        return subjects.sqlite_subject(request.param, tmp_path)


class TestPostgres(ContractTests):
    """Postgres, by key, appended and by version, on a server that is killed."""

    @pytest.fixture(
        params=[subjects.postgres_keyed, subjects.postgres_appended, subjects.postgres_versioned],
        ids=["keyed", "appended", "versioned"],
    )
    def subject(self, request: pytest.FixtureRequest, crashing: PostgresServer) -> Subject:
        return subjects.postgres_subject(request.param, crashing, database(crashing))
