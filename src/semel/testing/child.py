"""A delivery in a process of its own, to be killed and stopped: MODULE:FUNCTION ADDRESS SUFFIX RECORDS BATCH.

Its outbox is in memory and the same in every process; what lasts is the sink (and, where the sink holds no position,
the file of offsets named by SEMEL_KIT_OFFSETS). It ends with 0 when everything is delivered.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semel.host.steps import steps_from
from semel.ports import Position, Sink, TopicPartition
from semel.sinks.delivery import Delivery
from semel.testing.outbox import OutboxLog
from semel.testing.subject import Entry

OUTBOX = "kit-outbox"
GROUP = "kit.delivery"
OFFSETS = "SEMEL_KIT_OFFSETS"


class _Lasting(OutboxLog):
    """The group's offsets outlive the process, as they do on a real log."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        if file.exists():
            offset, mark = json.loads(file.read_text())
            self.offsets[GROUP, TopicPartition(OUTBOX, 0)] = Position(offset, mark)

    def remember(self, group: str, positions: Mapping[TopicPartition, Position]) -> None:
        super().remember(group, positions)
        beside = self._file.with_suffix(".new")
        beside.write_text(json.dumps(positions[TopicPartition(OUTBOX, 0)]))
        os.replace(beside, self._file)


def outbox_of(sink: Sink[Any, Any], count: int, offsets: Path) -> OutboxLog:
    log = _Lasting(offsets)
    log.create(OUTBOX, 1)
    for n in range(count):
        value = Entry(f"k{n % 7}", n)
        log.append(OUTBOX, 0, sink.encode_key(value), sink.encode_value(value))
    return log


def main(factory: str, address: str, suffix: str, count: str, batch: str) -> None:
    module, _, name = factory.partition(":")
    sink = getattr(importlib.import_module(module), name)(address, suffix)
    log = outbox_of(sink, int(count), Path(os.environ[OFFSETS]))
    session = log.session(GROUP)
    session.records_max = int(batch)
    delivery = Delivery(
        session,
        sink,
        app="kit",
        outbox=OUTBOX,
        value_type=Entry,
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
