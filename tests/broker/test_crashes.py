"""The power fails at every operation of the disk (FAULTS B10, B11, B12, B18, B21, B25, B27).

One story is told again and again, cut at each append, sync and rename in turn; what was shown to a client before the
cut must hold after it. Checked by planting bugs one at a time: answering before the sync (`waits` always False), no
`finish_prepared`, COMPLETE before the markers, high watermarks that do not wait for `durable`; each was caught.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from semel.broker.records import TxnState
from semel.log.errors import JournalFailed
from semel.ports import Step
from semel.sim.disk import PowerCut

from .member import Member, stable
from .snapshot import durable
from .world import Txn, World, batch, commit_offsets, committed


class EveryAppend:
    """Steps that do nothing, but make the node write each record of a commit for itself."""

    def reached(self, step: Step) -> None:
        return


class Seen:
    """What clients have been told."""

    def __init__(self) -> None:
        self.acked: list[tuple[str, int, str]] = []  # topic, offset, value
        self.ended: dict[str, bool] = {}  # value -> committed, of transactions whose end was answered
        self.begun: list[str] = []  # values of transactions, in order
        self.offset = -1  # of group "g", the last that an answer has shown or acknowledged
        self.read: dict[str, list[str]] = {}  # topic -> the longest committed read that was shown
        self.epoch = -1


def story(world: World, seen: Seen) -> None:
    world.topic("in")
    world.topic("left")
    world.topic("right")
    for number in range(3):
        row = world.produce("in", batch(f"in{number}", producer_id=99, producer_epoch=0, base_sequence=number))
        seen.acked.append(("in", row.base_offset, f"in{number}"))
    member = Member(world, instance_id="i")
    stable(member)
    txn = Txn(world, "t")
    txn.init()
    seen.epoch = txn.epoch
    for number in range(3):
        value = f"out{number}"
        seen.begun.append(value)
        assert txn.send("left", 0, value) == 0
        assert txn.send("right", 0, value) == 0
        assert txn.offsets("g", {("in", 0): number + 1}, member.generation, member.id, group_instance_id="i") == 0
        commit = number != 1
        token = world.post(txn.end_request(commit), txn.connection)
        look(world, seen)  # between the append and the sync
        world.settle()
        assert world.answer(token).error_code == 0
        seen.ended[value] = commit
        if commit:
            seen.offset = number + 1
        look(world, seen)
        if number == 1:
            world.node.checkpoint()
            world.settle()
    txn.init()
    seen.epoch = txn.epoch
    seen.begun.append("open")
    txn.send("left", 0, "open")
    txn.send("right", 0, "open")


def look(world: World, seen: Seen) -> None:
    for topic in ("left", "right"):
        seen.read[topic] = world.read(topic, committed=True)


def check(world: World, seen: Seen) -> None:
    """Laws 1, 3 and 4, after the recovery."""
    state = world.state
    assert all(
        one.state not in (TxnState.PREPARE_COMMIT, TxnState.PREPARE_ABORT) for one in state.transactions.values()
    )
    for topic, offset, value in seen.acked:
        assert world.read(topic, offset=offset)[:1] == [value], (topic, offset)
    if "right" not in state.topics:
        assert not seen.begun
        return
    if "t" in state.transactions:
        assert state.transactions["t"].epoch >= seen.epoch
    # Who comes next ends what was left open; from then on nobody waits.
    txn = Txn(world, "t")
    assert txn.init() == 0 and txn.epoch > seen.epoch
    left, right = world.read("left", committed=True), world.read("right", committed=True)
    assert left == right, "a torn transaction"
    for value, was_committed in seen.ended.items():
        assert (value in left) == was_committed
    for topic, shown in seen.read.items():
        assert world.read(topic, committed=True)[: len(shown)] == shown, "what was shown is gone"
    error, offset = committed(world, "g", "in", stable=True)
    assert error == 0 and offset >= seen.offset
    assert offset == (int(left[-1][3:]) + 1 if left else -1), "offsets and outputs are two"
    for topic in ("left", "right"):
        partition = state.topics[topic].partitions[0]
        assert partition.last_stable_offset == partition.high_watermark == partition.end_offset
    # And it can go on.
    assert txn.send("left", 0, "next") == 0 and txn.commit() == 0
    assert world.read("left", committed=True)[-1] == "next"


def told(seed: int, cut_at: int | None, *, stepwise: bool) -> tuple[World, Seen, bool]:
    world = World(seed, steps=EveryAppend() if stepwise else None)
    seen = Seen()
    world.disk.operations = 0
    world.disk.cut_at = cut_at
    try:
        story(world, seen)
    except PowerCut:
        return world, seen, True
    return world, seen, False


@pytest.mark.parametrize("stepwise", [False, True], ids=["one write per commit", "one write per record"])
@pytest.mark.parametrize("seed", range(2))
def test_what_was_shown_holds_wherever_the_power_fails(seed: int, stepwise: bool) -> None:
    """At every operation of the story; the dice choose what of the unsynced bytes survives."""
    cut_at = 0
    while True:
        cut_at += 1
        world, seen, cut = told(seed, cut_at, stepwise=stepwise)
        world.disk.cut_at = None
        world.crash()
        check(world, seen)
        if not cut:
            break
    assert cut_at > 100


def test_the_power_may_fail_again_in_every_recovery() -> None:
    """A recovery that is cut off is followed by one that finds the same."""
    world, _, _ = told(3, None, stepwise=True)
    operations = world.disk.operations
    for cut_at in (operations // 3, operations // 2, operations - 12, operations - 3):
        again = 0
        while True:
            again += 1
            world, seen, cut = told(3, cut_at, stepwise=True)
            assert cut
            world.disk = world.disk.crash()
            world.disk.cut_at = again
            try:
                world.start()
            except PowerCut:
                world.disk.cut_at = None
                world.crash()
                check(world, seen)
                continue
            world.disk.cut_at = None
            check(world, seen)
            break
        assert again > 5


def test_a_kill_loses_nothing_that_was_written() -> None:
    """durability=os: acknowledged when handed to the system, and there after kill -9 at every operation."""
    cut_at = 0
    while True:
        cut_at += 3
        world = World(5, steps=EveryAppend(), durability="os")
        seen = Seen()
        world.disk.operations = 0
        world.disk.cut_at = cut_at
        try:
            story(world, seen)
            cut = False
        except PowerCut:
            cut = True
        world.disk.cut_at = None
        world.kill()
        check(world, seen)
        if not cut:
            break


@pytest.mark.parametrize("fault", ["append", "sync"])
def test_a_disk_that_fails_ends_the_node_before_any_answer(fault: str) -> None:
    """FAULTS B18: EIO in append or sync. What was applied but not durable was seen by no one; the next start has the
    state of what was acknowledged."""
    for number in range(1, 8):
        world = World(number)
        world.topic("a")
        acked = [f"v{n}" for n in range(number)]
        for value in acked:
            world.produce("a", batch(value))
        before = durable(world.state)
        setattr(world.disk.faults, fault, 1.0)
        failing: Callable[[], object] = lambda: world.produce("a", batch("lost"))  # noqa: B023, E731
        with pytest.raises(OSError):
            failing()
        setattr(world.disk.faults, fault, 0.0)
        with pytest.raises(JournalFailed):
            world.produce("a", batch("after"))
        world.crash()
        rest = world.read("a")
        assert rest[:number] == acked and rest[number:] in ([], ["lost"])
        if rest == acked:
            assert durable(world.state)["topics"] == before["topics"]


def test_offsets_are_shown_only_when_they_are_durable() -> None:
    """FAULTS B27: OffsetFetch between the append and the sync waits for it."""
    world = World()
    world.topic("a")
    commit_offsets(world, "g", {("a", 0): 1})
    from .world import commit_request, committed_request

    world.post(commit_request("g", {("a", 0): 2}), connection=1)
    token = world.post(committed_request("g", [("a", 0)]), connection=2)
    other = world.post(committed_request("other", [("a", 0)]), connection=3)
    assert world.answer(token) is None
    world.settle()
    assert world.answer(token).groups[0].topics[0].partitions[0].committed_offset == 2
    assert world.answer(other).groups[0].topics[0].partitions[0].committed_offset == -1
