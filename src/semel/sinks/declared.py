"""What every sink of rows with named fields says of itself in the same way: its name, its key, and how both travel.

Invariant: the bytes of a key come from `sink.encode_key` alone, for writes and deletes alike (FAULTS S15).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from semel.sinks.sink import encode_deleted, encode_key, encode_row


class Declared(ABC):
    """Base of a declaration. Who makes one sets `_name` and `_key` (None: every value is a row of its own)."""

    _name: str
    _key: tuple[str, ...] | None = None

    @property
    @abstractmethod
    def where(self) -> str:
        """For people: system, place and table. Never a secret."""

    @property
    def name(self) -> str:
        return self._name

    @property
    def key(self) -> tuple[str, ...] | None:
        return self._key

    def encode_key(self, value: object) -> bytes | None:
        return None if self._key is None else encode_key(self._key, value)

    def encode_deleted(self, key: object) -> bytes:
        return encode_deleted(self._key, key, self.where)

    def encode_value(self, value: object) -> bytes:
        return encode_row(value)


class DeclaredByKey(Declared):
    """One that has a row per key, always."""

    _key: tuple[str, ...]

    @property
    def key(self) -> tuple[str, ...]:
        return self._key
