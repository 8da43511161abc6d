"""`semel verify` on sinks with a window, and on ClickHouse rows with their event id: killed at every step of the path,
zombies refused; nothing lost, nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers.clickhouse_subjects import asked
from tests.support.clickhouse import ClickHouseProcess
from tests.support.prometheus import PrometheusProcess
from tests.support.verifying import verified

CRASHES = 8


@pytest.mark.timeout(600)
def test_windowed_sinks_hold(tmp_path: Path) -> None:
    """Eight kills and more, within every window. Afterwards no table of the run is left."""
    with (
        ClickHouseProcess(tmp_path / "clickhouse") as clickhouse,
        PrometheusProcess(tmp_path / "prometheus", late="1h") as prometheus,
    ):
        verified(
            "windowed",
            ("sink tokens", "sink appended", "sink samples"),
            CRASHES,
            {"WINDOWED_CLICKHOUSE": clickhouse.url, "WINDOWED_PROMETHEUS": prometheus.url},
        )
        left = asked(clickhouse.url, "SELECT name FROM system.tables WHERE database = 'default'")
        assert not left, left
