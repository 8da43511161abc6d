"""Varints, markers and the partitioner against Kafka's own values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semel.record import CorruptBatch, encode, murmur2, parse, parse_marker, partition_for, varint


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (0, "00"),
        (-1, "01"),
        (1, "02"),
        (63, "7e"),
        (-64, "7f"),
        (64, "8001"),
        (8191, "fe7f"),
        (8192, "808001"),
        (2**31 - 1, "feffffff0f"),
        (-(2**31), "ffffffff0f"),
        (2**63 - 1, "feffffffffffffffff01"),
        (-(2**63), "ffffffffffffffffff01"),
    ],
)
def test_varints_are_kafka_s(value: int, data: str) -> None:
    """The vectors of Kafka's ByteUtilsTest."""
    raw = bytes.fromhex(data)
    assert varint.encode(value) == raw == varint.encoded(value)
    assert varint.decode(raw, 0) == (value, len(raw))


@given(st.integers(-(2**63), 2**63 - 1), st.binary(max_size=3))
def test_varints_come_back(value: int, before: bytes) -> None:
    """decode(encode(n)) is n, wherever it lies."""
    raw = varint.encoded(value)
    assert varint.decode(before + raw, len(before)) == (value, len(before) + len(raw))
    for size in range(len(raw)):
        with pytest.raises(CorruptBatch):
            varint.decode(raw[:size], 0)


@pytest.mark.parametrize("data", ["ff" * 10 + "01", "ff" * 11, "ff" * 9 + "7f"])
def test_varints_too_long(data: str) -> None:
    """More than 64 bits is nobody's number."""
    with pytest.raises(CorruptBatch):
        varint.decode(bytes.fromhex(data), 0)


@pytest.mark.parametrize("data", ["8080808080" + "01", "ffffffff1f"])
def test_ints_too_long(data: str) -> None:
    """More than 32 bits is no length."""
    with pytest.raises(CorruptBatch):
        varint.decode(bytes.fromhex(data), 0, varint.INT_BYTES_MAX)


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_java_s(key: bytes, hashed: int) -> None:
    """The vectors of Kafka's UtilsTest."""
    assert murmur2(key) == hashed & 0xFFFFFFFF
    assert partition_for(key, 7) == (hashed & 0x7FFFFFFF) % 7


def test_other_control_records_are_not_markers() -> None:
    """A leader change (type 2) decides nothing; a broken key is the sender's fault."""
    assert parse_marker(parse(encode([b""], [b"\x00\x00\x00\x02"], control=True))) is None
    for key in (None, b"", b"\x00\x00\x00", b"\xff\xff\x00\x01"):
        with pytest.raises(CorruptBatch):
            parse_marker(parse(encode([b"\x00\x00\x00\x00\x00\x01"], [key], control=True)))
    with pytest.raises(CorruptBatch):
        parse_marker(parse(encode([None], [b"\x00\x00\x00\x01"], control=True)))
