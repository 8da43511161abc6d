"""Kafka's default partitioner: murmur2 of the key, so that every client sends a key to the same partition."""

from __future__ import annotations

from typing import Final

_M: Final = 0x5BD1E995
_SEED: Final = 0x9747B28C


def murmur2(data: bytes) -> int:
    """Java's `Utils.murmur2`, as an unsigned 32-bit number."""
    size = len(data)
    h = _SEED ^ size
    tail = size & ~3
    for at in range(0, tail, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & 0xFFFFFFFF
        k = (k ^ (k >> 24)) * _M & 0xFFFFFFFF
        h = (h * _M & 0xFFFFFFFF) ^ k
    if tail != size:
        h = (h ^ int.from_bytes(data[tail:], "little")) * _M & 0xFFFFFFFF
    h = (h ^ (h >> 13)) * _M & 0xFFFFFFFF
    return h ^ (h >> 15)


def partition_for(key: bytes, partitions: int) -> int:
    """The partition of a key that is not null."""
    assert partitions > 0, partitions
    return (murmur2(key) & 0x7FFFFFFF) % partitions
