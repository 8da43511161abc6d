"""The consumer against a broker played by hand: positions, losses, seeks, resets."""

from __future__ import annotations

from typing import Any

import pytest

from semel.broker import messages, requests
from semel.broker.errors import Error
from semel.client.consumer import Consumer, ConsumerConfig, Reset
from semel.client.effects import Fetched, Stuck
from semel.ports import TopicPartition
from semel.record import encode, marker, placed

from .hand import Hand

AT = TopicPartition("in", 0)
OTHER = TopicPartition("in", 1)


def reading(positions: dict[TopicPartition, int | None], **config: Any) -> tuple[Consumer, Hand]:
    consumer = Consumer(ConsumerConfig(**config))
    hand = Hand(consumer)
    hand.did(consumer.assign(positions, hand.now_ms))
    hand.did(consumer.poll(hand.now_ms))
    return consumer, hand


def fetched(at: TopicPartition, *chunks: bytes, code: int = 0, aborted: Any = ()) -> messages.FetchResponse:
    partition = messages.PartitionData(at.partition, code, 100, 100, aborted_transactions=aborted, records=chunks)
    return messages.FetchResponse(responses=(messages.FetchableTopicResponse(None, (partition,), at.topic),))


def listed(at: TopicPartition, offset: int, code: int = 0) -> messages.ListOffsetsResponse:
    answer = messages.ListOffsetsPartitionResponse(at.partition, code, -1, offset)
    return messages.ListOffsetsResponse(topics=(messages.ListOffsetsTopicResponse(at.topic, (answer,)),))


def asked_position(hand: Hand) -> list[tuple[int, int]]:
    request = hand.asked()
    assert isinstance(request, requests.FetchRequest)
    return [(p.partition, p.fetch_offset) for topic in request.topics for p in topic.partitions]


def test_records_are_handed_over_and_the_position_moves() -> None:
    """The next fetch starts where the last one ended, and only when the user asks for more."""
    consumer, hand = reading({AT: 5})
    assert hand.asked().isolation_level == 1
    hand.answer(fetched(AT, placed(encode([b"a", b"b", b"c"], [b"k"] * 3, 9), 4, 2)))
    records = hand.take(Fetched).records
    assert (records.source, list(records.offsets), list(records.values)) == (AT, [5, 6], [b"b", b"c"])
    assert (records.next_offset, records.leader_epoch, records.headers) == (7, 2, None)
    assert not hand.waiting and consumer.wake_at_ms is None
    hand.did(consumer.poll(hand.now_ms))
    assert asked_position(hand) == [(0, 7)]


def test_a_lost_answer_is_fetched_again() -> None:
    """Nothing was handed over, so the position has not moved."""
    consumer, hand = reading({AT: 5})
    hand.lose()
    assert not hand.waiting
    hand.tick(100)
    assert asked_position(hand) == [(0, 5)]
    hand.tick(6_000)  # nobody answers: the connection is given up
    hand.tick(1_000)
    assert [send.connection in hand.open for send in hand.waiting] == [False, True]
    del hand.waiting[0]
    assert asked_position(hand) == [(0, 5)]
    assert consumer.positions == {AT: 5}


def test_invisible_records_move_the_position() -> None:
    """Aborted and control batches are passed over, and the user is told how far (FAULTS B24)."""
    _, hand = reading({AT: 0})
    aborted = encode([b"x", b"y"], producer_id=9, producer_epoch=0, base_sequence=0, transactional=True)
    chunks = (aborted, placed(marker(False, 9, 0, 0, 0), 2, 0))
    hand.answer(fetched(AT, *chunks, aborted=(messages.AbortedTransaction(9, 0),)))
    records = hand.take(Fetched).records
    assert list(records.values) == [] and records.next_offset == 3


def test_read_uncommitted_sees_them() -> None:
    """The same bytes without the isolation: two records, and no control record."""
    _, hand = reading({AT: 0}, committed=False)
    assert hand.asked().isolation_level == 0
    hand.answer(
        fetched(
            AT,
            encode([b"x", b"y"], producer_id=9, producer_epoch=0, base_sequence=0, transactional=True),
            placed(marker(False, 9, 0, 0, 0), 2, 0),
        )
    )
    records = hand.take(Fetched).records
    assert list(records.values) == [b"x", b"y"] and records.next_offset == 3


def test_a_batch_cut_off_at_the_size_limit_comes_whole_later() -> None:
    """The last batch of a fetch may be cut; it is not an error and nothing of it is used."""
    consumer, hand = reading({AT: 0})
    second = placed(encode([b"b"]), 1, 0)
    hand.answer(fetched(AT, encode([b"a"]), second[:-3]))
    assert list(hand.take(Fetched).records.values) == [b"a"]
    hand.did(consumer.poll(hand.now_ms))
    assert asked_position(hand) == [(0, 1)]


def test_an_answer_from_before_a_seek_is_not_used() -> None:
    """What was asked for at the old position is dropped, however it comes."""
    consumer, hand = reading({AT: 0})
    hand.did(consumer.seek(AT, 50, hand.now_ms))
    hand.answer(fetched(AT, encode([b"a"])))
    assert not hand.log
    assert asked_position(hand) == [(0, 50)]


def test_paused_partitions_are_not_fetched() -> None:
    """Neither asked for, nor handed over when their answer is under way."""
    consumer, hand = reading({AT: 0, OTHER: 0})
    consumer.pause([AT])
    hand.answer(fetched(AT, encode([b"a"])))
    assert not hand.log
    assert asked_position(hand) == [(1, 0)]
    hand.answer(fetched(OTHER, encode([b"b"])))
    assert hand.take(Fetched).records.source == OTHER
    hand.did(consumer.resume([AT], hand.now_ms))
    hand.did(consumer.poll(hand.now_ms))
    assert sorted(asked_position(hand)) == [(0, 0), (1, 1)]


def test_partitions_take_turns() -> None:
    """Whoever was asked for first is last in the next fetch, so that a full one starves nobody."""
    _, hand = reading({AT: 0, OTHER: 0})
    first = asked_position(hand)
    hand.answer(messages.FetchResponse())
    assert asked_position(hand) == first[::-1]


@pytest.mark.parametrize("reset", [Reset.EARLIEST, Reset.LATEST])
def test_no_position_is_asked_for(reset: Reset) -> None:
    """The log's start or end is asked for first; a partition whose offset fell out of the log does so again."""
    _, hand = reading({AT: None}, reset=reset)
    request = hand.asked()
    assert isinstance(request, requests.ListOffsetsRequest)
    assert request.topics[0].partitions[0].timestamp == reset.value and request.isolation_level == 1
    hand.answer(listed(AT, -1, Error.UNKNOWN_TOPIC_OR_PARTITION))
    hand.tick(100)
    hand.answer(listed(AT, 33))
    assert asked_position(hand) == [(0, 33)]
    hand.answer(fetched(AT, code=Error.OFFSET_OUT_OF_RANGE))
    assert isinstance(hand.asked(), requests.ListOffsetsRequest)


def test_a_position_that_is_not_in_the_log() -> None:
    """Without a reset it is told, and the partition waits for a seek; the others go on."""
    consumer, hand = reading({AT: 7, OTHER: 0})
    hand.answer(fetched(AT, code=Error.OFFSET_OUT_OF_RANGE))
    assert "offset 7 is not in the log" in hand.take(Stuck).reason
    assert asked_position(hand) == [(1, 0)]
    hand.did(consumer.seek(AT, 0, hand.now_ms))
    hand.answer(fetched(OTHER, encode([b"b"])))
    hand.did(consumer.poll(hand.now_ms))
    assert sorted(asked_position(hand)) == [(0, 0), (1, 1)]


def test_corrupt_bytes_stop_the_partition() -> None:
    """They are told, not skipped."""
    _, hand = reading({AT: 0})
    damaged = bytearray(encode([b"a"]))
    damaged[-1] ^= 1
    hand.answer(fetched(AT, bytes(damaged)))
    assert "fails its checksum" in hand.take(Stuck).reason
