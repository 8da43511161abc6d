"""`make proof WHAT=sinks`: every sink and source, 100 kills each, one after the other, and what was found.

    python -m tests.proof.sinks [NAME…]      runs these campaigns (all that need no long build), then writes the page
    python -m tests.proof.sinks --page       writes docs/proof/sinks.md from what is known and what the tests are

Each result goes to `docs/proof/sinks.json` as soon as it is there, with its commit; the page is made of that file and of
the tests as they are collected (`tests/support/put_through.py`).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.proof.__main__ import REPORTS, commit, machine
from tests.support.campaigns import IMITATED, SINKS, SOURCES, Campaign, run

RESULTS = REPORTS / "sinks.json"
PAGE = REPORTS / "sinks.md"
CRASHES = int(os.environ.get("CRASHES", "100"))
SEED = int(os.environ.get("SEED", "1"))

# By name: the campaign, the log it runs on, and whether requests and answers are lost on the sink's wire meanwhile.
EVERY: dict[str, tuple[Campaign, str, bool]] = {
    **{name: (one, "broker", True) for name, one in {**SINKS, **IMITATED}.items()},
    **{name: (one, "broker", False) for name, one in SOURCES.items()},
    "sources-embedded": (SOURCES["sources"], "embedded", False),
    "sources-kafka": (SOURCES["sources"], "kafka", False),
}


def results() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def carried_out(name: str) -> bool:
    campaign, on, lossy = EVERY[name]
    print(f"{name}: {campaign.title} on {on}, {CRASHES} kills", flush=True)
    with tempfile.TemporaryDirectory(prefix="proof-") as made:
        folder = Path(made)
        if on == "kafka":
            from tests.support.kafka import KafkaProcess

            with KafkaProcess(folder / "kafka", props={"group.min.session.timeout.ms": "1000"}) as kafka:
                found = run(campaign, folder, crashes=CRASHES, seed=SEED, on=f"kafka://{kafka.address}", lossy=lossy)
            found.on = "Apache Kafka"
        else:
            found = run(campaign, folder, crashes=CRASHES, seed=SEED, on=on, lossy=lossy)
    told = found.as_json() | {"commit": commit(), "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    RESULTS.write_text(json.dumps({**results(), name: told}, indent=1, sort_keys=True) + "\n")
    print(
        f"{name}: {found.verdict}, {found.kills} kills, {found.zombies} zombies ({found.refused} refused), "
        f"{found.lost_requests}+{found.lost_answers} lost on the wire, {len(found.left)} left behind, {found.seconds:.0f} s",
        flush=True,
    )
    if not found.holds:
        print(f"{found.said}\nleft behind: {found.left}\ndoubts: {found.doubts}", flush=True)
    return found.holds


def main(words: list[str]) -> int:
    from tests.support.put_through import page

    good = True
    if words != ["--page"]:
        unknown = [word for word in words if word not in EVERY]
        if unknown:
            print(f"error: no campaign {', '.join(unknown)}; there are: {', '.join(EVERY)}", file=sys.stderr)
            return 2
        for name in words or [name for name in EVERY if name not in IMITATED]:
            good &= carried_out(name)
    PAGE.write_text(page(results()))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
