"""Replies of the administrative APIs, free of versions: per reply one
dataclass with the fields of all its versions.

The broker fills what it knows, wire's compiled writer takes the fields that the version asked for has. The names
are kio's (Kafka's schema in snake_case); times are whole milliseconds and say so (`throttle_time_ms`), an
`error_code` is a plain int, arrays are any sequence, `records` is a sequence of buffers that travel uncopied, a
missing topic id is None. A comment gives the versions that have a field, where not all of them do.

Invariant: every class can be written in every version served (tests/wire writes them all and reads them back).
Derived from kio's metadata; `tests/wire/test_messages.py` holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from semel.ports import Buffer

# --- 15 DescribeGroups --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DescribedGroupMember:
    member_id: str = ""
    group_instance_id: str | None = None  # 4+
    client_id: str = ""
    client_host: str = ""
    member_metadata: Buffer = b""
    member_assignment: Buffer = b""


@dataclass(frozen=True, slots=True)
class DescribeGroupsDescribedGroup:
    error_code: int = 0
    error_message: str | None = None  # 6+
    group_id: str = ""
    group_state: str = ""
    protocol_type: str = ""
    protocol_data: str = ""
    members: Sequence[DescribedGroupMember] = ()
    authorized_operations: int = -2147483648  # 3+


@dataclass(frozen=True, slots=True)
class DescribeGroupsResponse:
    """DescribeGroups, versions 0 to 6."""

    throttle_time_ms: int = 0  # 1+
    groups: Sequence[DescribeGroupsDescribedGroup] = ()


# --- 16 ListGroups ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListedGroup:
    group_id: str = ""
    protocol_type: str = ""
    group_state: str = ""  # 4+
    group_type: str = ""  # 5+


@dataclass(frozen=True, slots=True)
class ListGroupsResponse:
    """ListGroups, versions 0 to 5."""

    throttle_time_ms: int = 0  # 1+
    error_code: int = 0
    groups: Sequence[ListedGroup] = ()


# --- 17 SaslHandshake ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SaslHandshakeResponse:
    """SaslHandshake, versions 0 to 1."""

    error_code: int = 0
    mechanisms: Sequence[str] = ()


# --- 36 SaslAuthenticate ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SaslAuthenticateResponse:
    """SaslAuthenticate, versions 0 to 2."""

    error_code: int = 0
    error_message: str | None = None
    auth_bytes: Buffer = b""
    session_lifetime_ms: int = 0  # 1+


# --- 19 CreateTopics ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreatableTopicConfigs:
    name: str = ""
    value: str | None = None
    read_only: bool = False
    config_source: int = -1
    is_sensitive: bool = False


@dataclass(frozen=True, slots=True)
class CreatableTopicResult:
    name: str = ""
    topic_id: UUID | None = None  # 7+
    error_code: int = 0
    error_message: str | None = None
    topic_config_error_code: int = 0  # 5+
    num_partitions: int = -1  # 5+
    replication_factor: int = -1  # 5+
    configs: Sequence[CreatableTopicConfigs] | None = None  # 5+


@dataclass(frozen=True, slots=True)
class CreateTopicsResponse:
    """CreateTopics, versions 2 to 7."""

    throttle_time_ms: int = 0
    topics: Sequence[CreatableTopicResult] = ()


# --- 20 DeleteTopics ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeletableTopicResult:
    name: str | None = ""
    topic_id: UUID | None = None  # 6+
    error_code: int = 0
    error_message: str | None = None  # 5+


@dataclass(frozen=True, slots=True)
class DeleteTopicsResponse:
    """DeleteTopics, versions 1 to 6."""

    throttle_time_ms: int = 0
    responses: Sequence[DeletableTopicResult] = ()


# --- 21 DeleteRecords ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeleteRecordsPartitionResult:
    partition_index: int = 0
    low_watermark: int = 0
    error_code: int = 0


@dataclass(frozen=True, slots=True)
class DeleteRecordsTopicResult:
    name: str = ""
    partitions: Sequence[DeleteRecordsPartitionResult] = ()


@dataclass(frozen=True, slots=True)
class DeleteRecordsResponse:
    """DeleteRecords, versions 0 to 2."""

    throttle_time_ms: int = 0
    topics: Sequence[DeleteRecordsTopicResult] = ()


# --- 32 DescribeConfigs -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DescribeConfigsSynonym:
    name: str = ""
    value: str | None = None
    source: int = 0


@dataclass(frozen=True, slots=True)
class DescribeConfigsResourceResult:
    name: str = ""
    value: str | None = None
    read_only: bool = False
    config_source: int = -1
    is_sensitive: bool = False
    synonyms: Sequence[DescribeConfigsSynonym] = ()
    config_type: int = 0  # 3+
    documentation: str | None = None  # 3+


@dataclass(frozen=True, slots=True)
class DescribeConfigsResult:
    error_code: int = 0
    error_message: str | None = None
    resource_type: int = 0
    resource_name: str = ""
    configs: Sequence[DescribeConfigsResourceResult] = ()


@dataclass(frozen=True, slots=True)
class DescribeConfigsResponse:
    """DescribeConfigs, versions 1 to 4."""

    throttle_time_ms: int = 0
    results: Sequence[DescribeConfigsResult] = ()


# --- 33 AlterConfigs ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AlterConfigsAlterConfigsResourceResponse:
    error_code: int = 0
    error_message: str | None = None
    resource_type: int = 0
    resource_name: str = ""


@dataclass(frozen=True, slots=True)
class AlterConfigsResponse:
    """AlterConfigs, versions 0 to 2."""

    throttle_time_ms: int = 0
    responses: Sequence[AlterConfigsAlterConfigsResourceResponse] = ()


# --- 35 DescribeLogDirs -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DescribeLogDirsPartition:
    partition_index: int = 0
    partition_size: int = 0
    offset_lag: int = 0
    is_future_key: bool = False


@dataclass(frozen=True, slots=True)
class DescribeLogDirsTopic:
    name: str = ""
    partitions: Sequence[DescribeLogDirsPartition] = ()


@dataclass(frozen=True, slots=True)
class DescribeLogDirsResult:
    error_code: int = 0
    log_dir: str = ""
    topics: Sequence[DescribeLogDirsTopic] = ()
    total_bytes: int = -1  # 4+
    usable_bytes: int = -1  # 4+
    is_cordoned: bool = False  # 5+


@dataclass(frozen=True, slots=True)
class DescribeLogDirsResponse:
    """DescribeLogDirs, versions 1 to 5."""

    throttle_time_ms: int = 0
    error_code: int = 0  # 3+
    results: Sequence[DescribeLogDirsResult] = ()


# --- 37 CreatePartitions ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreatePartitionsTopicResult:
    name: str = ""
    error_code: int = 0
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class CreatePartitionsResponse:
    """CreatePartitions, versions 0 to 3."""

    throttle_time_ms: int = 0
    results: Sequence[CreatePartitionsTopicResult] = ()


# --- 42 DeleteGroups ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeletableGroupResult:
    group_id: str = ""
    error_code: int = 0


@dataclass(frozen=True, slots=True)
class DeleteGroupsResponse:
    """DeleteGroups, versions 0 to 2."""

    throttle_time_ms: int = 0
    results: Sequence[DeletableGroupResult] = ()


# --- 44 IncrementalAlterConfigs -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IncrementalAlterConfigsAlterConfigsResourceResponse:
    error_code: int = 0
    error_message: str | None = None
    resource_type: int = 0
    resource_name: str = ""


@dataclass(frozen=True, slots=True)
class IncrementalAlterConfigsResponse:
    """IncrementalAlterConfigs, versions 0 to 1."""

    throttle_time_ms: int = 0
    responses: Sequence[IncrementalAlterConfigsAlterConfigsResourceResponse] = ()


# --- 47 OffsetDelete ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OffsetDeleteResponsePartition:
    partition_index: int = 0
    error_code: int = 0


@dataclass(frozen=True, slots=True)
class OffsetDeleteResponseTopic:
    name: str = ""
    partitions: Sequence[OffsetDeleteResponsePartition] = ()


@dataclass(frozen=True, slots=True)
class OffsetDeleteResponse:
    """OffsetDelete, versions 0 to 0."""

    error_code: int = 0
    throttle_time_ms: int = 0
    topics: Sequence[OffsetDeleteResponseTopic] = ()


# --- 57 UpdateFeatures --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UpdatableFeatureResult:
    feature: str = ""
    error_code: int = 0
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class UpdateFeaturesResponse:
    """UpdateFeatures, versions 0 to 2."""

    throttle_time_ms: int = 0
    error_code: int = 0
    error_message: str | None = None
    results: Sequence[UpdatableFeatureResult] = ()  # 0 to 1


# --- 60 DescribeCluster -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DescribeClusterBroker:
    broker_id: int = 0
    host: str = ""
    port: int = 0
    rack: str | None = None
    is_fenced: bool = False  # 2+


@dataclass(frozen=True, slots=True)
class DescribeClusterResponse:
    """DescribeCluster, versions 0 to 2."""

    throttle_time_ms: int = 0
    error_code: int = 0
    error_message: str | None = None
    endpoint_type: int = 1  # 1+
    cluster_id: str = ""
    controller_id: int = -1
    brokers: Sequence[DescribeClusterBroker] = ()
    cluster_authorized_operations: int = -2147483648


# --- 61 DescribeProducers -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProducerState:
    producer_id: int = 0
    producer_epoch: int = 0
    last_sequence: int = -1
    last_timestamp: int = -1
    coordinator_epoch: int = 0
    current_txn_start_offset: int = -1


@dataclass(frozen=True, slots=True)
class PartitionResponse:
    partition_index: int = 0
    error_code: int = 0
    error_message: str | None = None
    active_producers: Sequence[ProducerState] = ()


@dataclass(frozen=True, slots=True)
class TopicResponse:
    name: str = ""
    partitions: Sequence[PartitionResponse] = ()


@dataclass(frozen=True, slots=True)
class DescribeProducersResponse:
    """DescribeProducers, versions 0 to 0."""

    throttle_time_ms: int = 0
    topics: Sequence[TopicResponse] = ()


# --- 65 DescribeTransactions --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TopicData:
    topic: str = ""
    partitions: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class DescribeTransactionsTransactionState:
    error_code: int = 0
    transactional_id: str = ""
    transaction_state: str = ""
    transaction_timeout_ms: int = 0
    transaction_start_time_ms: int = -1
    producer_id: int = 0
    producer_epoch: int = 0
    topics: Sequence[TopicData] = ()


@dataclass(frozen=True, slots=True)
class DescribeTransactionsResponse:
    """DescribeTransactions, versions 0 to 0."""

    throttle_time_ms: int = 0
    transaction_states: Sequence[DescribeTransactionsTransactionState] = ()


# --- 66 ListTransactions ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListTransactionsTransactionState:
    transactional_id: str = ""
    producer_id: int = 0
    transaction_state: str = ""


@dataclass(frozen=True, slots=True)
class ListTransactionsResponse:
    """ListTransactions, versions 0 to 2."""

    throttle_time_ms: int = 0
    error_code: int = 0
    unknown_state_filters: Sequence[str] = ()
    transaction_states: Sequence[ListTransactionsTransactionState] = ()


# --- 69 ConsumerGroupDescribe -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConsumerGroupDescribeTopicPartitions:
    topic_id: UUID | None = None
    topic_name: str = ""
    partitions: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class ConsumerGroupDescribeAssignment:
    topic_partitions: Sequence[ConsumerGroupDescribeTopicPartitions] = ()


@dataclass(frozen=True, slots=True)
class Member:
    member_id: str = ""
    instance_id: str | None = None
    rack_id: str | None = None
    member_epoch: int = 0
    client_id: str = ""
    client_host: str = ""
    subscribed_topic_names: Sequence[str] = ()
    subscribed_topic_regex: str | None = None
    assignment: ConsumerGroupDescribeAssignment = ConsumerGroupDescribeAssignment()
    target_assignment: ConsumerGroupDescribeAssignment = ConsumerGroupDescribeAssignment()
    member_type: int = -1  # 1+


@dataclass(frozen=True, slots=True)
class ConsumerGroupDescribeDescribedGroup:
    error_code: int = 0
    error_message: str | None = None
    group_id: str = ""
    group_state: str = ""
    group_epoch: int = 0
    assignment_epoch: int = 0
    assignor_name: str = ""
    members: Sequence[Member] = ()
    authorized_operations: int = -2147483648


@dataclass(frozen=True, slots=True)
class ConsumerGroupDescribeResponse:
    """ConsumerGroupDescribe, versions 0 to 1."""

    throttle_time_ms: int = 0
    groups: Sequence[ConsumerGroupDescribeDescribedGroup] = ()


# --- 74 ListConfigResources ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConfigResource:
    resource_name: str = ""
    resource_type: int = 16  # 1+


@dataclass(frozen=True, slots=True)
class ListConfigResourcesResponse:
    """ListConfigResources, versions 0 to 1."""

    throttle_time_ms: int = 0
    error_code: int = 0
    config_resources: Sequence[ConfigResource] = ()


# --- 75 DescribeTopicPartitions -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DescribeTopicPartitionsResponsePartition:
    error_code: int = 0
    partition_index: int = 0
    leader_id: int = 0
    leader_epoch: int = -1
    replica_nodes: Sequence[int] = ()
    isr_nodes: Sequence[int] = ()
    eligible_leader_replicas: Sequence[int] | None = None
    last_known_elr: Sequence[int] | None = None
    offline_replicas: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class DescribeTopicPartitionsResponseTopic:
    error_code: int = 0
    name: str | None = None
    topic_id: UUID | None = None
    is_internal: bool = False
    partitions: Sequence[DescribeTopicPartitionsResponsePartition] = ()
    topic_authorized_operations: int = -2147483648


@dataclass(frozen=True, slots=True)
class Cursor:
    topic_name: str = ""
    partition_index: int = 0


@dataclass(frozen=True, slots=True)
class DescribeTopicPartitionsResponse:
    """DescribeTopicPartitions, versions 0 to 0."""

    throttle_time_ms: int = 0
    topics: Sequence[DescribeTopicPartitionsResponseTopic] = ()
    next_cursor: Cursor | None = None
