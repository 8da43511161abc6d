"""The broker's core: `step` decides, `apply` changes, nothing here performs.

A handler reads the state and returns records and replies; the driver (`node`) appends the records to the journal and
applies them at once, so that the next handler sees them. Volatile state (waiting fetches, members' sessions, accept
numbers) lies beside the durable one, dies with the process, and decides nothing durable without a record.
Invariant: two brokers that applied the same records have the same durable state, whatever requests they met.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from semel.broker import (
    admin,
    configs,
    fetch,
    group_access,
    groups,
    listings,
    offsets,
    positions,
    produce,
    topics,
    transactions,
)
from semel.broker.config import Config
from semel.broker.draft import Draft
from semel.broker.events import NOTHING, ConnectionClosed, Event, Ready, Request
from semel.broker.membership import Membership
from semel.broker.messages import FetchLeaderIdAndEpoch
from semel.broker.records import PartitionKey, Record, TopicDeleted, Transaction, TxnState
from semel.broker.state import State
from semel.ports import Buffer, Disk, Random

Handler = Callable[["Broker", Request, int], Ready]


class Broker:
    """Driven by `node.Node` alone."""

    def __init__(self, disk: Disk, config: Config, dice: Random) -> None:
        self.config = config
        self.dice = dice
        self.state = State(disk, config.offsets_topic_num_partitions, config.log_segment_bytes)
        self.durable_position = 0
        # What clients are told to connect to; the host knows it once it listens.
        self.host = "127.0.0.1"
        self.port = 0
        # Volatile.
        self.waits = fetch.Waits()
        self.damaged: dict[tuple[str, int], str] = {}  # by topic and partition: what a reader met there
        self.untold: list[str] = []  # of these, what the host has not said yet
        self.gone: list[tuple[int, PartitionKey]] = []  # partitions of deleted topics, until that is durable
        self.accepted: dict[str, transactions.Accepted] = {}  # by transactional id
        self.expiry_ms: int | None = None  # no open transaction expires before
        self.memberships: dict[str, Membership] = {}  # by group id
        self.group_waits: dict[int, set[str]] = {}  # by connection: groups with a join or sync of it to be answered
        self.groups_wake_ms: int | None = None  # no group has a deadline before
        self.fetch_leader = FetchLeaderIdAndEpoch()

    def started(self, now_ms: int) -> None:
        """The state is what the journal holds, and this run's record is in it."""
        self.fetch_leader = FetchLeaderIdAndEpoch(self.config.node_id, self.state.run)
        group_access.load(self, now_ms)

    def step(self, event: Event, now_ms: int) -> Ready:
        """What the event leads to. Nothing durable has changed when this returns."""
        if isinstance(event, Request):
            return HANDLERS[event.api_key](self, event, now_ms)
        if isinstance(event, ConnectionClosed):
            fetch.closed(self, event.connection)
            groups.closed(self, event.connection, now_ms)
            return NOTHING
        return self._tick(now_ms)

    def apply(self, record: Record, payload: Buffer, position: int) -> None:
        """The only mutator of the durable state. `position`: the journal's after the record."""
        if type(record) is TopicDeleted:
            count = len(self.state.topics_by_number[record.number].partitions)
            self.gone += [(position, (record.number, index)) for index in range(count)]
        self.state.apply(record, payload, position)
        if type(record) is Transaction and record.state is TxnState.ONGOING:
            expiry_ms = transactions.expires_ms(record)
            if self.expiry_ms is None or expiry_ms < self.expiry_ms:
                self.expiry_ms = expiry_ms

    def durable(self, position: int, now_ms: int) -> Ready:
        """The journal is durable up to here: marks advance, who waited for them is answered."""
        self.durable_position = position
        moved = self.state.durable(position)
        while self.gone and self.gone[0][0] <= position:
            moved.append(self.gone.pop(0)[1])
        if not moved:
            return NOTHING
        replies = fetch.moved(self, moved)
        return Ready((), replies) if replies else NOTHING

    @property
    def wake_at_ms(self) -> int | None:
        """When the next Tick is due; None: nothing waits for the clock."""
        due = [at for at in (self.waits.next_ms, self.expiry_ms, self.groups_wake_ms) if at is not None]
        return min(due, default=None)

    def _tick(self, now_ms: int) -> Ready:
        # One draft: both may append to `__consumer_offsets`.
        draft = Draft(self.state)
        draft.replies += fetch.expired(self, now_ms)
        if self.expiry_ms is not None and self.expiry_ms <= now_ms:
            transactions.expire(self, draft, now_ms)
        if self.groups_wake_ms is not None and self.groups_wake_ms <= now_ms:
            groups.tick(self, draft, now_ms)
        return draft.ready()


HANDLERS: Final[dict[int, Handler]] = {
    0: produce.produce,
    1: fetch.fetch,
    2: positions.list_offsets,
    3: topics.metadata,
    8: offsets.offset_commit,
    9: offsets.offset_fetch,
    10: admin.find_coordinator,
    11: groups.join_group,
    12: groups.heartbeat,
    13: groups.leave_group,
    14: groups.sync_group,
    15: listings.describe_groups,
    16: listings.list_groups,
    19: topics.create_topics,
    20: topics.delete_topics,
    21: topics.delete_records,
    22: transactions.init_producer_id,
    23: positions.offset_for_leader_epoch,
    24: transactions.add_partitions_to_txn,
    25: transactions.add_offsets_to_txn,
    26: transactions.end_txn,
    28: offsets.txn_offset_commit,
    32: configs.describe_configs,
    33: configs.alter_configs,
    35: admin.describe_log_dirs,
    37: topics.create_partitions,
    42: listings.delete_groups,
    44: configs.incremental_alter_configs,
    47: offsets.offset_delete,
    60: admin.describe_cluster,
    61: admin.describe_producers,
    65: listings.describe_transactions,
    66: listings.list_transactions,
}
