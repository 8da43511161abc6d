"""B1 and B26 on Apache Kafka 4.3.1, which does not stop a delayed request of transaction V1: our writer does, by a new
Producer after every connection loss that librdkafka reports. `test_delayed_requests` shows the tear with a bare client.

DELAYED_ROUNDS: 10 by default.
"""

from __future__ import annotations

import os
from pathlib import Path

from semel.host.cluster import open_cluster
from tests.host.logs import Logs
from tests.host.test_cluster import delayed
from tests.support.kafka import KafkaProcess
from tests.support.proxy import END_TXN, TXN_OFFSET_COMMIT, Proxy

ROUNDS = int(os.environ.get("DELAYED_ROUNDS", "10"))


def test_a_delayed_request_changes_nothing_on_kafka(tmp_path: Path) -> None:
    with Proxy() as proxy, KafkaProcess(tmp_path / "kafka", advertise=proxy.address) as server:
        proxy.target = ("127.0.0.1", server.port)
        for n in range(ROUNDS):
            logs = Logs(lambda **s: open_cluster(f"kafka://{proxy.address}", **s))
            try:
                delayed(logs, proxy, (END_TXN, TXN_OFFSET_COMMIT)[n % 2], f"b1-{n}")
            finally:
                logs.close()
