"""The broker of the simulated world: one node on a simulated disk, which loses power at any of its operations.

The node is driven as the host drives it: steps, then a write, a while later the sync and what it sets free. A crash
comes at an operation of the disk (in a step, a write, a sync, a checkpoint, a recovery) or at a named step of a
commit; an error of the disk ends the process as well. Invariant: a reply is handed on only after its step is over, so
that nothing leaves a node that has crashed within it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from semel.broker.config import FSYNC, Config
from semel.broker.events import Event, Reply, Request, Tick
from semel.broker.node import Node
from semel.broker.records import TxnState
from semel.client.codes import END_TXN
from semel.log.errors import JournalFailed
from semel.log.folder import Folder
from semel.log.journal import FOLDER
from semel.log.partition import Partition
from semel.ports import Random, Step, TopicPartition
from semel.record import columns, parse_all, parse_marker

from . import history as h
from .disk import Disk, PowerCut
from .disk import Faults as DiskFaults
from .faults import Profile, Rolls
from .scheduler import Scheduler

GROUP: Final = "g"
TOPICS: Final = ("in", "out", "pairs")
PARTITIONS: Final = tuple(TopicPartition(topic, index) for topic in TOPICS for index in (0, 1))
T = TypeVar("T")
_RESERVE_BYTES: Final = 256 << 10  # the least that a start accepts: it is copied at every crash
_PREPARED: Final = (TxnState.PREPARE_COMMIT, TxnState.PREPARE_ABORT)


class _Steps:
    """The power of the node's process fails when it reaches a step."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def reached(self, step: Step) -> None:
        cluster = self._cluster
        # Every write comes by the steps of a sync, only a commit by the others.
        chance = cluster.profile.at_steps * (1 if step in (Step.SYNC_BEFORE, Step.SYNC_AFTER) else 5)
        if cluster.node is not None and cluster.rolls.happens(chance, f"crash at {step}"):
            raise PowerCut(f"step {step}")


class Cluster:
    def __init__(
        self, scheduler: Scheduler, history: h.History, profile: Profile, rolls: Rolls, dice: Random, disk: Random
    ) -> None:
        self.scheduler = scheduler
        self.history = history
        self.profile = profile
        self.rolls = rolls
        self.dice = dice
        self.config = Config(
            num_partitions=2,
            durability=profile.durability,
            group_min_session_timeout_ms=50,
            checkpoint_bytes=profile.checkpoint_bytes,
            log_segment_bytes=profile.segment_bytes,
        )
        self.faults = DiskFaults()
        self.disk = Disk(disk, self.faults)
        self.node: Node | None = None
        self.run = 0  # starts that were tried
        self.crashes = 0
        self.checkpoints = 0
        self.released: Callable[[Iterable[Reply]], None] = lambda replies: None  # the network's
        self.fell: Callable[[], None] = lambda: None  # connections are gone
        self.died: Callable[[], None] = lambda: None
        self._syncing = False
        self._skew_ms = 0
        self._wake_at_ms: int | None = None
        Folder.open(self.disk, reserve_bytes=_RESERVE_BYTES).recovered()
        self.start()

    @property
    def now_ms(self) -> int:
        """By the broker's own clock."""
        return self.scheduler.now_ms + self._skew_ms

    # --- Lives

    def start(self) -> None:
        self.run += 1
        self._syncing = False
        self._wake_at_ms = None
        self._arm()
        node = self._survives(self._new_node)
        if node is None:
            return
        self.node = node
        self.history.add(h.Recovered(self.scheduler.now_ms, self.snapshot()))
        self._after([])

    def _new_node(self) -> Node:
        steps = _Steps(self) if self.profile.at_steps else None
        return Node(self.disk, self.config, now_ms=self.now_ms, random=self.dice, steps=steps)

    def _arm(self) -> None:
        """Decides at which of its operations this life of the disk ends, and what else is wrong with it."""
        rolls, profile = self.rolls, self.profile
        self.calm()
        if rolls.calm or self.run == 1:
            return
        at = 0
        while self.disk.cut_at is None:
            at += self.dice.randint(1, profile.gap)
            if rolls.takes(f"crash of life {self.run} at operation {at}"):
                self.disk.cut_at = at
        if rolls.happens(profile.disk_errors * 20, "errors of the disk"):
            self.faults.append = self.faults.sync = profile.disk_errors
        if rolls.happens(profile.full, "a full disk"):
            self.faults.capacity = self.disk.used + self.dice.randint(0, 4_000)

    def _survives(self, action: Callable[[], T]) -> T | None:
        """None when the node has died in it."""
        try:
            return action()
        except PowerCut as cut:
            self._die(str(cut), power=self.rolls.dice.random() < self.profile.power)
        except (OSError, JournalFailed) as error:
            self._die(f"{type(error).__name__}: {error}", power=self.rolls.dice.random() < 0.5)
        return None

    def _die(self, where: str, *, power: bool) -> None:
        power = power and self.config.durability == FSYNC
        self.crashes += 1
        self.node = None
        how = "power cut" if power else "process killed"
        self.history.add(h.Crashed(self.scheduler.now_ms, how, where))
        self.disk = self.disk.crash() if power else self.disk.killed()
        jump_ms = self.profile.jump_ms
        self._skew_ms = 0 if self.rolls.calm else self.dice.randint(-jump_ms, jump_ms)
        self.fell()
        self.died()
        self.scheduler.after(self.dice.randint(1, 40), self.start)

    def crash(self, where: str) -> None:
        """A power cut between two events."""
        if self.node is not None:
            self._die(where, power=True)

    def calm(self) -> None:
        """From now on the disk does what it is told."""
        self.disk.cut_at = self.disk.cut_on = None
        self.faults.capacity = None
        self.faults.append = self.faults.sync = 0.0
        self.faults.torn = False

    # --- Events

    def step(self, event: Event) -> None:
        node = self.node
        if node is None:
            return
        replies = self._survives(lambda: node.step(event, self.now_ms))
        if replies is None:
            return
        if isinstance(event, Request) and event.api_key == END_TXN:
            self._cut_the_end()
        self._after(replies)

    def _cut_the_end(self) -> None:
        """Decision, markers and completion are about to be written by one operation of the journal, and synced."""
        assert self.node is not None
        if self.node.unsynced and self.rolls.happens(self.profile.at_end, "power cut in an end"):
            self.disk.cut_on = ("sync" if self.dice.random() < 0.8 else "append", FOLDER)
            self.faults.torn = self.dice.random() < 0.7

    def _after(self, replies: Iterable[Reply]) -> None:
        self.released(replies)
        node, scheduler = self.node, self.scheduler
        if node is None:
            return
        run = self.run
        if node.unsynced and not self._syncing:
            self._syncing = True
            scheduler.after(self.dice.randint(0, 1), lambda: self._write(run))
        wake = node.wake_at_ms
        if wake is not None and (self._wake_at_ms is None or wake < self._wake_at_ms):
            self._wake_at_ms = wake
            scheduler.after(max(0, wake - self.now_ms), lambda: self._tick(run, wake))

    def _write(self, run: int) -> None:
        node = self.node
        if node is not None and run == self.run and self._survives(node.write) is not None:
            self.scheduler.after(self.dice.randint(0, 2), lambda: self._sync(run))

    def _sync(self, run: int) -> None:
        node = self.node
        if node is None or run != self.run:
            return
        self._syncing = False
        if node.unsynced and self.rolls.happens(self.profile.bad_sync, "a sync fails"):
            self.faults.sync = 1.0
        replies = self._survives(lambda: node.synced(node.sync(), self.now_ms))
        if replies is None:
            return
        self._after(replies)
        if node.checkpoint_due:
            self._survives(node.checkpoint)
            self.checkpoints += self.node is node

    def _tick(self, run: int, due_ms: int) -> None:
        if self.node is not None and run == self.run and self._wake_at_ms == due_ms:
            self._wake_at_ms = None
            self.step(Tick())

    # --- What it knows, for the checkers

    def partition(self, at: TopicPartition) -> Partition | None:
        return None if self.node is None else self.node.broker.state.find(*at)

    def ends(self) -> dict[TopicPartition, int]:
        found = {at: self.partition(at) for at in PARTITIONS}
        return {at: partition.end_offset for at, partition in found.items() if partition is not None}

    def offsets(self) -> dict[TopicPartition, int]:
        """The group's committed offsets."""
        assert self.node is not None
        group = self.node.broker.state.groups.get(GROUP)
        places = {} if group is None else group.offsets
        return {TopicPartition(*place): stored.value.offset for place, stored in sorted(places.items())}

    def snapshot(self) -> h.Snapshot:
        assert self.node is not None
        state = self.node.broker.state
        marks, hanging = {}, []
        open_ids = {state.transactions[name].producer_id for name in state.open}
        for at in PARTITIONS:
            partition = state.find(*at)
            if partition is not None:
                marks[at] = partition.end_offset, partition.high_watermark, partition.last_stable_offset
                hanging += [(at, pid) for pid in sorted(partition.open_transactions) if pid not in open_ids]
        transactions = sorted(state.transactions.items())
        group = state.groups.get(GROUP)
        return h.Snapshot(
            state.run,
            marks,
            {name: (found.producer_id, found.epoch) for name, found in transactions},
            tuple(name for name, found in transactions if found.state in _PREPARED),
            tuple(hanging),
            self.offsets(),
            0 if group is None else group.generation,
        )

    def final(self) -> h.Final:
        log = {at: tuple(self._batches(at)) for at in PARTITIONS}
        return h.Final(self.scheduler.now_ms, self.snapshot(), log)

    def _batches(self, at: TopicPartition) -> Iterable[h.Batch]:
        partition = self.partition(at)
        assert partition is not None, at
        position = partition.start_offset
        while position < partition.high_watermark:
            read = partition.read(position, 1 << 20, committed=False)
            for batch in parse_all(b"".join(read.chunks), where=f"{at.topic}-{at.partition}"):
                if batch.last_offset < position:
                    continue
                assert batch.base_offset == position, (at, batch.base_offset, position)
                position = batch.next_offset
                values: tuple[str, ...] = ()
                if batch.is_control:
                    marker = parse_marker(batch)
                    assert marker is not None, (at, position)
                    kind = "commit" if marker.commit else "abort"
                else:
                    kind = "open" if batch.is_transactional else "plain"
                    values = tuple((value or b"").decode() for value in columns(batch).values)
                yield h.Batch(batch.base_offset, position, batch.producer_id, batch.producer_epoch, kind, values)
