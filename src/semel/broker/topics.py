"""Topics: Metadata (with creation on first use), CreateTopics, DeleteTopics, CreatePartitions, DeleteRecords.

One node leads every partition; the leader epoch is the number of the run. Invariant: a topic's number and id are never
given out twice, so what is remembered of a deleted topic never applies to a new one of the same name (FAULTS S16).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from semel.broker.admin_messages import (
    CreatableTopicConfigs,
    CreatableTopicResult,
    CreatePartitionsResponse,
    CreatePartitionsTopicResult,
    CreateTopicsResponse,
    DeletableTopicResult,
    DeleteRecordsPartitionResult,
    DeleteRecordsResponse,
    DeleteRecordsTopicResult,
    DeleteTopicsResponse,
)
from semel.broker.config import refused_topic_config
from semel.broker.draft import Draft
from semel.broker.errors import Error
from semel.broker.events import Ready, Reply, Request
from semel.broker.messages import (
    MetadataResponse,
    MetadataResponseBroker,
    MetadataResponsePartition,
    MetadataResponseTopic,
)
from semel.broker.offset_records import OffsetKey, encode_key
from semel.broker.records import StartOffset, TopicCreated, TopicDeleted
from semel.broker.state import OFFSETS_TOPIC, State, Topic, created
from semel.ports import Random
from semel.record.batch import encode

if TYPE_CHECKING:
    from semel.broker.core import Broker

NAME_MAX: Final = 249
PARTITIONS_MAX: Final = 10_000
_LEGAL: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def legal(name: str) -> bool:
    return 0 < len(name) <= NAME_MAX and name not in (".", "..") and _LEGAL.issuperset(name)


def new_id(dice: Random) -> UUID:
    return UUID(int=dice.getrandbits(128), version=4)


# --- Metadata ---------------------------------------------------------------------------------------------------


def metadata(broker: Broker, request: Request, now_ms: int) -> Ready:
    message, state = request.message, broker.state
    draft = Draft(state)
    wanted = message.topics
    if wanted is None or (request.version == 0 and not wanted):
        found = [_described(broker, topic) for topic in state.topics.values()]
        newest = max((topic.position for topic in state.topics.values()), default=0)
    else:
        may_create = broker.config.auto_create_topics_enable and getattr(message, "allow_auto_topic_creation", True)
        found, newest = [], 0
        drafted: dict[str, MetadataResponseTopic] = {}
        for one in wanted:
            topic_id: UUID | None = getattr(one, "topic_id", None)
            name: str = one.name if one.name is not None else ""
            if one.name is not None:
                topic = state.topics.get(name)
            elif topic_id is None:
                found.append(MetadataResponseTopic(Error.INVALID_REQUEST, ""))
                continue
            else:
                topic = state.topics_by_id.get(topic_id)
                if topic is None:
                    # Only from version 12 on may the reply leave the name out.
                    named = None if request.version >= 12 else ""
                    found.append(MetadataResponseTopic(Error.UNKNOWN_TOPIC_ID, named, topic_id))
                    continue
            if topic is not None:
                found.append(_described(broker, topic))
                newest = max(newest, topic.position)
            elif name in drafted:
                found.append(drafted[name])
            elif not legal(name):
                found.append(MetadataResponseTopic(Error.INVALID_TOPIC, name))
            elif not may_create:
                found.append(MetadataResponseTopic(Error.UNKNOWN_TOPIC_OR_PARTITION, name))
            else:
                topic_id = create(draft, broker, name, broker.config.num_partitions, {})
                drafted[name] = _topic(broker, name, topic_id, broker.config.num_partitions)
                found.append(drafted[name])
    response = MetadataResponse(
        brokers=(MetadataResponseBroker(broker.config.node_id, broker.host, broker.port),),
        cluster_id=state.cluster_id,
        controller_id=broker.config.node_id,
        topics=found,
    )
    waits = bool(draft.records) or newest > broker.durable_position
    draft.replies.append(Reply(request.connection, request.token, response, waits))
    return draft.ready()


def _described(broker: Broker, topic: Topic) -> MetadataResponseTopic:
    return _topic(broker, topic.name, topic.id, len(topic.partitions), topic.internal)


def _topic(broker: Broker, name: str, topic_id: UUID, count: int, internal: bool = False) -> MetadataResponseTopic:
    node, epoch = broker.config.node_id, broker.state.run
    partitions = [MetadataResponsePartition(0, index, node, epoch, (node,), (node,)) for index in range(count)]
    return MetadataResponseTopic(0, name, topic_id, internal, partitions)


# --- Creating ---------------------------------------------------------------------------------------------------


def create(draft: Draft, broker: Broker, name: str, partitions: int, config: dict[str, str]) -> UUID:
    topic_id = new_id(broker.dice)
    drafted = sum(isinstance(record, TopicCreated) for record, _ in draft.records)
    draft.add(created(broker.state.next_topic + drafted, name, topic_id, partitions, config))
    return topic_id


def create_topics(broker: Broker, request: Request, now_ms: int) -> Ready:
    message = request.message
    draft = Draft(broker.state)
    names = [wanted.name for wanted in message.topics]
    results = []
    for wanted in message.topics:
        if names.count(wanted.name) > 1:
            refusal: tuple[Error, str] | int = (Error.INVALID_REQUEST, "the topic is named twice in one request")
        else:
            refusal = _partitions_wanted(broker, wanted)
        if isinstance(refusal, tuple):
            results.append(CreatableTopicResult(wanted.name, None, int(refusal[0]), refusal[1]))
            continue
        config = {setting.name: setting.value for setting in wanted.configs if setting.value is not None}
        topic_id = None
        if not message.validate_only:
            topic_id = create(draft, broker, wanted.name, refusal, config)
        shown = [
            CreatableTopicConfigs(key, config.get(key, default), False, 1 if key in config else 5)
            for key, default in broker.config.topic_defaults().items()
        ]
        results.append(CreatableTopicResult(wanted.name, topic_id, 0, None, 0, refusal, 1, shown))
    draft.replies.append(Reply(request.connection, request.token, CreateTopicsResponse(topics=results)))
    return draft.ready()


def _partitions_wanted(broker: Broker, wanted: Any) -> int | tuple[Error, str]:
    if not legal(wanted.name):
        return Error.INVALID_TOPIC, "names have 1 to 249 of the characters a-z, A-Z, 0-9, '.', '_' and '-'"
    if wanted.name in broker.state.topics:
        return Error.TOPIC_ALREADY_EXISTS, f"Topic '{wanted.name}' already exists."
    for setting in wanted.configs:
        if setting.value is not None:
            reason = refused_topic_config(setting.name, setting.value)
            if reason is not None:
                return Error.INVALID_CONFIG, reason
    if wanted.assignments:
        if wanted.num_partitions != -1 or wanted.replication_factor != -1:
            return Error.INVALID_REQUEST, "an assignment comes with -1 partitions and replication factor -1"
        indexes = sorted(assignment.partition_index for assignment in wanted.assignments)
        nodes = {tuple(assignment.broker_ids) for assignment in wanted.assignments}
        if indexes != list(range(len(indexes))) or nodes != {(broker.config.node_id,)}:
            return Error.INVALID_REPLICA_ASSIGNMENT, f"partitions 0 to n, each on node {broker.config.node_id} alone"
        return len(indexes)
    if wanted.replication_factor not in (-1, 1):
        return Error.INVALID_REPLICATION_FACTOR, "there is one node: the replication factor is 1 (or -1)"
    if wanted.num_partitions == -1:
        return broker.config.num_partitions
    if not 1 <= wanted.num_partitions <= PARTITIONS_MAX:
        return Error.INVALID_PARTITIONS, f"a topic has 1 to {PARTITIONS_MAX} partitions"
    return int(wanted.num_partitions)


def create_partitions(broker: Broker, request: Request, now_ms: int) -> Ready:
    message, state = request.message, broker.state
    draft = Draft(state)
    results = []
    for wanted in message.topics:
        topic = state.topics.get(wanted.name)
        if topic is None:
            results.append(CreatePartitionsTopicResult(wanted.name, Error.UNKNOWN_TOPIC_OR_PARTITION))
        elif topic.internal:
            results.append(CreatePartitionsTopicResult(wanted.name, Error.INVALID_TOPIC, "the broker's own topic"))
        elif not len(topic.partitions) < wanted.count <= PARTITIONS_MAX:
            reason = f"{topic.name} has {len(topic.partitions)} partitions: it can only get more"
            results.append(CreatePartitionsTopicResult(wanted.name, Error.INVALID_PARTITIONS, reason))
        else:
            results.append(CreatePartitionsTopicResult(wanted.name))
            if not message.validate_only:
                draft.add(created(topic.number, topic.name, topic.id, wanted.count, topic.config))
    draft.replies.append(Reply(request.connection, request.token, CreatePartitionsResponse(results=results)))
    return draft.ready()


# --- Deleting ---------------------------------------------------------------------------------------------------


def delete_topics(broker: Broker, request: Request, now_ms: int) -> Ready:
    message, state = request.message, broker.state
    draft = Draft(state)
    results = []
    gone: list[Topic] = []
    by_id = getattr(message, "topics", ())
    wanted = [(one.name, one.topic_id) for one in by_id] or [(name, None) for name in message.topic_names]
    for name, topic_id in wanted:
        topic = state.topics.get(name) if name is not None else state.topics_by_id.get(topic_id)
        if topic is None:
            error = Error.UNKNOWN_TOPIC_OR_PARTITION if name is not None else Error.UNKNOWN_TOPIC_ID
            results.append(DeletableTopicResult(name, topic_id, error))
        elif topic.internal:
            results.append(DeletableTopicResult(topic.name, topic.id, Error.INVALID_TOPIC, "the broker's own topic"))
        elif topic in gone:
            results.append(DeletableTopicResult(topic.name, topic.id, Error.INVALID_REQUEST, "named twice"))
        else:
            gone.append(topic)
            draft.add(TopicDeleted(topic.number))
            _forget_offsets(draft, state, topic, now_ms)
            results.append(DeletableTopicResult(topic.name, topic.id))
    draft.replies.append(Reply(request.connection, request.token, DeleteTopicsResponse(responses=results)))
    return draft.ready()


def _forget_offsets(draft: Draft, state: State, topic: Topic, now_ms: int) -> None:
    """Committed offsets of a topic go with it: a new one of its name starts at 0 (FAULTS S16)."""
    by_partition: dict[int, list[bytes]] = {}
    for group in state.groups.groups.values():
        places = set(group.offsets).union(*group.pending.values())
        keys = [encode_key(OffsetKey(group.id, *place)) for place in sorted(places) if place[0] == topic.name]
        if keys:
            by_partition.setdefault(group.partition, []).extend(keys)
    for index, keys in sorted(by_partition.items()):
        partition = state.find(OFFSETS_TOPIC, index)
        assert partition is not None, index
        draft.append_own((state.offsets_topic, index), partition, encode([None] * len(keys), keys, now_ms))


def delete_records(broker: Broker, request: Request, now_ms: int) -> Ready:
    draft = Draft(broker.state)
    topics = []
    for wanted_topic in request.message.topics:
        topic = broker.state.topics.get(wanted_topic.name)
        results = []
        for wanted in wanted_topic.partitions:
            partition = None if topic is None else topic.partition(wanted.partition_index)
            if topic is None or partition is None:
                error, low = Error.UNKNOWN_TOPIC_OR_PARTITION, -1
            elif topic.internal:
                error, low = Error.INVALID_TOPIC, -1
            else:
                # Only what everyone could have read is deleted, never what an open transaction may still abort.
                offset = partition.last_stable_offset if wanted.offset == -1 else wanted.offset
                if not 0 <= offset <= partition.last_stable_offset:
                    error, low = Error.OFFSET_OUT_OF_RANGE, -1
                else:
                    error, low = Error.NONE, max(offset, partition.start_offset)
                    if offset > partition.start_offset:
                        draft.add(StartOffset(topic.number, wanted.partition_index, offset))
            results.append(DeleteRecordsPartitionResult(wanted.partition_index, low, error))
        topics.append(DeleteRecordsTopicResult(wanted_topic.name, results))
    draft.replies.append(Reply(request.connection, request.token, DeleteRecordsResponse(topics=topics)))
    return draft.ready()
