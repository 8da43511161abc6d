"""The real disk and its simulated twin answer alike; then the real one under kill -9 and full."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from semel import record
from semel.host.disk import Disk as RealDisk
from semel.log import Folder, FolderError, SizeWatch
from semel.ports import Disk
from semel.sim.disk import Disk as SimDisk
from semel.sim.disk import Faults, PowerCut

from .support import MiniBroker, values

MakeDisk = Callable[[], Disk]


@pytest.fixture(params=["real", "simulated"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return RealDisk(tmp_path / "data") if request.param == "real" else SimDisk(Random(0))


def test_a_file_grows_at_its_end_and_reads_anywhere(disk: Disk) -> None:
    file = disk.open("a/b/file")
    assert file.size() == 0
    assert file.append([b"one", memoryview(b"two"), bytearray(b"three")]) == 11
    assert file.append([]) == 11
    assert file.append([b"x"] * 3000) == 3011
    assert file.read(3, 5) == b"twoth"
    assert file.read(3010, 10) == b"x"
    assert file.read(4000, 10) == b""
    file.sync()
    file.truncate(5)
    assert file.append([b"!"]) == 6
    assert disk.open("a/b/file").read(0, 10) == b"onetw!"
    file.close()


def test_names(disk: Disk) -> None:
    for name in ("a/z", "a/y", "a/sub/x"):
        disk.open(name).append([name.encode()])
    assert disk.list("a") == ["sub", "y", "z"]
    assert disk.list("nowhere") == []
    assert disk.list("") == ["a"]
    assert disk.exists("a") and disk.exists("a/y") and not disk.exists("a/q")
    disk.rename("a/y", "a/z")
    assert disk.list("a") == ["sub", "z"]
    assert disk.open("a/z").read(0, 9) == b"a/y"
    with pytest.raises(OSError):
        disk.remove("a/sub")
    disk.remove("a/sub/x")
    disk.remove("a/sub")
    disk.remove("a/z")
    assert disk.list("a") == []
    disk.sync_folder("a")
    disk.sync_folder("")
    with pytest.raises(FileNotFoundError):
        disk.remove("a/z")
    with pytest.raises(FileNotFoundError):
        disk.rename("a/z", "a/w")
    with pytest.raises(FileNotFoundError):
        disk.sync_folder("nowhere")


def test_a_removed_file_still_reads_for_who_has_it_open(disk: Disk) -> None:
    file = disk.open("a/file")
    file.append([b"data"])
    disk.remove("a/file")
    assert file.read(0, 4) == b"data"
    assert disk.open("a/file").size() == 0


def test_a_folder_of_another_version_is_left_alone(disk: Disk) -> None:
    disk.open("format").append([b"semel log, format 2\n"])
    disk.open("journal/00000000000000000000.log").append([b"of the future"])
    with pytest.raises(FolderError, match=r"'semel log, format 2', this semel reads 'semel log, format 1'.*another"):
        Folder.open(disk)
    assert disk.open("journal/00000000000000000000.log").size() == 13


def test_a_folder_without_its_format_file_is_no_new_folder(disk: Disk) -> None:
    disk.open("journal/00000000000000000000.log").append([b"?"])
    with pytest.raises(FolderError, match=r"holds journal/ but no file named format"):
        Folder.open(disk)


def test_the_reserve_is_real_bytes_and_made_once(tmp_path: Path) -> None:
    """A sparse file would reserve nothing."""
    folder = Folder.open(RealDisk(tmp_path), reserve_bytes=1 << 20)
    assert folder.recovered() == 1 << 20
    status = os.stat(tmp_path / "reserve")
    assert status.st_blocks * 512 >= 1 << 20
    assert Folder.open(RealDisk(tmp_path)).recovered() == 1 << 20
    assert os.stat(tmp_path / "reserve").st_ino == status.st_ino


# --- The simulated one alone: what may be lost ------------------------------------------------------------------


def test_unsynced_bytes_are_lost_kept_or_torn_and_synced_ones_never() -> None:
    found = set()
    for seed in range(300):
        disk = SimDisk(Random(seed))
        file = disk.open("f")
        file.append([b"safe"])
        file.sync()
        disk.sync_folder("")
        file.append([b"12"])
        file.append([b"345"])
        found.add(disk.crash().open("f").read(0, 100))
    assert all(content.startswith(b"safe") for content in found)
    assert {b"safe", b"safe1", b"safe12", b"safe12345"} <= found
    assert b"safe\0\x00345" in found, "a page may be there before one that was written earlier"


def test_unsynced_names_may_be_undone() -> None:
    outcomes = set()
    for seed in range(100):
        disk = SimDisk(Random(seed))
        disk.open("old").sync()
        disk.sync_folder("")
        disk.open("created")
        disk.rename("old", "new")
        after = disk.crash()
        outcomes.add(tuple(after.list("")))
        with pytest.raises(OSError):
            disk.exists("old")
    assert outcomes == {("old",), ("created", "old"), ("created", "new")}


def test_a_failed_sync_drops_pages_that_read_well_until_the_crash() -> None:
    found = set()
    for seed in range(50):
        disk = SimDisk(Random(seed), Faults(sync=1.0))
        file = disk.open("f")
        file.append([b"gone?"])
        with pytest.raises(OSError):
            file.sync()
        disk.faults.sync = 0.0
        file.append([b"later"])
        file.sync()  # says nothing of what the first one lost
        disk.sync_folder("")
        assert file.read(0, 10) == b"gone?later"
        found.add(disk.crash().open("f").read(0, 10))
    assert found == {b"gone?later", b"\0\0\0\0\0later"}


def test_a_full_simulated_disk_writes_a_part() -> None:
    disk = SimDisk(Random(0), Faults(capacity=10))
    file = disk.open("f")
    file.append([b"12345678"])
    with pytest.raises(OSError) as caught:
        file.append([b"abcdef"])
    assert caught.value.errno == errno.ENOSPC
    assert file.read(0, 100) == b"12345678ab"


def test_one_seed_is_one_history() -> None:
    def run() -> tuple[list[tuple[str, str]], bytes]:
        disk = SimDisk(Random(9), Faults(append=0.1, sync=0.1))
        for number in range(60):
            file = disk.open(f"{number % 3}/f")
            try:
                file.append([b"x" * number])
                if number % 5 == 0:
                    file.sync()
                    disk.sync_folder(f"{number % 3}")
                    disk.sync_folder("")
            except OSError:
                pass
        history = list(disk.history)
        after = disk.crash()
        return history, b"|".join(after.open(f"{n}/f").read(0, 9999) for n in range(3))

    assert run() == run()


def test_the_power_fails_where_it_was_told_to() -> None:
    disk = SimDisk(Random(0))
    disk.cut_at = 3
    file = disk.open("f")  # 1
    file.append([b"x"])  # 2
    with pytest.raises(PowerCut):
        file.sync()


# --- The real one ---------------------------------------------------------------------------------------------

CHILD = """
import sys
from random import Random
from semel.host.disk import Disk
from semel import record
from tests.log.support import MiniBroker
folder, first, durability = sys.argv[1], int(sys.argv[2]), sys.argv[3]
broker = MiniBroker(Disk(folder))
dice = Random(first)
number = first
while True:
    for _ in range(dice.randrange(1, 5)):
        broker.produce(0, record.encode([b"%d" % number], [bytes(dice.randrange(3000))]))
        number += 1
    if durability == "fsync":
        broker.flush()
    else:
        broker.write()
    sys.stdout.write("%d\\n" % number)
    sys.stdout.flush()
    if dice.random() < 0.05:
        broker.checkpoint()
"""


@pytest.mark.parametrize("durability", ["fsync", "os"])
def test_kill_9_in_mid_append_keeps_what_was_acknowledged(tmp_path: Path, durability: str) -> None:
    """At both durabilities: a killed process leaves the page cache behind."""
    dice = Random(4)
    acked = 0
    root = Path(__file__).resolve().parents[2]
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), str(acked), durability],
            stdout=subprocess.PIPE,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        assert child.stdout is not None
        for _ in range(dice.randrange(1, 120)):
            line = child.stdout.readline()
            assert line, "the child has ended by itself"
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split(b"\n")
        lines = [line, *rest[:-1]]  # one that was cut off says nothing
        acked = int(lines[-1])
        child.wait()
        child.stdout.close()
        broker = MiniBroker(RealDisk(tmp_path))
        found = [int(value) for value in values(broker.partitions[0])]
        assert found == list(range(len(found)))
        assert len(found) >= acked
        acked = len(found)
        broker.flush()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A tmpfs of 6 MB, where this machine lets us mount one."""
    with tempfile.TemporaryDirectory() as folder:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], capture_output=True, check=False
        )
        if made.returncode:
            pytest.skip("mounting a tmpfs takes root")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_keeps_what_was_acknowledged_and_starts_again(small_disk: Path) -> None:
    acked: list[bytes] = []
    for restart in range(4):
        broker = MiniBroker(RealDisk(small_disk))
        found = values(broker.partitions[0])
        assert found[: len(acked)] == acked
        acked = found
        with pytest.raises(OSError) as caught:
            for number in range(10_000):
                value = b"%d.%d" % (restart, number)
                broker.produce(0, record.encode([value], [bytes(9000)]))
                broker.flush()
                acked.append(value)
        assert caught.value.errno == errno.ENOSPC
        assert str(small_disk) in str(caught.value), "the message names the file"
        for partition in broker.partitions:
            partition.close()  # as the end of the process would: open files keep their space
    assert len(acked) > 200


def test_a_limited_file_fails_whole(tmp_path: Path) -> None:
    """A write that the system cuts short is finished or raised, never taken for done."""
    code = (
        "import resource, sys; from semel.host.disk import Disk\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "file = Disk(sys.argv[1]).open('f')\n"
        "file.append([b'x' * 900])\n"
        "try: file.append([b'y' * 50, b'z' * 200])\n"
        "except OSError as error: print(error.errno, file.size())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(errno.EFBIG), "900"]
    assert (tmp_path / "f").stat().st_size == 1000


def test_syncs_beside_appends_and_checkpoints(tmp_path: Path) -> None:
    """One thread syncs while another appends, writes and starts new files: what a sync returned is there."""
    broker = MiniBroker(RealDisk(tmp_path))
    dice = Random(1)
    claimed = 0
    done = threading.Event()

    def syncing() -> None:
        nonlocal claimed
        while not done.is_set():
            position = broker.journal.sync()
            assert position <= broker.journal.written
            assert position >= claimed
            claimed = position
            for partition in broker.partitions:
                partition.sync_ahead()

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(syncing)
        try:
            for number in range(3000):
                broker.produce(number % 2, record.encode([b"%d" % number] * dice.randrange(1, 5)))
                if dice.random() < 0.3:
                    broker.write()
                if dice.random() < 0.01:
                    broker.checkpoint()
        finally:
            done.set()
        running.result()
    assert claimed > 0
    broker.flush()
    expected = [values(partition) for partition in broker.partitions]
    again = MiniBroker(RealDisk(tmp_path))
    assert [values(partition) for partition in again.partitions] == expected


def test_a_folder_that_grows_is_mentioned_once_per_doubling() -> None:
    broker = MiniBroker(SimDisk(Random(0)))
    watch = SizeWatch(10_000)
    lines = []
    for _ in range(100):
        broker.produce(0, record.encode([bytes(500)]))
        broker.flush()
        if line := watch.warning("./data", broker.journal, broker.partitions):
            lines.append(line)
    assert len(lines) == 4
    assert lines[0].startswith("./data holds 10.") and "next notice comes at 19.5 KB" in lines[0]
