"""Medians with their spread, and ratios taken round by round: machines drift, ratios of neighbours less so."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence


def spread(values: Sequence[float]) -> str:
    """median (min–max)"""
    middle = statistics.median(values)
    return f"{_number(middle)} ({_number(min(values))}–{_number(max(values))})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Ours over theirs, paired by round: median (min–max)."""
    return spread([a / b for a, b in zip(ours, theirs) if b])


def _number(value: float) -> str:
    if value >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"\n### {title}\n", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)
