"""`semel verify` on every sink against its real server: killed at every step of the path, zombies refused, requests and
answers lost on the wire, nothing lost, repeated or put back, and nothing left behind in the system, on the disk or
among the processes. The same campaigns with 100 kills each: `make proof WHAT=sinks`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.campaigns import SINKS, Campaign, all_of, run

# By campaign, or several in one app: how many kills, and which of their sinks where not all of them.
SHORT: dict[str, tuple[int, tuple[str, ...]]] = {
    "mariadb+versioned": (24, ()),
    "redis+valkey+opensearch": (24, ()),
    "duckdb+delta+iceberg": (16, ("duckdb-latest", "delta-each", "iceberg-latest")),
    "two-phase": (30, ()),
    "xa+objects+multipart+files": (12, ()),
    "http": (16, ()),  # with fewer no zombie is among the faults, and none refused is unknown
    "kafka-topic+clickhouse+clickhouse-appended+prometheus": (12, ()),
}
# How rows are compared, where it is more than rows: the topics of a bridge record by record, deletes too.
KINDS = dict.fromkeys(("sink bridged", "sink bridged-by-field"), "sink, records by key and order")
# Tried elsewhere: the flights go to Postgres and SQLite, and appended rows have a page made of them.
ELSEWHERE = {
    "postgres": "tests/servers/test_verify.py::test_exactly_once_holds",
    "sqlite": "tests/servers/test_verify.py::test_exactly_once_holds",
    "appended": "tests/servers/test_appended.py::test_verify_reads_through_the_view",
}

PROVED = frozenset({"delta-s3"})  # in the proof only: each kill costs seconds


def campaign_of(names: str, only: tuple[str, ...]) -> Campaign:
    found = [SINKS[name] for name in names.split("+")]
    made = all_of(found) if len(found) > 1 else found[0]
    return replace(made, sinks=only) if only else made


@pytest.mark.parametrize("names", SHORT)
def test_a_sink_holds(names: str, tmp_path: Path) -> None:
    crashes, only = SHORT[names]
    found = run(campaign_of(names, only), tmp_path, crashes=crashes, seed=3, lossy=True)
    assert found.holds, f"{found.as_json()}\n{found.said}"
    assert found.zombies >= found.refused >= 1
    assert not found.never, "steps of a delivery that no process reached"
    assert not found.unharmed, "wires that were left alone"
    assert {name: kind for name, kind in found.kinds.items() if name in KINDS}.items() <= KINDS.items()


def test_each_has_its_place() -> None:
    """No sink is left out of this tier but the second way to reach one."""
    assert {name for names in SHORT for name in names.split("+")} | ELSEWHERE.keys() == SINKS.keys() - PROVED
