"""Replies of the APIs that producers and consumers use, free of versions: per reply one
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

# --- 0 Produce ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchIndexAndErrorMessage:
    batch_index: int = 0
    batch_index_error_message: str | None = None


@dataclass(frozen=True, slots=True)
class ProduceLeaderIdAndEpoch:
    leader_id: int = -1
    leader_epoch: int = -1


@dataclass(frozen=True, slots=True)
class PartitionProduceResponse:
    index: int = 0
    error_code: int = 0
    base_offset: int = 0
    log_append_time_ms: int = -1
    log_start_offset: int = -1  # 5+
    record_errors: Sequence[BatchIndexAndErrorMessage] = ()  # 8+
    error_message: str | None = None  # 8+
    current_leader: ProduceLeaderIdAndEpoch = ProduceLeaderIdAndEpoch()  # 10+


@dataclass(frozen=True, slots=True)
class TopicProduceResponse:
    topic_id: UUID | None = None  # 13+
    partition_responses: Sequence[PartitionProduceResponse] = ()
    name: str = ""  # 3 to 12


@dataclass(frozen=True, slots=True)
class ProduceNodeEndpoint:
    node_id: int = 0
    host: str = ""
    port: int = 0
    rack: str | None = None


@dataclass(frozen=True, slots=True)
class ProduceResponse:
    """Produce, versions 3 to 13."""

    responses: Sequence[TopicProduceResponse] = ()
    throttle_time_ms: int = 0
    node_endpoints: Sequence[ProduceNodeEndpoint] = ()  # 10+


# --- 1 Fetch -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FetchEpochEndOffset:
    epoch: int = -1
    end_offset: int = -1


@dataclass(frozen=True, slots=True)
class FetchLeaderIdAndEpoch:
    leader_id: int = -1
    leader_epoch: int = -1


@dataclass(frozen=True, slots=True)
class SnapshotId:
    end_offset: int = -1
    epoch: int = -1


@dataclass(frozen=True, slots=True)
class AbortedTransaction:
    producer_id: int = 0
    first_offset: int = 0


@dataclass(frozen=True, slots=True)
class PartitionData:
    partition_index: int = 0
    error_code: int = 0
    high_watermark: int = 0
    last_stable_offset: int = -1
    log_start_offset: int = -1  # 5+
    diverging_epoch: FetchEpochEndOffset = FetchEpochEndOffset()  # 12+
    current_leader: FetchLeaderIdAndEpoch = FetchLeaderIdAndEpoch()  # 12+
    snapshot_id: SnapshotId = SnapshotId()  # 12+
    aborted_transactions: Sequence[AbortedTransaction] | None = None
    preferred_read_replica: int = -1  # 11+
    records: Sequence[Buffer] | None = None


@dataclass(frozen=True, slots=True)
class FetchableTopicResponse:
    topic_id: UUID | None = None  # 13+
    partitions: Sequence[PartitionData] = ()
    topic: str = ""  # 4 to 12


@dataclass(frozen=True, slots=True)
class FetchNodeEndpoint:
    node_id: int = 0
    host: str = ""
    port: int = 0
    rack: str | None = None


@dataclass(frozen=True, slots=True)
class FetchResponse:
    """Fetch, versions 4 to 18."""

    throttle_time_ms: int = 0
    error_code: int = 0  # 7+
    session_id: int = 0  # 7+
    responses: Sequence[FetchableTopicResponse] = ()
    node_endpoints: Sequence[FetchNodeEndpoint] = ()  # 16+


# --- 2 ListOffsets -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListOffsetsPartitionResponse:
    partition_index: int = 0
    error_code: int = 0
    timestamp: int = -1
    offset: int = -1
    leader_epoch: int = -1  # 4+


@dataclass(frozen=True, slots=True)
class ListOffsetsTopicResponse:
    name: str = ""
    partitions: Sequence[ListOffsetsPartitionResponse] = ()


@dataclass(frozen=True, slots=True)
class ListOffsetsResponse:
    """ListOffsets, versions 1 to 11."""

    throttle_time_ms: int = 0  # 2+
    topics: Sequence[ListOffsetsTopicResponse] = ()


# --- 3 Metadata --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MetadataResponseBroker:
    node_id: int = 0
    host: str = ""
    port: int = 0
    rack: str | None = None  # 1+


@dataclass(frozen=True, slots=True)
class MetadataResponsePartition:
    error_code: int = 0
    partition_index: int = 0
    leader_id: int = 0
    leader_epoch: int = -1  # 7+
    replica_nodes: Sequence[int] = ()
    isr_nodes: Sequence[int] = ()
    offline_replicas: Sequence[int] = ()  # 5+


@dataclass(frozen=True, slots=True)
class MetadataResponseTopic:
    error_code: int = 0
    name: str | None = ""
    topic_id: UUID | None = None  # 10+
    is_internal: bool = False  # 1+
    partitions: Sequence[MetadataResponsePartition] = ()
    topic_authorized_operations: int = -2147483648  # 8+


@dataclass(frozen=True, slots=True)
class MetadataResponse:
    """Metadata, versions 0 to 13."""

    throttle_time_ms: int = 0  # 3+
    brokers: Sequence[MetadataResponseBroker] = ()
    cluster_id: str | None = None  # 2+
    controller_id: int = -1  # 1+
    topics: Sequence[MetadataResponseTopic] = ()
    error_code: int = 0  # 13+
    cluster_authorized_operations: int = -2147483648  # 8 to 10


# --- 8 OffsetCommit ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OffsetCommitResponsePartition:
    partition_index: int = 0
    error_code: int = 0


@dataclass(frozen=True, slots=True)
class OffsetCommitResponseTopic:
    topic_id: UUID | None = None  # 10+
    partitions: Sequence[OffsetCommitResponsePartition] = ()
    name: str = ""  # 2 to 9


@dataclass(frozen=True, slots=True)
class OffsetCommitResponse:
    """OffsetCommit, versions 2 to 10."""

    throttle_time_ms: int = 0  # 3+
    topics: Sequence[OffsetCommitResponseTopic] = ()


# --- 9 OffsetFetch -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OffsetFetchResponsePartitions:
    partition_index: int = 0
    committed_offset: int = 0
    committed_leader_epoch: int = -1
    metadata: str | None = None
    error_code: int = 0


@dataclass(frozen=True, slots=True)
class OffsetFetchResponseTopics:
    topic_id: UUID | None = None  # 10+
    partitions: Sequence[OffsetFetchResponsePartitions] = ()
    name: str = ""  # 8 to 9


@dataclass(frozen=True, slots=True)
class OffsetFetchResponseGroup:
    group_id: str = ""
    topics: Sequence[OffsetFetchResponseTopics] = ()
    error_code: int = 0


@dataclass(frozen=True, slots=True)
class OffsetFetchResponsePartition:
    partition_index: int = 0
    committed_offset: int = 0
    committed_leader_epoch: int = -1  # 5 to 7
    metadata: str | None = None
    error_code: int = 0


@dataclass(frozen=True, slots=True)
class OffsetFetchResponseTopic:
    name: str = ""
    partitions: Sequence[OffsetFetchResponsePartition] = ()


@dataclass(frozen=True, slots=True)
class OffsetFetchResponse:
    """OffsetFetch, versions 1 to 10."""

    throttle_time_ms: int = 0  # 3+
    groups: Sequence[OffsetFetchResponseGroup] = ()  # 8+
    topics: Sequence[OffsetFetchResponseTopic] = ()  # 1 to 7
    error_code: int = 0  # 2 to 7


# --- 10 FindCoordinator -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Coordinator:
    key: str = ""
    node_id: int = 0
    host: str = ""
    port: int = 0
    error_code: int = 0
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class FindCoordinatorResponse:
    """FindCoordinator, versions 0 to 6."""

    throttle_time_ms: int = 0  # 1+
    coordinators: Sequence[Coordinator] = ()  # 4+
    error_code: int = 0  # 0 to 3
    error_message: str | None = None  # 1 to 3
    node_id: int = 0  # 0 to 3
    host: str = ""  # 0 to 3
    port: int = 0  # 0 to 3


# --- 11 JoinGroup -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JoinGroupResponseMember:
    member_id: str = ""
    group_instance_id: str | None = None  # 5+
    metadata: Buffer = b""


@dataclass(frozen=True, slots=True)
class JoinGroupResponse:
    """JoinGroup, versions 0 to 9."""

    throttle_time_ms: int = 0  # 2+
    error_code: int = 0
    generation_id: int = -1
    protocol_type: str | None = None  # 7+
    protocol_name: str | None = ""
    leader: str = ""
    skip_assignment: bool = False  # 9+
    member_id: str = ""
    members: Sequence[JoinGroupResponseMember] = ()


# --- 12 Heartbeat -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeartbeatResponse:
    """Heartbeat, versions 0 to 4."""

    throttle_time_ms: int = 0  # 1+
    error_code: int = 0


# --- 13 LeaveGroup ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemberResponse:
    member_id: str = ""
    group_instance_id: str | None = None
    error_code: int = 0


@dataclass(frozen=True, slots=True)
class LeaveGroupResponse:
    """LeaveGroup, versions 0 to 5."""

    throttle_time_ms: int = 0  # 1+
    error_code: int = 0
    members: Sequence[MemberResponse] = ()  # 3+


# --- 14 SyncGroup -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SyncGroupResponse:
    """SyncGroup, versions 0 to 5."""

    throttle_time_ms: int = 0  # 1+
    error_code: int = 0
    protocol_type: str | None = None  # 5+
    protocol_name: str | None = None  # 5+
    assignment: Buffer = b""


# --- 18 ApiVersions -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ApiVersion:
    api_key: int = 0
    min_version: int = 0
    max_version: int = 0


@dataclass(frozen=True, slots=True)
class SupportedFeatureKey:
    name: str = ""
    min_version: int = 0
    max_version: int = 0


@dataclass(frozen=True, slots=True)
class FinalizedFeatureKey:
    name: str = ""
    max_version_level: int = 0
    min_version_level: int = 0


@dataclass(frozen=True, slots=True)
class ApiVersionsResponse:
    """ApiVersions, versions 0 to 4."""

    error_code: int = 0
    api_keys: Sequence[ApiVersion] = ()
    throttle_time_ms: int = 0  # 1+
    supported_features: Sequence[SupportedFeatureKey] = ()  # 3+
    finalized_features_epoch: int = -1  # 3+
    finalized_features: Sequence[FinalizedFeatureKey] = ()  # 3+
    zk_migration_ready: bool = False  # 3+


# --- 22 InitProducerId --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InitProducerIdResponse:
    """InitProducerId, versions 0 to 5."""

    throttle_time_ms: int = 0
    error_code: int = 0
    producer_id: int = -1
    producer_epoch: int = 0


# --- 23 OffsetForLeaderEpoch --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OffsetForLeaderEpochEpochEndOffset:
    error_code: int = 0
    partition: int = 0
    leader_epoch: int = -1
    end_offset: int = -1


@dataclass(frozen=True, slots=True)
class OffsetForLeaderTopicResult:
    topic: str = ""
    partitions: Sequence[OffsetForLeaderEpochEpochEndOffset] = ()


@dataclass(frozen=True, slots=True)
class OffsetForLeaderEpochResponse:
    """OffsetForLeaderEpoch, versions 2 to 4."""

    throttle_time_ms: int = 0
    topics: Sequence[OffsetForLeaderTopicResult] = ()


# --- 24 AddPartitionsToTxn ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddPartitionsToTxnPartitionResult:
    partition_index: int = 0
    partition_error_code: int = 0


@dataclass(frozen=True, slots=True)
class AddPartitionsToTxnTopicResult:
    name: str = ""
    results_by_partition: Sequence[AddPartitionsToTxnPartitionResult] = ()


@dataclass(frozen=True, slots=True)
class AddPartitionsToTxnResult:
    transactional_id: str = ""
    topic_results: Sequence[AddPartitionsToTxnTopicResult] = ()


@dataclass(frozen=True, slots=True)
class AddPartitionsToTxnResponse:
    """AddPartitionsToTxn, versions 0 to 5."""

    throttle_time_ms: int = 0
    error_code: int = 0  # 4+
    results_by_transaction: Sequence[AddPartitionsToTxnResult] = ()  # 4+
    results_by_topic_v3_and_below: Sequence[AddPartitionsToTxnTopicResult] = ()  # 0 to 3


# --- 25 AddOffsetsToTxn -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddOffsetsToTxnResponse:
    """AddOffsetsToTxn, versions 0 to 4."""

    throttle_time_ms: int = 0
    error_code: int = 0


# --- 26 EndTxn ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EndTxnResponse:
    """EndTxn, versions 0 to 5."""

    throttle_time_ms: int = 0
    error_code: int = 0
    producer_id: int = -1  # 5+
    producer_epoch: int = -1  # 5+


# --- 27 WriteTxnMarkers -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WritableTxnMarkerPartitionResult:
    partition_index: int = 0
    error_code: int = 0


@dataclass(frozen=True, slots=True)
class WritableTxnMarkerTopicResult:
    name: str = ""
    partitions: Sequence[WritableTxnMarkerPartitionResult] = ()


@dataclass(frozen=True, slots=True)
class WritableTxnMarkerResult:
    producer_id: int = 0
    topics: Sequence[WritableTxnMarkerTopicResult] = ()


@dataclass(frozen=True, slots=True)
class WriteTxnMarkersResponse:
    """WriteTxnMarkers, versions 1 to 2."""

    markers: Sequence[WritableTxnMarkerResult] = ()


# --- 28 TxnOffsetCommit -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TxnOffsetCommitResponsePartition:
    partition_index: int = 0
    error_code: int = 0


@dataclass(frozen=True, slots=True)
class TxnOffsetCommitResponseTopic:
    name: str = ""
    partitions: Sequence[TxnOffsetCommitResponsePartition] = ()


@dataclass(frozen=True, slots=True)
class TxnOffsetCommitResponse:
    """TxnOffsetCommit, versions 0 to 5."""

    throttle_time_ms: int = 0
    topics: Sequence[TxnOffsetCommitResponseTopic] = ()


# --- 68 ConsumerGroupHeartbeat ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConsumerGroupHeartbeatTopicPartitions:
    topic_id: UUID | None = None
    partitions: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class ConsumerGroupHeartbeatAssignment:
    topic_partitions: Sequence[ConsumerGroupHeartbeatTopicPartitions] = ()


@dataclass(frozen=True, slots=True)
class ConsumerGroupHeartbeatResponse:
    """ConsumerGroupHeartbeat, versions 0 to 1."""

    throttle_time_ms: int = 0
    error_code: int = 0
    error_message: str | None = None
    member_id: str | None = None
    member_epoch: int = 0
    heartbeat_interval_ms: int = 0
    assignment: ConsumerGroupHeartbeatAssignment | None = None
