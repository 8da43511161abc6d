"""A topic of another cluster, on `semel broker` and on Apache Kafka: through the contract kit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from semel.testing.contracts import ContractTests, Subject
from tests.servers import kafka_subjects as subjects
from tests.support.broker import BrokerProcess
from tests.support.proxy import Proxy


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BrokerProcess, Proxy]]:
    with (
        Proxy() as proxy,
        BrokerProcess(tmp_path_factory.mktemp("target") / "data", advertise=proxy.address, start=False) as broker,
    ):
        proxy.target = ("127.0.0.1", broker.port)
        yield broker, proxy


class TestOnSemelBroker(ContractTests):
    """Keyed by a field of the value, and by the stream; on a broker that is killed."""

    @pytest.fixture(params=[subjects.by_field, subjects.by_stream], ids=["by-field", "by-stream"])
    def subject(self, request: pytest.FixtureRequest, broker: tuple[BrokerProcess, Proxy]) -> Subject:
        server, proxy = broker
        return subjects.subject(request.param, proxy.address, proxy, server.restart)
