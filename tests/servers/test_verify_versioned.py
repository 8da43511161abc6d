"""`semel verify` on Redis, Valkey and OpenSearch: killed at every step of the path, zombies without effect, nothing
lost, repeated or put back."""

from __future__ import annotations

from pathlib import Path

from tests.servers import opensearch_subjects, redis_subjects
from tests.support.opensearch import OpenSearchProcess
from tests.support.redis import RedisProcess, redis_server, valkey_server
from tests.support.verifying import verified

CRASHES = 24


def test_redis_valkey_and_opensearch_hold(tmp_path: Path) -> None:
    """24 kills and more, at every step; afterwards no key, no index and no alias of the run is left."""
    with (
        RedisProcess(redis_server(), tmp_path / "redis") as redis,
        RedisProcess(valkey_server(), tmp_path / "valkey") as valkey,
        OpenSearchProcess(tmp_path / "opensearch") as node,
    ):
        verified(
            "versioned",
            ["sink redis", "sink valkey", "sink opensearch"],
            CRASHES,
            {"VERSIONED_REDIS": redis.url, "VERSIONED_VALKEY": valkey.url, "VERSIONED_OPENSEARCH": node.url},
        )
        for url in (redis.url, valkey.url):
            assert not redis_subjects.left(url, "")
        assert not opensearch_subjects.left(node.url, "")
