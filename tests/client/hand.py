"""A hand for the tests: plays the broker, answer by answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from semel.broker import messages
from semel.client.effects import Answer, Close, Effect, Event, Lost, Open, Send, Tick

T = TypeVar("T")


class Client(Protocol):
    def handle(self, event: Event, now_ms: int) -> list[Effect]: ...


class Hand:
    def __init__(self, client: Client) -> None:
        self.client = client
        self.now_ms = 1_000
        self.waiting: list[Send] = []  # not answered yet
        self.log: list[Effect] = []  # what is not for the network, until taken
        self.open: set[int] = set()
        self.closed: set[int] = set()

    def did(self, effects: Iterable[Effect]) -> None:
        """Carries effects out, and checks the promises about connections."""
        for effect in effects:
            match effect:
                case Open(connection):
                    assert connection not in self.open | self.closed
                    self.open.add(connection)
                case Close(connection):
                    self.open.remove(connection)
                    self.closed.add(connection)
                case Send():
                    assert effect.connection in self.open
                    self.waiting.append(effect)
                case _:
                    self.log.append(effect)

    def take(self, kind: type[T]) -> T:
        """The one effect there is, of this kind."""
        (effect,) = self.log
        self.log = []
        assert isinstance(effect, kind), effect
        return effect

    def asked(self) -> Any:
        """The one request that waits."""
        (send,) = self.waiting
        return send.call.message

    def answer(self, message: object, index: int = 0) -> None:
        send = self.waiting.pop(index)
        self.did(self.client.handle(Answer(send.token, message), self.now_ms))

    def lose(self, index: int = 0) -> list[Send]:
        """The connection of a waiting request breaks; returns what was in flight on it."""
        connection = self.waiting[index].connection
        lost = [send for send in self.waiting if send.connection == connection]
        self.waiting = [send for send in self.waiting if send.connection != connection]
        self.open.remove(connection)
        self.closed.add(connection)
        self.did(self.client.handle(Lost(connection), self.now_ms))
        return lost

    def tick(self, after_ms: int) -> None:
        self.now_ms += after_ms
        self.did(self.client.handle(Tick(), self.now_ms))


def produced(*answers: tuple[str, int, int, int]) -> messages.ProduceResponse:
    """(topic, partition, error code, base offset) each."""
    return messages.ProduceResponse(
        tuple(
            messages.TopicProduceResponse(
                None, (messages.PartitionProduceResponse(index=p, error_code=code, base_offset=offset),), topic
            )
            for topic, p, code, offset in answers
        )
    )


def added(*answers: tuple[str, int, int]) -> messages.AddPartitionsToTxnResponse:
    """(topic, partition, error code) each."""
    return messages.AddPartitionsToTxnResponse(
        results_by_topic_v3_and_below=tuple(
            messages.AddPartitionsToTxnTopicResult(topic, (messages.AddPartitionsToTxnPartitionResult(p, code),))
            for topic, p, code in answers
        )
    )


def offsets_committed(code: int) -> messages.TxnOffsetCommitResponse:
    found = messages.TxnOffsetCommitResponsePartition(0, code)
    return messages.TxnOffsetCommitResponse(topics=(messages.TxnOffsetCommitResponseTopic("in", (found,)),))
