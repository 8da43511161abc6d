"""Prometheus 2.42 by remote write: the contract kit, planted mistakes, and where its memory ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from semel.testing.contracts import ContractTests, Subject
from tests.servers import prometheus_subjects as subjects
from tests.support.prometheus import PrometheusProcess


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusProcess]:
    with PrometheusProcess(tmp_path_factory.mktemp("prometheus")) as made:
        yield made


@pytest.fixture(scope="session")
def tolerant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusProcess]:
    with PrometheusProcess(tmp_path_factory.mktemp("tolerant"), late="30m") as made:
        yield made


class TestInOrder(ContractTests):
    """Its defaults: a sample that is not the newest of its series is refused, ours among them."""

    @pytest.fixture
    def subject(self, server: PrometheusProcess) -> Subject:
        return subjects.subject(subjects.absolute, server)
