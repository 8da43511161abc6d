"""The node: one broker core, its journal and its folder, driven from outside by events and syncs.

    node = Node(disk, config, now_ms=…, random=…)       # recovers; everything in it is durable when this returns
    replies = node.step(event, now_ms)                  # these may leave now, in this order
    if node.unsynced:
        node.write()                                    # in the thread that steps
        position = node.sync()                          # in any one thread, blocking; steps may go on meanwhile
        replies = node.synced(position, now_ms)         # in the thread that steps

At durability=os what is written is durable: `unsynced` is False after `write`, `synced(node.write(), now_ms)` is due.

Replies of one connection leave in the order of its requests. A reply that shows what is not yet durable is kept until
`synced`. Invariant (law 1): no reply that left depends on a record that a crash can take. A failed append or sync
raises (OSError, JournalFailed): the process must end without another step, and the next start rewrites the tail.
"""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Iterator
from typing import Final

from semel.broker import records, transactions
from semel.broker.config import FSYNC, Config
from semel.broker.core import HANDLERS, Broker
from semel.broker.draft import Draft
from semel.broker.events import ConnectionClosed, Event, Ready, Reply, Request
from semel.broker.records import TxnState
from semel.broker.state import OFFSETS_TOPIC, RUNS_TOPIC, created
from semel.broker.topics import new_id
from semel.errors import UsageError
from semel.log.errors import JournalFailed
from semel.log.folder import Folder
from semel.log.journal import Journal
from semel.ports import Buffer, Disk, NoSteps, Random, Step, Steps
from semel.record.batch import encode

AHEAD: Final = 4  # times between two checkpoints that the segments are synced ahead

_DECIDED: Final = frozenset({TxnState.PREPARE_COMMIT, TxnState.PREPARE_ABORT})
_COMPLETE: Final = frozenset({TxnState.COMPLETE_COMMIT, TxnState.COMPLETE_ABORT})


class Node:
    def __init__(self, disk: Disk, config: Config, *, now_ms: int, random: Random, steps: Steps | None = None) -> None:
        self.config = config
        self.steps: Steps = steps or NoSteps()
        self._stepwise = not isinstance(self.steps, NoSteps)
        self._folder = Folder.open(disk)
        self.broker = Broker(self._folder.disk, config, random)
        self._dice = random
        self.journal = Journal.open(self._folder.disk)
        self._waiting: deque[tuple[int, Reply]] = deque()  # journal position that must be durable first
        self._order: dict[int, deque[int]] = {}  # by connection: tokens not yet answered
        self._answered: dict[int, dict[int, Reply]] = {}  # by connection: replies whose turn has not come
        self._ahead_bytes = max(1, config.checkpoint_bytes // AHEAD)
        self._ahead_at = self._ahead_bytes  # bytes since the checkpoint at which the segments are synced next
        self._syncing = False  # `sync` is under way, in whatever thread
        self._broken = False  # an append or a sync failed: nothing is answered any more
        self._closing: set[int] = set()  # connections that are being ended: nothing of theirs is stepped any more
        self._recover(now_ms)
        self._folder.recovered()

    # --- What the host asks

    @property
    def handled(self) -> frozenset[int]:
        """The API keys that `step` knows."""
        return frozenset(HANDLERS)

    @property
    def untold(self) -> list[str]:
        """Damage that readers have met, for the host to say and to clear."""
        return self.broker.untold

    @property
    def run(self) -> int:
        return self.broker.state.run

    @property
    def address(self) -> tuple[str, int]:
        """What clients are told to connect to. Set by the host once it listens."""
        return self.broker.host, self.broker.port

    @address.setter
    def address(self, address: tuple[str, int]) -> None:
        self.broker.host, self.broker.port = address

    @property
    def unsynced(self) -> bool:
        """Something was appended that is not known to be durable: `write`, `sync`, `synced` are due."""
        if self.config.durability != FSYNC and not self._stepwise:
            return self.journal.unwritten
        return self.journal.end > self.broker.durable_position

    @property
    def wake_at_ms(self) -> int | None:
        """Step a Tick then; None: nothing waits for the clock."""
        return self.broker.wake_at_ms

    # --- Stepping

    def step(self, event: Event, now_ms: int) -> list[Reply]:
        self._check()
        if isinstance(event, Request):
            if event.connection in self._closing:
                return []
            order = self._order.get(event.connection)
            if order is None:
                order = self._order[event.connection] = deque()
            order.append(event.token)
        elif isinstance(event, ConnectionClosed):
            self._order.pop(event.connection, None)
            self._answered.pop(event.connection, None)
            self._closing.discard(event.connection)
        return self._perform(self.broker.step(event, now_ms))

    def _perform(self, ready: Ready) -> list[Reply]:
        if ready.records:
            if self._stepwise:
                self._append_stepwise(ready)
            else:
                journal, apply = self.journal, self.broker.apply
                try:
                    for record, payload in ready.records:
                        apply(record, payload, journal.append(records.encode(record), payload))
                except BaseException:
                    self._broken = True  # half of the step is applied
                    raise
        free: list[Reply] = []
        end = self.journal.end
        durable = end <= self.broker.durable_position
        for reply in ready.replies:
            if reply.close:
                self._closing.add(reply.connection)
            if reply.waits and not durable:
                self._waiting.append((end, reply))
            else:
                self._free(reply, free)
        return free

    def _append_stepwise(self, ready: Ready) -> None:
        """The same with every record written for itself and every step of a commit reached, so that a process that is
        killed there leaves behind what a crash in the middle of one write would."""
        markers = False
        for record, payload in ready.records:
            decided = isinstance(record, records.Transaction) and record.state in _DECIDED
            complete = isinstance(record, records.Transaction) and record.state in _COMPLETE
            if decided:
                self._reach(Step.DECISION_BEFORE)
            elif complete and markers:
                self._reach(Step.MARKERS_AFTER)
            self.broker.apply(record, payload, self.journal.append(records.encode(record), payload))
            if decided:
                self._reach(Step.DECISION_AFTER)
                self._reach(Step.MARKERS_BEFORE)
                markers = True
            elif complete:
                markers = False
            self.journal.write()

    def _reach(self, step: Step) -> None:
        self.journal.write()
        self.steps.reached(step)

    def _free(self, reply: Reply, free: list[Reply]) -> None:
        """A reply whose content may leave; it leaves when those before it on its connection have."""
        connection = reply.connection
        order = self._order.get(connection)
        if order is None:
            return  # the connection is gone
        if order[0] != reply.token:
            self._answered.setdefault(connection, {})[reply.token] = reply
            return
        order.popleft()
        free.append(reply)
        answered = self._answered.get(connection)
        while answered and order and order[0] in answered:
            free.append(answered.pop(order.popleft()))

    # --- Durability

    def write(self) -> int:
        """Hands what was appended to the system; returns the position it covers. The segments first: a full disk then
        refuses before the journal has it, and recovery needs no space for them that was not there before."""
        self._check()
        try:
            for partition in self.broker.state.dirty.values():
                partition.flush()
            return self.journal.write()
        except BaseException:
            self._broken = True
            raise

    def sync(self) -> int:
        """Makes durable what was written before the call, and returns its position. At durability=os that is so
        already: a killed process loses nothing that `write` handed over."""
        self._check()
        self.steps.reached(Step.SYNC_BEFORE)
        assert not self._syncing, "two syncs at a time"
        self._syncing = True
        try:
            if self.config.durability == FSYNC:
                position = self.journal.sync()
                self._sync_ahead()
            else:
                position = self.journal.written
        except BaseException:
            self._broken = True
            raise
        finally:
            self._syncing = False
        self.steps.reached(Step.SYNC_AFTER)
        return position

    def _check(self) -> None:
        if self._broken:
            raise JournalFailed(
                "an append or a sync failed earlier; what reached the disk is unknown, so nothing more is answered. "
                "Start again: recovery finds out."
            )

    def _sync_ahead(self) -> None:
        """Now and then the segments too, in the syncing thread, so that a checkpoint, which is a step like any other,
        finds little left to sync."""
        if self.journal.bytes_since_checkpoint < self._ahead_at:
            return
        self._ahead_at += self._ahead_bytes
        for topic in tuple(self.broker.state.topics.values()):
            for partition in tuple(topic.partitions):
                partition.sync_ahead()

    def synced(self, position: int, now_ms: int) -> list[Reply]:
        """The journal is durable up to `position`, as `sync` returned it: the replies that this sets free."""
        self._check()
        if position <= self.broker.durable_position:
            return []
        free: list[Reply] = []
        ready = self.broker.durable(position, now_ms)
        waiting = self._waiting
        while waiting and waiting[0][0] <= position:
            self._free(waiting.popleft()[1], free)
        free += self._perform(ready)
        return free

    # --- Checkpoints

    @property
    def checkpoint_due(self) -> bool:
        return self.journal.bytes_since_checkpoint >= self.config.checkpoint_bytes

    def checkpoint(self) -> None:
        """Writes the state to the head of a new journal file and drops the older files: a restart then replays from
        here. What was appended before is durable when it returns, but replies leave by `synced` alone, as always.

        Never beside a `sync`: both sync the segments, a file tells a failed write-back to one of two concurrent fsyncs
        only, and the other would take the bytes for durable. The host waits until its thread has come back."""
        self._check()
        assert not self._syncing, "a checkpoint beside a sync"
        try:
            for _, partition in self.broker.state.partitions():
                partition.sync()
            self.journal.checkpoint(self._checkpoint_records())
            self._ahead_at = self._ahead_bytes
            self.journal.drop_before(self.journal.checkpoint_position)
            for key, partition in self.broker.state.partitions():
                if key not in self.broker.state.dirty:
                    partition.sweep()
            topics = self.broker.state.topics.values()
            self._folder.sweep((topic.id.hex, index) for topic in topics for index in range(len(topic.partitions)))
        except BaseException:
            self._broken = True
            raise

    def _checkpoint_records(self) -> Iterator[tuple[bytes, Buffer]]:
        for record, payload in self.broker.state.checkpoint():
            yield records.encode(record), payload

    def close(self) -> None:
        """A clean end, after which nothing may be stepped. What was appended is durable when it returns."""
        self.journal.close()
        for _, partition in self.broker.state.partitions():
            partition.close()

    # --- Recovery

    def _recover(self, now_ms: int) -> None:
        """Replays the journal, starts a run, finishes every decided transaction, and makes all that durable."""
        broker, state = self.broker, self.broker.state
        for entry in self.journal.replay():
            broker.apply(records.decode(entry.meta), entry.payload, entry.position)
        if (
            state.offsets_topic
            and len(state.topics[OFFSETS_TOPIC].partitions) != self.config.offsets_topic_num_partitions
        ):
            count = len(state.topics[OFFSETS_TOPIC].partitions)
            raise UsageError(
                f"offsets.topic.num.partitions={self.config.offsets_topic_num_partitions}, but this folder was made "
                f"with {count}: groups would not be found. Start with offsets.topic.num.partitions={count}."
            )
        # Before the new run: the markers that a decided transaction lacks belong to the run that decided it.
        self._perform(transactions.finish_prepared(broker, now_ms))
        self._start_run(now_ms)
        self.write()
        position = self.journal.sync()
        broker.durable(position, now_ms)
        broker.durable_position = max(position, self.journal.end)
        assert not self.unsynced, (position, self.journal.end)
        broker.started(now_ms)

    def _start_run(self, now_ms: int) -> None:
        state = self.broker.state
        cluster_id = state.cluster_id or _text_id(new_id(self._dice).bytes)
        run_id = new_id(self._dice).hex
        draft = Draft(state)
        draft.add(records.Run(state.run + 1, run_id, cluster_id, now_ms))
        if not state.offsets_topic:
            count = self.config.offsets_topic_num_partitions
            config = {"cleanup.policy": "compact"}
            draft.add(created(state.next_topic, OFFSETS_TOPIC, new_id(self._dice), count, config))
            draft.add(created(state.next_topic + 1, RUNS_TOPIC, new_id(self._dice), 1, config))
        self._perform(draft.ready())
        draft = Draft(state)
        text = json.dumps({"run": state.run, "id": run_id})
        batch = encode([text.encode()], [str(state.run).encode()], now_ms)
        topic = state.topics[RUNS_TOPIC]
        draft.append_own((topic.number, 0), topic.partitions[0], batch)
        self._perform(draft.ready())


def _text_id(raw: bytes) -> str:
    """A cluster id as Kafka writes it: URL-safe base64 of 16 bytes."""
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
