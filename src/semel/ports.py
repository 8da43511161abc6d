"""What the core may ask of the world, as protocols and plain data.

Nothing here performs anything: `host/` has the real implementations, `sim/` the simulated twins. The core takes its
time, its dice and its bytes as arguments; what is left to ask for is listed here. The names of steps: `steps.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from semel.contract import Attempt, Claim, Contract, DeliveryId, Kind, LogIdentity, Remembered, Row
from semel.steps import NoSteps as NoSteps
from semel.steps import Step as Step
from semel.steps import Steps as Steps

Buffer = bytes | bytearray | memoryview
Headers = Sequence[tuple[str, bytes | None]]
T = TypeVar("T")


# --- Disk -----------------------------------------------------------------------------------------------------


class File(Protocol):
    """One append-only file. Every method raises OSError as the system does; the caller treats a failed
    append or sync as fatal, because what reached the disk is then unknown (fsyncgate)."""

    def append(self, parts: Sequence[Buffer]) -> int:
        """Writes the parts at the end, all of them or OSError; returns the new size in bytes."""
        ...

    def read(self, position: int, size: int) -> bytes:
        """At most `size` bytes from `position`; fewer at the end of the file."""
        ...

    def size(self) -> int: ...
    def sync(self) -> None:
        """Returns once everything appended before the call survives a power cut (fdatasync)."""
        ...

    def truncate(self, size: int) -> None: ...
    def close(self) -> None: ...


class Disk(Protocol):
    """A folder. Paths are relative to it, with `/`."""

    def open(self, path: str) -> File:
        """Opens for appending and reading; creates the file if it is not there (folders too)."""
        ...

    def exists(self, path: str) -> bool: ...
    def list(self, folder: str) -> list[str]:
        """Names directly below `folder`, sorted; [] when it does not exist."""
        ...

    def remove(self, path: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def sync_folder(self, folder: str) -> None:
        """Makes creations, removals and renames in this folder durable."""
        ...


# --- Random ---------------------------------------------------------------------------------------------------


class Random(Protocol):
    """Dice, passed in by whoever owns the seed (`random.Random` fits)."""

    def random(self) -> float: ...
    def randint(self, a: int, b: int) -> int: ...
    def getrandbits(self, k: int) -> int: ...
    def choice(self, seq: Sequence[T]) -> T: ...
    def shuffle(self, x: MutableSequence[Any]) -> None: ...


# --- Outcomes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """It has happened, durably as far as the other side promises."""


@dataclass(frozen=True, slots=True)
class NotDone:
    """It has certainly not happened."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fenced:
    """It has not happened, and this owner must never try again: another one has taken over."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody here knows whether it has happened. Never turn this into one of the others by guessing (law 9)."""

    reason: str


Outcome = Done | NotDone | Fenced | Unknown


# --- Log: what streams needs of a Kafka-like log -----------------------------------------------------------------


class TopicPartition(NamedTuple):
    topic: str
    partition: int


class Position(NamedTuple):
    """A committed offset: the next record to read, and the text that travels with it."""

    offset: int
    metadata: str = ""


class Records(NamedTuple):
    """Columns of consecutive visible records of one partition, in offset order.

    `next_offset` is the offset to go on from: past control and aborted records that were skipped, so it can
    exceed the last offset by more than one, and the columns can be empty.
    """

    source: TopicPartition
    offsets: Sequence[int]
    timestamps: Sequence[int]  # ms since the epoch
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Headers] | None  # None: no record has any
    next_offset: int
    leader_epoch: int  # of the last record; -1 when the log has none
    first_epoch: int = -1  # leader epoch of the first record; -1 when the log does not tell
    undecided: bool = False  # no records: `next_offset` is the end of what is decided, an open transaction lies there


@dataclass(frozen=True, slots=True)
class TopicInfo:
    name: str
    topic_id: str  # text of the UUID; "" when the log cannot say
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)  # only what the log was asked for or knows


@dataclass(frozen=True, slots=True)
class NewTopic:
    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)


# partition -1: chosen by murmur2 of the key, as Kafka's default partitioner does (no key: spread).
Write = Callable[[int, bytes | None, bytes | None, int, Headers | None], None]  # partition, key, value, ms, headers


class Listener(Protocol):
    """Called from within `Log.poll`, in the polling thread, before poll returns."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> None: ...
    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """The partitions are still ours until this returns: commit here."""
        ...

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """The partitions are no longer ours: abort, never commit."""
        ...


class LogLost(Exception):
    """The log cannot be reached or refused us for good. The message says what, where and what next."""


class Log(Protocol):
    """One member's session with a log: admin, group member, reader, transactional writer. Used by one thread.

    Modes are the caller's: it either brackets writes with begin/commit, or uses flush and commit_offsets.
    """

    name: str  # as the user wrote it: embedded:DIR, kafka://host:port

    # topics
    def topics(self) -> Mapping[str, TopicInfo]:
        """All topics, with their partition counts and ids (config may be empty)."""
        ...

    def topic_ids(self, names: Sequence[str]) -> Mapping[str, str] | None:
        """The ids of those of these topics that are there now; None when the log did not say within a second. For a
        look now and then."""
        ...

    def config(self, topic: str) -> Mapping[str, str]: ...
    def create(self, topics: Sequence[NewTopic]) -> None:
        """Creates those that are missing; one that exists is left as it is."""
        ...

    # reading, as a member of a group
    def join(self, topics: Sequence[str], listener: Listener) -> None: ...
    def poll(self, timeout_s: float) -> list[Records]:
        """What is there, at most `timeout_s` later. Runs the listener when the assignment changes."""
        ...

    def seek(self, at: TopicPartition, offset: int) -> None: ...
    def pause(self, partitions: Sequence[TopicPartition]) -> None: ...
    def resume(self, partitions: Sequence[TopicPartition]) -> None: ...

    # positions
    def committed(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Position | None]:
        """Stable committed positions: waits out transactions that are not decided (require_stable)."""
        ...

    def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """High watermarks, READ_UNCOMMITTED: the only right target of a restore (FAULTS P1)."""
        ...

    def starts(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]: ...
    def truncate(self, before: Mapping[TopicPartition, int]) -> Done | NotDone:
        """Deletes what lies below these offsets (DeleteRecords); a log that begins later already is left as it is."""
        ...

    def read(self, at: TopicPartition, start: int, target: int) -> Iterator[Records]:
        """Committed records from `start`, read outside the group, until an end of partition at or past
        `target`. Yields empty Records while it waits, so that the caller can keep its membership alive: for an
        answer, or, `undecided`, for the end of an open transaction below `target`."""
        ...

    # writing
    def writer(self, topic: str) -> Write: ...
    def begin(self) -> None: ...
    def commit(self, positions: Mapping[TopicPartition, Position]) -> Outcome:
        """Ends the transaction: exactly one TxnOffsetCommit with all positions, last, then EndTxn. `positions`
        must not be empty when anything was written: a transaction without offsets is not fenced by the group
        (KIP-447, FAULTS P11). After Unknown or Fenced the caller drops its tasks and starts again from
        `committed()`."""
        ...

    def abort(self) -> None: ...
    def flush(self) -> None:
        """Without a transaction: returns when every write so far is acknowledged; LogLost when one failed."""
        ...

    def commit_offsets(self, positions: Mapping[TopicPartition, Position]) -> Outcome:
        """A plain OffsetCommit, outside any transaction."""
        ...

    def close(self) -> None:
        """Leaves the group and lets go. Does not commit."""
        ...


class NewRecord(NamedTuple):
    """One record on its way into the log; its partition is decided."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Headers | None = None


class Owner(Protocol):
    """One transactional id on a log, of no group: who initialised it last owns what is written under it. Each
    transaction writes one partition and nothing else, so a late EndTxn cannot tear one (DESIGN, Leaving Kafka)."""

    def initialise(self) -> None:
        """Takes the id over: whatever a former owner left open has ended, and that owner is fenced. Before this
        returns nothing that was written under the id is known. Raises LogLost."""
        ...

    def append(self, at: TopicPartition, records: Sequence[tuple[bytes, bytes | None]], now_ms: int) -> Outcome:
        """One transaction with these records. Anything but Done ends the ownership: the caller initialises again and
        reads what is there; this never initialises by itself, which could put out a newer owner unseen."""
        ...

    def together(self, records: Sequence[NewRecord]) -> Outcome:
        """As `append`, of several partitions: all of them or none. For the rare transaction that must be (a refused
        record and its dead letter): on a log whose transactions a late EndTxn can tear (FAULTS B1), who implements this
        begins none over connections that were lost before."""
        ...

    def close(self) -> None: ...


Owners = Callable[[str], Owner]  # transactional id -> a session under it, not yet initialised


class Ingestor(Protocol):
    """As `Owner`, for transactions that hold the records of a source and the position behind them: `send`, `send`,
    `commit`. Anything but Done ends the ownership here, too."""

    def initialise(self) -> None: ...
    def send(self, records: Sequence[NewRecord]) -> Outcome:
        """Begins a transaction unless one is open; Done when the log has acknowledged all of these within it."""
        ...

    def commit(self) -> Outcome:
        """Ends the transaction that `send` began."""
        ...

    def close(self) -> None: ...


Ingestors = Callable[[str, int], Ingestor]  # transactional id, the timeout of its transactions in ms


# --- Store: where a task keeps its state between commits ----------------------------------------------------------


class Store(Protocol):
    """One state of one task: keys and values as bytes, and a mark that is written with them, in one atomic batch.

    The changelog is the truth, a store is a copy that may be behind it: it may lose its latest batches, but a batch
    and its mark are there together or not at all. Used by one thread, by one task at a time.
    """

    def get(self, key: bytes) -> bytes | None: ...
    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Everything, sorted by key."""
        ...

    def write(self, changes: Mapping[bytes, bytes | None], mark: bytes) -> None:
        """The changes (None deletes) and the mark, atomically."""
        ...

    def mark(self) -> bytes | None:
        """The mark of the last batch that is there; None when the store is new or was cleared."""
        ...

    def clear(self) -> None:
        """Empties it, the mark included."""
        ...

    def close(self) -> None: ...


Stores = Callable[[str, int], Store]  # state name, partition -> its store, created if missing


# --- Sink: where records leave the log ---------------------------------------------------------------------------

V_contra = TypeVar("V_contra", contravariant=True)
Kind_co = TypeVar("Kind_co", bound=Kind, covariant=True)


class Connection(Protocol):
    """A sink, opened by one delivery and used by one thread. It connects when first asked, and again after a
    loss. A sink that cannot be reached is NotDone; a difference that only a person can settle is a SinkError."""

    def prepare(self, value_type: object) -> Done | NotDone:
        """Creates what is missing and validates what is there against the type of the values (None: not
        known, what is there decides). Raises SinkError naming what differs, what it is and what is wanted."""
        ...

    def notes(self) -> Sequence[str]:
        """What of this server's settings weakens the contract, in sentences; after `prepare`."""
        ...

    def rows(self) -> Sequence[bytes]:
        """Everything in it, each row in the form that `canonical` gives. For `semel verify`."""
        ...

    def canonical(self, value: bytes) -> bytes:
        """One encoded value in the form in which `rows` would show it."""
        ...

    def drop(self) -> None:
        """Removes the rows and the positions of a renamed sink; refuses any other. For `semel verify`."""
        ...

    def close(self) -> None: ...


class SinkConnection(Connection, Protocol):
    """A sink that takes rows in one step."""

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        """Takes the delivery over: a higher epoch, and the position that the sink holds. What a former owner
        left undecided is decided when this returns a Claim (law 9). NotDone names who is in the way."""
        ...

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        """Rows [start, end) and the new position, in one step of the sink; there may be no rows. Raises RowRefused for
        a row that the sink will never take; it was not written then, and with `atomicity` BATCH nothing was."""
        ...


class LogConnection(SinkConnection, Protocol):
    """A sink that is a log itself: nothing replaces a record, and there is an order to compare."""

    def entries(self) -> Iterator[tuple[bytes | None, bytes | None]]:
        """Every committed record, (key, value), a delete as (key, None); partition by partition in order. For
        `semel verify`."""
        ...


class TwoPhaseConnection(Connection, Protocol):
    """A sink that prepares, and commits what the log has decided (contract TwoPhase). The caller owns the delivery's
    transactional id, and has read the decisions since it initialised it."""

    def take_over(
        self, delivery: DeliveryId, log: LogIdentity, latest: Attempt, decided: bool
    ) -> Claim | NotDone | Fenced:
        """Settles what former owners left, then takes the delivery over. `latest` is the last attempt that was written
        down, and `decided` whether it is to be committed: then it is, now or before. Everything else of this delivery
        that is not later is rolled back. Fenced: something later is prepared, so the caller has read too little;
        that was not touched. The claim's position is the end of what the sink holds committed, -1 where it cannot
        tell. With the claim nothing earlier is in doubt."""
        ...

    def prepare_cut(self, claim: Claim, attempt: Attempt, run: str, rows: Sequence[Row]) -> Outcome:
        """Done: `commit_cut` of it will succeed, whoever calls it, whatever crashes in between; nobody sees it yet.
        Raises RowRefused for a row that the sink will never take; nothing is prepared then."""
        ...

    def commit_cut(self, claim: Claim, attempt: Attempt) -> Outcome:
        """What was prepared under this name is visible, as a whole; Done also when it was so before. Raises Diverged
        when the sink holds it neither prepared nor committed."""
        ...

    def abandon(self, claim: Claim, attempt: Attempt) -> None:
        """Rolls back our own attempt, of which the log said that it will never be decided. As far as it can be done:
        the next owner does the rest."""
        ...

    def in_doubt(self) -> Sequence[str]:
        """What is prepared here under this sink's names, by whomever; for people, and for `semel verify`."""
        ...


class Operated(Protocol):
    """What `semel sink` asks of the connection of a sink that remembers positions. No claim is made."""

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        """Every partition that the sink knows of this delivery, by number; none where nothing was delivered yet.
        Changes nothing."""
        ...

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        """Each partition of `to` stands there now, with its incarnation and log and under a higher epoch, so that who
        has claimed it before is fenced; if everything still was as in `seen`. Fenced: it was not, nothing has changed.
        Unknown: look again."""
        ...


class OperatedTwoPhase(Operated, Protocol):
    """The same of a sink that prepares. `move` is asked for when nothing is prepared and nobody can decide any more:
    what is prepared meanwhile is rolled back by it."""

    def left(self, app: str) -> Sequence[str] | NotDone:
        """The names of what is prepared of this delivery, of every partition and incarnation. Changes nothing."""
        ...


class Sink(Protocol[V_contra, Kind_co]):
    """An outside system as the user declares it: data, nothing is opened before `open`. `write` of a stream
    accepts a `Sink[V, Once]`, and a `Sink[V, Weak]` only with `accept=`."""

    @property
    def name(self) -> str:
        """Names the outbox (APP-NAME-outbox) and the delivery (group APP.NAME)."""
        ...

    @property
    def where(self) -> str:
        """For people: system, place and table. Never a secret."""
        ...

    @property
    def kind(self) -> type[Kind_co]: ...
    @property
    def contract(self) -> Contract: ...
    @property
    def key(self) -> tuple[str, ...] | None:
        """The fields of the value that identify a row, which a later value replaces; (): the stream's own key does;
        None: rows are appended."""
        ...

    def encode_key(self, value: V_contra) -> bytes | None:
        """The outbox is partitioned by this: equal sink keys give equal bytes. None when `key` names no field: the
        stream's own key partitions."""
        ...

    def encode_deleted(self, key: object) -> bytes:
        """The same for a row that goes away (value None): `key` is the stream's, one scalar for one key field,
        a tuple for several."""
        ...

    def encode_value(self, value: V_contra) -> bytes:
        """The value as the outbox carries it. Raises SinkError when it is nothing the sink could hold."""
        ...

    def renamed(self, suffix: str) -> Sink[V_contra, Kind_co]:
        """The same sink under tables (or names) of its own. For `semel verify`."""
        ...

    def open(self, steps: Steps) -> SinkConnection | TwoPhaseConnection: ...
