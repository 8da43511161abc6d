"""The simulated disk: ports.Disk in memory, twin of `host/disk.py`, for worlds that lose power.

The fault model. Everything a process does is visible to it at once (the page cache). A power cut keeps what was synced.
Of what was not, the dice decide file by file: nothing, everything, a prefix torn at any byte, or any of its pages with
zeros in place of the others. A name (creation, rename, removal) is durable once its folder was synced; unsynced changes
of a folder survive up to some point in their order. A failed sync may drop any of the pages it should have written:
they read well until the crash, and no later sync brings them back (fsyncgate). A failed append may have written a part.

Invariant: one seed and one sequence of calls give one history. `crash()` is a power cut, `killed()` the end of the
process alone; both return the disk that the next start sees, and close the files of this one.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from semel.ports import Buffer, Random

PAGE_BYTES: Final = 4096


class PowerCut(BaseException):
    """Raised in the middle of an operation, at the point that was asked for; nothing catches it but the simulator."""


@dataclass(slots=True)
class Faults:
    """Chances of an operation to fail, and the size of the disk. May be changed while the disk is in use."""

    append: float = 0.0
    sync: float = 0.0
    torn: bool = False  # of a file not synced, a power cut always keeps a prefix torn at some byte
    capacity: int | None = None  # bytes of all files together


class _Inode:
    """What one file holds: for its process, and on the medium."""

    __slots__ = ("content", "durable", "pending")

    def __init__(self) -> None:
        self.content = bytearray()
        self.durable = bytearray()
        # (position, bytes) written, or (size, None) cut to, since the last sync, in order
        self.pending: list[tuple[int, bytes | None]] = []


def _put(target: bytearray, position: int, data: bytes | None) -> None:
    if data is None:
        del target[position:]
        if len(target) < position:
            target.extend(bytes(position - len(target)))
        return
    if len(target) < position:
        target.extend(bytes(position - len(target)))
    target[position : position + len(data)] = data


class File:
    __slots__ = ("_disk", "_inode", "path")

    def __init__(self, disk: Disk, inode: _Inode, path: str) -> None:
        self._disk = disk
        self._inode: _Inode | None = inode
        self.path = path

    def _open(self) -> _Inode:
        self._disk._alive()
        if self._inode is None:
            raise OSError(errno.EBADF, "file is closed", self.path)
        return self._inode

    def append(self, parts: Sequence[Buffer]) -> int:
        inode = self._open()
        data = b"".join(parts)
        self._disk._operation("append", self.path)
        room = self._disk._room()
        failure = 0
        if room is not None and len(data) > room:
            failure, data = errno.ENOSPC, data[: max(0, room)]
        elif self._disk._fails(self._disk.faults.append):
            failure = errno.ENOSPC if self._disk.dice.random() < 0.5 else errno.EIO
            data = data[: self._disk.dice.randint(0, len(data))]
        if data:
            inode.pending.append((len(inode.content), data))
            inode.content += data
        if failure:
            raise OSError(failure, "simulated", self.path)
        return len(inode.content)

    def read(self, position: int, size: int) -> bytes:
        return bytes(self._open().content[position : position + size])

    def size(self) -> int:
        return len(self._open().content)

    def sync(self) -> None:
        inode = self._open()
        self._disk._operation("sync", self.path)
        if self._disk._fails(self._disk.faults.sync):
            # What could not be written is marked clean all the same.
            for position, data in inode.pending:
                if data is None or self._disk.dice.random() < 0.5:
                    _put(inode.durable, position, data)
            inode.pending.clear()
            raise OSError(errno.EIO, "simulated", self.path)
        for position, data in inode.pending:
            _put(inode.durable, position, data)
        inode.pending.clear()

    def truncate(self, size: int) -> None:
        inode = self._open()
        self._disk._operation("truncate", self.path)
        inode.pending.append((size, None))
        _put(inode.content, size, None)

    def close(self) -> None:
        self._inode = None


# A change of a folder's names, not yet synced: applied to the names that the medium knows.
_Change = Callable[[dict[str, _Inode]], None]


class Disk:
    """`operations` counts appends, syncs, truncations and changes of names; the power fails at number `cut_at`, or at
    the kind of operation that `cut_on` names."""

    def __init__(self, dice: Random, faults: Faults | None = None) -> None:
        self.dice = dice
        self.faults = faults if faults is not None else Faults()
        self.operations = 0
        self.cut_at: int | None = None
        self.cut_on: tuple[str, str] | None = None  # the next such operation in this folder
        self.history: list[tuple[str, str]] = []  # (operation, path)
        self._names: dict[str, _Inode] = {}
        self._folders: set[str] = {""}
        self._durable_names: dict[str, _Inode] = {}
        self._durable_folders: set[str] = {""}
        self._changes: dict[str, list[_Change]] = {}  # by folder
        self._new_folders: dict[str, list[str]] = {}  # by parent folder
        self._dead = False

    # --- ports.Disk

    def open(self, path: str) -> File:
        self._alive()
        inode = self._names.get(path)
        if inode is None:
            self._operation("create", path)
            self._make_folders(_parent(path))
            created = inode = _Inode()
            self._names[path] = inode
            self._change(path, lambda names: names.__setitem__(path, created))
        return File(self, inode, path)

    def exists(self, path: str) -> bool:
        self._alive()
        return path in self._names or path in self._folders

    def list(self, folder: str) -> list[str]:
        self._alive()
        prefix = folder + "/" if folder else ""
        found = {name[len(prefix) :].split("/")[0] for name in self._names if name.startswith(prefix)}
        found |= {name[len(prefix) :].split("/")[0] for name in self._folders if name.startswith(prefix) and name}
        return sorted(found - {""})

    def remove(self, path: str) -> None:
        self._alive()
        if path in self._folders:
            if self.list(path):
                raise OSError(errno.ENOTEMPTY, "folder is not empty", path)
            self._operation("remove", path)
            # An empty folder that comes back after a crash harms nobody: gone at once.
            self._folders.discard(path)
            self._durable_folders.discard(path)
            return
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        self._operation("remove", path)
        del self._names[path]
        self._change(path, lambda names: _drop(names, path))

    def rename(self, old: str, new: str) -> None:
        self._alive()
        assert _parent(old) == _parent(new), (old, new, "only within one folder")
        if old not in self._names:
            raise FileNotFoundError(errno.ENOENT, "no such file", old)
        self._operation("rename", new)
        inode = self._names.pop(old)
        self._names[new] = inode

        def change(names: dict[str, _Inode]) -> None:
            names.pop(old, None)
            names[new] = inode

        self._change(new, change)

    def sync_folder(self, folder: str) -> None:
        self._alive()
        if folder not in self._folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", folder)
        self._operation("sync_folder", folder)
        if self._fails(self.faults.sync):
            raise OSError(errno.EIO, "simulated", folder)
        for change in self._changes.pop(folder, []):
            change(self._durable_names)
        self._durable_folders.update(self._new_folders.pop(folder, []))

    # --- The world

    def crash(self) -> Disk:
        """A power cut: what the next start finds on the medium."""
        names = dict(self._durable_names)
        for folder in sorted(self._changes):
            changes = self._changes[folder]
            for change in changes[: self.dice.randint(0, len(changes))]:
                change(names)
        folders = set(self._durable_folders)
        for parent in sorted(self._new_folders):
            folders.update(name for name in self._new_folders[parent] if self.dice.random() < 0.5)
        after = self._successor()
        after._folders = {folder for folder in folders if _rooted(folder, folders)}
        found: dict[int, _Inode] = {}
        for path in sorted(names):
            if _parent(path) not in after._folders:
                continue
            inode = names[path]
            if id(inode) not in found:
                survivor = _Inode()
                survivor.content = self._survives(inode)
                survivor.durable = bytearray(survivor.content)
                found[id(inode)] = survivor
            after._names[path] = found[id(inode)]
        after._durable_names = dict(after._names)
        after._durable_folders = set(after._folders)
        return after

    def killed(self) -> Disk:
        """The process has ended (kill -9), the machine goes on: all that was written still reads, synced or not."""
        self._dead = True
        after = self._successor()
        after._names, after._folders = self._names, self._folders
        after._durable_names, after._durable_folders = self._durable_names, self._durable_folders
        after._changes, after._new_folders = self._changes, self._new_folders
        return after

    def copy(self) -> Disk:
        """The same medium once more, everything in it synced: for looking, and for trying several futures."""
        after = self._successor()
        self._dead = False
        for path, inode in self._names.items():
            twin = _Inode()
            twin.content = bytearray(inode.content)
            twin.durable = bytearray(inode.content)
            after._names[path] = twin
        after._folders = set(self._folders)
        after._durable_names = dict(after._names)
        after._durable_folders = set(after._folders)
        return after

    def damage(self, path: str, position: int, mask: int = 0xFF) -> None:
        """Flips bits of one byte, in the cache and on the medium."""
        inode = self._names[path]
        inode.content[position] ^= mask
        if position < len(inode.durable):
            inode.durable[position] ^= mask

    @property
    def used(self) -> int:
        return sum(len(inode.content) for inode in self._names.values())

    # --- Within

    def _successor(self) -> Disk:
        self._dead = True
        after = Disk(self.dice, self.faults)
        after.operations = 0
        return after

    def _alive(self) -> None:
        if self._dead:
            raise OSError(errno.EBADF, "this disk's process has ended")

    def _operation(self, name: str, path: str) -> None:
        self.operations += 1
        self.history.append((name, path))
        if self.cut_at is not None and self.operations >= self.cut_at:
            raise PowerCut(f"operation {self.operations}: {name} {path}")
        if self.cut_on is not None and name == self.cut_on[0] and _parent(path) == self.cut_on[1]:
            raise PowerCut(f"operation {self.operations}: {name} {path}")

    def _fails(self, chance: float) -> bool:
        return chance > 0.0 and self.dice.random() < chance

    def _room(self) -> int | None:
        return None if self.faults.capacity is None else self.faults.capacity - self.used

    def _change(self, path: str, change: _Change) -> None:
        self._changes.setdefault(_parent(path), []).append(change)

    def _make_folders(self, folder: str) -> None:
        while folder not in self._folders:
            self._folders.add(folder)
            self._new_folders.setdefault(_parent(folder), []).append(folder)
            folder = _parent(folder)

    def _survives(self, inode: _Inode) -> bytearray:
        content = bytearray(inode.durable)
        pending = inode.pending
        if not pending:
            return content
        dice = self.dice
        way = 2 if self.faults.torn else dice.randint(0, 3)
        if way == 0:
            return content
        if way == 1:
            for position, data in pending:
                _put(content, position, data)
            return content
        if way == 2:
            kept = dice.randint(0, len(pending) - 1)
            for position, data in pending[:kept]:
                _put(content, position, data)
            position, data = pending[kept]
            if data is not None:
                _put(content, position, data[: dice.randint(0, len(data))])
            return content
        # The size reached the medium, and any of the pages, whatever was to be cut off in between.
        for position, data in pending:
            if data is None:
                if dice.random() < 0.5:
                    _put(content, position, None)
                continue
            start = 0
            while start < len(data):
                stop = min(len(data), start + PAGE_BYTES - (position + start) % PAGE_BYTES)
                piece = data[start:stop]
                _put(content, position + start, piece if dice.random() < 0.5 else bytes(len(piece)))
                start = stop
        return content


def _drop(names: dict[str, _Inode], path: str) -> None:
    names.pop(path, None)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _rooted(folder: str, folders: set[str]) -> bool:
    return folder == "" or (folder in folders and _rooted(_parent(folder), folders))
