"""The state of a partition is a function of the journal: after any crash, with or without a checkpoint."""

from __future__ import annotations

from random import Random

import pytest

from semel import record
from semel.log import Duplicate, Journal
from semel.log import journal as journal_module
from semel.sim.disk import Disk, Faults, PowerCut

from .support import Appended, Load, MiniBroker, content, state, values

# What `drive` did, also where a power cut ends it.
ACKED = [0]
HISTORY: list[Appended] = []


def states(broker: MiniBroker) -> list[dict[str, object]]:
    return [state(partition) for partition in broker.partitions]


def record_history(broker: MiniBroker, history: list[Appended]) -> list[Appended]:
    """Makes `append` keep what it appended, also what a crash then takes."""
    append = broker.append

    def keeping(index: int, data: bytes) -> Appended:
        base_offset = broker.partitions[index].end_offset
        history.append(Appended(index, record.placed(data, base_offset, 1), -1))
        return append(index, data)

    broker.append = keeping  # type: ignore[method-assign]
    return history


def drive(disk: Disk, seed: int, steps: int, *, checkpoints: bool) -> tuple[list[Appended], list[int]]:
    """Runs a load; returns what was appended and, in a list that survives a power cut, how much of it was synced."""
    dice = Random(seed)
    ACKED[:] = [0]
    HISTORY.clear()
    broker = MiniBroker(disk)
    history = record_history(broker, HISTORY)
    acked = ACKED
    load = Load(dice)
    written = 0
    for _ in range(steps):
        if checkpoints and dice.random() < 0.1:
            broker.checkpoint()
            acked[0] = len(history)
        before = broker.journal.synced
        load.step(broker)
        written = len(history)
        if broker.journal.synced > before:
            acked[0] = written
    return history, acked


def check(disk: Disk, history: list[Appended], acked: int) -> MiniBroker:
    broker = MiniBroker(disk)
    found = [content(partition) for partition in broker.partitions]
    count = sum(len(record.parse_all(data)) for data in found)
    assert count >= acked, "everything acknowledged is there"
    expected = [b"".join(a.data for a in history[:count] if a.partition == index) for index in range(len(found))]
    assert found == expected, "the partitions together are one prefix of what was appended"
    for partition in broker.partitions:
        assert partition.high_watermark == partition.end_offset
        assert partition.last_stable_offset <= partition.high_watermark
    return broker


def reference(history: list[Appended], count: int) -> MiniBroker:
    """A broker that never crashed and was given the first `count` batches."""
    broker = MiniBroker(Disk(Random(0)))
    for appended in history[:count]:
        broker.append(appended.partition, appended.data)
    broker.flush()
    return broker


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_crash_at_every_operation_leaves_a_prefix_with_all_that_was_acknowledged(
    seed: int, checkpoints: bool
) -> None:
    """B11 and B25: lost and torn writes at every write and sync. What comes back is one prefix over all partitions,
    so no group of markers is torn, and its state is that of a broker that never crashed."""
    whole = Disk(Random(seed))
    drive(whole, seed, 60, checkpoints=checkpoints)
    step = 1 if whole.operations < 250 else 2
    for cut_at in range(8, whole.operations + 1, step):
        disk = Disk(Random(seed * 1000 + cut_at))
        disk.cut_at = cut_at
        with pytest.raises(PowerCut):
            drive(disk, seed, 60, checkpoints=checkpoints)
        broker = check(disk.crash(), HISTORY, ACKED[0])
        count = sum(len(record.parse_all(content(partition))) for partition in broker.partitions)
        assert states(broker) == states(reference(HISTORY, count))


@pytest.mark.parametrize("seed", range(10))
def test_replaying_twice_gives_the_same_state(seed: int) -> None:
    disk = Disk(Random(seed))
    drive(disk, seed, 80, checkpoints=seed % 2 == 0)
    first = MiniBroker(disk.killed())
    once = states(first)
    second = MiniBroker(first.folder._real.killed())  # type: ignore[attr-defined]
    assert states(second) == once
    third = MiniBroker(second.folder._real.crash())  # type: ignore[attr-defined]
    assert states(third) == once


@pytest.mark.parametrize("seed", range(10))
def test_a_checkpoint_and_replay_equal_full_replay(seed: int) -> None:
    """B17: the dedup window survives both."""
    found = []
    for checkpoints in (False, True):
        dice = Random(seed)
        broker = MiniBroker(Disk(Random(seed)))
        load = Load(dice)
        for number in range(120):
            load.step(broker)
            if checkpoints and number % 25 == 24:
                broker.flush()
                broker.checkpoint()
        broker.flush()
        before = states(broker)
        again = MiniBroker(broker.folder._real.crash())  # type: ignore[attr-defined]
        assert states(again) == before
        for (index, _producer), data in load.last.items():
            batch = record.parse(data)
            assert isinstance(again.partitions[index].check(batch), Duplicate), "a retry after the restart"
        found.append((states(again), [values(partition) for partition in again.partitions]))
        replayed = len(again.replayed)
        assert replayed < 30 or not checkpoints
    assert found[0] == found[1]


@pytest.mark.parametrize("seed", range(25))
def test_failures_crashes_and_kills_in_turns(seed: int) -> None:
    """ENOSPC in mid-write, EIO, a failed sync that drops pages: each ends the process, the next start is right."""
    dice = Random(seed)
    disk = Disk(dice)
    history: list[Appended] = []
    acked = 0
    for _ in range(6):
        disk.faults = Faults()
        broker = check(disk, history, acked)
        count = sum(len(record.parse_all(content(partition))) for partition in broker.partitions)
        assert states(broker) == states(reference(history, count))
        history = history[:count]
        acked = count
        kept = record_history(broker, [])
        disk.faults = Faults(append=0.01, sync=0.1)
        load = Load(dice)
        try:
            for _ in range(40):
                if dice.random() < 0.05:
                    broker.checkpoint()
                    acked = count + len(kept)
                before = broker.journal.synced
                load.step(broker)
                if broker.journal.synced > before:
                    acked = count + len(kept)
        except OSError:
            pass
        history += kept
        disk = disk.crash() if dice.random() < 0.5 else disk.killed()


@pytest.mark.parametrize("at", ["segment", "journal", "sync"])
def test_a_batch_whose_append_fails_leaves_the_producer_as_it_was(at: str) -> None:
    """B18: nothing is remembered of a batch that is not there. The process ends; the next start takes the retry as new,
    or, where only the sync failed and the batch is there, answers it as a repetition."""
    disk = Disk(Random(3))
    broker = MiniBroker(disk)
    batch = record.encode([b"one"], producer_id=7, producer_epoch=0, base_sequence=0)
    broker.produce(0, batch)
    broker.flush()
    before = states(broker)
    second = record.encode([b"two"], producer_id=7, producer_epoch=0, base_sequence=1)
    assert broker.produce(0, second)
    if at == "journal":
        broker.partitions[0].flush()
    disk.faults = Faults(sync=1.0) if at == "sync" else Faults(append=1.0)
    with pytest.raises(OSError):
        broker.flush()
    disk.faults = Faults()
    again = MiniBroker(disk.killed())
    if at == "sync":
        assert values(again.partitions[0]) == [b"one", b"two"]
        assert again.produce(0, second) is None
    else:
        assert states(again) == before
        assert again.produce(0, second) is not None


def test_a_deleted_partition_comes_back_if_the_crash_takes_the_decision() -> None:
    """Files of a deleted topic stay until a checkpoint that does not know it is durable."""
    disk = Disk(Random(1))
    broker = MiniBroker(disk)
    broker.produce(1, record.encode([b"kept"]))
    broker.flush()
    broker.checkpoint()
    del broker.partitions[1]  # decided, never durable
    again = MiniBroker(disk.crash())
    assert values(again.partitions[1]) == [b"kept"]
    again.partitions.pop().close()
    again.checkpoint()
    disk = again.folder._real.crash()  # type: ignore[attr-defined]
    assert disk.list("partitions") == []
    assert Journal.open(disk) is not None


def test_recovery_on_a_full_disk_needs_no_more_than_the_reserve() -> None:
    """The disk fills up, the process ends; the next starts come up on the disk as it is, and keep what was acked."""
    dice = Random(5)
    disk = Disk(dice)
    broker = MiniBroker(disk)
    disk.faults = Faults(capacity=disk.used + 60_000)
    acked: list[bytes] = []
    for restart in range(4):
        try:
            for number in range(10_000):
                value = b"%d.%d" % (restart, number) + bytes(dice.randrange(2000))
                broker.produce(0, record.encode([value]))
                broker.flush()
                acked.append(value)
        except OSError as error:
            assert error.errno == 28
        # Nothing more fits, not even one byte.
        disk.faults.capacity = disk.used
        disk = disk.crash() if restart % 2 else disk.killed()
        broker = MiniBroker(disk)
        found = values(broker.partitions[0])
        assert found[: len(acked)] == acked
        acked = found


def test_a_tail_is_rewritten_on_a_full_disk_out_of_the_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """At `os` the tail since the last sync can be far larger than the reserve: it is moved piece by piece."""
    monkeypatch.setattr(journal_module, "REWRITE_BYTES", 10_000)
    disk = Disk(Random(5))
    broker = MiniBroker(disk)
    expected = [b"%d" % number + bytes(1000) for number in range(100)]
    for value in expected:
        broker.produce(0, record.encode([value]))
        broker.write()
    disk.faults = Faults(capacity=disk.used)
    disk = disk.killed()
    broker = MiniBroker(disk)
    assert broker.folder.released
    assert values(broker.partitions[0]) == expected
    assert values(MiniBroker(disk.crash()).partitions[0]) == expected


def test_segments_of_a_life_after_the_checkpoint_make_room_before_they_come_back() -> None:
    """Recovery removes them first: on a full disk their space is what the replay needs."""
    disk = Disk(Random(2))
    broker = MiniBroker(disk)
    broker.produce(0, record.encode([b"old"]))
    broker.flush()
    broker.checkpoint()
    for number in range(80):
        broker.produce(0, record.encode([b"%d" % number + bytes(500)]))
        broker.flush()
    expected = states(broker)
    assert len(disk.list("partitions/topic-0")) > 5
    disk.faults = Faults(capacity=disk.used)
    broker = MiniBroker(disk.killed())
    assert states(broker) == expected
