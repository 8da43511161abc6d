"""One process per folder, and the other one is told who has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from semel.host.lock import FolderLock, FolderTaken

HOLD = """
import sys; from pathlib import Path; from semel.host.lock import FolderLock
lock = FolderLock.take(Path(sys.argv[1])); print("taken", flush=True); sys.stdin.read()
"""


def test_the_second_one_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    """And may have the folder once the first has let go."""
    lock = FolderLock.take(tmp_path)
    with pytest.raises(FolderTaken, match=f"already open by pid {os.getpid()}"):
        FolderLock.take(tmp_path)
    lock.release()
    lock.release()
    FolderLock.take(tmp_path).release()


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    """The lock is the system's: nothing stale is left behind by kill -9."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"taken\n"
    with pytest.raises(FolderTaken, match=f"pid {holder.pid}"):
        FolderLock.take(tmp_path)
    holder.kill()
    holder.wait()
    FolderLock.take(tmp_path).release()
