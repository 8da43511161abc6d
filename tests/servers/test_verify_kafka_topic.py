"""`semel verify` of a bridge to Apache Kafka and to `semel broker`: killed at every step of the path, zombies refused,
nothing lost, repeated, out of order, or left open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.servers.kafka_subjects import KEEPING, left, open_transactions
from tests.support.broker import BrokerProcess
from tests.support.kafka import KafkaProcess
from tests.support.verifying import verified

CRASHES = int(os.environ.get("CRASHES", "16"))


@pytest.mark.timeout(600)
def test_a_bridge_holds(tmp_path: Path) -> None:
    """Every record is there once, with its key, deletes too, and in the order of its key; the run's topics are gone."""
    with KafkaProcess(tmp_path / "kafka", props=KEEPING) as kafka, BrokerProcess(tmp_path / "broker") as broker:
        environ = {"BRIDGE_KAFKA": kafka.address, "BRIDGE_BROKER": broker.address}
        report = verified("bridge", ["sink bridged", "sink by-customer"], CRASHES, environ)
        for name in ("sink bridged", "sink by-customer"):
            assert report["outputs"][name]["kind"] == "sink, records by key and order"
        for address in (kafka.address, broker.address):
            assert not [name for name in left(address, "") if not name.startswith("__")]
            assert not open_transactions(address, "")
