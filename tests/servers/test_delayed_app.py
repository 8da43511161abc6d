"""P14 on Apache Kafka 4.3.1: a running app whose delayed EndTxn or TxnOffsetCommit arrives in a later transaction.

Kafka serves the late request (`test_delayed_requests` shows what that does to a bare client); that the app's results
are right is due to the new Producer after every connection loss.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.test_processor import delayed_under_an_app, job_on
from tests.support.kafka import KafkaProcess
from tests.support.proxy import END_TXN, TXN_OFFSET_COMMIT, Proxy


@pytest.mark.parametrize("held_key", [END_TXN, TXN_OFFSET_COMMIT])
def test_p14_a_delayed_request_under_a_running_app_on_kafka(tmp_path: Path, held_key: int) -> None:
    """Values compared: each customer's totals count 1, 2, 3 … without a gap or a repeat."""
    with Proxy() as proxy, KafkaProcess(tmp_path / "kafka", advertise=proxy.address) as server:
        proxy.target = ("127.0.0.1", server.port)
        with job_on(tmp_path, proxy.address) as job:
            delayed_under_an_app(job, proxy, held_key, rounds=4)
