"""The batch step on a folder of Parquet files: each file that holds repeats is replaced by one without them.

Files are taken in the order of their paths; of each id the first row stays. A file is written anew beside itself,
synced, and renamed over itself.

Invariant: whenever it is ended, each id that was there is there: a file loses only rows whose id has its row in an
earlier file, or earlier in the same one, and that row is never removed. So a half-done run is a folder with fewer
repeats; the next run goes on. Files that come meanwhile are not in the list and are not touched. What it does not bear:
somebody else who removes files, or writes another one under a name that is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from pyarrow import parquet

from semel.sinks.dedup import EVENT, At, Removed, differ, no_at
from semel.sinks.sink import SinkError

BESIDE = ".semel-dedup"  # ends the name of a file that is being written; hidden from readers by its first dot
ROW = "semel row number"


def deduplicate(
    folder: str | Path, ids: Sequence[str] = (EVENT,), ignore: Sequence[str] = (), at: At = no_at
) -> Removed:
    """Keeps one row per id in all `*.parquet` files below the folder, hidden ones (`.`, `_`) excepted. The ids of all
    files are held in memory at once."""
    root = Path(folder)
    if not root.is_dir():
        raise SinkError(f"{folder}: there is no such folder.")
    try:
        with _alone(root):
            for left in root.rglob(f".*{BESIDE}"):
                left.unlink()
            return _deduplicate(root, ids, ignore, at)
    except (OSError, pa.ArrowException) as why:
        raise SinkError(f"{folder}: {why}. What was removed until then were repeats; run it again.") from None


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    lock = os.open(root / f"{BESIDE}-lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SinkError(f"{root}: another run of this step is at work on it. Wait for it to end.") from None
        yield
    finally:
        os.close(lock)


def _deduplicate(root: Path, ids: Sequence[str], ignore: Sequence[str], at: At) -> Removed:
    files, stats, keys, notes = [], [], [], []
    rows = 0
    for path in sorted(root.rglob("*.parquet")):
        if any(part[0] in "._" for part in path.relative_to(root).parts):
            continue
        try:
            stat = path.stat()
            schema = parquet.read_schema(path)
            if lacks := [name for name in ids if name not in schema.names]:
                raise SinkError(f"{path}: it has no column {lacks[0]!r}. Nothing was removed.")
            key = parquet.ParquetFile(path).read(columns=list(ids))
        except (pa.ArrowInvalid, FileNotFoundError) as why:
            # No footer yet: it is being written, or its writer has died. No row of it is anybody's first.
            notes.append(f"{path.relative_to(root)} was left alone: {str(why).splitlines()[0]}")
            continue
        files.append(path)
        stats.append(stat)
        keys.append(key.append_column(ROW, pa.array(range(rows, rows + key.num_rows), pa.int64())))
        rows += key.num_rows
    if not files:
        return Removed(0, 0, tuple(notes))
    whole = pa.concat_tables(keys, promote_options="permissive")
    for name in ids:
        whole = whole.filter(pc.is_valid(whole[name]))
    groups = whole.group_by(list(ids)).aggregate([(ROW, "min"), (ROW, "count")])
    repeated = groups.filter(pc.greater(groups[f"{ROW}_count"], 1))
    if not repeated.num_rows:
        return Removed(rows, 0, tuple(notes))
    several = whole.join(repeated.select([*ids, f"{ROW}_min"]), list(ids), join_type="inner")
    _equal(root, files, keys, several[ROW], ids, ignore)
    gone = several.filter(pc.not_equal(several[ROW], several[f"{ROW}_min"]))[ROW]
    at("chosen")
    removed = 0
    for path, stat, key in zip(files, stats, keys, strict=True):
        keep = pc.invert(pc.is_in(key[ROW], value_set=gone))
        count = key.num_rows - pc.sum(keep).as_py() if key.num_rows else 0
        if count:
            if _replaced(path, stat, keep, at):
                removed += count
            else:
                notes.append(f"{path.relative_to(root)} was left alone: somebody has changed it meanwhile")
    return Removed(rows, removed, tuple(notes))


def _equal(
    root: Path, files: Sequence[Path], keys: Sequence[Any], several: Any, ids: Sequence[str], ignore: Sequence[str]
) -> None:
    """Refuses rows of one id that differ. A column that a file lacks is NULL in it."""
    first: dict[tuple[object, ...], str] = {}
    for path, key in zip(files, keys, strict=True):
        mine = pc.is_in(key[ROW], value_set=several)
        if not key.num_rows or not pc.any(mine).as_py():
            continue
        for row in parquet.ParquetFile(path).read().filter(mine).to_pylist():
            id = tuple(row[name] for name in ids)
            told = repr(sorted((k, v) for k, v in row.items() if v is not None and k not in ignore))
            if first.setdefault(id, told) != told:
                raise differ(str(root), ids, [id])


def _replaced(path: Path, stat: os.stat_result, keep: Any, at: At) -> bool:
    """The file without the rows that go, in its place. False where it is no longer the one that was read."""
    source = parquet.ParquetFile(path)
    table = source.read().filter(keep)
    codec = source.metadata.row_group(0).column(0).compression if source.metadata.num_row_groups else "SNAPPY"
    beside = path.with_name(f".{path.name}{BESIDE}")
    try:
        parquet.write_table(table, beside, compression="NONE" if codec == "UNCOMPRESSED" else codec)
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        at("written")
        now = path.stat()
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (stat.st_ino, stat.st_size, stat.st_mtime_ns):
            return False
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    at("replaced")
    return True
