"""The driver: order of replies, what waits for the disk, steps, checkpoints."""

from __future__ import annotations

import pytest

from semel.broker.config import Config
from semel.broker.node import Node
from semel.broker.requests import FindCoordinatorRequest, MetadataRequest
from semel.errors import UsageError
from semel.log.journal import Journal
from semel.ports import Step

from .world import START_MS, Txn, World, batch, fetch_request, produce_request


def test_replies_of_a_connection_leave_in_the_order_of_its_requests() -> None:
    """One that could leave at once waits for those before it; other connections do not."""
    world = World()
    world.topic("a")
    first = world.post(produce_request("a", batch("x")), connection=1)
    second = world.post(FindCoordinatorRequest(coordinator_keys=("g",)), connection=1)
    other = world.post(FindCoordinatorRequest(coordinator_keys=("g",)), connection=2)
    assert list(world.replies)[-1] == other and second not in world.replies
    world.settle()
    assert list(world.replies)[-2:] == [first, second]


def test_pipelined_requests_are_stepped_without_waiting() -> None:
    """Five produces in flight are one sync."""
    world = World()
    world.topic("a")
    tokens = [world.post(produce_request("a", batch(f"v{n}"))) for n in range(5)]
    before = world.disk.operations
    world.settle()
    syncs = [name for name, _ in world.disk.history[before:] if name == "sync"]
    assert len(syncs) == 1
    assert [world.answer(token).responses[0].partition_responses[0].base_offset for token in tokens] == [0, 1, 2, 3, 4]


def test_a_sync_frees_only_what_it_covers() -> None:
    """What was appended while it ran waits for the next one."""
    world = World()
    world.topic("a")
    first = world.post(produce_request("a", batch("x")))
    world.node.write()
    position = world.node.sync()
    second = world.post(produce_request("a", batch("y")), connection=2)
    world.keep(world.node.synced(position, world.now_ms))
    assert world.answer(first) is not None and world.answer(second) is None
    assert world.node.unsynced
    assert world.fetch("a").high_watermark == 1
    world.settle()
    assert world.fetch("a").high_watermark == 2


def test_at_os_what_is_written_is_durable() -> None:
    """durability=os: no sync at all; `synced(write())` frees the replies."""
    world = World(durability="os")
    world.topic("a")
    before = world.disk.operations
    token = world.post(produce_request("a", batch("x")))
    assert world.answer(token) is None and world.node.unsynced
    position = world.node.write()
    assert not world.node.unsynced
    world.keep(world.node.synced(position, world.now_ms))
    assert world.answer(token) is not None
    assert "sync" not in [name for name, _ in world.disk.history[before:]]
    world.kill()
    assert world.read("a") == ["x"]


def test_a_reply_to_a_closed_connection_is_dropped() -> None:
    """Its client cannot read it any more; what it asked for stays done."""
    world = World()
    world.topic("a")
    token = world.post(produce_request("a", batch("x")), connection=7)
    world.close(7)
    world.settle()
    assert token not in world.replies
    assert world.read("a") == ["x"]


class Recorded:
    def __init__(self) -> None:
        self.steps: list[Step] = []

    def reached(self, step: Step) -> None:
        self.steps.append(step)


def test_every_step_of_a_commit_is_reached_in_order() -> None:
    """Where SEMEL_KILL and SEMEL_STOP strike."""
    steps = Recorded()
    world = World(steps=steps)
    world.topic("a")
    txn = Txn(world, "t")
    txn.init()
    txn.send("a", 0, "x")
    steps.steps.clear()
    txn.commit()
    assert steps.steps == [
        Step.DECISION_BEFORE,
        Step.DECISION_AFTER,
        Step.MARKERS_BEFORE,
        Step.MARKERS_AFTER,
        Step.SYNC_BEFORE,
        Step.SYNC_AFTER,
    ]


def test_a_checkpoint_bounds_what_a_restart_replays() -> None:
    """The journal's older files are gone, the state is the same, producers' windows and open transactions with it."""
    world = World(checkpoint_bytes=20_000)
    world.topic("a")
    txn = Txn(world, "t")
    txn.init()
    txn.send("a", 0, "open")
    while not world.node.checkpoint_due:
        world.produce("a", batch("x" * 1000))
    world.node.checkpoint()
    world.settle()
    assert not world.node.checkpoint_due
    assert len(world.disk.list("journal")) == 1
    world.crash()
    assert world.fetch("a").last_stable_offset == 0
    again = txn.write("a", 0, "open", sequence=0)
    assert (again.error_code, again.base_offset) == (0, 0)
    assert txn.commit() == 0
    assert world.read("a", committed=True)[0] == "open"


def test_a_checkpoint_never_runs_beside_a_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sync the segments, and of two concurrent fsyncs of a file one is not told of a write-back that failed."""
    world = World()
    world.topic("a")
    world.post(produce_request("a", batch("x")))
    world.node.write()
    sync = Journal.sync

    def beside(journal: Journal) -> int:
        world.node.checkpoint()
        return sync(journal)

    with monkeypatch.context() as replaced:
        replaced.setattr(Journal, "sync", beside)
        with pytest.raises(AssertionError, match="a checkpoint beside a sync"):
            world.node.sync()


def test_a_checkpoint_keeps_no_reply_back_and_frees_none_early() -> None:
    """Also one in the middle of work: replies leave by `synced`, as always."""
    world = World()
    world.topic("a")
    token = world.post(produce_request("a", batch("x")))
    waiting = world.post(fetch_request("a", max_wait_ms=1000), connection=2)
    world.node.checkpoint()
    assert world.answer(token) is None
    world.settle()
    assert world.answer(token) is not None and world.answer(waiting) is not None


def test_a_stopped_node_starts_where_it_was() -> None:
    """`close`, then the next start."""
    world = World()
    world.topic("a")
    world.produce("a", batch("x"))
    world.stop()
    assert world.read("a") == ["x"]


def test_a_folder_of_another_number_of_offsets_partitions_is_refused() -> None:
    """Groups would be looked for where they are not. The message says what to start with."""
    world = World(offsets_topic_num_partitions=3)
    world.disk = world.disk.killed()
    with pytest.raises(UsageError, match=r"offsets\.topic\.num\.partitions=3"):
        Node(world.disk, Config(), now_ms=START_MS, random=world.random)


def test_the_host_tells_the_address_that_clients_are_told() -> None:
    """Set once it listens."""
    world = World()
    world.node.address = ("example.test", 1234)
    (broker,) = world.ask(MetadataRequest(())).brokers
    assert (broker.host, broker.port) == ("example.test", 1234)
    (found,) = world.ask(FindCoordinatorRequest(coordinator_keys=("g",))).coordinators
    assert (found.host, found.port, found.error_code) == ("example.test", 1234, 0)
    old = world.ask(FindCoordinatorRequest("g"), version=2)
    assert (old.host, old.port, old.error_code) == ("example.test", 1234, 0)
    share = world.ask(FindCoordinatorRequest(key_type=2, coordinator_keys=("g",)))
    assert share.coordinators[0].error_code != 0


def test_one_seed_gives_one_history() -> None:
    """Byte for byte: nothing in the core asks for the time or throws dice of its own."""

    def told() -> list[tuple[str, bytes]]:
        world = World(9)
        world.topic("a")
        txn = Txn(world, "t")
        txn.init()
        txn.send("a", 0, "x")
        txn.commit()
        return [
            (name, bytes(world.disk.open(f"journal/{name}").read(0, 1 << 20))) for name in world.disk.list("journal")
        ]

    assert told() == told()
