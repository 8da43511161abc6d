"""A Report as text for people and as JSON for machines.

Invariant: no password leaves this module, whatever a sink, a URL or a reason brought along.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Sequence

from semel.contract import Mode
from semel.guarantees.paths import Path, Report
from semel.guarantees.readers import READERS

WIDTH = 110
LABEL = 13

_IN_URL = re.compile(r"(?<=://)([^\s/@:]*):[^\s/@]*@")
_IN_PAIRS = re.compile(
    r"\b(password|passwd|pwd|secret|token|sslpassword|api_?key)([\"']?\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s,;&']+)", re.I
)


def without_secrets(text: str) -> str:
    """Passwords in URLs and in key=value pairs, replaced. A second lock: sinks describe themselves without secrets."""
    return _IN_PAIRS.sub(r"\1\2***", _IN_URL.sub(r"\1:***@", text))


def as_json(report: Report, shown: Callable[[str], str]) -> str:
    paths = [
        {
            "source": path.source,
            "sink": path.sink,
            "guarantee": str(path.guarantee),
            "boundary": path.boundary,
            "reasons": list(path.reasons),
            "raise": list(path.raises),
            "file": shown(path.file),
            "line": path.line,
        }
        for path in report.paths
    ]
    readers = [
        {"topic": topic, "library": r.library, "setting": r.setting, "default": r.default, "safe": r.safe}
        for topic in report.outputs
        for r in (READERS if report.circumstances.mode is Mode.EXACTLY_ONCE else ())
    ]
    whole = {
        "app": report.app,
        "mode": str(report.circumstances.mode),
        "paths": paths,
        "weakest": str(report.weakest),
        "readers": readers,
        "boundaries": list(report.boundaries),
        "notes": list(report.notes),
    }
    return without_secrets(json.dumps(whole, indent=2, ensure_ascii=False))


def as_text(report: Report, shown: Callable[[str], str], on: str = "", width: int = WIDTH) -> str:
    """Lines of at most `width` columns, where their words allow it."""
    where = f", on {on}" if on else ""
    lines = [f"{report.app}: {_count(len(report.paths), 'path')}, {report.circumstances.mode}{where}"]
    for path in report.paths:
        lines += ["", *_path(path, shown, width)]
    if report.outputs and report.circumstances.mode is Mode.EXACTLY_ONCE:
        lines += ["", *_readers(report.outputs, width)]
    lines += ["", "Outside every path, so nothing here can promise it:"]
    for boundary in report.boundaries:
        lines += _wrapped("  - ", boundary, width)
    for note in report.notes:
        lines += ["", *_wrapped("", note, width)]
    lines += ["", f"weakest: {report.weakest}"]
    return without_secrets("\n".join(lines))


def _path(path: Path, shown: Callable[[str], str], width: int) -> list[str]:
    title = f"{path.source} → {path.sink}"
    gap = max(2, width - len(title) - len(path.guarantee))
    lines = [f"{title}{' ' * gap}{path.guarantee}"]
    lines += _labelled("written at", [f"{shown(path.file)}:{path.line}"], width)
    lines += _labelled("boundary", [path.boundary], width)
    lines += _labelled("because", path.reasons, width)
    return lines + _labelled("to raise it", path.raises or ["nothing: no guarantee is above it"], width)


def _labelled(label: str, texts: Sequence[str], width: int) -> list[str]:
    lines = []
    for n, text in enumerate(texts):
        lines += _wrapped(f"  {label if n == 0 else '':<{LABEL}}", text, width)
    return lines


def _wrapped(start: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _readers(topics: Sequence[str], width: int) -> list[str]:
    lines = _wrapped(
        "", f"Who reads {', '.join(topics)} must ask for committed records only, or sees aborted and open ones:", width
    )
    libraries = max(len(reader.library) for reader in READERS)
    settings = max(len(reader.setting) for reader in READERS)
    for r in READERS:
        default = f"default {r.default}" + ("" if r.safe else ": set it")
        lines.append(f"  {r.library:<{libraries}}  {r.setting:<{settings}}  {default}")
    lines += _wrapped(
        "  ",
        "A Kafka Connect sink inherits nothing: its worker reads uncommitted unless "
        "consumer.override.isolation.level says otherwise, and most connectors repeat.",
        width,
    )
    return lines


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
