"""OpenSearch on a real node: the contract kit, planted mistakes, and what only it gets wrong."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from semel.testing.contracts import ContractTests, Subject
from tests.servers import opensearch_subjects as subjects
from tests.support.opensearch import OpenSearchProcess

_numbers = itertools.count()


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSearchProcess]:
    with OpenSearchProcess(tmp_path_factory.mktemp("opensearch")) as server:
        yield server


class TestOpenSearch(ContractTests):
    """On a node that is killed."""

    @pytest.fixture
    def subject(self, node: OpenSearchProcess) -> Subject:
        return subjects.subject(subjects.documents, node)
