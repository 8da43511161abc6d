"""The transaction coordinator, version 1 of the protocol: ids and epochs, open transactions, how they end.

One commit decision: EndTxn's step holds PREPARE, the marker of every partition and COMPLETE, and is answered when the
last is durable. Whatever part of it a crash leaves, `finish_prepared` writes the rest before anything is served, so no
crash point tears a transaction (FAULTS B10, B11). A timeout is a logged abort whose epoch fences its owner (B2, B7).

A delayed request of version 1 carries the same id and epoch as a later transaction of its sender (KIP-890 calls this
the hole of V1; FAULTS B1, B26). `overtaken` closes it: per producer id, epoch and API, once a newer connection has sent
a request, one that arrives on an older connection changes nothing and that connection is ended. It is never answered
PRODUCER_FENCED: the client is alive on the newer one. It holds where the order in which connections were accepted is
the order in which the client opened them; without faults it ends none, because a client sends each API on one
connection at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from semel.broker.draft import Draft
from semel.broker.errors import Error
from semel.broker.events import Ready, Reply, Request
from semel.broker.messages import (
    AddOffsetsToTxnResponse,
    AddPartitionsToTxnPartitionResult,
    AddPartitionsToTxnResponse,
    AddPartitionsToTxnTopicResult,
    EndTxnResponse,
    InitProducerIdResponse,
)
from semel.broker.records import PartitionKey, ProducerIds, Transaction, TxnState
from semel.broker.requests import milliseconds
from semel.record.control import marker

if TYPE_CHECKING:
    from semel.broker.core import Broker

EPOCH_LAST: Final = 32_766  # the highest that a client gets; 32767 only ever fences its owner (FAULTS B6)
NO_EPOCH: Final = -1
_PREPARED: Final = {TxnState.PREPARE_COMMIT: TxnState.COMPLETE_COMMIT, TxnState.PREPARE_ABORT: TxnState.COMPLETE_ABORT}


# --- The rule of the delayed request ----------------------------------------------------------------------------


@dataclass(slots=True)
class Accepted:
    """Of one producer id and epoch: the newest connection that has sent each API, by accept number. Volatile: a
    restart ends every connection, and with them whatever was delayed on one."""

    producer_id: int
    epoch: int
    by_api: dict[int, int] = field(default_factory=dict)


def overtaken(broker: Broker, request: Request, transaction: Transaction) -> bool:
    """The same client has sent this API on a newer connection: what comes here is late. Notes the connection if not."""
    seen = broker.accepted.get(transaction.id)
    if seen is None or (seen.producer_id, seen.epoch) != (transaction.producer_id, transaction.epoch):
        seen = broker.accepted[transaction.id] = Accepted(transaction.producer_id, transaction.epoch)
    newest = seen.by_api.get(request.api_key, -1)
    if request.accepted < newest:
        return True
    seen.by_api[request.api_key] = request.accepted
    return False


def ended_connection(request: Request) -> Ready:
    """The answer to a request that was overtaken: none, and nothing more on its connection."""
    return Ready((), (Reply(request.connection, request.token, None, waits=False, close=True),))


def checked(broker: Broker, transactional_id: str, producer_id: int, epoch: int) -> Transaction | Error:
    """The transaction of this producer, if it is still its owner."""
    transaction = broker.state.transactions.get(transactional_id)
    if transaction is None or transaction.producer_id != producer_id:
        return Error.INVALID_PRODUCER_ID_MAPPING
    if transaction.epoch != epoch:
        # Lower: a newer instance was initialised, or a timeout fenced it. Higher: never given out.
        return Error.PRODUCER_FENCED
    return transaction


def as_told(error: Error, request: Request, since: int) -> Error:
    """PRODUCER_FENCED by the name that clients of older versions know (KIP-588)."""
    if error is Error.PRODUCER_FENCED and request.version < since:
        return Error.INVALID_PRODUCER_EPOCH
    return error


# --- InitProducerId ---------------------------------------------------------------------------------------------


def init_producer_id(broker: Broker, request: Request, now_ms: int) -> Ready:
    """Versions 0 to 5. From 3 on a client may name its present id and epoch to go on after an error (KIP-360)."""
    message = request.message
    draft = Draft(broker.state)
    found = _initialised(broker, draft, message, now_ms)
    if isinstance(found, Error):
        response = InitProducerIdResponse(0, as_told(found, request, 4), -1, -1)
    else:
        response = InitProducerIdResponse(0, 0, *found)
    # Fencing is durable before anyone hears of the new epoch (FAULTS B15).
    draft.replies.append(Reply(request.connection, request.token, response))
    return draft.ready()


def _initialised(broker: Broker, draft: Draft, message: Any, now_ms: int) -> tuple[int, int] | Error:
    state = broker.state
    transactional_id = message.transactional_id
    if transactional_id is None:
        return _new_producer_id(draft), 0
    named_id, named_epoch = getattr(message, "producer_id", -1), getattr(message, "producer_epoch", NO_EPOCH)
    if transactional_id == "" or (named_id < 0) != (named_epoch < 0):
        return Error.INVALID_REQUEST
    timeout_ms = milliseconds(message.transaction_timeout)
    if not 0 < timeout_ms <= broker.config.transaction_max_timeout_ms:
        return Error.INVALID_TRANSACTION_TIMEOUT
    before = state.transactions.get(transactional_id)
    if before is None:
        producer_id = _new_producer_id(draft)
        draft.add(Transaction(transactional_id, producer_id, 0, -1, NO_EPOCH, timeout_ms, TxnState.EMPTY, -1, now_ms))
        return producer_id, 0
    if named_id >= 0 and (named_id, named_epoch) != (before.producer_id, before.epoch):
        if named_epoch == before.last_epoch and named_id in (before.producer_id, before.last_producer_id):
            # A retry whose first answer was lost: no one else has initialised since, or `last_epoch` were gone. It
            # must not fence its own sender, nor end what that has begun since (FAULTS B16).
            return before.producer_id, before.epoch
        return Error.PRODUCER_FENCED
    now = before
    if before.state is TxnState.ONGOING:
        now = end(draft, _fenced(before), commit=False, now_ms=now_ms)
    exhausted = now.epoch >= EPOCH_LAST
    after = replace(
        now,
        producer_id=_new_producer_id(draft) if exhausted else now.producer_id,
        epoch=0 if exhausted else now.epoch + 1,
        last_producer_id=now.producer_id if exhausted else -1,
        last_epoch=named_epoch,
        timeout_ms=timeout_ms,
        state=TxnState.EMPTY,
        updated_ms=now_ms,
    )
    draft.add(after)
    return after.producer_id, after.epoch


def _new_producer_id(draft: Draft) -> int:
    producer_id = draft.state.next_producer_id
    draft.add(ProducerIds(producer_id + 1))
    return producer_id


# --- Adding to a transaction --------------------------------------------------------------------------------------


def add_partitions_to_txn(broker: Broker, request: Request, now_ms: int) -> Ready:
    """Versions 0 to 3. All partitions or none; the first ones open the transaction."""
    message, state = request.message, broker.state
    draft = Draft(state)
    topics = message.v3_and_below_topics
    found = checked(
        broker,
        message.v3_and_below_transactional_id,
        message.v3_and_below_producer_id,
        message.v3_and_below_producer_epoch,
    )
    if isinstance(found, Transaction):
        if overtaken(broker, request, found):
            return ended_connection(request)
        keys: list[PartitionKey] = []
        unknown = set()
        for wanted in topics:
            topic = state.topics.get(wanted.name)
            for index in wanted.partitions:
                if topic is None or topic.partition(index) is None:
                    unknown.add((wanted.name, index))
                else:
                    keys.append((topic.number, index))
        if not unknown:
            _join(draft, found, keys, (), now_ms)
        results = _results(topics, unknown, Error.OPERATION_NOT_ATTEMPTED if unknown else Error.NONE)
    else:
        results = _results(topics, set(), as_told(found, request, 2))
    response = AddPartitionsToTxnResponse(results_by_topic_v3_and_below=results)
    draft.replies.append(Reply(request.connection, request.token, response))
    return draft.ready()


def _results(topics: Any, unknown: set[tuple[str, int]], error: Error) -> list[AddPartitionsToTxnTopicResult]:
    return [
        AddPartitionsToTxnTopicResult(
            wanted.name,
            [
                AddPartitionsToTxnPartitionResult(
                    index, Error.UNKNOWN_TOPIC_OR_PARTITION if (wanted.name, index) in unknown else error
                )
                for index in wanted.partitions
            ],
        )
        for wanted in topics
    ]


def add_offsets_to_txn(broker: Broker, request: Request, now_ms: int) -> Ready:
    """Versions 0 to 4. Puts the group's partition of `__consumer_offsets` into the transaction."""
    message, state = request.message, broker.state
    draft = Draft(state)
    found = checked(broker, message.transactional_id, message.producer_id, message.producer_epoch)
    if isinstance(found, Transaction):
        if overtaken(broker, request, found):
            return ended_connection(request)
        error = Error.NONE if message.group_id else Error.INVALID_GROUP_ID
        if message.group_id:
            key = (state.offsets_topic, state.groups.partition_of(message.group_id))
            _join(draft, found, [key], (message.group_id,), now_ms)
    else:
        error = as_told(found, request, 2)
    draft.replies.append(Reply(request.connection, request.token, AddOffsetsToTxnResponse(0, error)))
    return draft.ready()


def _join(draft: Draft, before: Transaction, keys: list[PartitionKey], groups: tuple[str, ...], now_ms: int) -> None:
    """Adds what is not in it yet; opens a transaction if none is open."""
    is_open = before.state is TxnState.ONGOING
    partitions = before.partitions if is_open else ()
    present = before.groups if is_open else ()
    new_keys = tuple(dict.fromkeys(key for key in keys if key not in partitions))
    new_groups = tuple(group for group in groups if group not in present)
    if is_open and not new_keys and not new_groups:
        return
    draft.add(
        replace(
            before,
            state=TxnState.ONGOING,
            partitions=partitions + new_keys,
            groups=present + new_groups,
            started_ms=before.started_ms if is_open else now_ms,
            updated_ms=now_ms,
        )
    )


# --- Ending -------------------------------------------------------------------------------------------------------


def end_txn(broker: Broker, request: Request, now_ms: int) -> Ready:
    """Versions 0 to 4.

    Without an open transaction there is nothing to decide, so commit and abort are both done (FAULTS B9; Kafka says
    INVALID_TXN_STATE). That hides no abort: one that its owner did not ask for has raised the epoch.
    """
    message = request.message
    draft = Draft(broker.state)
    found = checked(broker, message.transactional_id, message.producer_id, message.producer_epoch)
    if isinstance(found, Transaction):
        if overtaken(broker, request, found):
            return ended_connection(request)
        error = Error.NONE
        if found.state is TxnState.ONGOING:
            end(draft, found, commit=message.committed, now_ms=now_ms)
        else:
            assert found.state not in _PREPARED, found
    else:
        error = as_told(found, request, 2)
    draft.replies.append(Reply(request.connection, request.token, EndTxnResponse(0, error)))
    return draft.ready()


def end(draft: Draft, transaction: Transaction, *, commit: bool, now_ms: int) -> Transaction:
    """The decision, its markers and its completion; the transaction as it is then."""
    state = TxnState.PREPARE_COMMIT if commit else TxnState.PREPARE_ABORT
    prepared = replace(transaction, state=state, updated_ms=now_ms)
    draft.add(prepared)
    return _finish(draft, prepared, now_ms)


def _fenced(transaction: Transaction) -> Transaction:
    """With an epoch that no client is given: whoever has the present one may not go on."""
    return replace(transaction, epoch=transaction.epoch + 1, last_epoch=NO_EPOCH)


def _finish(draft: Draft, prepared: Transaction, now_ms: int) -> Transaction:
    """The markers that are still missing, then COMPLETE."""
    commit = prepared.state is TxnState.PREPARE_COMMIT
    data = marker(commit, prepared.producer_id, prepared.epoch, draft.run, now_ms)
    for key in prepared.partitions:
        partition = draft.state.partition(key)
        # No marker where nothing was written (or the topic is gone), and no second one where it survived a crash.
        if partition is not None and prepared.producer_id in partition.open_transactions:
            draft.append(key, partition, data, 1)
    complete = replace(
        prepared, state=_PREPARED[prepared.state], partitions=(), groups=(), started_ms=-1, updated_ms=now_ms
    )
    draft.add(complete)
    return complete


def finish_prepared(broker: Broker, now_ms: int) -> Ready:
    """What a crash left decided but not complete. Part of recovery: before anything is served."""
    draft = Draft(broker.state)
    for transactional_id in sorted(broker.state.open):
        transaction = broker.state.transactions[transactional_id]
        if transaction.state in _PREPARED:
            _finish(draft, transaction, now_ms)
    return draft.ready()


# --- Timeouts -----------------------------------------------------------------------------------------------------


def expires_ms(transaction: Transaction) -> int:
    return transaction.started_ms + transaction.timeout_ms


def expire(broker: Broker, draft: Draft, now_ms: int) -> None:
    """Aborts what has been open for longer than its timeout; the epoch rises, so its owner is fenced."""
    left: list[int] = []
    for transactional_id in sorted(broker.state.open):
        transaction = broker.state.transactions[transactional_id]
        if expires_ms(transaction) <= now_ms:
            end(draft, _fenced(transaction), commit=False, now_ms=now_ms)
        else:
            left.append(expires_ms(transaction))
    broker.expiry_ms = min(left, default=None)
