"""ClickHouse (its engine in process, behind HTTP): the contract kit, planted mistakes, the window that it really has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from semel.testing.contracts import ContractTests, Subject
from tests.servers import clickhouse_subjects as subjects
from tests.support.clickhouse import ClickHouseProcess


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseProcess]:
    with ClickHouseProcess(tmp_path_factory.mktemp("clickhouse")) as made:
        yield made


class TestTokens(ContractTests):
    """Windowed, on a server that is killed."""

    @pytest.fixture
    def subject(self, server: ClickHouseProcess) -> Subject:
        return subjects.subject(subjects.tokens, server)


class TestAppended(ContractTests):
    """Deduplicated: repeats are stored, the view leaves them out."""

    @pytest.fixture
    def subject(self, server: ClickHouseProcess) -> Subject:
        return subjects.subject(subjects.appended, server, read=subjects.read_once, stored=subjects.stored, forget=None)
