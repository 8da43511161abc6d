"""Control batches: the markers that end a transaction in a partition.

A marker is a real batch of one record at a real offset, transactional and control, without a sequence. Its key
names its type, its value the coordinator's epoch (Kafka's EndTxnMarker, version 0).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from .batch import Batch, columns, encode
from .errors import CorruptBatch

_KEY: Final = struct.Struct(">hh")  # version, type
_VALUE: Final = struct.Struct(">hi")  # version, coordinator epoch
_ABORT: Final = 0
_COMMIT: Final = 1


class Marker(NamedTuple):
    commit: bool
    coordinator_epoch: int


def marker(commit: bool, producer_id: int, producer_epoch: int, coordinator_epoch: int, timestamp: int) -> bytes:
    """The bytes of the batch that ends a transaction of this producer; placed by whoever appends it."""
    return encode(
        [_VALUE.pack(0, coordinator_epoch)],
        [_KEY.pack(0, _COMMIT if commit else _ABORT)],
        timestamp,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        transactional=True,
        control=True,
    )


def parse_marker(batch: Batch) -> Marker | None:
    """What a control batch decided; None for a control record of another kind (a leader change, a snapshot)."""
    assert batch.is_control, batch
    # Compaction may leave a control batch empty; its decision has then been applied long ago.
    if batch.count == 0:
        return None
    found = columns(batch)
    key, value = found.keys[0], found.values[0]
    if key is None or len(key) < _KEY.size:
        raise CorruptBatch(f"control batch at offset {batch.base_offset} has no type")
    version, kind = _KEY.unpack_from(key)
    if version < 0 or kind < 0:
        raise CorruptBatch(f"control batch at offset {batch.base_offset} has type {kind}, version {version}")
    if kind not in (_ABORT, _COMMIT):
        return None
    # Versions only ever add fields (KIP-98), so what version 0 has is where it was.
    if value is None or len(value) < _VALUE.size:
        raise CorruptBatch(f"marker at offset {batch.base_offset} has no coordinator epoch")
    return Marker(kind == _COMMIT, _VALUE.unpack_from(value)[1])
