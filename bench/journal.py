"""What one journal buys: a commit over N partitions as one synced journal, against one synced file per partition.

    python bench/journal.py [--folder DIR] [--rounds N]

Prints the cost of a sync for several sizes, then commits of a 4 KB batch to each of N partitions: the journal as semel
writes it (segments to the page cache, one sync), each partition's file synced in turn, and all synced by threads
at once. The ways take turns, so that a slow moment of the machine hits all; medians, with the 10th and 90th percentile.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from semel import record
from semel.host.disk import Disk
from semel.log import Folder, Journal, Partition

Way = Callable[[], None]


def milliseconds(way: Way) -> float:
    start = time.perf_counter()
    way()
    return (time.perf_counter() - start) * 1000


def in_turns(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # the first creates files
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(milliseconds(way))
    return {name: sorted(found) for name, found in times.items()}


def spread(times: list[float]) -> str:
    n = len(times)
    return f"{times[n // 2]:7.3f} ms  ({times[n // 10]:.3f} to {times[n * 9 // 10]:.3f})"


def syncs(folder: Path, rounds: int) -> None:
    print(f"fdatasync after a write of …, {rounds} times in turns: median (10th to 90th percentile)")
    ways: dict[str, Way] = {}
    zeros = bytes(1 << 20)
    for size in (4 << 10, 64 << 10, 1 << 20):
        for ahead in (False, True):
            file = os.open(folder / f"sync-{size}-{ahead}", os.O_RDWR | os.O_CREAT)
            if ahead:
                for at in range(0, size * (rounds + 1), len(zeros)):
                    os.pwrite(file, zeros, at)
                os.fsync(file)

            def way(file: int = file, data: bytes = b"x" * size, at: list[int] = [0]) -> None:  # noqa: B006
                os.pwrite(file, data, at[0])
                at[0] += len(data)
                os.fdatasync(file)

            ways[f"{size >> 10:5d} KB {'over zeros written ahead' if ahead else 'at the end of the file'}"] = way
    for name, times in in_turns(ways, rounds).items():
        print(f"  {name:32} {spread(times)}")


def commits(folder: Path, partitions: int, rounds: int) -> None:
    batch = record.encode([b"v" * 4000])

    home = Folder.open(Disk(folder / f"semel-{partitions}"))
    journal = Journal.open(home.disk)
    list(journal.replay())
    home.recovered()
    projected = [Partition(home.disk, "topic", index) for index in range(partitions)]

    def one_journal() -> None:
        for index, partition in enumerate(projected):
            data = record.placed(batch, partition.end_offset, 1)
            partition.apply(partition.end_offset, data, journal.append(b"append %d" % index, data))
        for partition in projected:
            partition.flush()
        journal.write()
        position = journal.sync()
        for partition in projected:
            partition.durable(position)

    disk = Disk(folder / f"files-{partitions}")
    files = [disk.open(f"{index}.log") for index in range(partitions)]

    def each_file() -> None:
        for file in files:
            file.append([batch])
        for file in files:
            file.sync()

    together = [disk.open(f"together-{index}.log") for index in range(partitions)]
    threads = ThreadPoolExecutor(min(partitions, 16))

    def files_by_threads() -> None:
        for file in together:
            file.append([batch])
        list(threads.map(lambda file: file.sync(), together))

    ways = {"one journal": one_journal, "a file each, in turn": each_file, "a file each, 16 threads": files_by_threads}
    found = in_turns(ways, rounds)
    base = found["one journal"][rounds // 2]
    print(f"commit of 4 KB to each of {partitions} partitions, {rounds} times in turns")
    for name, times in found.items():
        print(f"  {name:32} {spread(times)}  x {times[rounds // 2] / base:.1f}")
    threads.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: here")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-journal-", dir=options.folder or Path.cwd()))
    try:
        syncs(folder, options.rounds)
        for partitions in (1, 4, 32):
            commits(folder, partitions, options.rounds)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
