"""What the bytes of a batch can be wrong about. Whoever sent or stored them is at fault, never the reader."""

from __future__ import annotations


class CorruptBatch(Exception):
    """These bytes are not a record batch. Nothing of them may be used: a batch is right as a whole or refused."""


class TruncatedBatch(CorruptBatch):
    """The bytes end before the batch does: a torn tail, or a fetch cut at its size limit."""
