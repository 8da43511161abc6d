"""Produce (versions 3 to 11): decides about batches, one per partition.

A batch is appended, refused, or answered as it was the first time (law 2). A transactional batch is appended only
while its transaction is open under exactly its epoch and with its partition in it; because the coordinator and the
partition are one process, there is no gap between the check and the append (FAULTS B2, B3: a late batch can never
open a transaction that nobody will end). Invariant: acks are given by what is durable; with acks=0 nothing is answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semel.broker.draft import Draft
from semel.broker.errors import Error
from semel.broker.events import Ready, Reply, Request
from semel.broker.messages import (
    PartitionProduceResponse,
    ProduceResponse,
    TopicProduceResponse,
)
from semel.broker.records import TxnState
from semel.broker.state import Topic
from semel.log import producers
from semel.log.partition import Partition
from semel.record.batch import Batch, parse
from semel.record.errors import CorruptBatch

if TYPE_CHECKING:
    from semel.broker.core import Broker


def produce(broker: Broker, request: Request, now_ms: int) -> Ready:
    message = request.message
    draft = Draft(broker.state)
    by_name = broker.state.topics
    acks_known = message.acks in (-1, 0, 1)
    topics: list[TopicProduceResponse] = []
    for topic_data in message.topic_data:
        topic = by_name.get(topic_data.name)
        replies = []
        for wanted in topic_data.partition_data:
            partition = None if topic is None else topic.partition(wanted.index)
            if not acks_known:
                replies.append(_refused(wanted.index, Error.INVALID_REQUIRED_ACKS, None))
            elif topic is None or partition is None:
                replies.append(_refused(wanted.index, Error.UNKNOWN_TOPIC_OR_PARTITION, None))
            elif topic.internal:
                replies.append(
                    _refused(wanted.index, Error.INVALID_TOPIC, f"{topic.name} is written by the broker only")
                )
            else:
                replies.append(_partition(broker, draft, topic, partition, wanted, message.transactional_id))
        topics.append(TopicProduceResponse(name=topic_data.name, partition_responses=replies))
    if message.acks == 0:
        failed = any(reply.error_code for topic_reply in topics for reply in topic_reply.partition_responses)
        # Nobody hears of an error with acks=0 but by the end of the connection, as in Kafka.
        draft.replies.append(Reply(request.connection, request.token, None, waits=False, close=failed))
    else:
        draft.replies.append(Reply(request.connection, request.token, ProduceResponse(topics)))
    return draft.ready()


def _partition(
    broker: Broker, draft: Draft, topic: Topic, partition: Partition, wanted: Any, transactional_id: str | None
) -> PartitionProduceResponse:
    index: int = wanted.index
    records = wanted.records
    if not records:
        return _refused(index, Error.INVALID_RECORD, "the request has no batch for this partition")
    try:
        batch = parse(records)
    except CorruptBatch as reason:
        return _refused(index, Error.CORRUPT_MESSAGE, str(reason))
    size = len(batch.data)
    if size != len(records):
        return _refused(index, Error.INVALID_RECORD, "produce requests have exactly one batch per partition")
    if batch.is_control or batch.count == 0 or batch.count != batch.last_offset_delta + 1:
        return _refused(index, Error.INVALID_RECORD, "a client may not write control batches, or batches with gaps")
    limit = topic.config.get("max.message.bytes")
    if size > (broker.config.message_max_bytes if limit is None else int(limit)):
        return _refused(index, Error.MESSAGE_TOO_LARGE, None)
    key = (topic.number, index)
    if key in draft.ends:
        return _refused(index, Error.INVALID_REQUEST, "the partition is named twice in one request")

    verdict = partition.check(batch)
    if isinstance(verdict, producers.Duplicate):
        return PartitionProduceResponse(index, 0, verdict.base_offset, -1, partition.start_offset)
    if batch.producer_id >= 0:
        refusal = _transaction_refuses(broker, key, batch)
        if refusal is not None:
            return _refused(index, *refusal)
    if not isinstance(verdict, producers.Accept):
        return _refused(index, *_refusal(verdict))
    base_offset = draft.append(key, partition, batch.data, batch.last_offset_delta + 1)
    return PartitionProduceResponse(index, 0, base_offset, -1, partition.start_offset)


def _transaction_refuses(broker: Broker, key: tuple[int, int], batch: Batch) -> tuple[Error, str] | None:
    """Why the coordinator does not let this batch in, None when it does (KIP-890's check, without its gap)."""
    state = broker.state
    transactional_id = state.by_producer.get(batch.producer_id)
    if transactional_id is None:
        if not batch.is_transactional:
            return None
        return Error.INVALID_PRODUCER_ID_MAPPING, f"producer id {batch.producer_id} has no transactional id (any more)"
    transaction = state.transactions[transactional_id]
    if batch.producer_epoch != transaction.epoch:
        # Lower: a zombie, a newer instance has started or the transaction timed out. Higher: never given out.
        return (
            Error.INVALID_PRODUCER_EPOCH,
            f"{transactional_id} has epoch {transaction.epoch}, the batch {batch.producer_epoch}",
        )
    if not batch.is_transactional:
        return Error.INVALID_TXN_STATE, f"{transactional_id} writes outside a transaction"
    if transaction.state is not TxnState.ONGOING or key not in transaction.partitions:
        return Error.INVALID_TXN_STATE, f"the partition is in no open transaction of {transactional_id}"
    return None


def _refusal(verdict: producers.Verdict) -> tuple[Error, str]:
    match verdict:
        case producers.Fenced(epoch):
            return Error.INVALID_PRODUCER_EPOCH, f"epoch {epoch} of this producer has been seen"
        case producers.OutOfOrder(expected, found, below_window):
            # Never DUPLICATE_SEQUENCE_NUMBER: clients take that for success, and below the window nobody knows.
            below = ", which lies below the last five batches" if below_window else ""
            return Error.OUT_OF_ORDER_SEQUENCE_NUMBER, f"sequence {expected} is next, not {found}{below}"
        case producers.Conflict(base_offset, first, last):
            # Not "duplicate": that is taken for success, and the new bytes would be lost silently (FAULTS B19).
            return (
                Error.INVALID_RECORD,
                f"sequences {first} to {last} hold other bytes, at offset {base_offset}: this batch was not written",
            )
        case producers.NotInTransaction(first_offset):
            return Error.INVALID_TXN_STATE, f"a transaction of this producer is open from offset {first_offset}"
        case _:
            raise AssertionError(verdict)


def _refused(index: int, error: Error, message: str | None) -> PartitionProduceResponse:
    return PartitionProduceResponse(index, int(error), -1, -1, -1, (), message)
