"""`semel topics`: what a log holds, by topic, or by partition for one topic."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from semel.cli.logs import On, bytes_text, look
from semel.errors import UsageError


def topics(
    topic: Annotated[str | None, typer.Argument(metavar="[TOPIC]", help="Show the partitions of this one.")] = None,
    on: On = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """List the topics of a log: partitions, offsets, size, and which ones are internal."""
    with look(on) as log:
        seen = log.topics()
    if topic is not None:
        seen = [one for one in seen if one.name == topic]
        if not seen:
            raise UsageError(f"There is no topic {topic!r}. `semel topics` without a name lists them.")
    if json_lines:
        for one in seen:
            partitions = [{"start": p.start, "end": p.end, "size": p.size} for p in one.partitions]
            print(json.dumps({"topic": one.name, "internal": one.internal, "partitions": partitions}))
        return
    rows: list[tuple[str, ...]]
    if topic is not None:
        rows = [("PARTITION", "START", "END", "SIZE")]
        rows += [(str(n), str(p.start), str(p.end), bytes_text(p.size)) for n, p in enumerate(seen[0].partitions)]
    else:
        rows = [("TOPIC", "PARTITIONS", "START", "END", "SIZE", "")]
        for one in seen:
            known = [p.size for p in one.partitions if p.size is not None]
            rows.append(
                (
                    one.name,
                    str(len(one.partitions)),
                    _span([p.start for p in one.partitions]),
                    _span([p.end for p in one.partitions]),
                    bytes_text(sum(known)) if known else "-",
                    "internal" if one.internal else _kind(one.name),
                )
            )
    print(table(rows))
    print("END is the next offset: aborted records and the markers of transactions count, too.")


def _kind(name: str) -> str:
    """What an app's own topics are, by their names."""
    if name.endswith(".dlq"):
        return "an app's dead letters"
    kind = name.rpartition("-")[2]
    return f"an app's {kind}" if kind in ("changelog", "repartition", "outbox", "order") and "-" in name else ""


def _span(offsets: list[int]) -> str:
    if not offsets:
        return "-"
    low, high = min(offsets), max(offsets)
    return str(low) if low == high else f"{low}..{high}"


def table(rows: list[tuple[str, ...]]) -> str:
    """Columns as wide as they need to be; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n == 0 or (n == len(row) - 1 and not rows[0][n]) else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    )
