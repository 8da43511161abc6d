"""`ports.Owner` and `ports.Ingestor` on an engine in this process: one transactional id.

Invariant: what is answered is durable; after a refusal nothing is sent under the id until it is initialised again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from semel.broker import requests as api
from semel.broker.errors import Error
from semel.host.embedded import FENCED_ERRORS, SEQUENCE_MASK, STABLE_WAIT_S, error_name, refusal
from semel.host.embedded_columns import batches
from semel.host.engine import INIT_PRODUCER_ID, Ask, Engine
from semel.ports import Done, Fenced, LogLost, NewRecord, NotDone, Outcome, TopicPartition
from semel.record.batch import encode


class EmbeddedOwner:
    """One transactional id. Used by one thread."""

    def __init__(self, engine: Engine, transactional_id: str) -> None:
        self._engine, self._id = engine, transactional_id
        self._connection = engine.connect()
        self._producer: tuple[int, int] | None = None  # id, epoch
        self._sequences: dict[TopicPartition, int] = {}
        self._open: set[TopicPartition] = set()  # in the transaction that is open

    def initialise(self) -> None:
        self._producer = None
        deadline = time.monotonic() + STABLE_WAIT_S
        ask = Ask(INIT_PRODUCER_ID, 4, api.InitProducerIdRequest(self._id))
        while True:
            answer = self._engine.ask(self._connection, ask)
            if answer.error_code != Error.CONCURRENT_TRANSACTIONS or time.monotonic() > deadline:
                break
        if answer.error_code:
            raise LogLost(f"{self._engine.name}: initialise {self._id}: {error_name(answer.error_code)}")
        self._producer = answer.producer_id, answer.producer_epoch
        self._sequences.clear()
        self._open.clear()

    def append(self, at: TopicPartition, records: Sequence[tuple[bytes, bytes | None]], now_ms: int) -> Outcome:
        return self.together([NewRecord(*at, key, value, now_ms) for key, value in records])

    def together(self, records: Sequence[NewRecord]) -> Outcome:
        sent = self.send(records)
        return self.commit() if isinstance(sent, Done) else sent

    def send(self, records: Sequence[NewRecord]) -> Outcome:
        assert self._producer is not None, f"{self._id} is not initialised"
        producer_id, epoch = self._producer
        by_partition: dict[TopicPartition, list[NewRecord]] = {}
        for record in records:
            by_partition.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
        asks: list[Ask] = []
        new = [at for at in by_partition if at not in self._open]
        if new:
            topics = dict.fromkeys(at.topic for at in new)
            added = tuple(
                api.AddPartitionsToTxnTopic(topic, tuple(at.partition for at in new if at.topic == topic))
                for topic in topics
            )
            asks.append(Ask(24, 3, api.AddPartitionsToTxnRequest(self._id, producer_id, epoch, added)))
        for at, some in by_partition.items():
            headers = [record.headers for record in some]
            for start, end in batches([r.key for r in some], [r.value for r in some], headers):
                data = self._batch(at, some[start:end])
                batch = api.TopicProduceData(at.topic, (api.PartitionProduceData(at.partition, data),))
                asks.append(Ask(0, 9, api.ProduceRequest(self._id, -1, topic_data=(batch,))))
        failed = self._refused(self._engine.wait(self._engine.post(self._connection, asks)))
        self._open.update(by_partition)
        return failed or Done()

    def _batch(self, at: TopicPartition, records: Sequence[NewRecord]) -> bytes:
        assert self._producer is not None
        producer_id, epoch = self._producer
        sequence = self._sequences.get(at, 0)
        self._sequences[at] = (sequence + len(records)) & SEQUENCE_MASK
        with_headers = any(record.headers for record in records)
        return encode(
            [record.value for record in records],
            [record.key for record in records],
            [record.timestamp_ms for record in records],
            [record.headers or () for record in records] if with_headers else None,
            producer_id=producer_id,
            producer_epoch=epoch,
            base_sequence=sequence,
            transactional=True,
        )

    def commit(self) -> Outcome:
        assert self._producer is not None, f"{self._id} is not initialised"
        end = Ask(26, 3, api.EndTxnRequest(self._id, *self._producer, True))
        self._open.clear()
        return self._refused([self._engine.ask(self._connection, end)]) or Done()

    def _refused(self, answers: Sequence[Any]) -> Outcome | None:
        for answer in answers:
            code, reason = refusal(answer)
            if code:
                self._producer = None
                told = f"{self._id}: {reason}"
                return Fenced(f"another owner has taken over {told}") if code in FENCED_ERRORS else NotDone(told)
        return None

    def close(self) -> None:
        self._engine.disconnect(self._connection)
