"""The requests that make up a transaction in protocol V1, and the code in their answers that decides.

Invariant: a step asked again is the same message again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from semel.broker import messages, requests
from semel.ports import Position, TopicPartition

from . import codes
from .codes import Verdict


class GroupMetadata(NamedTuple):
    """Who commits offsets. With a generation below 0 the group fences nothing (a plain reader's offsets)."""

    group: str
    generation: int = -1
    member_id: str = ""
    instance_id: str | None = None


class Me(NamedTuple):
    transactional_id: str
    producer_id: int
    producer_epoch: int


class Step(NamedTuple):
    """A request to the coordinator; a producer has one in flight at a time."""

    api_key: int
    partitions: tuple[TopicPartition, ...] = ()


Offsets = tuple[GroupMetadata, Mapping[TopicPartition, Position]]


def message_of(step: Step, me: Me, offsets: Offsets | None, *, committed: bool) -> object:
    if step.api_key == codes.ADD_PARTITIONS_TO_TXN:
        topics = tuple(
            requests.AddPartitionsToTxnTopic(topic, tuple(at.partition for at in found))
            for topic, found in by_topic(step.partitions).items()
        )
        return requests.AddPartitionsToTxnRequest(*me, topics)
    if step.api_key == codes.END_TXN:
        return requests.EndTxnRequest(*me, committed)
    assert offsets is not None, step
    group, positions = offsets
    if step.api_key == codes.ADD_OFFSETS_TO_TXN:
        return requests.AddOffsetsToTxnRequest(*me, group.group)
    assert step.api_key == codes.TXN_OFFSET_COMMIT, step
    return requests.TxnOffsetCommitRequest(
        transactional_id=me.transactional_id,
        group_id=group.group,
        producer_id=me.producer_id,
        producer_epoch=me.producer_epoch,
        topics=tuple(
            requests.TxnOffsetCommitRequestTopic(
                topic,
                tuple(
                    requests.TxnOffsetCommitRequestPartition(at.partition, positions[at].offset, positions[at].metadata)
                    for at in found
                ),
            )
            for topic, found in by_topic(tuple(positions)).items()
        ),
        generation_id=group.generation,
        member_id=group.member_id,
        group_instance_id=group.instance_id,
    )


def by_topic(partitions: Sequence[TopicPartition]) -> dict[str, list[TopicPartition]]:
    found: dict[str, list[TopicPartition]] = {}
    for at in partitions:
        found.setdefault(at.topic, []).append(at)
    return found


_SEVERITY: Final = [Verdict.DONE, Verdict.AGAIN, Verdict.ABORT, Verdict.DEAD, Verdict.FENCED]


def worst(api_key: int, message: object) -> int:
    """The code that decides: of an answer per partition, the gravest."""
    match message:
        case messages.AddPartitionsToTxnResponse():
            found = [
                result.partition_error_code
                for topic in message.results_by_topic_v3_and_below
                for result in topic.results_by_partition
            ]
        case messages.TxnOffsetCommitResponse():
            found = [result.error_code for topic in message.topics for result in topic.partitions]
        case (
            messages.InitProducerIdResponse(error_code=code)
            | messages.AddOffsetsToTxnResponse(error_code=code)
            | messages.EndTxnResponse(error_code=code)
        ):
            return code
        case _:
            raise AssertionError(message)
    return max(found, key=lambda code: _SEVERITY.index(codes.verdict(api_key, code)), default=0)
