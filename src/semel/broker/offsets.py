"""Committed offsets: OffsetCommit, OffsetFetch, OffsetDelete, and TxnOffsetCommit inside transactions.

A commit is a batch of `__consumer_offsets`; inside a transaction it is a transactional batch, whose offsets are pending
until its marker. Invariants: a superseded member or producer changes nothing (KIP-447, FAULTS B14, B26); an answer to
OffsetFetch shows only what is durable (B27), and with require_stable no partition whose offset a transaction may move.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from semel.broker import group_access
from semel.broker.admin_messages import (
    OffsetDeleteResponse,
    OffsetDeleteResponsePartition,
    OffsetDeleteResponseTopic,
)
from semel.broker.draft import Draft
from semel.broker.errors import Error
from semel.broker.events import Ready, Reply, Request
from semel.broker.group_state import Group, Place
from semel.broker.messages import (
    OffsetCommitResponse,
    OffsetCommitResponsePartition,
    OffsetCommitResponseTopic,
    OffsetFetchResponse,
    OffsetFetchResponseGroup,
    OffsetFetchResponsePartition,
    OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
    TxnOffsetCommitResponse,
    TxnOffsetCommitResponsePartition,
    TxnOffsetCommitResponseTopic,
)
from semel.broker.offset_records import Offset, OffsetKey, encode_key, encode_offset
from semel.broker.records import Transaction, TxnState
from semel.broker.state import Topic
from semel.broker.transactions import checked, ended_connection, overtaken
from semel.record.batch import encode

if TYPE_CHECKING:
    from semel.broker.core import Broker

NO_OFFSET: Final = -1


# --- Committing ---------------------------------------------------------------------------------------------------


class _Commit(NamedTuple):
    place: Place
    offset: Offset


def offset_commit(broker: Broker, request: Request, now_ms: int) -> Ready:
    """Versions 2 to 10."""
    message = request.message
    draft = Draft(broker.state)
    refusal = group_access.may_commit(
        broker,
        message.group_id,
        message.generation_id_or_member_epoch,
        message.member_id,
        getattr(message, "group_instance_id", None),
        now_ms,
    )
    commits: list[_Commit] = []
    topics = []
    for wanted_topic in message.topics:
        topic = _topic(broker, wanted_topic)
        rows = []
        for wanted in wanted_topic.partitions:
            error = refusal or _refused(broker, topic, wanted, request.version >= 10)
            if error is Error.NONE:
                assert topic is not None
                commits.append(_commit(topic.name, wanted, now_ms))
            rows.append(OffsetCommitResponsePartition(wanted.partition_index, error))
        topics.append(OffsetCommitResponseTopic(getattr(wanted_topic, "topic_id", None), rows, _name(wanted_topic)))
    if commits:
        _append(broker, draft, message.group_id, commits, now_ms)
    draft.replies.append(Reply(request.connection, request.token, OffsetCommitResponse(topics=topics)))
    return draft.ready()


def txn_offset_commit(broker: Broker, request: Request, now_ms: int) -> Ready:
    """Versions 0 to 4. From 3 on the member's generation is checked (KIP-447); before, the transactional id fences."""
    message = request.message
    draft = Draft(broker.state)
    found = checked(broker, message.transactional_id, message.producer_id, message.producer_epoch)
    error = Error.NONE
    if isinstance(found, Transaction):
        if overtaken(broker, request, found):
            return ended_connection(request)
        if found.state is not TxnState.ONGOING or message.group_id not in found.groups:
            # AddOffsetsToTxn has not been here: this one is late, or its transaction is over.
            error = Error.INVALID_TXN_STATE
        elif request.version >= 3:
            error = group_access.may_commit(
                broker,
                message.group_id,
                message.generation_id,
                message.member_id,
                getattr(message, "group_instance_id", None),
                now_ms,
                transactional=True,
            )
    else:
        # Clients of every version know this name here (Kafka maps PRODUCER_FENCED to it for this API).
        error = Error.INVALID_PRODUCER_EPOCH if found is Error.PRODUCER_FENCED else found
    commits: list[_Commit] = []
    topics = []
    for wanted_topic in message.topics:
        topic = broker.state.topics.get(wanted_topic.name)
        rows = []
        for wanted in wanted_topic.partitions:
            refused = error or _refused(broker, topic, wanted, False)
            if refused is Error.NONE:
                commits.append(_commit(wanted_topic.name, wanted, now_ms))
            rows.append(TxnOffsetCommitResponsePartition(wanted.partition_index, refused))
        topics.append(TxnOffsetCommitResponseTopic(wanted_topic.name, rows))
    if commits:
        assert isinstance(found, Transaction)
        _append(broker, draft, message.group_id, commits, now_ms, found)
    draft.replies.append(Reply(request.connection, request.token, TxnOffsetCommitResponse(topics=topics)))
    return draft.ready()


def _refused(broker: Broker, topic: Topic | None, wanted: Any, by_id: bool) -> Error:
    if topic is None:
        return Error.UNKNOWN_TOPIC_ID if by_id else Error.UNKNOWN_TOPIC_OR_PARTITION
    if topic.partition(wanted.partition_index) is None:
        return Error.UNKNOWN_TOPIC_OR_PARTITION
    if len(wanted.committed_metadata or "") > broker.config.offset_metadata_max_bytes:
        return Error.OFFSET_METADATA_TOO_LARGE
    return Error.NONE


def _commit(topic: str, wanted: Any, now_ms: int) -> _Commit:
    epoch = getattr(wanted, "committed_leader_epoch", -1)
    offset = Offset(wanted.committed_offset, epoch, wanted.committed_metadata or "", now_ms)
    return _Commit((topic, wanted.partition_index), offset)


def _append(
    broker: Broker,
    draft: Draft,
    group_id: str,
    commits: list[_Commit],
    now_ms: int,
    transaction: Transaction | None = None,
) -> None:
    keys = [encode_key(OffsetKey(group_id, *commit.place)) for commit in commits]
    values = [encode_offset(commit.offset) for commit in commits]
    if transaction is None:
        batch = encode(values, keys, now_ms)
    else:
        # Without a sequence: a repeated commit of the same offsets in one transaction is the same.
        batch = encode(
            values,
            keys,
            now_ms,
            producer_id=transaction.producer_id,
            producer_epoch=transaction.epoch,
            transactional=True,
        )
    append_to_offsets(broker, draft, group_id, batch)


def append_to_offsets(broker: Broker, draft: Draft, group_id: str, batch: bytes) -> None:
    """Appends the broker's own batch to the partition of `__consumer_offsets` that holds the group."""
    state = broker.state
    key = (state.offsets_topic, state.groups.partition_of(group_id))
    partition = state.partition(key)
    assert partition is not None, key
    draft.append_own(key, partition, batch)


def _topic(broker: Broker, wanted: Any) -> Topic | None:
    topic_id = getattr(wanted, "topic_id", None)
    if topic_id is not None:
        return broker.state.topics_by_id.get(topic_id)
    return broker.state.topics.get(_name(wanted))


def _name(wanted: Any) -> str:
    return getattr(wanted, "name", "") or ""


# --- Fetching -----------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    partition: int
    offset: int
    leader_epoch: int
    metadata: str
    error: Error


def offset_fetch(broker: Broker, request: Request, now_ms: int) -> Ready:
    """Versions 1 to 10; from 8 on for several groups at once, from 10 on with topic ids."""
    message = request.message
    stable = getattr(message, "require_stable", False)
    newest = 0
    if request.version < 8:
        newest = _changed(broker, message.group_id)
        topics = [
            OffsetFetchResponseTopic(
                name,
                [
                    OffsetFetchResponsePartition(r.partition, r.offset, r.leader_epoch, r.metadata, r.error)
                    for r in rows
                ],
            )
            for name, rows in _fetched(broker, message.group_id, _places(message.topics), stable)
        ]
        response = OffsetFetchResponse(topics=topics)
    else:
        found = []
        for wanted in message.groups:
            newest = max(newest, _changed(broker, wanted.group_id))
            found.append(_group_fetched(broker, wanted, stable, request.version))
        response = OffsetFetchResponse(groups=found)
    return Ready((), (Reply(request.connection, request.token, response, newest > broker.durable_position),))


def _group_fetched(broker: Broker, wanted: Any, stable: bool, version: int) -> OffsetFetchResponseGroup:
    topics = []
    if version >= 10 and wanted.topics is not None:
        for one in wanted.topics:
            topic = broker.state.topics_by_id.get(one.topic_id)
            if topic is None:
                rows = [_Row(index, NO_OFFSET, -1, "", Error.UNKNOWN_TOPIC_ID) for index in one.partition_indexes]
            else:
                ((_, rows),) = _fetched(broker, wanted.group_id, [(topic.name, one.partition_indexes)], stable)
            topics.append(OffsetFetchResponseTopics(one.topic_id, _partitions(rows)))
    else:
        for name, rows in _fetched(broker, wanted.group_id, _places(wanted.topics), stable):
            known = broker.state.topics.get(name)
            topics.append(OffsetFetchResponseTopics(None if known is None else known.id, _partitions(rows), name))
    return OffsetFetchResponseGroup(wanted.group_id, topics)


def _partitions(rows: list[_Row]) -> list[OffsetFetchResponsePartitions]:
    return [OffsetFetchResponsePartitions(r.partition, r.offset, r.leader_epoch, r.metadata, r.error) for r in rows]


def _places(topics: Any) -> list[tuple[str, Iterable[int]]] | None:
    """None: all that are committed."""
    return None if topics is None else [(one.name, one.partition_indexes) for one in topics]


def _fetched(
    broker: Broker, group_id: str, wanted: list[tuple[str, Iterable[int]]] | None, stable: bool
) -> list[tuple[str, list[_Row]]]:
    group = broker.state.groups.get(group_id)
    if wanted is None:
        by_topic: dict[str, list[int]] = {}
        places = set() if group is None else set(group.offsets).union(*group.pending.values())
        for topic, partition in sorted(places):
            by_topic.setdefault(topic, []).append(partition)
        wanted = list(by_topic.items())
    return [(topic, [_row(group, (topic, index), stable) for index in indexes]) for topic, indexes in wanted]


def _row(group: Group | None, place: Place, stable: bool) -> _Row:
    if group is None:
        return _Row(place[1], NO_OFFSET, -1, "", Error.NONE)
    if stable and group.is_unstable(place):
        # A transaction may still move it: the reader asks again (KIP-447).
        return _Row(place[1], NO_OFFSET, -1, "", Error.UNSTABLE_OFFSET_COMMIT)
    stored = group.offsets.get(place)
    if stored is None:
        return _Row(place[1], NO_OFFSET, -1, "", Error.NONE)
    return _Row(place[1], stored.value.offset, stored.value.leader_epoch, stored.value.metadata, Error.NONE)


def _changed(broker: Broker, group_id: str) -> int:
    group = broker.state.groups.get(group_id)
    # Of a group that is not there it is not known when it went: as late as anything.
    return broker.state.position if group is None else group.position


# --- Deleting -----------------------------------------------------------------------------------------------------


def offset_delete(broker: Broker, request: Request, now_ms: int) -> Ready:
    message = request.message
    draft = Draft(broker.state)
    group = broker.state.groups.get(message.group_id)
    if group is None and group_access.live(broker, message.group_id) is None:
        response = OffsetDeleteResponse(error_code=Error.GROUP_ID_NOT_FOUND)
        return Ready((), (Reply(request.connection, request.token, response),))
    subscribed = group_access.subscribed_topics(broker, message.group_id)
    if subscribed is None:
        response = OffsetDeleteResponse(error_code=Error.NON_EMPTY_GROUP)
        return Ready((), (Reply(request.connection, request.token, response),))
    keys: list[bytes] = []
    topics = []
    for wanted_topic in message.topics:
        rows = []
        for wanted in wanted_topic.partitions:
            index = wanted.partition_index
            error = Error.NONE
            if broker.state.find(wanted_topic.name, index) is None:
                error = Error.UNKNOWN_TOPIC_OR_PARTITION
            elif wanted_topic.name in subscribed:
                error = Error.GROUP_SUBSCRIBED_TO_TOPIC
            else:
                keys.append(encode_key(OffsetKey(message.group_id, wanted_topic.name, index)))
            rows.append(OffsetDeleteResponsePartition(index, error))
        topics.append(OffsetDeleteResponseTopic(wanted_topic.name, rows))
    if keys:
        append_to_offsets(broker, draft, message.group_id, encode([None] * len(keys), keys, now_ms))
    draft.replies.append(Reply(request.connection, request.token, OffsetDeleteResponse(topics=topics)))
    return draft.ready()
