"""A delivery in a process of its own, to be killed and stopped: `child.py postgres|sqlite ADDRESS KEY RECORDS`.

Its log is in memory and the same in every process; what lasts is the sink. It ends with 0 when the sink's position is
the end of the log. What it has to say goes to standard error.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from semel.host.steps import steps_from
from semel.sinks import Postgres, SQLite
from semel.sinks.delivery import Delivery
from tests.sinks.values import Total
from tests.support.outboxlog import OutboxLog

OUTBOX = "app-totals-outbox"


def sink_of(system: str, address: str, key: str) -> Any:
    if system == "postgres":
        return Postgres(address, "totals", key=key or None, hand_over_s=2.0)
    return SQLite(address, "totals", key=key or None)


def log_of(sink: Any, count: int) -> OutboxLog:
    log = OutboxLog()
    log.create(OUTBOX, 1)
    for n in range(count):
        value = Total(f"c{n % 7}", n)
        log.append(OUTBOX, 0, sink.encode_key(value), sink.encode_value(value))
    return log


def main(system: str, address: str, key: str, count: str) -> None:
    sink = sink_of(system, address, key)
    session = log_of(sink, int(count)).session()
    session.records_max = 10  # ten records a batch
    delivery = Delivery(
        session,
        sink,
        app="app",
        outbox=OUTBOX,
        value_type=Total,
        steps=steps_from(os.environ),
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    delivery.join()
    session.assign(OUTBOX, 0)
    while not delivery._lanes or delivery.lag():
        delivery.step(time.monotonic_ns() // 1_000_000, 0)
        time.sleep(0.001)
    delivery.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
