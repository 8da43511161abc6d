"""Bytes: Kafka's record batch v2, its codecs, its control markers and its partitioner."""

from __future__ import annotations

from .batch import (
    Batch,
    Columns,
    Headers,
    columns,
    encode,
    headers_only,
    parse,
    parse_all,
    placed,
    placed_parts,
    records_of,
    stamped,
)
from .codec import Compression
from .control import Marker, marker, parse_marker
from .crc import crc32c
from .errors import CorruptBatch, TruncatedBatch
from .murmur2 import murmur2, partition_for

__all__ = [
    "Batch",
    "Columns",
    "Compression",
    "CorruptBatch",
    "Headers",
    "Marker",
    "TruncatedBatch",
    "columns",
    "crc32c",
    "encode",
    "headers_only",
    "marker",
    "murmur2",
    "parse",
    "parse_all",
    "parse_marker",
    "partition_for",
    "placed",
    "placed_parts",
    "records_of",
    "stamped",
]
