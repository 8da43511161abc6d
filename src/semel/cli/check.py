"""`semel check`: what every path of an app guarantees, before anything runs.

Invariant: nothing is opened, asked or written: the answer is a function of the program and of the options. Exit code 0
when it was told, 1 when the weakest path is below `--fail-under`, 2 when the app cannot be loaded.
"""

from __future__ import annotations

import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semel.contract import Guarantee, Mode
from semel.errors import UsageError

if TYPE_CHECKING:
    from semel.guarantees import LogKind


class Durability(StrEnum):
    FSYNC = "fsync"
    OS = "os"


def check(
    app: Annotated[str, typer.Argument(metavar="APP.py", help="The file that makes an App; FILE.py:NAME of several.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    fail_under: Annotated[
        Guarantee | None, typer.Option(metavar="GUARANTEE", help="Exit with 1 when a path guarantees less than this.")
    ] = None,
    mode: Annotated[Mode, typer.Option(help="The mode it would run in.")] = Mode.EXACTLY_ONCE,
    on: Annotated[str, typer.Option(metavar="URL", help="The log it would run on; nothing is asked of it.")] = "",
    durability: Annotated[Durability | None, typer.Option(help="Of that log, where it is semel's.")] = None,
) -> None:
    """Say what every path of an app guarantees, where that ends, why, and what would raise it."""
    from semel.guarantees import Circumstances, analyse
    from semel.guarantees.report import WIDTH, as_json, as_text
    from semel.host.load import load_app

    circumstances = Circumstances(mode, kind_of(on), str(durability or ""))
    report = analyse(load_app(app).graph(), circumstances)
    # As wide as the terminal, within reason; the same text on every pipe.
    width = min(WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else WIDTH
    print(as_json(report, shown) if json else as_text(report, shown, on, width))
    if fail_under is not None and report.weakest.rank < fail_under.rank:
        raise typer.Exit(1)


def kind_of(url: str) -> LogKind:
    from semel.guarantees import LogKind

    kind, _, rest = url.partition(":")
    if not url:
        return LogKind.UNTOLD
    if kind not in (LogKind.EMBEDDED, LogKind.KAFKA) or not rest.strip("/"):
        raise UsageError(f"--on {url}: embedded:DIR or kafka://HOST:PORT")
    return LogKind(kind)


def shown(file: str) -> str:
    """As a person would type it from here."""
    path = Path(file)
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else file
