"""The producer against a broker played by hand: what it sends, in which order, and what it says has happened."""

from __future__ import annotations

from typing import Any

import pytest

from semel.broker import messages, requests
from semel.broker.errors import Error
from semel.client.effects import Died, Ended, Initialised, MustAbort, Settled
from semel.client.producer import Producer, ProducerConfig, State
from semel.client.steps import GroupMetadata
from semel.ports import Done, Fenced, NotDone, Position, TopicPartition, Unknown
from semel.record import columns, parse

from .hand import Hand, added, offsets_committed, produced

AT = TopicPartition("out", 0)
GROUP = GroupMetadata("g", 4, "m", None)
POSITIONS = {TopicPartition("in", 0): Position(17)}
OK = messages.EndTxnResponse()
SECONDS = 1_000


def ready(transactional_id: str | None = "t", **config: Any) -> tuple[Producer, Hand]:
    producer = Producer(ProducerConfig(transactional_id, **config))
    hand = Hand(producer)
    hand.did(producer.init(hand.now_ms))
    assert isinstance(hand.asked(), requests.InitProducerIdRequest)
    hand.answer(messages.InitProducerIdResponse(producer_id=7, producer_epoch=3))
    assert hand.take(Initialised) == Initialised(7, 3)
    return producer, hand


def ongoing(**config: Any) -> tuple[Producer, Hand]:
    """A transaction whose first batch is in the log."""
    producer, hand = ready(**config)
    producer.begin()
    send(producer, hand, b"a")
    hand.answer(added(("out", 0, 0)))
    hand.answer(produced(("out", 0, 0, 100)))
    assert hand.take(Settled) == Settled(0, AT, Done(), 100)
    return producer, hand


def send(producer: Producer, hand: Hand, value: bytes, at: TopicPartition = AT) -> int:
    ticket, effects = producer.send(at, [value], now_ms=hand.now_ms)
    hand.did(effects)
    return ticket


def batches(message: requests.ProduceRequest) -> list[tuple[int, list[bytes | None]]]:
    """(base sequence, values) of every batch in a Produce."""
    found = []
    for topic in message.topic_data:
        for data in topic.partition_data:
            assert data.records is not None
            batch = parse(data.records)
            found.append((batch.base_sequence, list(columns(batch).values)))
    return found


def test_a_transaction_in_its_order() -> None:
    """Partitions are added before they are written, offsets follow the last answer, and EndTxn is last."""
    producer, hand = ready()
    producer.begin()
    send(producer, hand, b"a")
    assert hand.asked() == requests.AddPartitionsToTxnRequest(
        "t", 7, 3, (requests.AddPartitionsToTxnTopic("out", (0,)),)
    )
    hand.answer(added(("out", 0, 0)))
    assert batches(hand.asked()) == [(0, [b"a"])]
    producer.send_offsets(GROUP, POSITIONS)
    hand.did(producer.commit(hand.now_ms))
    assert len(hand.waiting) == 1, "nothing overtakes the batch"
    hand.answer(produced(("out", 0, 0, 100)))
    hand.take(Settled)
    assert hand.asked() == requests.AddOffsetsToTxnRequest("t", 7, 3, "g")
    hand.answer(messages.AddOffsetsToTxnResponse())
    commit = hand.asked()
    assert isinstance(commit, requests.TxnOffsetCommitRequest)
    assert (commit.generation_id, commit.member_id) == (4, "m")
    assert commit.topics[0].partitions[0].committed_offset == 17
    hand.answer(offsets_committed(0))
    assert hand.asked() == requests.EndTxnRequest("t", 7, 3, True)
    hand.answer(OK)
    assert hand.take(Ended) == Ended(True, Done())
    assert producer.state is State.READY and producer.wake_at_ms is None
    producer.begin()
    send(producer, hand, b"b")
    hand.answer(added(("out", 0, 0)))
    assert batches(hand.asked()) == [(1, [b"b"])], "sequences go on from one transaction to the next"


def test_an_empty_transaction_sends_nothing() -> None:
    """Begin, commit or abort, nothing between: Done, without a request (FAULTS B9)."""
    producer, hand = ready()
    for commit in (True, False):
        producer.begin()
        hand.did(producer.commit(hand.now_ms) if commit else producer.abort(hand.now_ms))
        assert hand.take(Ended) == Ended(commit, Done()) and not hand.waiting


def test_a_lost_answer_is_asked_for_again_unchanged() -> None:
    """Every request whose answer is lost goes out again, the same, on a new connection."""
    producer, hand = ready()
    producer.begin()
    send(producer, hand, b"a")
    producer.send_offsets(GROUP, POSITIONS)
    hand.did(producer.commit(hand.now_ms))
    for answer in (
        added(("out", 0, 0)),
        produced(("out", 0, 0, 5)),
        messages.AddOffsetsToTxnResponse(),
        offsets_committed(0),
        OK,
    ):
        before = hand.asked()
        (lost,) = hand.lose()
        assert not hand.waiting
        hand.tick(100)
        assert hand.asked() == before
        assert hand.waiting[0].connection not in {lost.connection}
        hand.answer(answer)
    assert hand.log == [Settled(0, AT, Done(), 5), Ended(True, Done())]


def test_a_late_answer_finds_nobody() -> None:
    """After a timeout the connection is given up; an answer that still comes changes nothing."""
    _, hand = ready()
    producer = hand.client
    assert isinstance(producer, Producer)
    producer.begin()
    send(producer, hand, b"a")
    late = hand.waiting.pop()
    hand.tick(5 * SECONDS)
    assert late.connection in hand.closed
    hand.waiting.append(late)
    hand.answer(added(("out", 0, Error.INVALID_TOPIC)))
    assert not hand.log and producer.state is State.ONGOING


def test_batches_stay_in_order() -> None:
    """Five in flight; when the connection breaks, all five are repeated, in order, before any other."""
    producer, hand = ongoing()
    for value in (b"b", b"c", b"d", b"e", b"f", b"g"):
        send(producer, hand, value)
    assert [batches(s.call.message) for s in hand.waiting] == [[(i, [b"abcdef"[i : i + 1]])] for i in range(1, 6)]
    before = [send.call.message for send in hand.waiting]
    hand.lose()
    hand.tick(100)
    assert [send.call.message for send in hand.waiting] == before, "the same bytes"
    hand.answer(produced(("out", 0, 0, 101)))
    assert [batches(s.call.message)[0][0] for s in hand.waiting] == [2, 3, 4, 5, 6]


def test_a_retriable_refusal_holds_back_those_behind_it() -> None:
    """The second is refused because the first was: neither is repeated before both are answered."""
    producer, hand = ongoing()
    first, second = send(producer, hand, b"b"), send(producer, hand, b"c")
    hand.answer(produced(("out", 0, 56, -1)))  # KAFKA_STORAGE_ERROR
    hand.tick(1_000)
    assert len(hand.waiting) == 1, "the second is still in flight"
    hand.answer(produced(("out", 0, Error.OUT_OF_ORDER_SEQUENCE_NUMBER, -1)))
    hand.tick(1_000)
    assert [batches(s.call.message) for s in hand.waiting] == [[(1, [b"b"])], [(2, [b"c"])]]
    hand.answer(produced(("out", 0, 0, 101)))
    hand.answer(produced(("out", 0, Error.DUPLICATE_SEQUENCE_NUMBER, -1)))
    assert hand.log == [Settled(first, AT, Done(), 101), Settled(second, AT, Done(), -1)]


def test_one_request_carries_a_batch_of_each_partition() -> None:
    """Partitions share a request; what fails in one does not touch the other."""
    producer, hand = ready(None)
    other = TopicPartition("more", 1)
    ticket = send(producer, hand, b"a")
    send(producer, hand, b"x", other)
    send(producer, hand, b"b")
    hand.lose()
    hand.tick(100)
    assert batches(hand.waiting[0].call.message) == [(0, [b"a"]), (0, [b"x"])]
    hand.answer(produced(("out", 0, 0, 1), ("more", 1, Error.UNKNOWN_TOPIC_OR_PARTITION, -1)))
    assert hand.take(Settled).ticket == ticket
    hand.tick(1_000)
    assert batches(hand.waiting[-1].call.message) == [(0, [b"x"])]


def test_a_refused_batch_ends_the_transaction_and_the_epoch() -> None:
    """Its sequence is used up, so after the abort the epoch is raised (KIP-360), and sequences begin again."""
    producer, hand = ongoing()
    ticket, behind = send(producer, hand, b"b"), send(producer, hand, b"c")
    hand.answer(produced(("out", 0, Error.MESSAGE_TOO_LARGE, -1)))
    assert hand.log[0] == Settled(ticket, AT, NotDone("Produce to out-0 was answered MESSAGE_TOO_LARGE"))
    assert isinstance(hand.log[1], MustAbort)
    hand.log = []
    hand.answer(produced(("out", 0, Error.OUT_OF_ORDER_SEQUENCE_NUMBER, -1)))
    assert isinstance(hand.take(Settled).outcome, NotDone) and behind == 2
    assert producer.commit(hand.now_ms) == [Ended(True, NotDone("something in the transaction was refused"))]
    hand.did(producer.abort(hand.now_ms))
    assert hand.asked() == requests.EndTxnRequest("t", 7, 3, False)
    hand.answer(OK)
    init = hand.asked()
    assert (init.producer_id, init.producer_epoch) == (7, 3)
    hand.answer(messages.InitProducerIdResponse(producer_id=7, producer_epoch=4))
    assert hand.take(Ended) == Ended(False, Done())
    producer.begin()
    send(producer, hand, b"d")
    hand.answer(added(("out", 0, 0)))
    assert batches(hand.asked()) == [(0, [b"d"])]


def test_an_abort_takes_back_what_never_left() -> None:
    """Unsent batches are NotDone at once; sequences have no gap, so the epoch stays."""
    producer, hand = ready()
    producer.begin()
    ticket = send(producer, hand, b"a")
    hand.did(producer.abort(hand.now_ms))
    assert hand.take(Settled) == Settled(ticket, AT, NotDone("aborted"))
    hand.answer(added(("out", 0, 0)))
    hand.answer(OK)
    assert hand.take(Ended) == Ended(False, Done())
    assert producer.producer_epoch == 3 and not hand.waiting


def test_an_abort_with_a_batch_in_doubt_raises_the_epoch() -> None:
    """The batch may still arrive; a new epoch fences it (FAULTS B2)."""
    producer, hand = ongoing()
    ticket = send(producer, hand, b"b")
    hand.did(producer.abort(hand.now_ms))
    assert batches(hand.asked()) == [(1, [b"b"])], "EndTxn waits for what is in flight"
    hand.lose()
    assert hand.take(Settled) == Settled(ticket, AT, Unknown("aborted"))
    hand.answer(OK)
    assert isinstance(hand.asked(), requests.InitProducerIdRequest)
    hand.lose()  # and its repetition is the same: the broker knows the epoch before (FAULTS B16)
    hand.tick(100)
    assert hand.asked().producer_epoch == 3
    hand.answer(messages.InitProducerIdResponse(producer_id=7, producer_epoch=4))
    assert hand.take(Ended) == Ended(False, Done())


def test_an_abort_of_what_may_never_have_begun() -> None:
    """AddPartitions is in doubt, the coordinator knows no transaction: aborted, and the epoch is raised."""
    producer, hand = ready()
    producer.begin()
    send(producer, hand, b"a")
    hand.did(producer.abort(hand.now_ms))
    hand.log = []
    hand.lose()
    hand.answer(messages.EndTxnResponse(error_code=Error.INVALID_TXN_STATE))
    hand.answer(messages.InitProducerIdResponse(producer_id=7, producer_epoch=4))
    assert hand.take(Ended) == Ended(False, Done())


@pytest.mark.parametrize("code", [Error.INVALID_PRODUCER_EPOCH, Error.PRODUCER_FENCED])
@pytest.mark.parametrize("doubt", [False, True])
def test_a_fenced_commit(code: int, doubt: bool) -> None:
    """Fenced at the first attempt: it has not happened. Fenced after a lost answer: unknown, it may have (law 9)."""
    producer, hand = ongoing()
    hand.did(producer.commit(hand.now_ms))
    if doubt:
        hand.lose()
        hand.tick(100)
    hand.answer(messages.EndTxnResponse(error_code=code))
    ended, died = hand.log
    assert isinstance(ended, Ended) and isinstance(ended.outcome, Unknown if doubt else Fenced)
    assert isinstance(died, Died) and died.fenced
    assert producer.state is State.DEAD and not hand.open and producer.wake_at_ms is None


@pytest.mark.parametrize("answer", ["produce", "add", "offsets"])
def test_fencing_is_final_wherever_it_is_met(answer: str) -> None:
    """Nothing is sent after it; what had not been decided is Fenced."""
    producer, hand = ready()
    producer.begin()
    send(producer, hand, b"a")
    producer.send_offsets(GROUP, POSITIONS)
    hand.did(producer.commit(hand.now_ms))
    code = int(Error.INVALID_PRODUCER_EPOCH)
    hand.answer(added(("out", 0, code if answer == "add" else 0)))
    if answer != "add":
        hand.answer(produced(("out", 0, code if answer == "produce" else 0, 5)))
    if answer == "offsets":
        hand.answer(messages.AddOffsetsToTxnResponse())
        hand.answer(offsets_committed(code))
    ended, died = hand.log[-2:]
    assert isinstance(ended, Ended) and isinstance(ended.outcome, Fenced)
    assert isinstance(died, Died) and died.fenced
    assert not hand.waiting and producer.pending == 0


def test_a_superseded_member_s_offsets_end_the_transaction() -> None:
    """ILLEGAL_GENERATION: the commit is NotDone, and an abort mends the producer (KIP-447)."""
    producer, hand = ongoing()
    producer.send_offsets(GROUP, POSITIONS)
    hand.did(producer.commit(hand.now_ms))
    hand.answer(messages.AddOffsetsToTxnResponse())
    hand.answer(offsets_committed(Error.ILLEGAL_GENERATION))
    assert hand.take(Ended) == Ended(True, NotDone("TxnOffsetCommit was answered ILLEGAL_GENERATION"))
    hand.did(producer.abort(hand.now_ms))
    hand.answer(OK)
    assert hand.take(Ended) == Ended(False, Done()) and producer.state is State.READY


def test_offsets_are_sent_once() -> None:
    """A second TxnOffsetCommit in a transaction is the program's mistake (FAULTS B26)."""
    producer, _ = ongoing()
    producer.send_offsets(GROUP, POSITIONS)
    with pytest.raises(AssertionError):
        producer.send_offsets(GROUP, POSITIONS)


def test_no_answer_for_long_is_unknown() -> None:
    """A commit that nobody answers within delivery.timeout is Unknown, never Done or NotDone, and the producer ends."""
    producer, hand = ongoing(delivery_timeout_ms=12 * SECONDS)
    hand.did(producer.commit(hand.now_ms))
    for _ in range(100):
        hand.waiting.clear()
        if producer.wake_at_ms is None:
            break
        hand.tick(max(0, producer.wake_at_ms - hand.now_ms))
    ended, died = hand.log
    assert isinstance(ended, Ended) and isinstance(ended.outcome, Unknown)
    assert isinstance(died, Died) and not died.fenced


def test_a_batch_that_is_not_delivered_in_time() -> None:
    """Never sent: NotDone. Sent and never answered: Unknown. Either way the transaction must be aborted."""
    producer, hand = ongoing(delivery_timeout_ms=8 * SECONDS)
    send(producer, hand, b"b")
    other = TopicPartition("other", 0)
    send(producer, hand, b"x", other)
    hand.tick(8 * SECONDS)
    outcomes = {effect.at: effect.outcome for effect in hand.log if isinstance(effect, Settled)}
    assert isinstance(outcomes[AT], Unknown) and isinstance(outcomes[other], NotDone)
    assert producer.state in (State.ABORTABLE, State.DEAD)


def test_an_idempotent_producer_s_gap_ends_it() -> None:
    """Without a transaction there is no abort to mend a refused batch: a new producer is needed."""
    producer, hand = ready(None)
    ticket = send(producer, hand, b"a")
    hand.answer(produced(("out", 0, Error.MESSAGE_TOO_LARGE, -1)))
    settled, died = hand.log
    assert isinstance(settled, Settled) and settled.ticket == ticket and isinstance(settled.outcome, NotDone)
    assert isinstance(died, Died) and not died.fenced


def test_wake_ups_always_lead_somewhere() -> None:
    """A tick at `wake_at_ms` never leaves it in the past: a driver that obeys it does not spin."""
    producer, hand = ongoing(delivery_timeout_ms=40 * SECONDS)
    send(producer, hand, b"b")
    send(producer, hand, b"c")
    hand.answer(produced(("out", 0, 56, -1)))
    for _ in range(50):
        wake = producer.wake_at_ms
        if wake is None:
            break
        assert wake > hand.now_ms
        hand.tick(wake - hand.now_ms)
