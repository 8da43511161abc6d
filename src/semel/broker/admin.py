"""What tools ask about the node itself: FindCoordinator, DescribeCluster, DescribeLogDirs, DescribeProducers.

Invariant: nothing here changes anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from semel.broker.admin_messages import (
    DescribeClusterBroker,
    DescribeClusterResponse,
    DescribeLogDirsPartition,
    DescribeLogDirsResponse,
    DescribeLogDirsResult,
    DescribeLogDirsTopic,
    DescribeProducersResponse,
    PartitionResponse,
    ProducerState,
    TopicResponse,
)
from semel.broker.errors import Error
from semel.broker.events import NOW, Ready, Reply, Request
from semel.broker.messages import Coordinator, FindCoordinatorResponse
from semel.log.partition import Partition

if TYPE_CHECKING:
    from semel.broker.core import Broker

_COORDINATED: Final = (0, 1)  # group, transaction; 2 is a share group, which is not served


def find_coordinator(broker: Broker, request: Request, now_ms: int) -> Ready:
    message = request.message
    node, host, port = broker.config.node_id, broker.host, broker.port
    served = getattr(message, "key_type", 0) in _COORDINATED
    error = Error.NONE if served else Error.INVALID_REQUEST
    reason = None if served else "only groups and transactions have a coordinator here"
    if request.version >= 4:
        coordinators = [Coordinator(key, node, host, port, error, reason) for key in message.coordinator_keys]
        response = FindCoordinatorResponse(coordinators=coordinators)
    else:
        response = FindCoordinatorResponse(error_code=error, error_message=reason, node_id=node, host=host, port=port)
    return Ready((), (Reply(request.connection, request.token, response, NOW),))


def describe_cluster(broker: Broker, request: Request, now_ms: int) -> Ready:
    response = DescribeClusterResponse(
        endpoint_type=getattr(request.message, "endpoint_type", 1),
        cluster_id=broker.state.cluster_id,
        controller_id=broker.config.node_id,
        brokers=(DescribeClusterBroker(broker.config.node_id, broker.host, broker.port),),
    )
    return Ready((), (Reply(request.connection, request.token, response, NOW),))


def describe_log_dirs(broker: Broker, request: Request, now_ms: int) -> Ready:
    wanted = request.message.topics
    asked = None if wanted is None else {one.topic: set(one.partitions) for one in wanted}
    topics = []
    for topic in broker.state.topics.values():
        if asked is not None and topic.name not in asked:
            continue
        sizes = [
            DescribeLogDirsPartition(index, partition.size)
            for index, partition in enumerate(topic.partitions)
            if asked is None or index in asked[topic.name]
        ]
        topics.append(DescribeLogDirsTopic(topic.name, sizes))
    response = DescribeLogDirsResponse(results=(DescribeLogDirsResult(0, "data", topics),))
    return Ready((), (Reply(request.connection, request.token, response),))


def describe_producers(broker: Broker, request: Request, now_ms: int) -> Ready:
    topics = []
    for wanted in request.message.topics:
        found = []
        for index in wanted.partition_indexes:
            partition = broker.state.find(wanted.name, index)
            if partition is None:
                found.append(PartitionResponse(index, Error.UNKNOWN_TOPIC_OR_PARTITION, "no such partition"))
            else:
                found.append(PartitionResponse(index, active_producers=_producers(partition)))
        topics.append(TopicResponse(wanted.name, found))
    return Ready((), (Reply(request.connection, request.token, DescribeProducersResponse(topics=topics)),))


def _producers(partition: Partition) -> list[ProducerState]:
    open_transactions = partition.open_transactions
    return [
        ProducerState(
            producer_id,
            producer.epoch,
            producer.window[-1].last_sequence if producer.window else -1,
            producer.window[-1].timestamp if producer.window else -1,
            producer.coordinator_epoch,
            open_transactions.get(producer_id, -1),
        )
        for producer_id, producer in sorted(partition.producers.by_id.items())
    ]
