"""A delivery in a process of its own, to be killed and stopped: MODULE:FUNCTION ADDRESS SUFFIX RECORDS BATCH.

Its outbox is in memory and the same in every process; what lasts is the sink (and, where the sink holds no position,
the file of offsets, or of decisions, named by SEMEL_KIT_OFFSETS). It ends with 0 when everything is delivered.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semel.contract import PositionIn
from semel.host.steps import steps_from
from semel.ports import Done, Fenced, NewRecord, Outcome, Position, Sink, TopicPartition
from semel.sinks.cut_delivery import CutDelivery
from semel.sinks.cuts import delivery_topic
from semel.sinks.delivery import Delivery
from semel.testing.outbox import OutboxLog
from semel.testing.subject import Entry

OUTBOX = "kit-outbox"
GROUP = "kit.delivery"
OFFSETS = "SEMEL_KIT_OFFSETS"


class _Lasting(OutboxLog):
    """The group's offsets outlive the process, as they do on a real log."""

    def __init__(self, file: Path, by_cuts: bool) -> None:
        super().__init__()
        self._file, self._by_cuts = file, by_cuts
        if file.exists() and not by_cuts:
            offset, mark = json.loads(file.read_text())
            self.offsets[GROUP, TopicPartition(OUTBOX, 0)] = Position(offset, mark)

    def remember(self, group: str, positions: Mapping[TopicPartition, Position]) -> None:
        super().remember(group, positions)
        if self._by_cuts:
            return  # a metric only
        beside = self._file.with_suffix(".new")
        beside.write_text(json.dumps(positions[TopicPartition(OUTBOX, 0)]))
        os.replace(beside, self._file)


class _Decisions:
    """The delivery topic and the transactional id of a delivery by cuts, in a file: an `Owner` that outlives its
    process, and is fenced by the next one that initialises."""

    def __init__(self, log: OutboxLog, file: Path) -> None:
        self._log, self._file = log, file
        self._epoch = 0

    def _read(self) -> tuple[int, list[tuple[str, str]]]:
        return json.loads(self._file.read_text()) if self._file.exists() else (0, [])

    def _write(self, epoch: int, records: list[tuple[str, str]]) -> None:
        beside = self._file.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps((epoch, records)))
        os.replace(beside, self._file)

    def initialise(self) -> None:
        epoch, records = self._read()
        self._epoch = epoch + 1
        self._write(self._epoch, records)
        self._log.topics[delivery_topic(OUTBOX)].partitions[0].clear()
        for key, value in records:
            self._log.append(delivery_topic(OUTBOX), 0, key.encode(), value.encode())

    def append(self, at: TopicPartition, records: Sequence[tuple[bytes, bytes | None]], now_ms: int) -> Outcome:
        return self.together([NewRecord(*at, key, value, now_ms) for key, value in records])

    def together(self, records: Sequence[NewRecord]) -> Outcome:
        epoch, _ = self._read()
        if epoch != self._epoch:
            return Fenced("another owner has taken over")
        assert {record.topic for record in records} == {delivery_topic(OUTBOX)}, "the kit has no dead letters here"
        self._write(epoch, [((r.key or b"").decode(), (r.value or b"").decode()) for r in records])
        return Done()

    def close(self) -> None: ...


def outbox_of(sink: Sink[Any, Any], count: int, offsets: Path) -> OutboxLog:
    log = _Lasting(offsets, sink.contract.position is PositionIn.DELIVERY_TOPIC)
    log.create(OUTBOX, 1)
    for n in range(count):
        value = Entry(f"k{n % 7}", n)
        key = sink.encode_key(value)
        log.append(OUTBOX, 0, value.id.encode() if key is None else key, sink.encode_value(value))
    return log


def main(factory: str, address: str, suffix: str, count: str, batch: str) -> None:
    module, _, name = factory.partition(":")
    sink = getattr(importlib.import_module(module), name)(address, suffix)
    log = outbox_of(sink, int(count), Path(os.environ[OFFSETS]))
    session = log.session(GROUP)
    session.records_max = int(batch)
    given: dict[str, Any] = {"app": "kit", "outbox": OUTBOX, "value_type": Entry, "steps": steps_from(os.environ)}
    given["say"] = lambda text: print(text, file=sys.stderr, flush=True)
    delivery: Delivery | CutDelivery
    if sink.contract.position is PositionIn.DELIVERY_TOPIC:
        decisions = _Decisions(log, Path(os.environ[OFFSETS]))
        delivery = CutDelivery(session, sink, owners=lambda id: decisions, **given)
    else:
        delivery = Delivery(session, sink, **given)
    delivery.join()
    session.assign(OUTBOX, 0)
    while not delivery._lanes or delivery.lag():
        delivery.step(time.time_ns() // 1_000_000, 0)  # by the clock: windows outlast a process
        time.sleep(0.001)
    delivery.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
