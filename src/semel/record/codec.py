"""Compression of the records of a batch, as Kafka's clients write it and read it.

gzip, lz4 (frames with independent blocks: Java refuses linked ones), zstd, and snappy in both its shapes: one raw
block (librdkafka) and xerial frames (Java). Whatever comes in, decompression is bounded: a few bytes that swell
past the limit are CorruptBatch before the memory is spent, and so is anything a codec refuses.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from enum import IntEnum
from typing import Final

import cramjam

from .errors import CorruptBatch

Buffer = bytes | bytearray | memoryview


class Compression(IntEnum):
    """The low three bits of a batch's attributes."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4


# Kafka has no limit; a batch is at most a few MB on the wire and records compress ten- to hundredfold.
DECOMPRESSED_BYTES_MAX: Final = 128 << 20

_XERIAL_MAGIC: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER: Final = _XERIAL_MAGIC + b"\x00\x00\x00\x01\x00\x00\x00\x01"  # version 1, readable since 1
_XERIAL_BLOCK_BYTES: Final = 32 << 10  # what snappy-java cuts

# cramjam's text when the output buffer is too small: the one error that is not the data's fault.
_OUTPUT_FULL: Final = "failed to write whole buffer"


def compress(codec: Compression, data: bytes) -> bytes:
    """`data` in the form every Kafka client reads."""
    if codec == Compression.NONE:
        return data
    if codec == Compression.GZIP:
        return bytes(cramjam.gzip.compress(data, level=6))
    if codec == Compression.SNAPPY:
        return _compress_xerial(data)
    if codec == Compression.LZ4:
        compressor = cramjam.lz4.Compressor(level=1, content_checksum=False, block_linked=False)
        compressor.compress(data)
        return bytes(compressor.finish())
    assert codec == Compression.ZSTD, codec
    return bytes(cramjam.zstd.compress(data, level=3))


def decompress(codec: int, data: Buffer, limit: int = DECOMPRESSED_BYTES_MAX) -> bytes:
    """What `data` held before it was compressed, at most `limit` bytes; CorruptBatch for anything else."""
    if codec == Compression.NONE:
        return bytes(data)
    try:
        if codec == Compression.GZIP:
            return _gunzip(bytes(data), limit)
        if codec == Compression.SNAPPY:
            return _decompress_snappy(bytes(data), limit)
        if codec == Compression.LZ4:
            return _grow(cramjam.lz4.decompress_into, bytes(data), limit)
        if codec == Compression.ZSTD:
            return _grow(cramjam.zstd.decompress_into, bytes(data), limit)
    except (cramjam.DecompressionError, zlib.error) as error:
        raise CorruptBatch(f"records are not valid {Compression(codec).name.lower()}: {error}") from None
    raise CorruptBatch(f"records are compressed with codec {codec}, which Kafka does not define (0 to 4)")


def _too_large(limit: int) -> CorruptBatch:
    return CorruptBatch(f"records decompress to more than {limit} bytes; no client sends such a batch")


def _gunzip(data: bytes, limit: int) -> bytes:
    # zlib counts as it goes; Java and librdkafka write one member, others may write several.
    out = b""
    while data:
        member = zlib.decompressobj(wbits=31)
        out += member.decompress(data, limit - len(out) + 1)
        if len(out) > limit:
            raise _too_large(limit)
        if not member.eof:
            raise CorruptBatch("records are not valid gzip: the stream is cut off")
        data = member.unused_data
    return out


def _grow(into: Callable[[bytes, bytearray], int], data: bytes, limit: int) -> bytes:
    # Neither format must say how large it becomes: try, and try four times larger. Costs at most a third more.
    size = min(limit, max(1 << 16, 8 * len(data)))
    while True:
        out = bytearray(size)
        try:
            written = into(data, out)
        except cramjam.DecompressionError as error:
            if _OUTPUT_FULL not in str(error):
                raise
            if size >= limit:
                raise _too_large(limit) from None
            size = min(limit, size * 4)
        else:
            return bytes(memoryview(out)[:written])


def _compress_xerial(data: bytes) -> bytes:
    parts = [_XERIAL_HEADER]
    for start in range(0, len(data), _XERIAL_BLOCK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(data[start : start + _XERIAL_BLOCK_BYTES]))
        parts += (len(block).to_bytes(4, "big"), block)
    return b"".join(parts)


def _decompress_snappy(data: bytes, limit: int) -> bytes:
    if not data.startswith(_XERIAL_MAGIC):
        return _decompress_snappy_block(data, limit)
    if len(data) < len(_XERIAL_HEADER):
        raise CorruptBatch("records are not valid snappy: the xerial header is cut off")
    parts = []
    position = len(_XERIAL_HEADER)
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        position += 4
        if position + size > len(data):
            raise CorruptBatch(f"records are not valid snappy: a block of {size} bytes is cut off at {len(data)}")
        block = _decompress_snappy_block(data[position : position + size], limit)
        limit -= len(block)
        parts.append(block)
        position += size
    return b"".join(parts)


def _decompress_snappy_block(data: bytes, limit: int) -> bytes:
    # A block names its size first; cramjam would allocate whatever it names.
    if cramjam.snappy.decompress_raw_len(data) > limit:
        raise _too_large(limit)
    return bytes(cramjam.snappy.decompress_raw(data))
