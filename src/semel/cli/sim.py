"""`semel sim`: worlds by their seeds, run side by side, each asked about laws 1 to 5.

Invariant: what is printed of a seed is enough to see it again: the seed, and the faults left out. Exit code 0 when all
of them hold, 1 when a law was broken, 2 when it was asked wrongly.
"""

from __future__ import annotations

import json as as_json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semel.errors import UsageError

if TYPE_CHECKING:
    from semel.sim.faults import Dice
    from semel.sim.simulate import Result

SHOWN_MAX = 5  # broken laws of one seed
COUNTED = (
    "crashes",
    "transactions",
    "aborts",
    "hand_overs",
    "zombies",
    "fenced",
    "kills",
    "checkpoints",
    "late",
    "events",
)


@dataclass(slots=True)
class Summary:
    """What is told of one seed; small, because it comes from another process."""

    seed: int
    profile: str
    crashes: int
    transactions: int
    aborts: int
    hand_overs: int
    zombies: int
    fenced: int
    kills: int
    checkpoints: int
    late: int
    events: int
    broken: list[dict[str, object]] = field(default_factory=list)


def sim(
    seeds: Annotated[str, typer.Option(metavar="A:B", help="Seeds from A up to, not including, B.")] = "1:201",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    history: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what happened, one line per event. One seed only.")
    ] = None,
    without: Annotated[
        str, typer.Option(metavar="N,N", help="Leave these faults of the seed out, by number. One seed only.")
    ] = "",
    shrink: Annotated[
        bool, typer.Option(help="Look for fewer faults with which the seed fails. One seed only.")
    ] = False,
    stop_at_first: Annotated[bool, typer.Option(help="End with the first seed that breaks a law.")] = False,
    workers: Annotated[int, typer.Option(help="Processes; 0: one per core.")] = 0,
) -> None:
    """Run simulated worlds: a broker that crashes at every append and sync, clients over a bad network, five laws."""
    numbers = _seeds(seeds)
    if (history or without or shrink) and len(numbers) != 1:
        raise UsageError(f"--seeds {seeds}: --history, --without and --shrink are for one seed, such as 7:8.")
    began = time.monotonic()
    if len(numbers) == 1:
        summaries = [_one(numbers[0], without, history, shrink)]
    else:
        summaries = list(_many(numbers, workers or os.cpu_count() or 1, stop_at_first))
    _report(summaries, time.monotonic() - began, json)
    if any(summary.broken for summary in summaries):
        raise typer.Exit(1)


def dice_of(seed: int) -> Dice:
    return lambda stream: random.Random(f"{seed}:{stream}")


def _seeds(text: str) -> range:
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise UsageError(f"--seeds {text}: write FIRST:END, for example 1:201 for the seeds 1 to 200.")
    return range(int(first), int(last))


def _summary(result: Result) -> Summary:
    counts = result.counts
    return Summary(
        result.seed,
        result.profile,
        result.crashes,
        counts.transactions,
        counts.aborts,
        counts.hand_overs,
        counts.zombies,
        counts.fenced,
        counts.kills,
        result.checkpoints,
        result.released,
        len(result.history.events),
        [{"seed": result.seed, **broken._asdict()} for broken in result.broken],
    )


def run_seed(seed: int) -> Summary:
    from semel.sim.simulate import simulate

    return _summary(simulate(seed, dice_of(seed)))


def _many(numbers: range, workers: int, stop_at_first: bool) -> Iterator[Summary]:
    if workers == 1:
        found: Iterator[Summary] = map(run_seed, numbers)
        yield from _until_broken(found, stop_at_first)
        return
    with multiprocessing.Pool(workers) as pool:  # which is terminated at the end, whatever still runs in it
        yield from _until_broken(pool.imap(run_seed, numbers, chunksize=2), stop_at_first)


def _until_broken(summaries: Iterator[Summary], stop_at_first: bool) -> Iterator[Summary]:
    for summary in summaries:
        yield summary
        if summary.broken:
            _tell(summary)
            if stop_at_first:
                return


def _one(seed: int, without: str, history: Path | None, shrink: bool) -> Summary:
    from semel.sim.shrink import shrink as fewer
    from semel.sim.simulate import simulate

    try:
        left_out = frozenset(int(number) for number in without.split(",") if number)
    except ValueError:
        raise UsageError(f"--without {without}: write numbers of faults, for example 3,8.") from None
    result = simulate(seed, dice_of(seed), left_out=left_out)
    if shrink and result.broken:
        more, result = fewer(result, dice_of(seed))
        left_out |= more
    if history is not None:
        history.write_text("".join(f"{line}\n" for line in result.history.lines()))
    summary = _summary(result)
    if summary.broken:
        _tell(summary, left_out)
        for number, text in result.faults:
            print(f"  fault {number}: {text}", file=sys.stderr)
    return summary


def _tell(summary: Summary, left_out: frozenset[int] = frozenset()) -> None:
    for broken in summary.broken[:SHOWN_MAX]:
        law = f"law {broken['law']}" if broken["law"] else "stopped"
        print(f"seed {summary.seed} ({summary.profile}): {law}: {broken['what']} ({broken['where']})", file=sys.stderr)
    if len(summary.broken) > SHOWN_MAX:
        print(f"seed {summary.seed}: and {len(summary.broken) - SHOWN_MAX} more", file=sys.stderr)
    seeds = f"{summary.seed}:{summary.seed + 1}"
    without = f" --without {','.join(map(str, sorted(left_out)))}" if left_out else ""
    print(
        f"  again: semel sim --seeds {seeds}{without} --history FILE   (--shrink: with fewer faults)", file=sys.stderr
    )


def _report(summaries: list[Summary], seconds: float, json: bool) -> None:
    totals = {
        "seeds": len(summaries),
        **{name: sum(getattr(summary, name) for summary in summaries) for name in COUNTED},
    }
    broken = [one for summary in summaries for one in summary.broken]
    if json:
        print(as_json.dumps({**totals, "broken": broken, "seconds": round(seconds, 1)}))
        return
    told = ", ".join(f"{count} {name.replace('_', '-')}" for name, count in totals.items())
    print(f"{told} in {seconds:.0f} s")
    seeds = sorted({summary.seed for summary in summaries if summary.broken})
    print(f"broken: {len(seeds)} seeds: {', '.join(map(str, seeds[:20]))}" if seeds else "laws 1 to 5 hold")
