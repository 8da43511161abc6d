"""Kafka's varints: zigzag, seven bits a byte, low bits first. At most five bytes for an int, ten for a long.

The hot loops of batch.py read one- and two-byte varints in line and come here for longer ones; small values are
encoded by table. A varint that does not end, or exceeds its width, is CorruptBatch: never another exception.
"""

from __future__ import annotations

from typing import Final

from .errors import CorruptBatch, TruncatedBatch

INT_BYTES_MAX: Final = 5
LONG_BYTES_MAX: Final = 10


def decode(data: bytes, position: int, bytes_max: int = LONG_BYTES_MAX) -> tuple[int, int]:
    """The value at `position` and the position after it."""
    raw = 0
    shift = 0
    for at in range(position, position + bytes_max):
        if at >= len(data):
            raise TruncatedBatch(f"varint at byte {position} of the records is cut off by their end")
        byte = data[at]
        raw |= (byte & 0x7F) << shift
        if byte < 0x80:
            if raw >> (32 if bytes_max == INT_BYTES_MAX else 64):
                break
            return (raw >> 1) ^ -(raw & 1), at + 1
        shift += 7
    raise CorruptBatch(f"varint at byte {position} of the records exceeds its {bytes_max} bytes")


def encode(value: int) -> bytes:
    raw = (value << 1) ^ (value >> 63)
    out = bytearray()
    while raw > 0x7F:
        out.append(raw & 0x7F | 0x80)
        raw >>= 7
    out.append(raw)
    return bytes(out)


# Lengths and deltas of ordinary records: 16 KB batches of small records never leave this table.
SMALL_MAX: Final = 4096
SMALL: Final[tuple[bytes, ...]] = tuple(encode(value) for value in range(SMALL_MAX))


def encoded(value: int) -> bytes:
    """As `encode`, from the table where it can be."""
    return SMALL[value] if 0 <= value < SMALL_MAX else encode(value)
