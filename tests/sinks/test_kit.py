"""The built-in sinks go through the contract kit; sinks with a bug planted in them do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from semel.host.postgres import PostgresServer
from semel.testing.contracts import ContractTests, Subject
from tests.sinks import subjects
from tests.sinks.conftest import database


class TestSQLite(ContractTests):
    """SQLite, by key and appended."""

    @pytest.fixture(params=[subjects.sqlite_keyed, subjects.sqlite_appended], ids=["keyed", "appended"])
    def subject(self, request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
        return subjects.sqlite_subject(request.param, tmp_path)


class TestPostgres(ContractTests):
    """Postgres, by key and appended, on a server that is killed."""

    @pytest.fixture(params=[subjects.postgres_keyed, subjects.postgres_appended], ids=["keyed", "appended"])
    def subject(self, request: pytest.FixtureRequest, server: PostgresServer) -> Subject:
        return subjects.postgres_subject(request.param, server, database(server))
