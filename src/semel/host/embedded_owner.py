"""`ports.Owner` on an engine in this process: one transactional id, transactions of one partition each.

Invariant: a transaction is posted as one piece (partition, batch, end), so nothing of another session of this process
comes between; what is answered is durable.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from semel.broker import requests as api
from semel.broker.errors import Error
from semel.host.embedded import FENCED_ERRORS, SEQUENCE_MASK, STABLE_WAIT_S, error_name, refusal
from semel.host.engine import INIT_PRODUCER_ID, Ask, Engine
from semel.ports import Done, Fenced, LogLost, NotDone, Outcome, TopicPartition
from semel.record.batch import encode


class EmbeddedOwner:
    def __init__(self, engine: Engine, transactional_id: str) -> None:
        self._engine, self._id = engine, transactional_id
        self._connection = engine.connect()
        self._producer: tuple[int, int] | None = None  # id, epoch
        self._sequences: dict[TopicPartition, int] = {}

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

    def append(self, at: TopicPartition, records: Sequence[tuple[bytes, bytes | None]], now_ms: int) -> Outcome:
        assert self._producer is not None, f"{self._id} is not initialised"
        producer_id, epoch = self._producer
        sequence = self._sequences.get(at, 0)
        keys, values = [key for key, _ in records], [value for _, value in records]
        data = encode(
            values,
            keys,
            [now_ms] * len(records),
            None,
            producer_id=producer_id,
            producer_epoch=epoch,
            base_sequence=sequence,
            transactional=True,
        )
        add = api.AddPartitionsToTxnTopic(at.topic, (at.partition,))
        batch = api.TopicProduceData(at.topic, (api.PartitionProduceData(at.partition, data),))
        tickets = self._engine.post(
            self._connection,
            [
                Ask(24, 3, api.AddPartitionsToTxnRequest(self._id, producer_id, epoch, (add,))),
                Ask(0, 9, api.ProduceRequest(self._id, -1, topic_data=(batch,))),
            ],
        )
        if (failed := self._refused(self._engine.wait(tickets))) is not None:
            return failed
        end = Ask(26, 3, api.EndTxnRequest(self._id, producer_id, epoch, True))
        if (failed := self._refused([self._engine.ask(self._connection, end)])) is not None:
            return failed
        self._sequences[at] = (sequence + len(records)) & SEQUENCE_MASK
        return Done()

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
