"""What a partition decides about a producer's batch: new, seen, out of order, fenced, or other bytes (B17, B19)."""

from __future__ import annotations

from semel.log import Accept, Conflict, Duplicate, Fenced, OutOfOrder
from semel.log.producers import SEQUENCE_MAX, WINDOW, Producers


def producers_with(*batches: tuple[int, int]) -> Producers:
    """Producer 1 at epoch 3, which has written these ranges; the checksum of a batch is its first sequence."""
    producers = Producers()
    offset = 0
    for first, last in batches:
        producers.appended(1, 3, first, last, offset, first, 0)
        offset += (last - first) % (SEQUENCE_MAX + 1) + 1
    return producers


def test_the_next_sequence_is_accepted() -> None:
    assert producers_with((0, 4)).check(1, 3, 5, 5, 5) == Accept()


def test_a_gap_is_out_of_order() -> None:
    assert producers_with((0, 4)).check(1, 3, 6, 6, 6) == OutOfOrder(5, 6, below_window=False)


def test_a_repetition_within_the_window_gets_its_first_answer() -> None:
    batches = [(number * 2, number * 2 + 1) for number in range(8)]
    producers = producers_with(*batches)
    for first, last in batches[-WINDOW:]:
        assert producers.check(1, 3, first, last, first) == Duplicate(first, last, 0)


def test_a_repetition_below_the_window_is_not_answered_as_done() -> None:
    """Its bytes are forgotten: calling it a repetition could lose other bytes, so it is refused."""
    producers = producers_with(*[(number, number) for number in range(8)])
    assert producers.check(1, 3, 1, 1, 1) == OutOfOrder(8, 1, below_window=True)


def test_other_bytes_under_a_used_sequence_are_refused() -> None:
    """librdkafka 1.9.0 and franz-go #1484 sent such batches; a broker that compares ranges only drops them silently."""
    assert producers_with((0, 4)).check(1, 3, 0, 4, crc=99) == Conflict(0, 0, 4)


def test_part_of_a_used_range_is_refused() -> None:
    for first, last in ((0, 2), (2, 4), (3, 9)):
        assert producers_with((0, 4)).check(1, 3, first, last, first) == Conflict(0, 0, 4)


def test_an_older_epoch_is_fenced_even_with_the_next_sequence() -> None:
    assert producers_with((0, 4)).check(1, 2, 5, 5, 5) == Fenced(3)


def test_a_new_epoch_starts_at_zero() -> None:
    producers = producers_with((0, 4))
    assert producers.check(1, 4, 0, 0, 0) == Accept()
    assert producers.check(1, 4, 5, 5, 5) == OutOfOrder(0, 5, below_window=False)


def test_a_new_epoch_forgets_the_older_ones_batches() -> None:
    producers = producers_with((0, 4))
    producers.appended(1, 4, 0, 4, 5, 0, 0)
    assert producers.check(1, 4, 0, 4, 0) == Duplicate(5, 9, 0)
    assert producers.check(1, 3, 0, 4, 0) == Fenced(4)


def test_a_marker_of_a_higher_epoch_fences_here_too() -> None:
    producers = producers_with((0, 4))
    producers.marked(1, 5, 0)
    assert producers.check(1, 3, 5, 5, 5) == Fenced(5)
    assert producers.check(1, 5, 0, 0, 0) == Accept()
    assert producers.check(1, 5, 5, 5, 5) == OutOfOrder(0, 5, below_window=False)


def test_a_marker_of_the_same_epoch_keeps_the_sequence() -> None:
    producers = producers_with((0, 4))
    producers.marked(1, 3, 0)
    assert producers.check(1, 3, 5, 5, 5) == Accept()
    assert producers.check(1, 3, 0, 4, 0) == Duplicate(0, 4, 0)


def test_sequences_wrap_to_zero() -> None:
    producers = producers_with((SEQUENCE_MAX - 2, SEQUENCE_MAX))
    assert producers.check(1, 3, 0, 1, 0) == Accept()
    assert producers.check(1, 3, 1, 1, 1) == OutOfOrder(0, 1, below_window=False)
    across = producers_with((SEQUENCE_MAX - 1, 2))
    assert across.check(1, 3, 3, 3, 3) == Accept()
    assert across.check(1, 3, SEQUENCE_MAX - 1, 2, SEQUENCE_MAX - 1) == Duplicate(0, 4, 0)


def test_an_unknown_producer_may_start_anywhere() -> None:
    """A client goes on with its sequence when its topic was made anew (as in Kafka)."""
    assert Producers().check(1, 0, 17, 20, 0) == Accept()


def test_the_broker_writes_without_sequences_and_nobody_else() -> None:
    """Offsets in a transaction carry the producer's id and epoch, but no sequence, and leave the window alone."""
    producers = producers_with((0, 4))
    producers.appended(1, 3, -1, -1, 5, 0, 0)
    assert producers.check(1, 3, 5, 5, 5) == Accept()
    assert producers.check(1, 3, 0, 4, 0) == Duplicate(0, 4, 0)
    assert producers.check(1, 3, -1, -1, 0) == OutOfOrder(0, -1, below_window=False)
    producers.appended(1, 4, -1, -1, 6, 0, 0)
    assert producers.check(1, 3, 5, 5, 5) == Fenced(4)
