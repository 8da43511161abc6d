"""Local state on RocksDB: one database per worker, all its stores in it.

Invariant: after any crash a store holds exactly the changes up to the mark read back from it: both are written
in one batch into one column family (with two families, flushing one left a mark without its data), and the
write-ahead log is on, so `kill -9` loses nothing and a power cut loses a suffix of whole batches, which the
changelog gives back.

One database, not one per task: it opens in 5 ms where 64 stores of their own took 57 MiB and 400 file descriptors.
A store is a range of keys: its name, a zero byte, its partition, then `m` (the mark) or `v` and the user's key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rocksdict import Options, Rdict, ReadOptions, WriteBatch

from semel.errors import SemelError

# What recovery has to read again after a crash, at most; also the memory of the write buffers.
WAL_BYTES_MAX = 64 * 1024 * 1024


class StoreError(SemelError):
    """The state folder cannot be used. State is a copy of the changelog: removing the folder costs a rebuild."""


class Stores:
    """The database of one worker."""

    def __init__(self, folder: Path) -> None:
        options = Options(raw_mode=True)  # the default pickles
        options.create_if_missing(True)
        options.set_max_total_wal_size(WAL_BYTES_MAX)
        options.set_write_buffer_size(WAL_BYTES_MAX // 2)
        options.set_keep_log_file_num(2)
        options.set_max_open_files(256)
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = Rdict(str(folder), options)
        except Exception as refused:  # rocksdict raises bare Exception
            if "No space left" in str(refused):
                raise StoreError(
                    f"{folder}: the disk is full, the local state cannot be opened. Free space, then start again."
                ) from None
            raise StoreError(
                f"{folder}: the local state cannot be opened: {refused}. If no other process uses it, remove the "
                "folder: the state is rebuilt from its changelog."
            ) from None

    def store(self, name: str, partition: int) -> RocksStore:
        """`ports.Stores`."""
        return RocksStore(self._db, name, partition, self.folder)

    def close(self) -> None:
        self._db.close()


class RocksStore:
    """`ports.Store` of one task."""

    def __init__(self, db: Rdict, name: str, partition: int, folder: Path) -> None:
        assert "\0" not in name, name
        self._db = db
        self._where = f"{folder}: {name}-{partition}"
        prefix = name.encode() + b"\0" + partition.to_bytes(4, "big")
        self._mark_key, self._prefix, self._end = prefix + b"m", prefix + b"v", prefix + b"w"
        self._bounded = ReadOptions()
        self._bounded.set_iterate_upper_bound(self._end)

    def mark(self) -> bytes | None:
        found: bytes | None = self._db.get(self._mark_key)
        return found

    def get(self, key: bytes) -> bytes | None:
        found: bytes | None = self._db.get(self._prefix + key)
        return found

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        skip = len(self._prefix)
        found: Any = self._db.items(from_key=self._prefix, read_opt=self._bounded)
        for key, value in found:
            yield key[skip:], value

    def write(self, changes: Mapping[bytes, bytes | None], mark: bytes) -> None:
        batch = WriteBatch(raw_mode=True)
        prefix = self._prefix
        for key, value in changes.items():
            if value is None:
                batch.delete(prefix + key)
            else:
                batch.put(prefix + key, value)
        batch.put(self._mark_key, mark)
        self._written(batch)

    def clear(self) -> None:
        batch = WriteBatch(raw_mode=True)
        batch.delete_range(self._prefix, self._end)
        batch.delete(self._mark_key)
        self._written(batch)

    def close(self) -> None:
        """Nothing of its own: the database closes with its worker."""

    def _written(self, batch: WriteBatch) -> None:
        try:
            self._db.write(batch)
        except Exception as failed:
            raise StoreError(f"{self._where}: cannot be written: {failed}. Is the disk full?") from None
