"""`__consumer_offsets` in Kafka's own schemas."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semel.broker.offset_records import (
    GroupKey,
    Member,
    Metadata,
    Offset,
    OffsetKey,
    UnreadableOffsets,
    decode_key,
    decode_metadata,
    decode_offset,
    encode_key,
    encode_metadata,
    encode_offset,
    partition_for,
)

INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(max_size=30)
MEMBERS = st.builds(
    Member, TEXT, st.none() | TEXT, TEXT, TEXT, INT32, INT32, st.binary(max_size=20), st.binary(max_size=20)
)


@given(st.builds(OffsetKey, TEXT, TEXT, INT32) | st.builds(GroupKey, TEXT))
def test_keys_come_back(key: OffsetKey | GroupKey) -> None:
    """What is encoded is read back equal."""
    assert decode_key(encode_key(key)) == key


@given(st.builds(Offset, INT64, INT32, TEXT, INT64))
def test_offsets_come_back(offset: Offset) -> None:
    """What is encoded is read back equal."""
    assert decode_offset(encode_offset(offset)) == offset


@given(
    st.builds(
        Metadata, TEXT, INT32, st.none() | TEXT, st.none() | TEXT, INT64, st.lists(MEMBERS, max_size=3).map(tuple)
    )
)
def test_groups_come_back(group: Metadata) -> None:
    """What is encoded is read back equal."""
    assert decode_metadata(encode_metadata(group)) == group


def test_the_bytes_are_kafkas() -> None:
    """Written by Apache Kafka 4.3.1's schemas by hand: key version 1, value version 3."""
    assert encode_key(OffsetKey("g", "t", 1)) == bytes.fromhex("0001 0001 67 0001 74 00000001")
    assert encode_offset(Offset(5, -1, "m", 9)) == bytes.fromhex(
        "0003 0000000000000005 ffffffff 0001 6d 0000000000000009"
    )
    assert encode_key(GroupKey("g")) == bytes.fromhex("0002 0001 67")


@pytest.mark.parametrize(("group", "partition"), [("g", 3), ("console-consumer-1", 0), ("", 0), ("größe", 36)])
def test_groups_lie_where_kafka_puts_them(group: str, partition: int) -> None:
    """Java's String.hashCode, without its sign, modulo the partitions."""
    code = 0
    for unit in group:
        code = (31 * code + ord(unit)) & 0xFFFFFFFF
    assert partition_for(group, 50) == (code & 0x7FFFFFFF) % 50
    if group == "g":
        assert partition_for(group, 50) == partition


@given(st.integers(0, 4), st.binary(max_size=40))
def test_garbage_is_a_sentence_not_a_traceback(version: int, data: bytes) -> None:
    """Any bytes are read or refused by name."""
    for decode in (decode_key, decode_offset, decode_metadata):
        with suppress(UnreadableOffsets):
            decode(bytes((0, version)) + data)
