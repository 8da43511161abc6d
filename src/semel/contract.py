"""What a sink promises, as data: the type checker reads it, `check` reasons with it, `verify` attacks it.

A contract says how a repeated write is recognised, what is written together, who remembers the position, what
fences a superseded writer, how an unknown outcome is resolved, and under which setting an acknowledged write
survives the sink's own crash (DESIGN, Leaving Kafka).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Guarantee(StrEnum):
    """Ordered from weakest to strongest by `rank`; `unknown` ranks below all: it is never a yes (law 9)."""

    UNKNOWN = "unknown"
    AT_MOST_ONCE = "at-most-once"
    AT_LEAST_ONCE = "at-least-once"
    EFFECTIVELY_ONCE = "effectively-once"
    EXACTLY_ONCE = "exactly-once"

    @property
    def rank(self) -> int:
        return list(Guarantee).index(self)


class Identity(StrEnum):
    """How a repeated write is recognised."""

    OFFSET = "incarnation/partition/offset"
    NONE = "none"


class Atomicity(StrEnum):
    """What becomes visible together."""

    BATCH = "batch"
    RECORD = "record"
    NONE = "none"


class Fence(StrEnum):
    """What stops a superseded owner from writing."""

    EPOCH_IN_TRANSACTION = "owner epoch compared inside the sink's transaction"
    GROUP_GENERATION = "group generation, checked with the offsets of the transaction"
    NONE = "none"


class Resolution(StrEnum):
    """How an unknown outcome becomes a known one."""

    READ_POSITION_AFTER_CLAIM = "claim a higher epoch, then read the position back"
    COMMITTED_OFFSETS = "read the stable committed offsets, start again from them"
    NONE = "none"


class Mode(StrEnum):
    """The guarantee mode an app runs in."""

    EXACTLY_ONCE = "exactly-once"
    AT_LEAST_ONCE = "at-least-once"
    AT_MOST_ONCE = "at-most-once"


@dataclass(frozen=True, slots=True)
class Contract:
    """The data of a contract. `name` is the word of DESIGN's table: Transactional, Versioned, …"""

    name: str
    guarantee: Guarantee  # the most that a path ending here can have
    identity: Identity
    atomicity: Atomicity
    remembers_position: bool  # the position lies in the sink, in the same transaction as the rows
    fence: Fence
    resolution: Resolution
    durability: str  # the setting under which an acknowledged write survives the sink's own crash


# The contracts as types: `Sink[V, Once]` is accepted by `write`, `Sink[V, Weak]` only with `accept=`.
class Kind:
    """Base of the marker types; never instantiated."""


class Once(Kind):
    """Each committed record has its effect once."""


class Transactional(Once):
    """Rows and position in one transaction of the sink."""


class Weak(Kind):
    """Records may be lost or repeated."""


@dataclass(frozen=True, slots=True)
class AtLeastOnce:
    """Accepted by the user: effects may repeat. The reason is printed by `check`."""

    reason: str


@dataclass(frozen=True, slots=True)
class AtMostOnce:
    """Accepted by the user: effects may be missing. The reason is printed by `check`."""

    reason: str


Accept = AtLeastOnce | AtMostOnce


@dataclass(frozen=True, slots=True)
class DeliveryId:
    """One partition of one outbox on its way to one sink."""

    app: str
    sink: str
    partition: int


@dataclass(frozen=True, slots=True)
class LogIdentity:
    """What a stored position was a position in. Any difference stops the delivery (FAULTS S12, S16)."""

    topic_id: str
    partitions: int


@dataclass(frozen=True, slots=True)
class Claim:
    """Ownership of one delivery at the sink, with what the sink remembers."""

    delivery: DeliveryId
    epoch: int
    incarnation: int
    position: int  # next offset to deliver; 0 at the first claim
    run: str  # run (or leader epoch) of the record at position - 1; "" when position is 0
    log: LogIdentity


@dataclass(frozen=True, slots=True)
class Row:
    """One committed record on its way out. `value` None is a delete of `key`."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
