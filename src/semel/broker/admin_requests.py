"""Requests of the administrative APIs as plain data, as `requests` has those that producers and consumers send."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from semel.broker.requests import NO_TIME

# --- create_topics (to version 7) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreatableReplicaAssignment:
    partition_index: int = 0
    broker_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CreatableTopicConfig:
    name: str = ""
    value: str | None = None


@dataclass(frozen=True, slots=True)
class CreatableTopic:
    name: str = ""
    num_partitions: int = 0
    replication_factor: int = 0
    assignments: tuple[CreatableReplicaAssignment, ...] = ()
    configs: tuple[CreatableTopicConfig, ...] = ()


@dataclass(frozen=True, slots=True)
class CreateTopicsRequest:
    topics: tuple[CreatableTopic, ...] = ()
    timeout: timedelta = timedelta(seconds=60)
    validate_only: bool = False


# --- delete_topics (to version 6) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeleteTopicState:
    name: str | None = None
    topic_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class DeleteTopicsRequest:
    topic_names: tuple[str, ...] = ()
    timeout: timedelta = NO_TIME
    topics: tuple[DeleteTopicState, ...] = ()


# --- create_partitions (to version 3) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreatePartitionsAssignment:
    broker_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CreatePartitionsTopic:
    name: str = ""
    count: int = 0
    assignments: tuple[CreatePartitionsAssignment, ...] | None = ()


@dataclass(frozen=True, slots=True)
class CreatePartitionsRequest:
    topics: tuple[CreatePartitionsTopic, ...] = ()
    timeout: timedelta = NO_TIME
    validate_only: bool = False


# --- delete_records (to version 2) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeleteRecordsPartition:
    partition_index: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class DeleteRecordsTopic:
    name: str = ""
    partitions: tuple[DeleteRecordsPartition, ...] = ()


@dataclass(frozen=True, slots=True)
class DeleteRecordsRequest:
    topics: tuple[DeleteRecordsTopic, ...] = ()
    timeout: timedelta = NO_TIME


# --- offset_for_leader_epoch (to version 4) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OffsetForLeaderPartition:
    partition: int = 0
    current_leader_epoch: int = -1
    leader_epoch: int = 0


@dataclass(frozen=True, slots=True)
class OffsetForLeaderTopic:
    topic: str = ""
    partitions: tuple[OffsetForLeaderPartition, ...] = ()


@dataclass(frozen=True, slots=True)
class OffsetForLeaderEpochRequest:
    topics: tuple[OffsetForLeaderTopic, ...] = ()
    replica_id: int = -2


# --- describe_configs (to version 4) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DescribeConfigsResource:
    resource_type: int = 0
    resource_name: str = ""
    configuration_keys: tuple[str, ...] | None = ()


@dataclass(frozen=True, slots=True)
class DescribeConfigsRequest:
    resources: tuple[DescribeConfigsResource, ...] = ()
    include_synonyms: bool = False
    include_documentation: bool = False


# --- incremental_alter_configs (to version 1) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IncrementalAlterableConfig:
    name: str = ""
    config_operation: int = 0
    value: str | None = None


@dataclass(frozen=True, slots=True)
class IncrementalAlterConfigsResource:
    resource_type: int = 0
    resource_name: str = ""
    configs: tuple[IncrementalAlterableConfig, ...] = ()


@dataclass(frozen=True, slots=True)
class IncrementalAlterConfigsRequest:
    resources: tuple[IncrementalAlterConfigsResource, ...] = ()
    validate_only: bool = False


# --- alter_configs (to version 2) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AlterableConfig:
    name: str = ""
    value: str | None = None


@dataclass(frozen=True, slots=True)
class AlterConfigsResource:
    resource_type: int = 0
    resource_name: str = ""
    configs: tuple[AlterableConfig, ...] = ()


@dataclass(frozen=True, slots=True)
class AlterConfigsRequest:
    resources: tuple[AlterConfigsResource, ...] = ()
    validate_only: bool = False


# --- describe_cluster (to version 2) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DescribeClusterRequest:
    include_cluster_authorized_operations: bool = False
    endpoint_type: int = 1
    include_fenced_brokers: bool = False


# --- describe_log_dirs (to version 4) ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DescribableLogDirTopic:
    topic: str = ""
    partitions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DescribeLogDirsRequest:
    topics: tuple[DescribableLogDirTopic, ...] | None = ()
