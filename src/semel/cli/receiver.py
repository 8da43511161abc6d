"""`semel receiver check`: the rules of docs/receiver.md, tried on a receiver in any language.

Exit code 0 when every rule holds, 1 when one fails, 2 when one could not be tried, or it was asked wrongly. A group of
rules is left out only by name (`--without`), never because it could not be tried.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from semel.errors import UsageError
from semel.receiver.conformance import Finding, Group, Means, Verdict, as_json, worst
from semel.receiver.conformance import check as check_rules

receiver = typer.Typer(
    help="Try a receiver of Idempotency-Keys.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
CODES = {Verdict.HOLDS: 0, Verdict.FAILS: 1, Verdict.NOT_TRIED: 2}


@receiver.callback()
def main() -> None:
    """Try a receiver of Idempotency-Keys."""


@receiver.command()
def check(
    url: Annotated[str, typer.Argument(metavar="URL", help="The check's endpoint (docs/receiver.md shows it).")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with every request and answer.")] = False,
    without: Annotated[list[Group] | None, typer.Option(help="Leave out a group of rules; may be repeated.")] = None,
    restart: Annotated[
        str,
        typer.Option(metavar="COMMAND", help="Kills the receiver (kill -9) and starts it again, in the background."),
    ] = "",
    expires_s: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="After how long the receiver's keys expire.")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME:VALUE", help="Sent with each request; may be repeated.")
    ] = None,
    timeout_s: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for an answer.")] = 10.0,
) -> None:
    """Send a receiver what its rules are about, and say which hold, which fail, and by which answer."""
    headers = dict(_header(text) for text in header or ())
    means = Means(expires_s, None if not restart else lambda: _restarted(restart))
    told = (lambda finding: None) if json else _print
    found = check_rules(url, without=without or (), means=means, headers=headers, timeout_s=timeout_s, told=told)
    if not found:
        raise UsageError("Every group of rules was left out; nothing was tried.")
    if json:
        print(as_json(url, found))
    else:
        counted = ", ".join(f"{sum(f.verdict is v for f in found)} {v}" for v in (Verdict.HOLDS, Verdict.FAILS))
        print(f"\n{counted}, {sum(f.verdict is Verdict.NOT_TRIED for f in found)} not tried: {url}")
    raise typer.Exit(CODES[worst(found)])


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise UsageError(f"--header {text}: NAME:VALUE is wanted.")
    return name.strip(), value.strip()


def _restarted(command: str) -> None:
    done = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode:
        raise UsageError(f"--restart: {command!r} ended with {done.returncode}.")


def _print(finding: Finding) -> None:
    rule = finding.rule
    print(f"{finding.verdict.upper() if finding.verdict is Verdict.FAILS else finding.verdict:9}  {rule.name}")
    if finding.verdict is Verdict.HOLDS:
        return
    print(f"           {rule.sentence}\n           {finding.why}.")
    if finding.verdict is Verdict.FAILS:
        for exchange in finding.exchanges:
            print(_indented("→ ", exchange.request) + "\n" + _indented("← ", str(exchange.reply)))


def _indented(mark: str, text: str) -> str:
    first, *rest = text.splitlines() or [""]
    return "\n".join(["             " + mark + first, *("               " + line for line in rest)])
