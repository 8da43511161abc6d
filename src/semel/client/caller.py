"""Single questions, each asked until it is answered: metadata, committed offsets, ends of partitions.

For requests that may be repeated without harm: a question in doubt is asked again, on a new connection. Invariant:
every `ask` ends with one `Told`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from semel.broker import messages, requests
from semel.broker.errors import Error
from semel.ports import Position, TopicPartition

from . import codes
from .effects import Answer, Call, Effect, Event, Lost, Tick, Told
from .flights import Flights, backoff_ms, earliest
from .steps import GroupMetadata, by_topic


@dataclass(slots=True, eq=False)
class _Question:
    ticket: int
    call: Call
    again: Callable[[object], bool]
    deadline_ms: int
    flying: bool = False
    attempts: int = 0
    again_at_ms: int = 0


class Caller:
    def __init__(self, *, request_timeout_ms: int = 5_000, timeout_ms: int = 60_000) -> None:
        self._timeout_ms = timeout_ms
        self._flights: Flights[_Question] = Flights(request_timeout_ms)
        self._questions: dict[int, _Question] = {}
        self._next_ticket = 0

    def ask(
        self, call: Call, now_ms: int, again: Callable[[object], bool] = lambda message: False
    ) -> tuple[int, list[Effect]]:
        """Returns the ticket of the `Told` to come. `again`: this answer is not one yet, ask later."""
        question = _Question(self._next_ticket, call, again, now_ms + self._timeout_ms)
        self._questions[question.ticket] = question
        self._next_ticket += 1
        return question.ticket, self._advance(now_ms, [])

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        out: list[Effect] = []
        match event:
            case Answer(token, message):
                question = self._flights.answered(token)
                if question is not None and question.ticket in self._questions:
                    if question.again(message):
                        self._later([question], now_ms)
                    else:
                        del self._questions[question.ticket]
                        out.append(Told(question.ticket, message))
            case Lost(connection):
                self._later(self._flights.lost(connection), now_ms)
            case Tick():
                pass
        self._later(self._flights.overdue(now_ms, out), now_ms)
        return self._advance(now_ms, out)

    def close(self) -> list[Effect]:
        out: list[Effect] = []
        self._flights.close(out)
        out += [Told(ticket, None, "closed") for ticket in self._questions]
        self._questions = {}
        return out

    @property
    def wake_at_ms(self) -> int | None:
        moments = [question.deadline_ms for question in self._questions.values()]
        moments += [question.again_at_ms for question in self._questions.values() if not question.flying]
        return earliest(self._flights.wake_at_ms, *moments)

    def _advance(self, now_ms: int, out: list[Effect]) -> list[Effect]:
        for question in list(self._questions.values()):
            if now_ms >= question.deadline_ms:
                del self._questions[question.ticket]
                out.append(Told(question.ticket, None, f"no answer within {self._timeout_ms} ms"))
            elif not question.flying and now_ms >= question.again_at_ms:
                question.flying = True
                self._flights.send(0, question.call, question, now_ms, out)
        return out

    def _later(self, questions: Iterable[_Question], now_ms: int) -> None:
        for question in questions:
            question.flying = False
            question.attempts += 1
            question.again_at_ms = now_ms + backoff_ms(question.attempts)


# --- Questions ----------------------------------------------------------------------------------------------------


def ask_metadata(topics: Sequence[str], *, create: bool = True) -> tuple[Call, Callable[[object], bool]]:
    """Partition counts and ids; with `create`, topics that are missing come into being where the broker allows it."""
    wanted = tuple(requests.MetadataRequestTopic(name) for name in topics)
    message = requests.MetadataRequest(wanted, allow_auto_topic_creation=create)
    return Call(codes.METADATA, codes.VERSIONS[codes.METADATA], message), _topics_are_coming


def _topics_are_coming(message: object) -> bool:
    assert isinstance(message, messages.MetadataResponse), message
    return any(topic.error_code in codes.ELSEWHERE for topic in message.topics)


def ask_committed(group: str, partitions: Sequence[TopicPartition]) -> tuple[Call, Callable[[object], bool]]:
    """Stable committed positions: asked again while a transaction that has offsets is not decided."""
    message = requests.OffsetFetchRequest(
        group_id=group,
        topics=tuple(
            requests.OffsetFetchRequestTopic(topic, tuple(at.partition for at in found))
            for topic, found in by_topic(partitions).items()
        ),
        require_stable=True,
    )
    return Call(codes.OFFSET_FETCH, codes.VERSIONS[codes.OFFSET_FETCH], message), _not_stable


def _not_stable(message: object) -> bool:
    assert isinstance(message, messages.OffsetFetchResponse), message
    found = [partition.error_code for topic in message.topics for partition in topic.partitions]
    return any(code in codes.ELSEWHERE or code == Error.UNSTABLE_OFFSET_COMMIT for code in (message.error_code, *found))


def committed_of(message: messages.OffsetFetchResponse) -> dict[TopicPartition, Position | None]:
    """The positions in the answer to `ask_committed`; None where nothing was ever committed."""
    return {
        TopicPartition(topic.name, partition.partition_index): (
            Position(partition.committed_offset, partition.metadata or "") if partition.committed_offset >= 0 else None
        )
        for topic in message.topics
        for partition in topic.partitions
    }


def ask_offsets(
    partitions: Sequence[TopicPartition], timestamp: int, *, committed: bool = False
) -> tuple[Call, Callable[[object], bool]]:
    """Starts (timestamp -2), ends (-1): the high watermark, with `committed` the last stable offset."""
    message = requests.ListOffsetsRequest(
        replica_id=-1,
        isolation_level=int(committed),
        topics=tuple(
            requests.ListOffsetsTopic(
                topic, tuple(requests.ListOffsetsPartition(at.partition, timestamp) for at in found)
            )
            for topic, found in by_topic(partitions).items()
        ),
    )
    return Call(codes.LIST_OFFSETS, codes.VERSIONS[codes.LIST_OFFSETS], message), _not_listed


def _not_listed(message: object) -> bool:
    assert isinstance(message, messages.ListOffsetsResponse), message
    return any(partition.error_code in codes.ELSEWHERE for topic in message.topics for partition in topic.partitions)


def ask_commit(
    group: GroupMetadata, positions: Mapping[TopicPartition, Position]
) -> tuple[Call, Callable[[object], bool]]:
    """A plain OffsetCommit, outside any transaction. Its answer has a code for each partition."""
    message = requests.OffsetCommitRequest(
        group_id=group.group,
        generation_id_or_member_epoch=group.generation,
        member_id=group.member_id,
        group_instance_id=group.instance_id,
        topics=tuple(
            requests.OffsetCommitRequestTopic(
                topic,
                tuple(
                    requests.OffsetCommitRequestPartition(at.partition, positions[at].offset, positions[at].metadata)
                    for at in found
                ),
            )
            for topic, found in by_topic(tuple(positions)).items()
        ),
    )
    return Call(codes.OFFSET_COMMIT, codes.VERSIONS[codes.OFFSET_COMMIT], message), _not_committed


def _not_committed(message: object) -> bool:
    assert isinstance(message, messages.OffsetCommitResponse), message
    return any(partition.error_code in codes.ELSEWHERE for topic in message.topics for partition in topic.partitions)
