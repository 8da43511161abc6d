"""`semel read`: the records of a topic on stdout, one per line.

Invariant: a committed reader prints no record of an open or aborted transaction, and it stops, or with `--follow`
waits, where the first open one begins.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

import typer

from semel.cli.logs import On, lines, look
from semel.errors import UsageError
from semel.host.looking import END, START
from semel.ports import TopicPartition


def read(
    topic: Annotated[str, typer.Argument(help="The topic to read.")],
    on: On = None,
    uncommitted: Annotated[
        bool, typer.Option("--uncommitted", help="Also what is not decided yet and what was aborted.")
    ] = False,
    start: Annotated[
        str, typer.Option("--from", metavar="WHERE", help="start, end, an offset, or a time as in 2026-11-23T09:30.")
    ] = "start",
    partition: Annotated[int | None, typer.Option(help="Only this partition.")] = None,
    most: Annotated[int | None, typer.Option("--max", metavar="N", min=1, help="Stop after N records.")] = None,
    json_lines: Annotated[
        bool, typer.Option("--json", help="One JSON object per record, with time and headers.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Go on at the end, until interrupted.")] = False,
) -> None:
    """Print the committed records of a topic to its end: partition, offset, key and value, tab-separated."""
    offset = position(start)
    with look(on) as log:
        chosen = _chosen(topic, partition, log.partitions(topic))
        starts: Mapping[TopicPartition, int]
        if isinstance(offset, datetime):
            starts = log.since(chosen, int(offset.timestamp() * 1000))
        else:
            starts = dict.fromkeys(chosen, offset)
        left = most
        for records in log.records(starts, committed=not uncommitted, follow=follow):
            text = list(lines(records, json_lines))[:left]
            if text:
                print("\n".join(text), flush=follow)
            if left is not None:
                left -= len(text)
                if left <= 0:
                    break
        sys.stdout.flush()


def _chosen(topic: str, partition: int | None, count: int) -> list[TopicPartition]:
    if partition is None:
        return [TopicPartition(topic, n) for n in range(count)]
    if not 0 <= partition < count:
        raise UsageError(f"{topic} has partitions 0 to {count - 1}; there is no partition {partition}.")
    return [TopicPartition(topic, partition)]


def position(where: str) -> int | datetime:
    """START, END, an offset, or a time; UsageError for anything else."""
    if where in ("start", "end"):
        return START if where == "start" else END
    if where.isdigit():
        return int(where)
    try:
        return datetime.fromisoformat(where)  # without a zone: this machine's
    except ValueError:
        raise UsageError(
            f"--from {where}: write start, end, an offset such as 1200, or a time such as 2026-11-23T09:30:00Z."
        ) from None
