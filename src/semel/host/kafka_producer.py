"""Writing to a Kafka cluster through confluent-kafka: one transactional id, or none.

Invariants of the transactional writer: each transaction has exactly one TxnOffsetCommit, the last thing before
EndTxn (FAULTS B26); no transaction begins on a Producer whose connections failed during the one before (B1: with
transaction V1 a delayed EndTxn would end the *next* transaction; a new Producer of the same id has a higher epoch,
which fences it); and after an outcome that is not `Done` nothing of ours is open any more, because InitProducerId
has ended it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import confluent_kafka

from semel.host.kafka_client import (
    Address,
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
from semel.ports import (
    Done,
    Fenced,
    Headers,
    LogLost,
    NotDone,
    Outcome,
    Position,
    Step,
    Steps,
    TopicPartition,
    Unknown,
    Write,
)

TRANSACTION_TIMEOUT_MS = 10_000
OFFSETS_TIMEOUT_S = 12.0
COMMIT_TIMEOUT_S = 15.0
INIT_S = 6.0  # for one Producer to be initialised; then another tries
SLACK_S = 5.0  # what a call may take beyond its own timeout before it counts as stuck
FULL_WAIT_S = 0.05

WRITING: dict[str, Any] = {
    "enable.idempotence": True,
    "partitioner": "murmur2_random",  # as Kafka's own default: other clients' keys must meet ours
    "linger.ms": 5,
    "batch.size": 1_000_000,
    "queue.buffering.max.messages": 2_000_000,
    "queue.buffering.max.kbytes": 524_288,
    "delivery.report.only.error": True,  # no callback per record: what was delivered, the commit or flush says
}


def _offsets(positions: Mapping[TopicPartition, Position]) -> list[confluent_kafka.TopicPartition]:
    return [
        confluent_kafka.TopicPartition(at.topic, at.partition, position.offset, position.metadata)
        for at, position in positions.items()
    ]


class Producing:
    """What both writers share: the current Producer, and `write` functions that survive its replacement."""

    def __init__(self, at: Address) -> None:
        self._at = at
        self._producer: confluent_kafka.Producer | None = None
        self.failure: confluent_kafka.KafkaError | None = None  # the first write that was refused
        self.wrote = False

    def writer(self, topic: str) -> Write:
        """A function that hands one record to the Producer. A refusal is kept for the commit or flush to tell:
        writes themselves do not fail."""

        def write(partition: int, key: bytes | None, value: bytes | None, ms: int, headers: Headers | None) -> None:
            self.wrote = True
            given = None if headers is None else list(headers)
            try:
                self._producer.produce(topic, value, key, partition, None, None, ms, given)  # type: ignore[union-attr,arg-type]
            except BufferError:
                self._when_full(topic, value, key, partition, ms, given)
            except (KafkaException, SystemError) as refused:
                self._refused(refused)

        return write

    def _undelivered(self, error: confluent_kafka.KafkaError | None, message: object) -> None:
        if error is not None and self.failure is None:
            self.failure = error

    def _refused(self, refused: BaseException) -> None:
        if self.failure is None:
            self.failure = error_of(refused)

    def _when_full(
        self, topic: str, value: bytes | None, key: bytes | None, partition: int, ms: int, headers: list[Any] | None
    ) -> None:
        """The queue is full: wait for the broker to take some, in bounded time."""
        assert self._producer is not None
        patience_s = self._at.patience_s()
        deadline = time.monotonic() + patience_s
        while True:
            try:
                self._producer.poll(FULL_WAIT_S)
                self._producer.produce(topic, value, key, partition, None, None, ms, headers)
                return
            except BufferError:
                if time.monotonic() > deadline:
                    raise LogLost(
                        f"{self._at.lost} Its queue of unsent records stayed full for {patience_s:.0f} s."
                    ) from None
            except (KafkaException, SystemError) as refused:
                self._refused(refused)
                return


class TransactionalWriter(Producing):
    """The owner of one transactional id. Used by one thread."""

    def __init__(
        self, at: Address, transactional_id: str, steps: Steps, timeout_ms: int = TRANSACTION_TIMEOUT_MS
    ) -> None:
        super().__init__(at)
        self._timeout_ms = timeout_ms
        self.transactional_id = transactional_id
        self._steps = steps
        self._watchdog = Watchdog(at)
        self._lines = Lines()
        self.replaced = 0  # Producers given up since the start

    def open(self) -> None:
        """A new Producer, initialised: whatever an earlier owner of the id left open has ended, and that owner is
        fenced. LogLost when no broker does this in bounded time."""
        deadline = time.monotonic() + self._at.patience_s()
        self.discard()
        while True:
            self._lines = Lines()
            producer = made(
                confluent_kafka.Producer,
                {
                    **base_settings(self._at),
                    **WRITING,
                    "transactional.id": self.transactional_id,
                    "transaction.timeout.ms": self._timeout_ms,
                    "on_delivery": self._undelivered,
                    "debug": "broker",
                    "log_level": 7,  # FAIL lines come at the debug level
                    "logger": self._lines,
                },
                self._at,
            )
            # Not one Producer for all the time: one made while the broker was away may find it late.
            left = max(1.0, min(INIT_S, deadline - time.monotonic()))
            try:
                self._watchdog.call(partial(producer.init_transactions, left), left + SLACK_S)
            except (KafkaException, SystemError, Stuck) as failed:
                bury(producer)
                if time.monotonic() >= deadline:
                    reason = str(failed) if isinstance(failed, Stuck) else error_of(failed).str()
                    raise LogLost(
                        f"{self._at.lost} ({self.transactional_id} could not be initialised: {reason})"
                    ) from failed
                time.sleep(0.05)
                continue
            self._producer = producer
            self.failure = None
            self.wrote = False
            return

    def discard(self) -> None:
        if self._producer is not None:
            self.replaced += 1
            bury(self._producer)
            self._producer = None

    def begin(self) -> None:
        if self._producer is None:
            self.open()
        self._lost_a_connection()
        self._lines.failures.clear()  # no transaction was open: what failed until now cannot be late for one
        self.failure = None
        self.wrote = False
        assert self._producer is not None
        try:
            self._producer.begin_transaction()
        except (KafkaException, SystemError):
            self.open()  # an error that makes a Producer useless can come while nothing is asked of it
            self._producer.begin_transaction()

    def _ended(self) -> None:
        """After a commit or abort that returned: any connection lost since `begin` may still carry a request of this
        transaction, which would hit the next one (B1). Only a higher epoch fences it."""
        if self._lost_a_connection():
            self.discard()

    def _lost_a_connection(self) -> bool:
        """Since `begin`, as far as the client's own log says."""
        assert self._producer is not None
        with contextlib.suppress(KafkaException, SystemError):  # a fatal error is told by the call that met it
            self._producer.poll(0)
        return bool(self._lines.failures)

    def commit(self, positions: Mapping[TopicPartition, Position], membership: Any) -> Outcome:
        producer = self._producer
        assert producer is not None, "commit without begin"
        if not positions:
            assert not self.wrote, "a transaction that wrote must carry offsets: without them the group fences nothing"
            self.abort()
            return Done()
        commit_s = min(COMMIT_TIMEOUT_S, self._at.patience_s())
        offsets_s = min(OFFSETS_TIMEOUT_S, self._at.patience_s())
        # Outputs first, and answered, so that a record which the log will never take is told as what it is.
        try:
            unsent = self._watchdog.call(partial(producer.flush, commit_s), commit_s + SLACK_S)
        except Stuck as stuck:
            self.open()
            return NotDone(f"the outputs could not be written: {stuck}")
        except (KafkaException, SystemError) as failed:  # a fatal error comes up in whatever call serves it
            return self._not_done(error_of(failed), "the outputs could not be written")
        if self.failure is not None:
            return self._not_done(self.failure, "a write was refused")
        if unsent:
            self.open()
            return NotDone(f"{unsent} outputs were not acknowledged in {commit_s:.0f} s")
        self._steps.reached(Step.OFFSETS_BEFORE)
        offsets = _offsets(positions)
        try:
            self._watchdog.call(
                partial(producer.send_offsets_to_transaction, offsets, membership, offsets_s), offsets_s + SLACK_S
            )
        except Stuck as stuck:
            self.open()
            return NotDone(f"the offsets could not be sent: {stuck}")
        except (KafkaException, SystemError) as failed:
            # EndTxn has not been sent, so it is certain that nothing was committed; a second
            # TxnOffsetCommit in this transaction is never sent.
            return self._not_done(error_of(failed), "the offsets were refused")
        self._steps.reached(Step.OFFSETS_AFTER)
        self._steps.reached(Step.COMMIT_BEFORE)
        deadline, resumed = time.monotonic() + commit_s, False
        while True:
            left = max(0.5, deadline - time.monotonic())
            try:
                self._watchdog.call(partial(producer.commit_transaction, left), left + SLACK_S)
                break
            except Stuck as stuck:
                reason = str(stuck)
            except (KafkaException, SystemError) as failed:
                error = error_of(failed)
                if is_fenced(error) and not resumed and not self._lost_a_connection():
                    # Asked once, over a connection that lives, and refused: this is no unknown.
                    return self._not_done(error, "the commit was refused")
                final = error.txn_requires_abort() or error.fatal() or not error.retriable()
                if not final and time.monotonic() < deadline:
                    resumed = True  # the same commit goes on: librdkafka allows it after a timeout
                    continue
                reason = error.str()
            if self._lines.failures:
                reason += f"; a connection was lost: {self._lines.failures[0]}"
            # The commit may have been decided before whatever we saw.
            self.open()
            return Unknown(f"the commit was not answered: {reason}")
        self._steps.reached(Step.COMMIT_AFTER)
        self._ended()
        return Done()

    def _not_done(self, error: confluent_kafka.KafkaError, what: str) -> Outcome:
        self.open()
        if is_fenced(error):
            return Fenced(f"{what}: {error.str()}")
        return NotDone(f"{what}: {error.str()}")

    def abort(self) -> None:
        """The open transaction, if any, ends without effect."""
        producer = self._producer
        if producer is None:
            return
        try:
            abort_s = min(COMMIT_TIMEOUT_S, self._at.patience_s())
            self._watchdog.call(partial(producer.abort_transaction, abort_s), abort_s + SLACK_S)
        except (KafkaException, SystemError, Stuck):
            self.open()  # which ends it
            return
        self._ended()

    def close(self) -> None:
        self.discard()
        self._watchdog.close()


class PlainWriter(Producing):
    """Idempotent writes outside any transaction."""

    def __init__(self, at: Address) -> None:
        super().__init__(at)

    def open(self) -> None:
        if self._producer is None:
            self._producer = made(
                confluent_kafka.Producer,
                {
                    **base_settings(self._at),
                    **WRITING,
                    "on_delivery": self._undelivered,
                    "message.timeout.ms": int(self._at.patience_s() * 1000),
                },
                self._at,
            )

    def writer(self, topic: str) -> Write:
        self.open()
        return super().writer(topic)

    def flush(self) -> None:
        if self._producer is None:
            return
        deadline = time.monotonic() + self._at.patience_s() + SLACK_S
        try:
            while self._producer.flush(1.0):
                if time.monotonic() > deadline:
                    raise LogLost(f"{self._at.lost} {len(self._producer)} records were not acknowledged.")
        except (KafkaException, SystemError) as failed:
            raise LogLost(f"{self._at.url} did not take a record: {error_of(failed).str()}") from failed
        self.wrote = False
        if self.failure is not None:
            raise LogLost(f"{self._at.url} did not take a record: {self.failure.str()}")

    def close(self) -> None:
        if self._producer is not None:
            bury(self._producer)
            self._producer = None
