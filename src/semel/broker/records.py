"""The durable records: everything the broker may know after a restart is one of these.

Encoded by msgspec as tagged arrays (MessagePack), they are the meta of a journal entry; a batch is its payload, so
its bytes are neither copied nor encoded again. Invariant: a record says what *is* from now on, never what to
compute, so that applying a checkpoint's records over the state they describe changes nothing.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from semel.errors import SemelError
from semel.log.snapshot import PartitionSnapshot


class TxnState(IntEnum):
    EMPTY = 0
    ONGOING = 1
    PREPARE_COMMIT = 2
    PREPARE_ABORT = 3
    COMPLETE_COMMIT = 4
    COMPLETE_ABORT = 5

    @property
    def label(self) -> str:
        """As Kafka's tools name it."""
        return "".join(word.capitalize() for word in self.name.split("_"))


# From any state a state may follow itself only by a new epoch (InitProducerId) or more partitions (ONGOING).
TRANSITIONS: Final[dict[TxnState, frozenset[TxnState]]] = {
    TxnState.EMPTY: frozenset({TxnState.EMPTY, TxnState.ONGOING}),
    TxnState.ONGOING: frozenset({TxnState.ONGOING, TxnState.PREPARE_COMMIT, TxnState.PREPARE_ABORT}),
    TxnState.PREPARE_COMMIT: frozenset({TxnState.COMPLETE_COMMIT}),
    TxnState.PREPARE_ABORT: frozenset({TxnState.COMPLETE_ABORT}),
    TxnState.COMPLETE_COMMIT: frozenset({TxnState.EMPTY, TxnState.ONGOING}),
    TxnState.COMPLETE_ABORT: frozenset({TxnState.EMPTY, TxnState.ONGOING}),
}

PartitionKey = tuple[int, int]  # topic number, partition index


class _Durable(msgspec.Struct, frozen=True, array_like=True):
    """Fields may be added at the end, with a default, never changed: old journals are read for ever."""


class Run(_Durable, frozen=True, tag="run"):
    """A start of the broker. Its number is the leader epoch of every partition while it lasts."""

    number: int
    id: str  # random, hex: a restored folder that starts again has the number but not the id (FAULTS S12)
    cluster_id: str
    started_ms: int


class TopicCreated(_Durable, frozen=True, tag="topic"):
    """Also says how many partitions there are from now on, and the topic's own configuration."""

    number: int  # never given out again
    name: str
    id: bytes  # UUID
    partitions: int
    config: dict[str, str]


class TopicDeleted(_Durable, frozen=True, tag="topic-"):
    number: int


class BrokerConfig(_Durable, frozen=True, tag="config"):
    """Settings of the broker that were changed while it ran, all of them."""

    config: dict[str, str]


class Append(_Durable, frozen=True, tag="a"):
    """The payload is one batch, at its place."""

    topic: int
    partition: int
    base_offset: int


class StartOffset(_Durable, frozen=True, tag="start"):
    """Records below are gone: DeleteRecords or retention."""

    topic: int
    partition: int
    offset: int


class PartitionState(_Durable, frozen=True, tag="partition"):
    """Checkpoint only: the partition without its bytes, which its segments hold."""

    topic: int
    partition: int
    snapshot: PartitionSnapshot


class ProducerIds(_Durable, frozen=True, tag="pids"):
    """Ids below `next` have been given out."""

    next: int


class TopicNumbers(_Durable, frozen=True, tag="numbers"):
    """Checkpoint only: topic numbers below `next` have been given out, some to topics that are gone."""

    next: int


class Transaction(_Durable, frozen=True, tag="txn"):
    """One transactional id, all that is known of it."""

    id: str
    producer_id: int
    epoch: int
    last_producer_id: int  # before the last rotation, -1: none (KIP-360: recognises a retry over the edge)
    last_epoch: int  # the epoch that asked for the present one, -1: no one did (KIP-360)
    timeout_ms: int
    state: TxnState
    started_ms: int  # of the open transaction, -1
    updated_ms: int
    partitions: tuple[PartitionKey, ...] = ()
    groups: tuple[str, ...] = ()  # whose offsets may be committed in it


class GroupGeneration(_Durable, frozen=True, tag="generation"):
    """A generation was handed to members. It is never used again, even if none of them comes back with it."""

    group: str
    generation: int


class GroupState(_Durable, frozen=True, tag="group"):
    """Checkpoint only: a group's offsets and membership as `__consumer_offsets` left them."""

    group: str
    generation: int
    metadata: bytes | None  # the value of its last GroupMetadata record
    offsets: tuple[tuple[str, int, int, bytes], ...]  # topic, partition, offset in the log, OffsetCommit value
    pending: tuple[tuple[int, str, int, int, bytes], ...]  # producer id, then the same


Record = (
    Run
    | TopicCreated
    | TopicDeleted
    | BrokerConfig
    | Append
    | StartOffset
    | PartitionState
    | ProducerIds
    | TopicNumbers
    | Transaction
    | GroupGeneration
    | GroupState
)


class UnknownRecord(SemelError):
    """The journal was written by a newer semel, or is not a journal of ours."""


_encoder = msgspec.msgpack.Encoder()
_decoder: Final[msgspec.msgpack.Decoder[Record]] = msgspec.msgpack.Decoder(Record)

encode = _encoder.encode


def decode(meta: bytes) -> Record:
    try:
        return _decoder.decode(meta)
    except msgspec.MsgspecError as reason:
        raise UnknownRecord(
            f"the journal holds a record that this semel does not know ({reason}). "
            "A newer semel has probably written it: start that one."
        ) from None
