"""Kafka's record batch, format v2: parsed, checked, placed, decoded into columns, encoded from columns.

A `Batch` exists only if its length, magic, checksum and count were right, so nothing behind this module checks
them again. Whatever is wrong with the bytes is CorruptBatch (TruncatedBatch if they end too early), never another
exception. Per record work happens in two loops, `columns` and `encode`, without an object per record.

     0 base offset       8 length (of what follows)   12 leader epoch   16 magic 2   17 crc of everything after it
    21 attributes       23 last offset delta          27 base timestamp              35 max timestamp
    43 producer id      51 producer epoch             53 base sequence               57 count   61 records …

Attributes: 0-2 compression, 3 timestamps are append times, 4 transactional, 5 control, 6 delete horizon.
Base offset and leader epoch lie outside the checksum, so that a log can place a batch without touching the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from . import varint
from .codec import DECOMPRESSED_BYTES_MAX, Compression, compress, decompress
from .crc import crc32c
from .errors import CorruptBatch, TruncatedBatch

Buffer = bytes | bytearray | memoryview
Headers = Sequence[tuple[str, bytes | None]]

HEADER_BYTES: Final = 61
PREFIX_BYTES: Final = 12  # base offset and length; the length counts what follows it
_RECORD_BYTES_MIN: Final = 7  # length, attributes, two deltas, null key, null value, no headers: a byte each

COMPRESSION_MASK: Final = 0x07
APPEND_TIME: Final = 0x08
TRANSACTIONAL: Final = 0x10
CONTROL: Final = 0x20
DELETE_HORIZON: Final = 0x40

_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_AFTER_CRC: Final = struct.Struct(">hiqqqhii")
_PLACE: Final = struct.Struct(">qii")

NO_TIMESTAMP: Final = -1


class Batch:
    """The header of one batch and its bytes. `data` is the whole batch and is never changed."""

    # Written out, not a dataclass: mypyc compiles it to a native class.
    __slots__ = (
        "attributes",
        "base_offset",
        "base_sequence",
        "base_timestamp",
        "count",
        "crc",
        "data",
        "last_offset_delta",
        "leader_epoch",
        "max_timestamp",
        "producer_epoch",
        "producer_id",
    )

    def __init__(
        self,
        base_offset: int,
        leader_epoch: int,
        crc: int,
        attributes: int,
        last_offset_delta: int,
        base_timestamp: int,
        max_timestamp: int,
        producer_id: int,
        producer_epoch: int,
        base_sequence: int,
        count: int,
        data: memoryview,
    ) -> None:
        self.base_offset = base_offset
        self.leader_epoch = leader_epoch
        self.crc = crc
        self.attributes = attributes
        self.last_offset_delta = last_offset_delta
        self.base_timestamp = base_timestamp
        self.max_timestamp = max_timestamp
        self.producer_id = producer_id
        self.producer_epoch = producer_epoch
        self.base_sequence = base_sequence
        self.count = count
        self.data = data

    def __repr__(self) -> str:
        return (
            f"Batch(offsets {self.base_offset} to {self.last_offset}, {self.count} records, {self.size} bytes, "
            f"producer {self.producer_id}/{self.producer_epoch} from {self.base_sequence}, {self.attributes:#x})"
        )

    @property
    def last_offset(self) -> int:
        return self.base_offset + self.last_offset_delta

    @property
    def next_offset(self) -> int:
        return self.base_offset + self.last_offset_delta + 1

    @property
    def last_sequence(self) -> int:
        """-1 without sequences. They wrap to 0 after 2**31 - 1."""
        if self.base_sequence < 0:
            return -1
        return (self.base_sequence + self.last_offset_delta) & 0x7FFFFFFF

    @property
    def is_transactional(self) -> bool:
        return self.attributes & TRANSACTIONAL != 0

    @property
    def is_control(self) -> bool:
        return self.attributes & CONTROL != 0

    @property
    def is_append_time(self) -> bool:
        return self.attributes & APPEND_TIME != 0

    @property
    def compression(self) -> Compression:
        return Compression(self.attributes & COMPRESSION_MASK)

    @property
    def size(self) -> int:
        return len(self.data)


class Columns(NamedTuple):
    """The records of one batch, or of several in order."""

    offsets: Sequence[int]  # a range where nothing was compacted away
    timestamps: Sequence[int]  # ms since the epoch, -1 for none
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Headers] | None  # None: no record has any


# --- Headers --------------------------------------------------------------------------------------------------


def headers_only(data: Buffer, position: int = 0, *, where: str = "") -> Batch:
    """As `parse`, but the checksum is taken on trust: for bytes that this process has checked before."""
    view = data if isinstance(data, memoryview) else memoryview(data)
    available = len(view) - position
    if available < HEADER_BYTES:
        raise TruncatedBatch(_at(where, position, f"needs {HEADER_BYTES} bytes for its header, {available} are there"))
    (
        base_offset,
        length,
        leader_epoch,
        magic,
        crc,
        attributes,
        last_offset_delta,
        base_timestamp,
        max_timestamp,
        producer_id,
        producer_epoch,
        base_sequence,
        count,
    ) = _HEADER.unpack_from(view, position)
    if magic != 2:
        raise CorruptBatch(_at(where, position, f"has format {magic}; only record batch v2 (Kafka 0.11 on) is known"))
    size = length + PREFIX_BYTES
    if size < HEADER_BYTES:
        raise CorruptBatch(_at(where, position, f"claims {size} bytes, fewer than its header has"))
    if size > available:
        raise TruncatedBatch(_at(where, position, f"claims {size} bytes, {available} are there"))
    # After compaction a batch can hold fewer records than offsets (KIP-98), even none; never more.
    if not 0 <= count <= last_offset_delta + 1:
        raise CorruptBatch(_at(where, position, f"claims {count} records for {last_offset_delta + 1} offsets"))
    codec = attributes & COMPRESSION_MASK
    if codec > Compression.ZSTD:
        raise CorruptBatch(_at(where, position, f"is compressed with codec {codec}; Kafka defines 0 to 4"))
    if codec == 0 and count * _RECORD_BYTES_MIN > size - HEADER_BYTES:
        raise CorruptBatch(_at(where, position, f"claims {count} records in {size - HEADER_BYTES} bytes"))
    return Batch(
        base_offset,
        leader_epoch,
        crc,
        attributes,
        last_offset_delta,
        base_timestamp,
        max_timestamp,
        producer_id,
        producer_epoch,
        base_sequence,
        count,
        view[position : position + size],
    )


def parse(data: Buffer, position: int = 0, *, where: str = "") -> Batch:
    """The batch at `position`, or CorruptBatch. `where` names the bytes in the message (a file, a partition)."""
    batch = headers_only(data, position, where=where)
    computed = crc32c(batch.data[21:])
    if computed != batch.crc:
        raise CorruptBatch(
            _at(
                where,
                position,
                f"(offset {batch.base_offset}, {batch.size} bytes) fails its checksum: "
                f"stored {batch.crc:#010x}, computed {computed:#010x}",
            )
        )
    return batch


def parse_all(data: Buffer, *, where: str = "", partial: bool = False) -> list[Batch]:
    """All batches of `data`, which they fill. `partial`: the last may be cut off, as in a fetch, and is left out."""
    view = memoryview(data)
    batches: list[Batch] = []
    position = 0
    while position < len(view):
        try:
            batch = parse(view, position, where=where)
        except TruncatedBatch:
            if partial:
                break
            raise
        batches.append(batch)
        position += batch.size
    return batches


def _at(where: str, position: int, what: str) -> str:
    return f"{where + ': ' if where else ''}batch at byte {position} {what}"


# --- Placing --------------------------------------------------------------------------------------------------


def placed_parts(batch: Batch | Buffer, base_offset: int, leader_epoch: int) -> tuple[bytes, memoryview]:
    """`placed` without copying the records: the first 16 bytes, and a view of the rest."""
    view = batch.data if isinstance(batch, Batch) else memoryview(batch)
    return _PLACE.pack(base_offset, len(view) - PREFIX_BYTES, leader_epoch), view[16:]


def placed(batch: Batch | Buffer, base_offset: int, leader_epoch: int) -> bytes:
    """One batch's bytes at its place in a partition. The checksum stays right: it covers neither field."""
    return b"".join(placed_parts(batch, base_offset, leader_epoch))


def stamped(batch: Batch, timestamp_ms: int) -> bytes:
    """The batch with the log's append time instead of its own (message.timestamp.type=LogAppendTime)."""
    out = bytearray(batch.data)
    struct.pack_into(">h", out, 21, batch.attributes | APPEND_TIME)
    struct.pack_into(">q", out, 35, timestamp_ms)
    struct.pack_into(">I", out, 17, crc32c(memoryview(out)[21:]))
    return bytes(out)


# --- Decoding -------------------------------------------------------------------------------------------------


def records_of(batch: Batch, limit: int = DECOMPRESSED_BYTES_MAX) -> bytes:
    """The bytes of the records, decompressed."""
    codec = batch.attributes & COMPRESSION_MASK
    return bytes(batch.data[HEADER_BYTES:]) if codec == 0 else decompress(codec, batch.data[HEADER_BYTES:], limit)


def columns(batch: Batch, *, limit: int = DECOMPRESSED_BYTES_MAX) -> Columns:
    """The records, checked to the last byte: lengths, deltas that rise, and as many as the header says."""
    data = records_of(batch, limit)
    try:
        return _columns(data, batch)
    except IndexError:
        raise TruncatedBatch(f"records of the batch at offset {batch.base_offset} end in mid-record") from None


def _columns(data: bytes, batch: Batch) -> Columns:
    base_offset = batch.base_offset
    base_timestamp = batch.base_timestamp
    count = batch.count
    size = len(data)
    timestamps: list[int] = []
    keys: list[bytes | None] = []
    values: list[bytes | None] = []
    deltas: list[int] | None = None  # only when offsets have gaps
    headers: list[Headers] | None = None
    add_timestamp = timestamps.append
    add_key = keys.append
    add_value = values.append
    at = 0
    for index in range(count):
        # Each varint in turn: one byte in line, two in line where that is usual, else the function.
        n = data[at]
        if n < 0x80:
            end = at + 1 + ((n >> 1) ^ -(n & 1))
            at += 2  # past the record's attributes too, which Kafka leaves unused
        else:
            m = data[at + 1]
            if m < 0x80:
                n = (n & 0x7F) | m << 7
                end = at + 2 + ((n >> 1) ^ -(n & 1))
                at += 3
            else:
                n, at = varint.decode(data, at, varint.INT_BYTES_MAX)
                end = at + n
                at += 1
        if end > size:
            raise TruncatedBatch(f"record {index} ends at byte {end} of {size}")

        n = data[at]
        if n < 0x80:
            at += 1
            add_timestamp(base_timestamp + ((n >> 1) ^ -(n & 1)))
        else:
            n, at = varint.decode(data, at)
            add_timestamp(base_timestamp + n)

        n = data[at]
        if n < 0x80:
            at += 1
            n = (n >> 1) ^ -(n & 1)
        else:
            m = data[at + 1]
            if m < 0x80:
                n = (n & 0x7F) | m << 7
                n = (n >> 1) ^ -(n & 1)
                at += 2
            else:
                n, at = varint.decode(data, at, varint.INT_BYTES_MAX)
        if deltas is not None:
            if n <= deltas[-1]:
                raise CorruptBatch(f"record {index} has offset delta {n} after {deltas[-1]}: offsets must rise")
            deltas.append(n)
        elif n != index:
            if n < index:
                raise CorruptBatch(f"record {index} has offset delta {n}: offsets must rise")
            deltas = list(range(index))
            deltas.append(n)

        n = data[at]
        if n == 1:
            at += 1
            add_key(None)
        else:
            if n < 0x80:
                at += 1
                n = (n >> 1) ^ -(n & 1)
            else:
                n, at = varint.decode(data, at, varint.INT_BYTES_MAX)
            if n < 0:
                raise CorruptBatch(f"record {index} has a key of {n} bytes")
            add_key(data[at : at + n])
            at += n

        n = data[at]
        if n == 1:
            at += 1
            add_value(None)
        else:
            if n < 0x80:
                at += 1
                n = (n >> 1) ^ -(n & 1)
            else:
                m = data[at + 1]
                if m < 0x80:
                    n = (n & 0x7F) | m << 7
                    n = (n >> 1) ^ -(n & 1)
                    at += 2
                else:
                    n, at = varint.decode(data, at, varint.INT_BYTES_MAX)
            if n < 0:
                raise CorruptBatch(f"record {index} has a value of {n} bytes")
            add_value(data[at : at + n])
            at += n

        if data[at] == 0:
            at += 1
            if headers is not None:
                headers.append(())
        else:
            record_headers, at = _headers(data, at, end)
            if headers is None:
                headers = [()] * index
            headers.append(record_headers)
        if at != end:
            raise CorruptBatch(f"record {index} ends at byte {end} of the records, its fields at {at}")
    if at != size:
        raise CorruptBatch(f"{count} records fill {at} of {size} bytes")
    if (deltas is not None and deltas[-1] > batch.last_offset_delta) or (
        deltas is None and count > batch.last_offset_delta + 1
    ):
        raise CorruptBatch(f"a record lies past the last offset delta {batch.last_offset_delta}")
    offsets: Sequence[int] = (
        range(base_offset, base_offset + count) if deltas is None else [base_offset + delta for delta in deltas]
    )
    if batch.attributes & APPEND_TIME:
        timestamps = [batch.max_timestamp] * count
    return Columns(offsets, timestamps, keys, values, headers)


def _headers(data: bytes, at: int, end: int) -> tuple[Headers, int]:
    count, at = varint.decode(data, at, varint.INT_BYTES_MAX)
    if not 0 < count <= end - at:
        raise CorruptBatch(f"a record claims {count} headers in {end - at} bytes")
    found: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        size, at = varint.decode(data, at, varint.INT_BYTES_MAX)
        if not 0 <= size <= end - at:
            raise CorruptBatch(f"a record header's name claims {size} bytes, {end - at} are there")
        # Kafka does not check the names it stores; escaped, a bad one survives being copied unchanged.
        name = data[at : at + size].decode("utf-8", "surrogateescape")
        at += size
        size, at = varint.decode(data, at, varint.INT_BYTES_MAX)
        if not -1 <= size <= end - at:
            raise CorruptBatch(f"record header {name!r} claims {size} bytes, {end - at} are there")
        if size < 0:
            found.append((name, None))
        else:
            found.append((name, data[at : at + size]))
            at += size
    return found, at


# --- Encoding -------------------------------------------------------------------------------------------------


def encode(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None = None,
    timestamps: Sequence[int] | int = NO_TIMESTAMP,
    headers: Sequence[Headers] | None = None,
    *,
    compression: Compression = Compression.NONE,
    base_offset: int = 0,
    producer_id: int = -1,
    producer_epoch: int = -1,
    base_sequence: int = -1,
    transactional: bool = False,
    control: bool = False,
    leader_epoch: int = 0,
) -> bytes:
    """One batch of at least one record. `timestamps`: one for all, or one each (ms since the epoch)."""
    count = len(values)
    assert count > 0, "a batch has at least one record"
    assert keys is None or len(keys) == count, (len(keys), count)
    assert headers is None or len(headers) == count, (len(headers), count)
    if isinstance(timestamps, int):
        base_timestamp = max_timestamp = timestamps
        deltas = None
    else:
        assert len(timestamps) == count, (len(timestamps), count)
        base_timestamp = timestamps[0]
        max_timestamp = max(timestamps)
        deltas = [timestamp - base_timestamp for timestamp in timestamps]
    records = _records(values, keys, deltas, headers)
    attributes = int(compression) | (TRANSACTIONAL if transactional else 0) | (CONTROL if control else 0)
    if compression:
        records = compress(compression, records)
    after = _AFTER_CRC.pack(
        attributes, count - 1, base_timestamp, max_timestamp, producer_id, producer_epoch, base_sequence, count
    )
    crc = crc32c(records, crc32c(after))
    prefix = struct.pack(">qiibI", base_offset, HEADER_BYTES - PREFIX_BYTES + len(records), leader_epoch, 2, crc)
    return b"".join((prefix, after, records))


def _records(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None,
    deltas: Sequence[int] | None,
    headers: Sequence[Headers] | None,
) -> bytes:
    small = varint.SMALL
    small_max = varint.SMALL_MAX
    encoded = varint.encoded
    parts: list[bytes] = []
    key: bytes | None
    head = b"\x00\x00"  # attributes, timestamp delta
    for index, value in enumerate(values):
        if deltas is not None:
            head = b"\x00" + encoded(deltas[index])
        offset = small[index] if index < small_max else varint.encode(index)
        key = None if keys is None else keys[index]
        if key is None:
            key = b""
            key_size = b"\x01"
        else:
            key_size = encoded(len(key))
        if value is None:
            value = b""
            value_size = b"\x01"
        else:
            n = len(value)
            value_size = small[n] if n < small_max else varint.encode(n)
        tail = b"\x00" if headers is None else _encode_headers(headers[index])
        size = len(head) + len(offset) + len(key_size) + len(key) + len(value_size) + len(value) + len(tail)
        parts += (
            small[size] if size < small_max else varint.encode(size),
            head,
            offset,
            key_size,
            key,
            value_size,
            value,
            tail,
        )
    return b"".join(parts)


def _encode_headers(headers: Headers) -> bytes:
    if not headers:
        return b"\x00"
    parts = [varint.encoded(len(headers))]
    for name, value in headers:
        raw = name.encode("utf-8", "surrogateescape")
        parts += (varint.encoded(len(raw)), raw)
        if value is None:
            parts.append(b"\x01")
        else:
            parts += (varint.encoded(len(value)), value)
    return b"".join(parts)
