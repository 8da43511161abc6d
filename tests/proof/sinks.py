"""`make proof WHAT=sinks`: every sink and source, 100 kills each, one after the other, and what was found.

    python -m tests.proof.sinks [NAME+NAME…] runs these campaigns (all that need no long build), then writes the page
    python -m tests.proof.sinks --page       writes docs/proof/sinks.md from what is known and what the tests are

Each result goes to `docs/proof/sinks.json` as soon as it is there, with its commit; the page is made of that file and
of the tests as they are collected (`tests/support/put_through.py`).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.proof.__main__ import REPORTS, commit, machine
from tests.support.campaigns import IMITATED, SINKS, SOURCES, Campaign, all_of, run

RESULTS = REPORTS / "sinks.json"
PAGE = REPORTS / "sinks.md"
CRASHES = int(os.environ.get("CRASHES", "100"))
SEED = int(os.environ.get("SEED", "1"))

# What is run together, in one app, is killed together: each kill is one of each of them. By name: the log it runs on.
EVERY: dict[str, str] = {
    **dict.fromkeys(SINKS, "broker"),
    **dict.fromkeys(IMITATED, "broker"),
    "sources": "broker",
    "sources-embedded": "embedded",
    "sources-kafka": "kafka",
}
TOGETHER = (
    "postgres+versioned+appended",
    "two-phase",
    "mariadb+xa",
    "sqlite+duckdb+delta+iceberg",
    "objects+multipart+delta-s3",
    "files",
    "opensearch+http",
    "redis+valkey",
    "kafka-topic",
    "clickhouse+clickhouse-appended+prometheus",
    "sources",
    "sources-embedded",
    "sources-kafka",
)


def campaign_of(names: Sequence[str]) -> Campaign:
    if names[0] in ("sources", "sources-embedded", "sources-kafka"):
        return SOURCES["sources"]
    found = [{**SINKS, **IMITATED}[name] for name in names]
    return found[0] if len(found) == 1 else all_of(found)


def results() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def carried_out(word: str) -> bool:
    names = word.split("+")
    campaign, on = campaign_of(names), EVERY[names[0]]
    print(f"{word}: {campaign.title} on {on}, {CRASHES} kills", flush=True)
    with tempfile.TemporaryDirectory(prefix="proof-") as made:
        folder = Path(made)
        if on == "kafka":
            from tests.support.kafka import KafkaProcess

            with KafkaProcess(folder / "kafka", props={"group.min.session.timeout.ms": "1000"}) as kafka:
                found = run(campaign, folder, crashes=CRASHES, seed=SEED, on=f"kafka://{kafka.address}")
            found.on = "Apache Kafka"
        else:
            found = run(campaign, folder, crashes=CRASHES, seed=SEED, on=on, lossy=True)
    told = found.as_json() | {"commit": commit(), "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    said = {name: told | {"together": word} for name in names}
    RESULTS.write_text(json.dumps({**results(), **said}, indent=1, sort_keys=True) + "\n")
    print(
        f"{word}: {found.verdict}, {found.kills} kills, {found.zombies} zombies ({found.refused} refused), "
        f"{found.lost_requests}+{found.lost_answers} lost on the wire, {len(found.left)} left behind, "
        f"{found.seconds:.0f} s",
        flush=True,
    )
    if not found.holds:
        print(f"{found.said}\nleft behind: {found.left}\ndoubts: {found.doubts}", flush=True)
    return found.holds


def main(words: list[str]) -> int:
    from tests.support.put_through import page

    good = True
    if words != ["--page"]:
        unknown = [name for word in words for name in word.split("+") if name not in EVERY]
        if unknown:
            print(f"error: no campaign {', '.join(unknown)}; there are: {', '.join(EVERY)}", file=sys.stderr)
            return 2
        for word in words or TOGETHER:
            good &= carried_out(word)
    PAGE.write_text(page(results()))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
