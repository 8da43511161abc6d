"""What `semel sink` reads and writes in the control table of a DuckDB file, inside a transaction of the caller's.

Invariant: nothing is moved that is not as it was seen, and every move raises the epoch of the partitions that it moves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from semel.contract import Remembered
from semel.sinks import positions

Execute = Callable[..., list[Any]]  # statement, parameters -> rows


def remembered(execute: Execute, control: str, app: str, sink: str) -> list[Remembered]:
    found = execute(
        "SELECT partition, epoch, incarnation, position, run, topic_id, partitions, holder, "
        f"strftime(updated, '%Y-%m-%d %H:%M:%S') FROM {control} WHERE app = ? AND sink = ? ORDER BY partition",
        [app, sink],
    )
    return [positions.remembered(row) for row in found]


def moved(
    execute: Execute, control: str, app: str, sink: str, seen: Sequence[Remembered], to: Sequence[Remembered]
) -> str:
    """ "" when the rows stand at `to`; else what is not as it was seen, and nothing was changed."""
    if changed := positions.changed(seen, remembered(execute, control, app, sink)):
        return changed
    for one in to:
        execute(
            f"INSERT INTO {control} VALUES (?, ?, ?, 1, ?, ?, ?, ?, ?, ?, current_localtimestamp()) "
            "ON CONFLICT (app, sink, partition) DO UPDATE SET epoch = epoch + 1, position = excluded.position, "
            "run = excluded.run, topic_id = excluded.topic_id, partitions = excluded.partitions, "
            "incarnation = excluded.incarnation, holder = excluded.holder, updated = excluded.updated",
            [
                app, sink, one.partition, one.position, one.run, one.log.topic_id, one.log.partitions, one.incarnation,
                positions.OPERATOR,
            ],
        )  # fmt: skip
    return ""
