"""What a sink promises, as data: the type checker reads it, `check` reasons with it, `verify` attacks it.

A contract says how a repeated write is recognised, what is written together, who remembers the position, what
fences or versions a superseded writer, how an unknown outcome is resolved, how work left in doubt is settled, under
which setting an acknowledged write survives the sink's own crash, and where the sink forgets (DESIGN, Leaving Kafka).

Invariant: every field can be tried. `semel.testing.contracts` refuses a sink that shows less than its fields say, and
`guarantees/rules.py` lowers a label that the fields do not carry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import overload

from msgspec import Struct


class Guarantee(StrEnum):
    """Ordered from weakest to strongest by `rank`; `unknown` ranks below all: it is never a yes (law 9)."""

    UNKNOWN = "unknown"
    AT_MOST_ONCE = "at-most-once"
    AT_LEAST_ONCE = "at-least-once"
    ONCE_IN_WINDOW = "effectively-once-in-a-window"  # past it the sink has forgotten, and repeats
    EFFECTIVELY_ONCE = "effectively-once"  # effects may be tried again, and then change nothing
    EXACTLY_ONCE = "exactly-once"

    @property
    def rank(self) -> int:
        return list(Guarantee).index(self)


class Identity(StrEnum):
    """How a repeated write is recognised."""

    OFFSET = "incarnation/partition/offset"
    VERSION = "the row's version (incarnation, offset)"  # an equal or older one changes nothing
    CUT = "the cut's name: incarnation/partition/[start, end)"  # objects, files, prepared transactions
    REQUEST_KEY = "the request's key: incarnation/partition/offset"
    TOKEN = "the insert's token: incarnation/partition/[start, end)"
    SAMPLE = "the sample's series and stamp"  # a second value at a stamp is refused, the same one is no second one
    EVENT_ID = "the event id beside each row"  # repeats are stored; `Contract.through` removes them
    NONE = "none"


class Atomicity(StrEnum):
    """What becomes visible together."""

    BATCH = "batch"
    RECORD = "record"
    NONE = "none"


class PositionIn(StrEnum):
    """Who remembers how far a delivery is. `Contract.remembers_position` says whether in one step with the rows."""

    SINK = "a row of the sink"
    DELIVERY_TOPIC = "the delivery topic"
    GROUP_OFFSETS = "the group's offsets only"


class Fence(StrEnum):
    """What stops a superseded owner from writing, or takes the effect from what it writes."""

    EPOCH_IN_TRANSACTION = "owner epoch compared inside the sink's transaction"
    GROUP_GENERATION = "group generation, checked with the offsets of the transaction"
    OLDER_VERSION_LOSES = "each row's version, compared by the sink"
    CREATE_ONLY = "create-only writes: what is there is never replaced"
    FIRST_ANSWER = "the receiver answers a used key, and all below the sender's floor, without doing it again"
    TRANSACTIONAL_ID = "the transactional id: who initialised it last decides, and nobody else"
    NONE = "none"


class Resolution(StrEnum):
    """How an unknown outcome becomes a known one."""

    READ_POSITION_AFTER_CLAIM = "claim a higher epoch, then read the position back"
    COMMITTED_OFFSETS = "read the stable committed offsets, start again from them"
    SEND_AGAIN = "send the same again under the same identity"
    READ_BACK = "read back what lies under the name, compare, else send the same again"
    READ_DECISION = "read the decision record after the claim"
    NONE = "none"


class Settlement(StrEnum):
    """What becomes of work that a former owner left in doubt."""

    ROLLED_BACK = "the sink rolls back what was not committed; the claim waits for it"
    REPEATED = "whatever of it is there, the same is sent again and changes nothing"
    CUT_REPEATED = "its cut was written down first; the same cut is sent again and changes nothing"
    DECIDED = "the new owner reads the decision record, then commits or rolls back"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Window:
    """Where a sink forgets that it has seen a write: the first of the two that is reached. None: no bound of it."""

    seconds: float | None = None
    inserts: int | None = None

    def __str__(self) -> str:
        told = [f"{self.seconds:g} s"] if self.seconds is not None else []
        told += [f"{self.inserts:,} inserts"] if self.inserts is not None else []
        return " or ".join(told) or "a window that is not told"


class RecordIdentity(StrEnum):
    """What names a record at its source, so that a position can say which were read."""

    BYTE_OFFSET = "its file, by content, and its place in it"
    CURSOR = "its row's cursor"
    REQUEST_KEY = "its request's Idempotency-Key"
    LSN = "its place in the write-ahead log (LSN)"
    NONE = "none"


class Replay(StrEnum):
    """Why reading again from a position gives the same records."""

    UNCHANGED = "what was read is not changed: compared by fingerprint before anything is read again"
    SETTLED = "rows are read when no transaction can put one before them any more, and are not changed afterwards"
    SENDER = "the sender sends again, under the same key, what was not answered"
    KEPT = "the source keeps what was not confirmed, and it is confirmed after the log's commit"
    NONE = "none"


class SourcePosition(StrEnum):
    """Where it is written how far a source was read."""

    WITH_RECORDS = "in the transaction that writes the records"
    BESIDE = "beside the records, after or before them"


class SourceFence(StrEnum):
    """What keeps a superseded ingest from writing."""

    TRANSACTIONAL_ID = "the transactional id of the lane: who initialised it last"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class SourceContract:
    """What a source promises. `guarantee`: the most that a path beginning here can have; `boundary`: what of the source
    is not seen, or not noticed, in a sentence."""

    name: str
    guarantee: Guarantee
    identity: RecordIdentity
    replay: Replay
    position: SourcePosition
    fence: SourceFence
    boundary: str


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
    remembers_position: bool  # the position changes in the same transaction as the rows
    fence: Fence
    resolution: Resolution
    durability: str  # the setting under which an acknowledged write survives the sink's own crash
    position: PositionIn = PositionIn.GROUP_OFFSETS
    settlement: Settlement = Settlement.NONE
    window: Window | None = None  # where the sink forgets what it has seen; None: never
    through: str = ""  # Deduplicated: the view or step behind which each record is there once


# The contracts as types: `Sink[V, Once]` is accepted by `write`, `Sink[V, Weak]` only with `accept=`.
class Kind:
    """Base of the marker types; never instantiated."""


class Once(Kind):
    """Each committed record has its effect once, as far as the sink's contract reaches."""


class Transactional(Once):
    """Rows and position in one transaction of the sink."""


class Versioned(Once):
    """An older write loses against a newer one; deletes leave a tombstone."""


class Keyed(Once):
    """The same key holds the same bytes for ever."""


class Windowed(Once):
    """A repeated write is recognised for a while: `Contract.window`."""


class TwoPhase(Once):
    """Prepared at the sink, decided in the log, then committed; who takes over settles it."""


class Deduplicated(Once):
    """Appended with an event id; `Contract.through` removes the repeats."""


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


@dataclass(frozen=True, slots=True, order=True)
class Attempt:
    """One try to write a cut at a sink that prepares: what is prepared carries these numbers in its name, so nobody
    settles another one's try under one name (FAULTS S17). Ordered: a later cut, or a later try of the same one."""

    start: int
    number: int  # 1 for the first; each take-over begins another
    end: int


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a sink remembers of one partition of a delivery, for those who operate it. `position`: the end of all that
    is there, or may come there still; `whole`: of what is there for certain, where that can be less."""

    partition: int
    epoch: int  # counts claims
    incarnation: int
    position: int
    run: str  # mark of the last record below `position`; "" where none was delivered, or the sink does not keep it
    log: LogIdentity
    holder: str = ""  # who claimed it last, and when it changed last, for people
    updated: str = ""
    whole: int | None = None
    unfinished: bool = False  # a move by a person was interrupted, and no claim is given until it is made again


class Row(Struct, frozen=True, gc=False):
    """One committed record on its way out. `value` None is a delete of `key`."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


class Rows(Sequence[Row]):
    """Committed records on their way out, in the order of their offsets, kept by column: a batch of thousands is handed
    on, cut and decoded without an object for each. Whoever looks at one of them, or at each, gets a Row."""

    __slots__ = ("keys", "offsets", "timestamps", "values")

    def __init__(
        self,
        offsets: Sequence[int],
        timestamps: Sequence[int],
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
    ) -> None:
        assert len(offsets) == len(timestamps) == len(keys) == len(values), (len(offsets), len(values))
        self.offsets, self.timestamps, self.keys, self.values = offsets, timestamps, keys, values

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Rows:
        """These rows by column; a third party's delivery may bring a list."""
        if isinstance(rows, Rows):
            return rows
        return cls(
            [row.offset for row in rows],
            [row.timestamp_ms for row in rows],
            [row.key for row in rows],
            [row.value for row in rows],
        )

    def extend(self, more: Rows) -> None:
        """`more` after these, which were made of lists."""
        for column in self.__slots__:
            getattr(self, column).extend(getattr(more, column))

    def at(self, places: Sequence[int]) -> Rows:
        """Those at these places, in this order."""
        columns = (self.offsets, self.timestamps, self.keys, self.values)
        return Rows(*([column[place] for place in places] for column in columns))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.offsets)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Rows: ...
    def __getitem__(self, at: int | slice) -> Row | Rows:
        found = self.offsets[at], self.timestamps[at], self.keys[at], self.values[at]
        return Rows(*found) if isinstance(at, slice) else Row(*found)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Row]:
        return map(Row, self.offsets, self.timestamps, self.keys, self.values)

    def __repr__(self) -> str:
        return f"Rows({list(self)!r})"


def cannot_leave_out(contract: Contract) -> str:
    """Why a record that the sink refuses cannot become a dead letter; "" where it can. Once it is written off, nobody
    may write it: neither an owner that was superseded before, nor a request of his that is still under way."""
    if contract.guarantee.rank < Guarantee.ONCE_IN_WINDOW.rank:
        return f"its contract is {contract.guarantee}, so the record could be in the dead letters and at the sink"
    if contract.window is not None:
        return (
            f"it forgets what it has seen after {contract.window}, so a late request of a superseded owner could still "
            "write the record after it became a dead letter"
        )
    stops = {
        Fence.EPOCH_IN_TRANSACTION: contract.position is PositionIn.SINK,
        Fence.TRANSACTIONAL_ID: True,
        # What it refuses it refuses whoever asks: by the cut's form, or by the answer that is kept under the key.
        Fence.CREATE_ONLY: contract.identity is Identity.CUT,
        Fence.FIRST_ANSWER: contract.identity is Identity.REQUEST_KEY,
    }
    if stops.get(contract.fence, False):
        return ""
    if contract.fence is Fence.OLDER_VERSION_LOSES:
        return (
            "a superseded owner is stopped there by the version of what was written since, and a refused record leaves "
            "none, so he could still write the record after it became a dead letter"
        )
    return "nothing there stops a superseded owner from writing the record after it became a dead letter"
