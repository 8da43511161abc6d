"""The coordinator: epochs, open transactions, their end. The scenarios in tests/scenarios tell the failures."""

from __future__ import annotations

from datetime import timedelta

import pytest

from semel.broker.admin_requests import DeleteTopicsRequest, DeleteTopicState
from semel.broker.errors import Error
from semel.broker.records import TxnState
from semel.broker.requests import (
    AddPartitionsToTxnRequest,
    AddPartitionsToTxnTopic,
    DescribeProducersRequest,
    DescribeProducersTopic,
    DescribeTransactionsRequest,
    EndTxnRequest,
    InitProducerIdRequest,
    ListTransactionsRequest,
)

from .world import START_MS, Txn, World, committed


@pytest.fixture
def world() -> World:
    world = World()
    world.topic("a", 2)
    world.topic("b")
    return world


def txn(world: World, name: str = "t", **options: int) -> Txn:
    made = Txn(world, name, **options)
    assert made.init() == 0
    return made


# --- Ids and epochs


def test_each_initialisation_raises_the_epoch_and_keeps_the_id(world: World) -> None:
    """KIP-98: the newest instance owns the id, the one before it is fenced everywhere."""
    old, new = txn(world), txn(world)
    assert (new.producer_id, new.epoch) == (old.producer_id, old.epoch + 1)
    assert old.add(("a", 0)) == Error.PRODUCER_FENCED
    assert old.add_offsets("g") == Error.PRODUCER_FENCED
    assert old.commit() == Error.PRODUCER_FENCED
    assert old.write("a", 0, "x").error_code == Error.INVALID_PRODUCER_EPOCH
    assert new.send("a", 0, "y") == 0 and new.commit() == 0
    assert world.read("a", committed=True) == ["y"]


def test_old_clients_hear_of_fencing_by_the_name_they_know(world: World) -> None:
    """PRODUCER_FENCED came with InitProducerId 4, AddPartitions, AddOffsets and EndTxn 2 (KIP-588)."""
    old = txn(world)
    txn(world)
    assert old.add(("a", 0), version=1) == Error.INVALID_PRODUCER_EPOCH
    assert old.end(True, version=1) == Error.INVALID_PRODUCER_EPOCH
    assert old.init(resume=True, version=3) == Error.INVALID_PRODUCER_EPOCH
    assert old.init(resume=True, version=4) == Error.PRODUCER_FENCED


def test_the_new_epoch_is_durable_before_anyone_hears_of_it(world: World) -> None:
    """FAULTS B15: no answer before the sync; after a crash that took it, the old owner is still the owner."""
    old = txn(world)
    token = world.post(InitProducerIdRequest("t", timedelta(seconds=60)))
    assert world.answer(token) is None
    world.crash()
    assert old.send("a", 0, "x") == 0 and old.commit() == 0
    new = txn(world)
    world.crash()
    assert old.commit() == Error.PRODUCER_FENCED
    assert new.send("a", 0, "y") == 0


def test_initialising_ends_what_the_former_owner_left_open(world: World) -> None:
    """It is aborted in every partition, and its offsets are dropped."""
    old = txn(world)
    old.send("a", 0, "x")
    old.send("a", 1, "y")
    old.offsets("g", {("b", 0): 5})
    new = txn(world)
    assert world.read("a", 0, committed=True) == world.read("a", 1, committed=True) == []
    assert committed(world, "g", "b", stable=True) == (0, -1)
    assert new.epoch > old.epoch + 1  # the epoch of the abort is nobody's


def test_a_retry_of_a_resuming_initialisation_gets_the_first_answer(world: World) -> None:
    """KIP-360, FAULTS B16: the one whose answer was lost names the epoch that asked for the present one. Checked by
    dropping that case: the retry was answered PRODUCER_FENCED."""
    one = txn(world)
    before = (one.producer_id, one.epoch)
    assert one.init(resume=True) == 0
    after = (one.producer_id, one.epoch)
    assert after == (before[0], before[1] + 1)
    one.send("a", 0, "x")  # even with a transaction begun since: a late retry must not end it
    one.producer_id, one.epoch = before
    assert one.init(resume=True) == 0
    assert (one.producer_id, one.epoch) == after
    assert one.commit() == 0
    assert world.read("a", committed=True) == ["x"]


def test_a_resuming_initialisation_loses_to_a_new_instance(world: World) -> None:
    """Between the two somebody else has become the owner."""
    one = txn(world)
    one.init(resume=True)
    txn(world)
    assert one.init(resume=True) == Error.PRODUCER_FENCED


def test_an_exhausted_epoch_gets_a_new_producer_id(world: World) -> None:
    """FAULTS B6: a client gets at most 32766; 32767 fences the owner of that one when its transaction times out."""
    one = txn(world)
    state = world.state.transactions["t"]
    from msgspec.structs import replace

    record = replace(state, epoch=32_765)
    world.node.broker.apply(record, b"", world.node.journal.end)
    one.epoch = 32_765
    assert one.init(resume=True) == 0 and one.epoch == 32_766
    first = one.producer_id
    one.timeout_ms = 1000
    assert one.send("a", 0, "x") == 0
    world.wait(70_000)
    assert world.state.transactions["t"].epoch == 32_767
    assert one.commit() == Error.PRODUCER_FENCED
    assert one.init() == 0
    assert one.epoch == 0 and one.producer_id != first
    assert one.send("a", 0, "y") == 0 and one.commit() == 0
    assert world.read("a", committed=True) == ["y"]
    world.crash()
    assert world.read("a", committed=True) == ["y"]
    assert one.send("a", 0, "z") == 0


def test_a_retry_over_the_edge_of_the_epochs_gets_the_new_id_again(world: World) -> None:
    """KIP-360: the retry names the id before the rotation."""
    from msgspec.structs import replace

    one = txn(world)
    world.node.broker.apply(replace(world.state.transactions["t"], epoch=32_766), b"", world.node.journal.end)
    one.epoch = 32_766
    before = (one.producer_id, one.epoch)
    assert one.init(resume=True) == 0
    after = (one.producer_id, one.epoch)
    assert after[0] != before[0] and after[1] == 0
    one.producer_id, one.epoch = before
    assert one.init(resume=True) == 0
    assert (one.producer_id, one.epoch) == after


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (InitProducerIdRequest("", timedelta(seconds=1)), Error.INVALID_REQUEST),
        (InitProducerIdRequest("t", timedelta(seconds=1), 5, -1), Error.INVALID_REQUEST),
        (InitProducerIdRequest("t", timedelta(0)), Error.INVALID_TRANSACTION_TIMEOUT),
        (InitProducerIdRequest("t", timedelta(minutes=16)), Error.INVALID_TRANSACTION_TIMEOUT),
    ],
)
def test_initialisations_that_make_no_sense(world: World, message: InitProducerIdRequest, error: Error) -> None:
    """Refused, and nothing is remembered of them."""
    assert world.ask(message).error_code == error
    assert not world.state.transactions


# --- Adding


def test_partitions_are_added_all_or_none(world: World) -> None:
    """One that is not there: it says so, the others were not attempted."""
    one = txn(world)
    topics = (AddPartitionsToTxnTopic("a", (0, 7)), AddPartitionsToTxnTopic("nowhere", (0,)))
    reply = world.ask(AddPartitionsToTxnRequest("t", one.producer_id, one.epoch, topics))
    rows = [
        row.partition_error_code for topic in reply.results_by_topic_v3_and_below for row in topic.results_by_partition
    ]
    unknown = Error.UNKNOWN_TOPIC_OR_PARTITION
    assert rows == [Error.OPERATION_NOT_ATTEMPTED, unknown, unknown]
    assert world.state.transactions["t"].state is TxnState.EMPTY


def test_someone_elses_id_is_not_known(world: World) -> None:
    """An unknown transactional id, or a producer id that is not its own: INVALID_PRODUCER_ID_MAPPING."""
    one = txn(world)
    assert Txn(world, "other", one.producer_id, one.epoch).add(("a", 0)) == Error.INVALID_PRODUCER_ID_MAPPING
    assert Txn(world, "t", one.producer_id + 1, one.epoch).add(("a", 0)) == Error.INVALID_PRODUCER_ID_MAPPING


def test_nothing_is_written_but_in_an_open_transaction_with_its_partition(world: World) -> None:
    """FAULTS B2, B3: before AddPartitions, in another partition, after the end: INVALID_TXN_STATE."""
    one = txn(world)
    assert one.write("a", 0, "x").error_code == Error.INVALID_TXN_STATE
    one.add(("a", 0))
    assert one.write("a", 1, "x").error_code == Error.INVALID_TXN_STATE
    assert one.write("a", 0, "x").error_code == 0
    one.commit()
    assert one.write("a", 0, "y").error_code == Error.INVALID_TXN_STATE
    assert world.read("a", committed=True) == ["x"]
    assert world.fetch("a", committed=True).last_stable_offset == 2


def test_a_transactional_producer_writes_nothing_outside_transactions(world: World) -> None:
    """A plain batch under its producer id is refused."""
    from .world import batch

    one = txn(world)
    plain = batch("x", producer_id=one.producer_id, producer_epoch=one.epoch, base_sequence=0)
    assert world.produce("a", plain).error_code == Error.INVALID_TXN_STATE


def test_a_repeated_batch_is_answered_also_after_the_end_of_its_transaction(world: World) -> None:
    """Law 2 goes before the state of the transaction: the first answer was given, this is only its repetition."""
    one = txn(world)
    one.send("a", 0, "x")
    one.commit()
    again = one.write("a", 0, "x", sequence=0)
    assert (again.error_code, again.base_offset) == (0, 0)
    assert world.read("a", committed=True) == ["x"]


# --- Ending


@pytest.mark.parametrize("commit", [True, False])
def test_the_end_is_in_every_partition_and_is_one_sync(world: World, commit: bool) -> None:
    """PREPARE, markers and COMPLETE are appended in one go and answered when they are durable."""
    one = txn(world)
    one.send("a", 0, "x")
    one.send("b", 0, "y")
    one.offsets("g", {("a", 1): 3})
    token = world.post(one.end_request(commit))
    assert world.answer(token) is None
    world.node.write()
    world.keep(world.node.synced(world.node.sync(), world.now_ms))
    assert world.answer(token).error_code == 0
    assert not world.node.unsynced
    shown = (["x"], ["y"], (0, 3)) if commit else ([], [], (0, -1))
    assert (world.read("a", committed=True), world.read("b", committed=True)) == shown[:2]
    assert committed(world, "g", "a", 1, stable=True) == shown[2]
    world.crash()
    assert (world.read("a", committed=True), world.read("b", committed=True)) == shown[:2]
    assert committed(world, "g", "a", 1, stable=True) == shown[2]


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("version", [0, 1, 4])
def test_an_empty_end_is_done(world: World, commit: bool, version: int) -> None:
    """FAULTS B9: at the start, and after a commit or an abort; nothing is written."""
    one = txn(world)
    assert one.end(commit, version) == 0
    for before in (True, False):
        one.send("a", 0, "x")
        assert one.end(before) == 0
        end = world.node.journal.end
        assert one.end(commit, version) == 0
        assert world.node.journal.end == end


def test_nothing_of_a_decided_transaction_is_visible_before_it_is_durable(world: World) -> None:
    """The LSO waits for the sync of the marker, in every partition."""
    one = txn(world)
    one.send("a", 0, "x")
    world.post(one.end_request(True))
    assert world.state.topics["a"].partitions[0].last_stable_offset == 0
    world.settle()
    assert world.state.topics["a"].partitions[0].last_stable_offset == 2


def test_a_partition_without_data_gets_no_marker(world: World) -> None:
    """Added, never written to: nothing to end there."""
    one = txn(world)
    one.add(("a", 0), ("a", 1))
    one.write("a", 0, "x")
    one.commit()
    assert [partition.end_offset for partition in world.state.topics["a"].partitions] == [2, 0]


def test_a_topic_deleted_in_mid_transaction_stops_no_commit(world: World) -> None:
    """The rest is committed."""
    one = txn(world)
    one.send("a", 0, "x")
    one.send("b", 0, "y")
    world.ask(DeleteTopicsRequest(topics=(DeleteTopicState("a"),)))
    assert one.commit() == 0
    assert world.read("b", committed=True) == ["y"]
    world.crash()
    assert world.read("b", committed=True) == ["y"]


# --- Timeouts


def test_an_open_transaction_is_aborted_at_its_timeout_and_its_owner_fenced(world: World) -> None:
    """FAULTS B2, B7: the LSO moves, the late commit is told PRODUCER_FENCED, the late batch is refused."""
    one = txn(world, timeout_ms=10_000)
    one.send("a", 0, "x")
    world.wait(9_999)
    assert world.fetch("a").last_stable_offset == 0
    world.wait(1)
    assert world.fetch("a").last_stable_offset == 2
    assert one.commit() == Error.PRODUCER_FENCED
    assert one.write("a", 0, "y").error_code == Error.INVALID_PRODUCER_EPOCH
    assert world.read("a", committed=True) == []
    assert one.init() == 0 and one.send("a", 0, "z") == 0 and one.commit() == 0
    assert world.read("a", committed=True) == ["z"]


def test_a_timeout_goes_on_over_a_restart(world: World) -> None:
    """An open transaction survives it, with its epoch and its start: the client may go on, the clock too."""
    one, other = txn(world, timeout_ms=10_000), txn(world, "u", timeout_ms=10_000)
    one.send("a", 0, "x")
    other.send("a", 1, "y")
    world.wait(6_000)
    world.crash()
    assert one.write("a", 0, "z").error_code == 0 and one.commit() == 0
    assert world.node.wake_at_ms == START_MS + 10_000
    world.wait(4_000)
    assert other.commit() == Error.PRODUCER_FENCED
    assert world.read("a", committed=True) == ["x", "z"]
    assert world.read("a", 1, committed=True) == []


# --- Seen from outside


def test_transactions_are_listed_and_described(world: World) -> None:
    """What Kafka's tools ask for."""
    one = txn(world)
    txn(world, "u")
    one.send("a", 1, "x")
    world.wait(5)
    rows = world.ask(ListTransactionsRequest()).transaction_states
    assert [(row.transactional_id, row.transaction_state) for row in rows] == [("t", "Ongoing"), ("u", "Empty")]
    assert [r.transactional_id for r in world.ask(ListTransactionsRequest(("Ongoing",))).transaction_states] == ["t"]
    assert world.ask(ListTransactionsRequest(("Wrong",))).unknown_state_filters == ["Wrong"]
    assert len(world.ask(ListTransactionsRequest(duration_filter=4)).transaction_states) == 1
    assert len(world.ask(ListTransactionsRequest(duration_filter=5)).transaction_states) == 0
    assert len(world.ask(ListTransactionsRequest(transactional_id_pattern="[u-z]")).transaction_states) == 1
    found, missing = world.ask(DescribeTransactionsRequest(("t", "no"))).transaction_states
    assert (found.transaction_state, found.transaction_start_time_ms) == ("Ongoing", START_MS)
    assert [(topic.topic, topic.partitions) for topic in found.topics] == [("a", [1])]
    assert missing.error_code == Error.TRANSACTIONAL_ID_NOT_FOUND
    reply = world.ask(DescribeProducersRequest((DescribeProducersTopic("a", (1,)),)))
    (producer,) = reply.topics[0].partitions[0].active_producers
    assert (producer.producer_id, producer.last_sequence, producer.current_txn_start_offset) == (one.producer_id, 0, 0)


def test_an_unknown_id_cannot_be_ended(world: World) -> None:
    """INVALID_PRODUCER_ID_MAPPING."""
    assert world.ask(EndTxnRequest("t", 1, 0, True)).error_code == Error.INVALID_PRODUCER_ID_MAPPING
