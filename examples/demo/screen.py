"""What a person sees: a line per mode with its progress, what goes wrong as it happens, and the table at the end.

On a terminal it is drawn anew several times a second; elsewhere (a file, CI) the same happenings are plain lines.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from examples.demo.reckon import Line
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

HAPPENINGS_SHOWN = 9
WIDE = 100
PLAIN_EVERY = 0.25  # of the input, without a terminal

COLOURS = {"at-most-once": "yellow", "at-least-once": "magenta", "exactly-once": "green"}


@dataclass(slots=True)
class Progress:
    """One mode's run, as it is going. Written by the run, read by the screen."""

    mode: str
    total: int
    fed: int = 0
    done: int = 0  # input records whose offset is committed
    transactions: int = 0
    refused: int = 0  # writes of superseded owners that were refused
    worker_kills: int = 0
    broker_kills: int = 0
    zombies: int = 0
    began: float = 0.0
    ended: float = 0.0
    doing: str = "waiting"
    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=40))

    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.began if self.began else 0.0

    def rate(self) -> float:
        """Input records per second: of the last moments while it runs, of all of it afterwards."""
        if self.ended:
            return self.done / max(self.seconds(), 0.001)
        if len(self.samples) < 2:
            return 0.0
        (t0, n0), (t1, n1) = self.samples[0], self.samples[-1]
        return max(0.0, (n1 - n0) / max(t1 - t0, 0.001))


class Screen:
    def __init__(self, console: Console, modes: Sequence[str], total: int) -> None:
        self.console = console
        self.runs = {mode: Progress(mode, total) for mode in modes}
        self.log: deque[Text] = deque(maxlen=HAPPENINGS_SHOWN)
        self.live = (
            Live(get_renderable=self.render, console=console, refresh_per_second=10, transient=False)
            if console.is_terminal
            else None
        )
        self._told: dict[str, float] = {}

    def __enter__(self) -> Screen:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.refresh()
            self.live.stop()

    def say(self, run: Progress | None, what: str, style: str = "") -> None:
        """Something happened."""
        line = Text()
        if run is not None:
            line.append(f"{run.seconds():6.1f} s  ", "dim")
            line.append(f"{run.mode:<14}", COLOURS[run.mode])
            line.append(f"{run.fed:>9,}  ", "dim")
        line.append(what, style)
        self.log.append(line)
        if self.live is None:
            self.console.print(line.plain, highlight=False, soft_wrap=True)

    def moved(self, run: Progress) -> None:
        """Progress without a terminal: a line per quarter of the input."""
        run.samples.append((time.monotonic(), run.done))
        share = run.done / run.total
        if self.live is None and share - self._told.get(run.mode, 0.0) >= PLAIN_EVERY:
            self._told[run.mode] = share
            self.say(run, f"{run.done:,} of {run.total:,} done, {run.transactions:,} commits")

    def render(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        for justify in ("left", "left", "right", "right", "right", "left"):
            grid.add_column(justify=justify, no_wrap=True)
        width = self.console.width
        gap = " " if width >= WIDE else ""
        for run in self.runs.values():
            colour = COLOURS[run.mode]
            bar = ProgressBar(
                run.total, run.done, width=max(8, min(28, width - 72)), complete_style=colour, finished_style=colour
            )
            grid.add_row(
                Text(run.mode, f"bold {colour}" if run.began and not run.ended else colour),
                bar,
                f"{run.done:,}",
                f"{run.rate():,.0f}/s" if run.began else "",
                f"{run.seconds():.0f} s" if run.began else "",
                Text(run.doing, "dim"),
            )
        crashes = Table.grid(padding=(0, 2))
        for run in self.runs.values():
            if run.began:
                crashes.add_row(
                    Text(run.mode, COLOURS[run.mode]),
                    Text(f"†{gap}" * run.worker_kills, "red", no_wrap=True),
                    Text(f"■{gap}" * run.broker_kills, "bold red"),
                    Text(f"z{gap}" * run.zombies, "cyan"),
                    Text(f"{run.transactions:,} commits", "dim"),
                    Text(f"{run.refused} refused" if run.refused else "", "dim"),
                )
        legend = Text("† worker killed   ■ broker killed   z stopped, let loose after its successor", "dim")
        happenings = Group(*self.log) if self.log else Text("")
        return Panel(
            Group(grid, Text(""), crashes, legend, Text(""), happenings),
            title="336,776 flights, killed again and again",
        )


def result(lines: Sequence[Line]) -> Table:
    """The reckoning, for people."""
    table = Table(title="Input against output", title_justify="left", pad_edge=False, box=None, padding=(0, 1, 0, 0))
    table.caption, table.caption_justify = _inside_folds(lines), "left"
    table.add_column("mode", no_wrap=True)
    table.add_column("output", no_wrap=True)
    for name in ("input", "expected", "present", "lost", "repeated", "wrong"):
        table.add_column(name, justify="right", no_wrap=True)
    before = ""
    for line in lines:
        if before and line.mode != before:
            table.add_row()
        table.add_row(
            Text(line.mode if line.mode != before else "", COLOURS.get(line.mode, "")),
            line.output,
            f"{line.input:,}",
            f"{line.expected:,}",
            f"{line.present:,}",
            *[Text(f"{n:,}", "bold red" if n else "green") for n in (line.lost, line.repeated, line.wrong)],
        )
        before = line.mode
    return table


def _inside_folds(lines: Sequence[Line]) -> str:
    """What a loss or a repeat inside a fold looks like from outside, per mode."""
    counts = {line.mode: line.counted for line in lines if line.counted}
    if not counts:
        return ""
    told = [f"{mode} counts {abs(n):,} too {'many' if n > 0 else 'few'}" for mode, n in counts.items()]
    return f"A flight lost or repeated inside a total makes it wrong: {', '.join(told)}."
