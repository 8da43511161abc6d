"""A delivery by cuts in a process of its own, to be killed and stopped: cut_child.py LOG RECORDS URL [OPTION=VALUE …]

LOG is embedded:DIR or kafka://host:port; RECORDS is the size of a cut, which the test varies so that a cut that is made
again is made otherwise. It ends with 0 when all of the outbox is delivered.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from semel.errors import SemelError
from semel.host.steps import steps_from
from semel.ports import Log, Owners
from semel.sinks import Objects
from semel.sinks.cut_delivery import CutDelivery

OUTBOX = "app-orders-outbox"
EVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}


def opened(url: str, group: str | None) -> tuple[Log, Owners]:
    if url.startswith("embedded:"):
        from semel.host.embedded import EmbeddedLog
        from semel.host.embedded_owner import EmbeddedOwner
        from semel.host.engine import Engine

        engine = Engine(Path(url.removeprefix("embedded:")))
        return EmbeddedLog(engine, group=group), lambda id: EmbeddedOwner(engine, id)
    from semel.host.cluster import open_cluster
    from semel.host.kafka_client import address
    from semel.host.kafka_owner import KafkaOwner

    log = open_cluster(url, group=group, session_timeout_ms=int(os.environ.get("SESSION_MS", "2000")))
    return log, lambda id: KafkaOwner(address(url), id)


def main(log_url: str, records: str, url: str, *options: str) -> None:
    log, owners = opened(log_url, "app.orders")
    delivery = CutDelivery(
        log,
        Objects(
            url, name="orders", records=int(records), seconds=0.2, options=dict(one.split("=", 1) for one in options)
        ),
        owners=owners,
        app="app",
        outbox=OUTBOX,
        steps=steps_from(os.environ),
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    delivery.join()
    while not delivery._lanes or delivery.lag():
        delivery.step(time.monotonic_ns() // 1_000_000, 0.02)
    delivery.close()
    log.close()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except SemelError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
