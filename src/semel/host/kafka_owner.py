"""`ports.Owner` and `ports.Ingestor` on a Kafka cluster, through confluent-kafka.

Invariants: only `initialise` makes a Producer, so an id is never taken over but by a caller who then reads what the
former owner left; one transaction per Producer at a time; and no transaction begins on a Producer
whose connections failed during the one before (FAULTS B1: a delayed EndTxn would end the next).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import confluent_kafka

from semel.contract import Row
from semel.host.kafka_client import (
    Address,
    KafkaError,
    KafkaException,
    Lines,
    Stuck,
    Watchdog,
    base_settings,
    bury,
    error_of,
    is_fenced,
    made,
)
from semel.host.kafka_producer import COMMIT_TIMEOUT_S, SLACK_S, TRANSACTION_TIMEOUT_MS, WRITING
from semel.ports import Done, Fenced, LogLost, NewRecord, NotDone, Outcome, TopicPartition, Unknown

# The record itself is what the broker will not take: trying again mends nothing.
UNTAKEN = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError.INVALID_TIMESTAMP})
UNTAKEN_MAX = 100  # a batch that is refused as a whole need not be kept as a whole


class KafkaOwner:
    """One transactional id. Used by one thread. `more`: settings of its Producers beside ours."""

    def __init__(
        self,
        at: Address,
        transactional_id: str,
        timeout_ms: int = TRANSACTION_TIMEOUT_MS,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self._at, self._id, self._timeout_ms, self._more = at, transactional_id, timeout_ms, dict(more or {})
        self._watchdog = Watchdog(at)
        self._lines = Lines()
        self._producer: confluent_kafka.Producer | None = None
        self._open = False  # a transaction
        self._failure: confluent_kafka.KafkaError | None = None  # the first write that was refused
        self.untaken: list[confluent_kafka.Message] = []  # those of this transaction that the broker will never take

    def initialise(self) -> None:
        self._discard()
        deadline = time.monotonic() + self._at.patience_s()
        while True:
            self._lines = Lines()
            producer = made(confluent_kafka.Producer, self._settings(), self._at)
            left = max(1.0, deadline - time.monotonic())
            try:
                self._watchdog.call(partial(producer.init_transactions, left), left + SLACK_S)
            except (KafkaException, SystemError, Stuck) as failed:
                bury(producer)
                if time.monotonic() >= deadline:
                    reason = str(failed) if isinstance(failed, Stuck) else error_of(failed).str()
                    raise LogLost(f"{self._at.lost} ({self._id} could not be initialised: {reason})") from failed
                time.sleep(0.05)
                continue
            self._producer = producer
            return

    def _settings(self) -> dict[str, Any]:
        return {
            **base_settings(self._at),
            **WRITING,
            "linger.ms": 0,
            **self._more,
            "transactional.id": self._id,
            "transaction.timeout.ms": self._timeout_ms,
            "on_delivery": self._undelivered,
            "debug": "broker",
            "log_level": 7,  # FAIL lines come at the debug level
            "logger": self._lines,
        }

    def _undelivered(self, error: confluent_kafka.KafkaError | None, message: confluent_kafka.Message) -> None:
        if error is None:
            return
        if self._failure is None:
            self._failure = error
        if error.code() in UNTAKEN and len(self.untaken) < UNTAKEN_MAX:
            self.untaken.append(message)

    def append(self, at: TopicPartition, records: Sequence[tuple[bytes, bytes | None]], now_ms: int) -> Outcome:
        return self.together([NewRecord(*at, key, value, now_ms) for key, value in records])

    def together(self, records: Sequence[NewRecord]) -> Outcome:
        sent = self.send(records)
        return self.commit() if isinstance(sent, Done) else sent

    def send(self, records: Sequence[NewRecord]) -> Outcome:
        return self._sent(lambda producer: self._written(producer, records))

    def hand_over(self, topic: str, rows: Sequence[Row]) -> Outcome:
        """As `send`, into the partitions that the keys choose, and without waiting: the next `send` waits for these."""
        return self._sent(lambda producer: self._queued(producer, topic, rows))

    def _sent(self, write: Callable[[confluent_kafka.Producer], Outcome]) -> Outcome:
        producer = self._producer
        if producer is None:
            return NotDone(f"a connection was lost in the transaction before; {self._id} is claimed again")
        if not self._open:
            self._lost_a_connection(producer)
            self._lines.failures.clear()  # no transaction was open: what failed until now cannot be late for one
            self._failure = None
            self.untaken = []
        outcome = write(producer)
        if not isinstance(outcome, Done):
            self._discard()
        return outcome

    def commit(self) -> Outcome:
        producer = self._producer
        assert producer is not None and self._open, f"{self._id}: nothing was sent"
        outcome = self._committed(producer)
        self._open = False
        if not isinstance(outcome, Done) or self._lost_a_connection(producer):
            # After Done a request of this transaction may still be under way (B1); the next one says so.
            self._discard()
        return outcome

    @property
    def good(self) -> bool:
        """Whether the id is owned, as far as this side knows. Not so: nothing can be sent before `initialise`."""
        return self._producer is not None

    def _begun(self, producer: confluent_kafka.Producer) -> None:
        if not self._open:
            producer.begin_transaction()
            self._open = True

    def _queued(self, producer: confluent_kafka.Producer, topic: str, rows: Sequence[Row]) -> Outcome:
        try:
            self._begun(producer)
            produce = producer.produce
            for row in rows:
                produce(topic, row.value, row.key, -1, None, None, row.timestamp_ms)
        except (KafkaException, SystemError, BufferError) as failed:
            return self._not_done(failed)
        return Done()

    def _written(self, producer: confluent_kafka.Producer, records: Sequence[NewRecord]) -> Outcome:
        commit_s = min(COMMIT_TIMEOUT_S, self._at.patience_s())
        try:
            self._begun(producer)
            for topic, partition, key, value, timestamp_ms, headers in records:
                given: Any = list(headers) if headers else None
                producer.produce(topic, value, key, partition, None, None, timestamp_ms, given)
            unsent = self._watchdog.call(partial(producer.flush, commit_s), commit_s + SLACK_S)
        except (KafkaException, SystemError, BufferError, Stuck) as failed:
            return self._not_done(failed)
        if self._failure is not None:
            return self._not_done(KafkaException(self._failure))
        if unsent:
            return NotDone(f"{self._id}: nothing was acknowledged in {commit_s:.0f} s")
        return Done()

    def _committed(self, producer: confluent_kafka.Producer) -> Outcome:
        commit_s = min(COMMIT_TIMEOUT_S, self._at.patience_s())
        deadline, resumed = time.monotonic() + commit_s, False
        while True:
            left = max(0.5, deadline - time.monotonic())
            try:
                self._watchdog.call(partial(producer.commit_transaction, left), left + SLACK_S)
                return Done()
            except Stuck as stuck:
                return Unknown(f"{self._id}: the commit was not answered: {stuck}")
            except (KafkaException, SystemError) as failed:
                error = error_of(failed)
                if is_fenced(error) and not resumed and not self._lost_a_connection(producer):
                    # Asked once, over a connection that lives, and refused: this is no unknown.
                    return self._not_done(failed)
                final = error.txn_requires_abort() or error.fatal() or not error.retriable()
                if final or time.monotonic() >= deadline:
                    return Unknown(f"{self._id}: the commit was not answered: {error.str()}")
                resumed = True  # the same commit goes on: librdkafka allows it after a timeout

    def _not_done(self, failed: BaseException) -> Outcome:
        """EndTxn was not sent, or refused: it is certain that nothing was committed."""
        error = error_of(failed)
        if is_fenced(error):
            return Fenced(f"another owner has taken over {self._id}: {error.str()}")
        return NotDone(f"{self._id}: {failed if isinstance(failed, Stuck) else error.str()}")

    def _lost_a_connection(self, producer: confluent_kafka.Producer) -> bool:
        """Since the transaction began, as far as the client's own log says."""
        with contextlib.suppress(KafkaException, SystemError):  # a fatal error is told by the call that met it
            producer.poll(0)
        return bool(self._lines.failures)

    def _discard(self) -> None:
        self._open = False
        if self._producer is not None:
            bury(self._producer)
            self._producer = None

    def close(self) -> None:
        self._discard()
        self._watchdog.close()
