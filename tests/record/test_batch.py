"""Batches: any columns come back under any codec, and damaged bytes are CorruptBatch, never anything else."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

import cramjam
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from semel.record import (
    Columns,
    Compression,
    CorruptBatch,
    TruncatedBatch,
    columns,
    crc32c,
    encode,
    headers_only,
    marker,
    parse,
    parse_all,
    parse_marker,
    placed,
    placed_parts,
    stamped,
)
from semel.record.codec import compress, decompress

nullable = st.none() | st.binary(max_size=200) | st.integers(0, 20_000).map(lambda n: b"ab" * n)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=70)
header_lists = st.lists(st.tuples(names, st.none() | st.binary(max_size=20)), max_size=4)
moments = st.integers(0, 2**61)
records = st.lists(st.tuples(nullable, nullable, moments, header_lists), min_size=1, max_size=80)
codecs = st.sampled_from(Compression)

A_BATCH = encode(
    [b"value", None, b"x" * 300],
    [b"key", b"", None],
    [1_700_000_000_000, 1_700_000_000_005, 1_699_999_999_999],
    [[("name", b"1")], [], []],
    base_offset=7,
    producer_id=1,
    producer_epoch=0,
    base_sequence=0,
)
IN_EVERY_CODEC = [
    encode([b"value", None, b"x" * 300], [b"key", b"", None], 5, [[("n", b"1")], [], []], compression=codec)
    for codec in Compression
]


def resealed(data: bytes | bytearray) -> bytes:
    """The bytes with the checksum they should have: what a hostile or broken client can send."""
    out = bytearray(data)
    struct.pack_into(">i", out, 8, len(out) - 12)
    struct.pack_into(">I", out, 17, crc32c(bytes(out[21:])))
    return bytes(out)


@settings(deadline=None, max_examples=150)
@given(records, codecs, st.integers(0, 2**62), st.booleans())
def test_any_columns_come_back(
    rows: list[tuple[bytes | None, bytes | None, int, list[tuple[str, bytes | None]]]],
    codec: Compression,
    base_offset: int,
    transactional: bool,
) -> None:
    """decode(encode(columns)) is columns, whatever they hold and however they are compressed."""
    keys = [row[0] for row in rows]
    values = [row[1] for row in rows]
    timestamps = [row[2] for row in rows]
    headers = [row[3] for row in rows]
    data = encode(
        values,
        keys,
        timestamps,
        headers,
        compression=codec,
        base_offset=base_offset,
        producer_id=9,
        producer_epoch=2,
        base_sequence=2**31 - 1,
        transactional=transactional,
    )
    batch = parse(data)
    found = columns(batch)
    assert list(found.keys) == keys
    assert list(found.values) == values
    assert list(found.timestamps) == timestamps
    assert [list(h) for h in found.headers or [()] * len(rows)] == headers
    assert list(found.offsets) == list(range(base_offset, base_offset + len(rows)))
    assert batch.max_timestamp == max(timestamps)
    assert batch.next_offset == base_offset + len(rows)
    assert batch.last_sequence == (len(rows) - 2 if len(rows) > 1 else 2**31 - 1)
    assert batch.is_transactional == transactional
    assert batch.compression == codec


def test_large_batches_come_back() -> None:
    """More records, and longer ones, than the tables of small varints hold."""
    values = [b"v" * (i % 7) for i in range(20_000)] + [b"w" * 3_000_000]
    found = columns(parse(encode(values, None, list(range(20_001)))))
    assert list(found.values) == values
    assert list(found.timestamps) == list(range(20_001))
    assert found.headers is None and set(found.keys) == {None}


@pytest.mark.parametrize("data", IN_EVERY_CODEC)
def test_every_truncation_is_refused(data: bytes) -> None:
    """A batch cut anywhere is TruncatedBatch; `parse_all(partial=True)` leaves it out and keeps what is before it."""
    for size in range(len(data)):
        with pytest.raises(TruncatedBatch):
            parse(data[:size])
        assert [b.size for b in parse_all(A_BATCH + data[:size], partial=True)] == [len(A_BATCH)]


@pytest.mark.parametrize("data", [A_BATCH, *IN_EVERY_CODEC, marker(True, 1, 0, 5, 9)])
def test_every_flipped_bit_is_refused(data: bytes) -> None:
    """One wrong bit anywhere is CorruptBatch, but in base offset and leader epoch, which the checksum leaves out."""
    for bit in range(len(data) * 8):
        if bit // 8 < 8 or 12 <= bit // 8 < 16:
            continue
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        # Bytes follow, so that a length that grew finds enough of them.
        with pytest.raises(CorruptBatch):
            parse(bytes(damaged) + data * 3)


def test_flips_under_a_right_checksum_are_refused_or_read() -> None:
    """Whoever seals nonsense with a right checksum gets CorruptBatch or columns of the promised size: nothing else."""
    for data in [A_BATCH, *IN_EVERY_CODEC]:
        for bit in range(21 * 8, len(data) * 8):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            read_or_refused(resealed(damaged))


def test_cuts_under_a_right_checksum_are_refused() -> None:
    """Records that end too early are CorruptBatch, under every codec."""
    for data in [A_BATCH, *IN_EVERY_CODEC]:
        for size in range(61, len(data)):
            with pytest.raises(CorruptBatch):
                columns(parse(resealed(data[:size])))


@settings(deadline=None, max_examples=400)
@given(st.binary(max_size=400), st.integers(0, 7), st.integers(0, 5))
@example(b"\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01\xff\xff\xff\xff", 2, 1)
@example(b"\xff\xff\xff\xff\x0f" + b"x" * 40, 2, 1)  # a snappy block that claims 4 GB
@example(b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", 0, 1)
@example(bytes.fromhex("28b52ffda0ffffffffa50000"), 4, 1)
def test_any_bytes_under_a_right_checksum(junk: bytes, codec: int, count: int) -> None:
    """No records at all make the decoder raise anything but CorruptBatch."""
    header = bytearray(A_BATCH[:61])
    struct.pack_into(">hi", header, 21, codec, max(count - 1, 0))
    struct.pack_into(">i", header, 57, count)
    read_or_refused(resealed(header + junk))


@settings(deadline=None, max_examples=300)
@given(st.binary(min_size=1, max_size=300).map(lambda junk: resealed(A_BATCH[:61] + A_BATCH[61:90] + junk)))
def test_junk_after_good_records(data: bytes) -> None:
    """A batch is read as a whole or refused."""
    read_or_refused(data)


def read_or_refused(data: bytes) -> None:
    try:
        batch = parse(data)
        found = columns(batch, limit=1 << 20)
    except CorruptBatch as error:
        assert str(error)
        return
    assert {len(column) for column in found if column is not None} == {batch.count}
    if batch.count:
        assert batch.base_offset <= found.offsets[0] <= found.offsets[-1] <= batch.last_offset
    if batch.is_control:
        with contextlib.suppress(CorruptBatch):
            parse_marker(batch)


@pytest.mark.parametrize(
    "bomb",
    [
        compress(Compression.GZIP, bytes(1 << 24)),
        compress(Compression.SNAPPY, bytes(1 << 24)),
        compress(Compression.LZ4, bytes(1 << 24)),
        compress(Compression.ZSTD, bytes(1 << 24)),
        compress(Compression.GZIP, bytes(1 << 19)) * 32,  # members, each below the limit
        compress(Compression.ZSTD, bytes(1 << 19)) * 32,
    ],
)
def test_bombs_are_refused(bomb: bytes) -> None:
    """What would swell past the limit is CorruptBatch; exactly at the limit it is read."""
    codec = next(c for c in Compression if c and readable(c, bomb))
    with pytest.raises(CorruptBatch, match="more than"):
        decompress(codec, bomb, (1 << 24) - 1)
    assert decompress(codec, bomb, 1 << 24) == bytes(1 << 24)


def readable(codec: Compression, data: bytes) -> bool:
    try:
        decompress(codec, data)
    except CorruptBatch:
        return False
    return True


def test_raw_snappy_is_read() -> None:
    """librdkafka and Go clients write one raw block, without xerial's frames."""
    plain = b"abc" * 50_000
    assert decompress(Compression.SNAPPY, bytes(cramjam.snappy.compress_raw(plain))) == plain
    assert decompress(Compression.SNAPPY, compress(Compression.SNAPPY, plain)) == plain


def test_lz4_blocks_are_independent() -> None:
    """Java's reader refuses linked blocks: bit 5 of the frame's flags is set."""
    assert compress(Compression.LZ4, b"abc" * 100_000)[4] & 0x20


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31 - 1))
def test_placing_changes_two_fields(offset: int, epoch: int) -> None:
    """A placed batch is the same batch elsewhere, its checksum untouched; the parts copy nothing."""
    batch = parse(A_BATCH)
    moved = parse(placed(batch, offset, epoch)) if offset < 2**62 else headers_only(placed(A_BATCH, offset, epoch))
    assert (moved.base_offset, moved.leader_epoch) == (offset, epoch)
    assert moved.crc == batch.crc and bytes(moved.data[16:]) == A_BATCH[16:]
    prefix, rest = placed_parts(batch, offset, epoch)
    assert prefix + rest == moved.data and rest.obj is A_BATCH


def test_append_time() -> None:
    """A stamped batch has the log's time for all its records, and a right checksum."""
    batch = parse(stamped(parse(A_BATCH), 77))
    assert batch.is_append_time and batch.max_timestamp == 77
    assert list(columns(batch).timestamps) == [77, 77, 77]
    assert columns(batch)._replace(timestamps=()) == columns(parse(A_BATCH))._replace(timestamps=())


def change(name: str, at: int, form: str, value: int) -> tuple[str, Callable[[bytearray], None]]:
    return name, lambda data: struct.pack_into(form, data, at, value)


@pytest.mark.parametrize(
    ("words", "damage"),
    [
        change("format 1", 16, ">b", 1),
        change("codec 5", 21, ">h", 5),
        change("claims 4 records for 3", 57, ">i", 4),
        change("claims -1 records", 57, ">i", -1),
        change("claims 3 records for 2", 23, ">i", 1),
    ],
)
def test_headers_that_cannot_be(words: str, damage: Callable[[bytearray], None]) -> None:
    """The message says what is wrong with the header, and where it lies."""
    data = bytearray(A_BATCH)
    damage(data)
    with pytest.raises(CorruptBatch, match=words) as caught:
        parse(resealed(data), where="orders-0/00000000000000000007.log")
    assert "orders-0/00000000000000000007.log: batch at byte 0" in str(caught.value)


def test_counts_beyond_the_bytes_cost_nothing() -> None:
    """Two billion records in 300 bytes are refused by the header alone, and by their end when compressed."""
    for codec in (0, 4):
        data = bytearray(IN_EVERY_CODEC[codec])
        struct.pack_into(">i", data, 23, 2**31 - 2)
        struct.pack_into(">i", data, 57, 2**31 - 1)
        with pytest.raises(CorruptBatch):
            columns(parse(resealed(data)))


def test_a_batch_emptied_by_compaction() -> None:
    """Count 0 over many offsets: Kafka keeps such a batch for its producer's sequence."""
    data = bytearray(A_BATCH[:61])
    struct.pack_into(">i", data, 23, 9)
    struct.pack_into(">i", data, 57, 0)
    batch = parse(resealed(data))
    assert (batch.count, batch.next_offset, batch.last_sequence) == (0, 17, 9)
    assert columns(batch) == Columns(range(7, 7), [], [], [], None)


def test_header_names_that_are_not_utf8_survive_a_copy() -> None:
    """Kafka does not check names: a bad one is copied unchanged."""
    batch = parse(encode([b"v"], headers=[[("\udcff", b"1")]]))
    assert b"\xff" in bytes(batch.data)
    found = columns(batch)
    assert encode(found.values, found.keys, found.timestamps, found.headers) == bytes(batch.data)


def test_trusted_bytes_skip_the_checksum() -> None:
    """`headers_only` reads a header whose checksum is wrong: the caller says the bytes are its own."""
    damaged = bytearray(A_BATCH)
    damaged[-1] ^= 1
    assert headers_only(bytes(damaged)).count == 3
