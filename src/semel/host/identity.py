"""Who a worker is, the same over all its restarts: the folder's id and the number of the slot it has locked.

Invariant: no two live processes have the same identity, because a slot is locked while its owner lives (a stopped
process still holds its lock) and a folder's id is drawn once. A copied state folder is the exception that no lock
sees; the group's static membership does (FENCED_INSTANCE_ID).
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from semel.errors import SemelError
from semel.host.lock import FolderLock, FolderTaken

SLOTS_MAX = 256
ID_FILE = "folder-id"


@dataclass(frozen=True, slots=True)
class Slot:
    number: int
    folder: Path  # this worker's own: its local state
    identity: str  # <app>.<folder id>.<n>: static member id and transactional id
    lock: FolderLock


def folder_id(state_dir: Path) -> str:
    """The id of this state folder, drawn when it is first used."""
    path = state_dir / ID_FILE
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            drawn = state_dir / f"{ID_FILE}.{os.getpid()}.{secrets.token_hex(4)}"
            drawn.write_text(secrets.token_hex(6) + "\n")
            try:
                os.link(drawn, path)  # of two workers that start at once, one wins, with its whole text
            except FileExistsError:
                pass
            finally:
                drawn.unlink()
        text = path.read_text().strip()
    except OSError as error:
        raise SemelError(
            f"{state_dir}: the state folder cannot be used ({error.strerror}). Choose another with --state DIR."
        ) from None
    if not text:
        raise SemelError(f"{path} is empty: it names this folder's workers. Remove it; a new one is drawn.")
    return text


def take_slot(state_dir: Path, app: str, number: int | None = None) -> Slot:
    """Slot `number`, or the first that no live process has. FolderTaken when it is in use."""
    folder = folder_id(state_dir)
    numbers = range(SLOTS_MAX) if number is None else (number,)
    taken: FolderTaken | None = None
    for n in numbers:
        mine = state_dir / f"slot-{n}"
        mine.mkdir(exist_ok=True)
        try:
            lock = FolderLock.take(mine)
        except FolderTaken as by:
            taken = by
            continue
        return Slot(n, mine, f"{app}.{folder}.{n}", lock)
    assert taken is not None
    raise taken
