"""The checksum of record batches and journal frames: CRC-32C (Castagnoli), in hardware where there is any."""

from __future__ import annotations

from crc32c import crc32c

__all__ = ["crc32c"]
