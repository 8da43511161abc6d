"""Requests as plain data: what `wire/` hands over, and what tests, `sim/`, `client/` and the embedded log construct.

Field names are kio's, each class is the union of its request's versions, every field has the default that stands for
"not sent in this version". Handlers read a request only through these names, so kio's own objects serve as well.
Invariant: nothing here knows bytes, versions or errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from semel.ports import Buffer

NO_TIME = timedelta(milliseconds=-1)
_MILLISECOND = timedelta(milliseconds=1)


# --- produce (to version 11) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PartitionProduceData:
    index: int = 0
    records: Buffer | None = None


@dataclass(frozen=True, slots=True)
class TopicProduceData:
    name: str = ""
    partition_data: tuple[PartitionProduceData, ...] = ()


@dataclass(frozen=True, slots=True)
class ProduceRequest:
    transactional_id: str | None = None
    acks: int = -1
    timeout: timedelta = NO_TIME
    topic_data: tuple[TopicProduceData, ...] = ()


# --- fetch (to version 18) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FetchPartition:
    partition: int = 0
    fetch_offset: int = 0
    partition_max_bytes: int = 1 << 20
    log_start_offset: int = -1
    current_leader_epoch: int = -1
    last_fetched_epoch: int = -1
    replica_directory_id: UUID | None = None
    high_watermark: int = 9223372036854775807


@dataclass(frozen=True, slots=True)
class FetchTopic:
    topic: str = ""
    partitions: tuple[FetchPartition, ...] = ()
    topic_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class ForgottenTopic:
    topic: str = ""
    partitions: tuple[int, ...] = ()
    topic_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class ReplicaState:
    replica_id: int = -1
    replica_epoch: int = -1


@dataclass(frozen=True, slots=True)
class FetchRequest:
    replica_id: int = -1
    max_wait: timedelta = timedelta(0)
    min_bytes: int = 0
    max_bytes: int = 2147483647
    isolation_level: int = 0
    topics: tuple[FetchTopic, ...] = ()
    session_id: int = 0
    session_epoch: int = -1
    forgotten_topics_data: tuple[ForgottenTopic, ...] = ()
    rack_id: str = ""
    cluster_id: str | None = None
    replica_state: ReplicaState = ReplicaState()


# --- list_offsets (to version 11) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListOffsetsPartition:
    partition_index: int = 0
    timestamp: int = 0
    current_leader_epoch: int = -1


@dataclass(frozen=True, slots=True)
class ListOffsetsTopic:
    name: str = ""
    partitions: tuple[ListOffsetsPartition, ...] = ()


@dataclass(frozen=True, slots=True)
class ListOffsetsRequest:
    replica_id: int = 0
    topics: tuple[ListOffsetsTopic, ...] = ()
    isolation_level: int = 0
    timeout: timedelta = NO_TIME


# --- metadata (to version 13) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MetadataRequestTopic:
    name: str | None = None
    topic_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class MetadataRequest:
    topics: tuple[MetadataRequestTopic, ...] | None = ()
    allow_auto_topic_creation: bool = True
    include_cluster_authorized_operations: bool = False
    include_topic_authorized_operations: bool = False


# --- offset_commit (to version 10) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OffsetCommitRequestPartition:
    partition_index: int = 0
    committed_offset: int = 0
    committed_metadata: str | None = None
    committed_leader_epoch: int = -1


@dataclass(frozen=True, slots=True)
class OffsetCommitRequestTopic:
    name: str = ""
    partitions: tuple[OffsetCommitRequestPartition, ...] = ()
    topic_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class OffsetCommitRequest:
    group_id: str = ""
    generation_id_or_member_epoch: int = -1
    member_id: str = ""
    retention_time: timedelta = NO_TIME
    topics: tuple[OffsetCommitRequestTopic, ...] = ()
    group_instance_id: str | None = None


# --- offset_fetch (to version 10) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OffsetFetchRequestTopic:
    name: str = ""
    partition_indexes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class OffsetFetchRequestTopics:
    name: str = ""
    partition_indexes: tuple[int, ...] = ()
    topic_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class OffsetFetchRequestGroup:
    group_id: str = ""
    topics: tuple[OffsetFetchRequestTopics, ...] | None = ()
    member_id: str | None = None
    member_epoch: int = -1


@dataclass(frozen=True, slots=True)
class OffsetFetchRequest:
    group_id: str = ""
    topics: tuple[OffsetFetchRequestTopic, ...] | None = ()
    require_stable: bool = False
    groups: tuple[OffsetFetchRequestGroup, ...] = ()


# --- find_coordinator (to version 6) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FindCoordinatorRequest:
    key: str = ""
    key_type: int = 0
    coordinator_keys: tuple[str, ...] = ()


# --- join_group (to version 9) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JoinGroupRequestProtocol:
    name: str = ""
    metadata: bytes = b""


@dataclass(frozen=True, slots=True)
class JoinGroupRequest:
    group_id: str = ""
    session_timeout: timedelta = timedelta(seconds=10)
    member_id: str = ""
    protocol_type: str = ""
    protocols: tuple[JoinGroupRequestProtocol, ...] = ()
    rebalance_timeout: timedelta = NO_TIME
    group_instance_id: str | None = None
    reason: str | None = None


# --- sync_group (to version 5) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SyncGroupRequestAssignment:
    member_id: str = ""
    assignment: bytes = b""


@dataclass(frozen=True, slots=True)
class SyncGroupRequest:
    group_id: str = ""
    generation_id: int = 0
    member_id: str = ""
    assignments: tuple[SyncGroupRequestAssignment, ...] = ()
    group_instance_id: str | None = None
    protocol_type: str | None = None
    protocol_name: str | None = None


# --- heartbeat (to version 4) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeartbeatRequest:
    group_id: str = ""
    generation_id: int = 0
    member_id: str = ""
    group_instance_id: str | None = None


# --- leave_group (to version 5) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemberIdentity:
    member_id: str = ""
    group_instance_id: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class LeaveGroupRequest:
    group_id: str = ""
    member_id: str = ""
    members: tuple[MemberIdentity, ...] = ()


# --- list_groups (to version 5) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListGroupsRequest:
    states_filter: tuple[str, ...] = ()
    types_filter: tuple[str, ...] = ()


# --- describe_groups (to version 6) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DescribeGroupsRequest:
    groups: tuple[str, ...] = ()
    include_authorized_operations: bool = False


# --- delete_groups (to version 2) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeleteGroupsRequest:
    groups_names: tuple[str, ...] = ()


# --- offset_delete (to version 0) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OffsetDeleteRequestPartition:
    partition_index: int = 0


@dataclass(frozen=True, slots=True)
class OffsetDeleteRequestTopic:
    name: str = ""
    partitions: tuple[OffsetDeleteRequestPartition, ...] = ()


@dataclass(frozen=True, slots=True)
class OffsetDeleteRequest:
    group_id: str = ""
    topics: tuple[OffsetDeleteRequestTopic, ...] = ()


# --- init_producer_id (to version 5) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InitProducerIdRequest:
    transactional_id: str | None = None
    transaction_timeout: timedelta = timedelta(seconds=60)
    producer_id: int = -1
    producer_epoch: int = -1


# --- add_partitions_to_txn (to version 3) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddPartitionsToTxnTopic:
    name: str = ""
    partitions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AddPartitionsToTxnRequest:
    v3_and_below_transactional_id: str = ""
    v3_and_below_producer_id: int = 0
    v3_and_below_producer_epoch: int = 0
    v3_and_below_topics: tuple[AddPartitionsToTxnTopic, ...] = ()


# --- add_offsets_to_txn (to version 4) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AddOffsetsToTxnRequest:
    transactional_id: str = ""
    producer_id: int = 0
    producer_epoch: int = 0
    group_id: str = ""


# --- txn_offset_commit (to version 4) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TxnOffsetCommitRequestPartition:
    partition_index: int = 0
    committed_offset: int = 0
    committed_metadata: str | None = None
    committed_leader_epoch: int = -1


@dataclass(frozen=True, slots=True)
class TxnOffsetCommitRequestTopic:
    name: str = ""
    partitions: tuple[TxnOffsetCommitRequestPartition, ...] = ()


@dataclass(frozen=True, slots=True)
class TxnOffsetCommitRequest:
    transactional_id: str = ""
    group_id: str = ""
    producer_id: int = 0
    producer_epoch: int = 0
    topics: tuple[TxnOffsetCommitRequestTopic, ...] = ()
    generation_id: int = -1
    member_id: str = ""
    group_instance_id: str | None = None


# --- end_txn (to version 4) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EndTxnRequest:
    transactional_id: str = ""
    producer_id: int = 0
    producer_epoch: int = 0
    committed: bool = False


# --- describe_transactions (to version 0) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DescribeTransactionsRequest:
    transactional_ids: tuple[str, ...] = ()


# --- list_transactions (to version 2) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ListTransactionsRequest:
    state_filters: tuple[str, ...] = ()
    producer_id_filters: tuple[int, ...] = ()
    duration_filter: int = -1
    transactional_id_pattern: str | None = None


# --- describe_producers (to version 0) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DescribeProducersTopic:
    name: str = ""
    partition_indexes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DescribeProducersRequest:
    topics: tuple[DescribeProducersTopic, ...] = ()


# --- api_versions (to version 4) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ApiVersionsRequest:
    client_software_name: str = ""
    client_software_version: str = ""


def milliseconds(duration: timedelta | int) -> int:
    """Times in requests are durations, as kio has them; inside, all times are whole milliseconds."""
    return duration if isinstance(duration, int) else duration // _MILLISECOND
