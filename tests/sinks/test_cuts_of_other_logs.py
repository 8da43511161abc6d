"""Deliveries by cuts whose log is not the one that the objects are of: put back, made anew, copied (S12, S16)."""

from __future__ import annotations

import copy

import pytest

from semel.ports import Done, NoSteps, Step, TopicPartition
from semel.sinks import Objects, operate
from semel.sinks.cuts import read_progress
from semel.sinks.objects_connection import manifest_key
from semel.sinks.sink import Diverged, SinkError
from tests.sinks.test_cuts import (
    DELIVERY,
    EVER,
    OUTBOX,
    Died,
    MakeSink,
    Worker,
    die,
    held,
    listed,
    make_sink,
    name,
    names,
    outbox,
    put,
    store_of,
)
from tests.support.outboxlog import OutboxLog

__all__ = ["make_sink"]  # the fixture


# --- S12, S16: the log is not the one that the objects are of ---------------------------------------------------------


def delivered(make_sink: MakeSink, count: int = 10) -> tuple[OutboxLog, Objects]:
    log, sink = outbox(), make_sink()
    put(log, *range(count))
    worker = Worker(log, sink)
    worker.turn(8)
    worker.close()
    return log, sink


def diverged(log: OutboxLog, sink: Objects) -> str:
    """The message with which a new delivery stops; nothing is delivered."""
    before = names(sink)
    worker = Worker(log, sink)
    with pytest.raises(Diverged) as stopped:
        worker.turn(8)
    worker.close()
    assert names(sink) == before
    return str(stopped.value)


def adopted(log: OutboxLog, sink: Objects, position: int) -> int:
    """As `semel sink adopt` does it; the incarnation."""
    delivery = operate.Delivery(
        log.session(), sink, app="app", outbox=OUTBOX, owners=log.owner, connection=sink.open(NoSteps())
    )
    standing = delivery.standing()
    renew = delivery.renewed(standing, again=False)
    to = {place.at: position for place in standing.places}
    return delivery.move(standing, to, renew=renew, now_ms=1, delete=lambda topics: [log.topics.pop(t) for t in topics])


@pytest.mark.parametrize("went_on", [0, 20])
def test_a_log_put_back_stops_the_delivery(make_sink: MakeSink, went_on: int) -> None:
    """S12: the outbox and the delivery topic went back together; the objects did not."""
    log, sink = delivered(make_sink)
    copied = log.copy()
    put(log, *range(10))
    Worker(log, sink).turn(8)
    log.put_back(copied)
    put(log, *range(went_on))
    assert "decided cuts up to 10 only" in diverged(log, sink)


def test_a_log_put_back_to_before_the_first_cut_stops_the_delivery(make_sink: MakeSink) -> None:
    """S12: the delivery topic knows of nothing, the sink does."""
    log, sink = outbox(), make_sink()
    put(log, *range(3))
    worker = Worker(log, sink)
    copied = log.copy()
    worker.turn(8)
    log.put_back(copied)
    assert "knows of no delivery" in diverged(log, sink)


def test_an_outbox_that_lost_its_tail_stops_the_delivery(make_sink: MakeSink) -> None:
    """S12: the delivery topic is on another disk, and did not."""
    log, sink = delivered(make_sink)
    del log.topics[OUTBOX].partitions[0][5:]
    assert "now ends at 5" in diverged(log, sink)
    put(log, *range(100, 120))
    assert "another record is at 9 now" in diverged(log, sink)


def copied(log: OutboxLog) -> OutboxLog:
    """Another log with the same records: a folder that was copied while it was in use."""
    other = OutboxLog()
    other.topics = copy.deepcopy(log.topics)
    other.epoch = log.epoch
    return other


@pytest.mark.parametrize("step", [None, Step.CUT_BEFORE, Step.ROWS_BEFORE])
def test_a_copy_of_the_log_in_use_is_noticed_before_a_second_object_is_put(
    make_sink: MakeSink, step: Step | None
) -> None:
    """S12: two logs that went different ways have two delivery topics, and neither fences the other's owner. The sink
    does: the claim's epoch is in the manifest, and a cut is announced there before its object is put. (Found by
    `semel verify --on embedded`: the one that was resumed put an overlapping object.)"""
    log, sink = outbox(), make_sink()
    put(log, *range(10))
    old = Worker(log, sink, sole_owner=True)
    old.turn(3)
    other = copied(log)
    put(log, *range(10, 13))
    put(other, *range(100, 107))
    new = Worker(other, sink, sole_owner=True)
    if step is None:
        new.turn(8)
    else:

        def overtaken() -> None:
            new.turn(8)

        old.steps.at[step] = overtaken
    with pytest.raises(SinkError, match="is a copy of this folder in use"):
        old.turn(8)
    assert old.steps.hits[Step.SINK_FENCED] == 1
    assert held(sink) == listed(sink) == [*range(10), *range(100, 107)]
    put(other, 107)
    new.turn(8)
    assert held(sink) == listed(sink) == [*range(10), *range(100, 108)]


def test_a_cut_announced_by_another_log_stops_the_delivery(make_sink: MakeSink) -> None:
    """S12: announced and not put: its owner may put it still. Whose log does not know it decides nothing beside it."""
    log, sink = outbox(), make_sink()
    put(log, *range(10))
    Worker(log, sink).turn(3)
    other = copied(log)
    put(log, *range(10, 13))
    stands = Worker(log, sink)
    stands.steps.at[Step.OBJECT_BEFORE] = die
    with pytest.raises(Died):
        stands.turn(8)
    put(other, *range(100, 107))
    assert "it holds what was delivered up to offset 13" in diverged(other, sink)
    Worker(log, sink).turn(8)
    assert held(sink) == listed(sink) == list(range(13))


def test_a_complete_object_that_was_removed_is_not_made_again(make_sink: MakeSink) -> None:
    """Removed between its manifest and its position: nobody knows whether it was read."""
    log, sink = outbox(), make_sink()
    put(log, *range(10))
    worker = Worker(log, sink)
    worker.steps.at[Step.SINK_AFTER] = die
    with pytest.raises(Died):
        worker.turn(8)
    store_of(sink).delete([f"00001-00000/{name(0, 10)}"])
    assert "which is not there" in diverged(log, sink)


@pytest.mark.parametrize("went_on", [False, True])
def test_a_cut_whose_records_are_gone_stops_the_delivery(make_sink: MakeSink, went_on: bool) -> None:
    """S12: decided, not yet sent; the records it was decided of are not there any more."""
    log, sink = delivered(make_sink)
    put(log, *range(10, 15))
    worker = Worker(log, sink)
    worker.steps.at[Step.CUT_AFTER] = die
    with pytest.raises(Died):
        worker.turn(8)
    del log.topics[OUTBOX].partitions[0][12:]
    if went_on:
        put(log, *range(100, 110))
    assert ("holds other ones there now" if went_on else "the log ends before it") in diverged(log, sink)


def test_a_topic_made_anew_stops_the_delivery_until_the_next_incarnation_begins(make_sink: MakeSink) -> None:
    """S16: its offsets mean nothing here. The message says what to write where; then it is delivered from its start,
    beside the former objects."""
    log, sink = delivered(make_sink)
    log.create(OUTBOX, 1, EVER)
    put(log, *range(100, 120))
    said = diverged(log, sink)
    assert "re-created" in said and "`semel sink adopt APP.py orders`" in said
    assert adopted(log, sink, 0) == 2
    Worker(log, sink).turn(8)
    assert held(sink) == [*range(10), *range(100, 120)]
    assert names(sink) == [name(0, 10), name(0, 10, incarnation=2), name(10, 20, incarnation=2)]


def test_another_partition_count_stops_the_delivery(make_sink: MakeSink) -> None:
    """Keys would change partitions: their order is lost."""
    log, sink = delivered(make_sink)
    log.topics[OUTBOX].partitions.append([])
    with pytest.raises(Diverged, match="has 1 partitions, its outbox app-orders-outbox has 2"):
        Worker(log, sink)


def test_a_sink_put_back_stops_the_delivery(make_sink: MakeSink) -> None:
    """Objects and manifest of before: the newer records would be missing for ever."""
    log, sink = delivered(make_sink)
    store = store_of(sink)
    kept = store.document(manifest_key(1, 0))
    assert kept is not None
    put(log, *range(10))
    Worker(log, sink).turn(8)
    now = store.document(manifest_key(1, 0))
    assert now is not None
    store.replace(manifest_key(1, 0), kept[0], now[1])
    store.delete([f"00001-00000/{name(10, 20)}"])
    assert "the sink was put back" in diverged(log, sink)
    store.delete(store.keys(""))
    assert "the sink was put back" in diverged(log, sink)


def test_a_delivery_topic_that_forgets_is_refused(make_sink: MakeSink) -> None:
    """Where the delivery is must not go by age."""
    log = outbox()
    log.create(DELIVERY, 1, {"cleanup.policy": "delete"})
    with pytest.raises(SinkError, match=r"cleanup\.policy=delete"):
        Worker(log, make_sink())


def test_a_delivery_topic_that_is_gone_is_an_error(make_sink: MakeSink) -> None:
    """Deleted while the app is away: nothing tells how far it was but the sink, and that is not asked to repair it."""
    log, sink = delivered(make_sink)
    del log.topics[DELIVERY]
    assert "knows of no delivery" in diverged(log, sink)


def test_restarts_of_the_log_are_no_divergence(make_sink: MakeSink) -> None:
    """New runs on the same log, also in the middle of what waits for a cut."""
    log, sink = delivered(make_sink)
    for n in range(3):
        log.restart()
        put(log, *range(3))
        worker = Worker(log, sink)
        worker.turn(1)
        log.restart()
        put(log, *range(n + 2))
        worker.turn(8)
        worker.close()
    assert len(held(sink)) == len(listed(sink)) == 10 + 9 + 9


def test_the_topic_is_read_as_a_changelog_is(make_sink: MakeSink) -> None:
    """The last decision counts, whatever was compacted away before it."""
    log, sink = delivered(make_sink, 30)
    for _ in range(1_000):
        log.append(DELIVERY, 0, None, None, visible=False)  # what was aborted since
    found = read_progress(log.session(), TopicPartition(DELIVERY, 0))
    assert found is not None and (found.position, found.cut) == (30, None)
    del log.topics[DELIVERY].partitions[0][-1_000:]
    del log.topics[DELIVERY].partitions[0][:-2]
    log.topics[DELIVERY].partitions[0][:0] = [log.topics[OUTBOX].partitions[0][0]]
    found = read_progress(log.session(), TopicPartition(DELIVERY, 0))
    assert found is not None and (found.position, found.cut) == (30, None)
    assert Done() == sink.open().prepare(None)
