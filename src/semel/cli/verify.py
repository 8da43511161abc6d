"""`semel verify`: crash an app at every step, then compare its input with its output.

Exit code 0 holds, 1 broken (with a counter-example), 2 unknown or not possible to carry out.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semel.contract import Mode
from semel.errors import UsageError

if TYPE_CHECKING:
    from semel.app import App
    from semel.verify.verdict import Report

ROW = "{:34} {:24} {:>9} {:>9} {:>6} {:>9} {:>6}"


def verify(
    app: Annotated[str, typer.Argument(help="The file that makes the App; file.py:name where it makes several.")],
    on: Annotated[str, typer.Option(help="broker (a process of its own), embedded, or kafka://HOST:PORT.")] = "broker",
    input: Annotated[list[str] | None, typer.Option(help="TOPIC=FILE.jsonl, once per topic.")] = None,
    crashes: Annotated[int, typer.Option(min=1, help="How many kills.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the schedule and of generated input.")] = 1,
    mode: Annotated[Mode, typer.Option(help="The mode that the workers run in.")] = Mode.EXACTLY_ONCE,
    list_steps: Annotated[bool, typer.Option("--list-steps", help="Print the named steps of this app's path.")] = False,
    at: Annotated[
        list[str] | None,
        typer.Option(help="Only STEP[:kill|zombie|late|handover] or leave, in turn (to show a known bug); repeatable."),
    ] = None,
    keep: Annotated[bool, typer.Option(help="Leave the run's folder: the logs of all processes.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also a page to show to others: one file, nothing else needed.")
    ] = None,
) -> None:
    """Crash an app at every step of its protocols, then compare what it read with what it wrote.

    Topics, groups and tables are the run's own: names on the log begin with verify-, and its tables lie in the very
    databases that the app names, under the name of the app's own table and the same addition. Such a table is made
    like the app's own, which is not touched. At the end, also after Ctrl-C or SIGTERM, all of them are removed.
    """
    from semel.host.load import load_app
    from semel.proof.campaign import Asked, steps_of
    from semel.proof.campaign import verify as run
    from semel.verify.schedule import directed_fault

    loaded = load_app(app)
    if list_steps:
        for step in steps_of(loaded.graph(), on, mode):
            print(step.value)
        return
    inputs = {}
    for one in input or []:
        topic, equals, path = one.partition("=")
        if not equals or not topic or not path:
            raise UsageError(f"--input {one}: write TOPIC=FILE.jsonl.")
        inputs[topic] = path
    try:
        directed = tuple(directed_fault(text) for text in at or [])
    except ValueError as why:
        raise UsageError(f"--at: {why}. `semel verify {app} --list-steps` prints the steps.") from None
    name, _, _ = app.rpartition(":") if app.rpartition(":")[1] and not app.endswith(".py") else (app, "", "")
    file = str(Path(name).resolve()) + app[len(name) :]
    asked = Asked(file, on, inputs, crashes, seed, mode, directed=directed, keep=keep)
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise UsageError(f"--html {html}: name a file in a folder that is there.")  # now, not after minutes
    signal.signal(signal.SIGTERM, _interrupt)
    began, said = time.monotonic(), []

    def say(line: str) -> None:
        said.append((time.monotonic() - began, line))
        print(line, file=sys.stderr, flush=True)

    report = run(loaded, asked, say)
    if html is not None:
        words = ["verify", app, f"--on={on}", f"--crashes={crashes}", f"--seed={seed}", f"--mode={mode.value}"]
        words += [*(f"--input={one}" for one in input or []), *(f"--at={one}" for one in at or [])]
        _write_page(html, report, loaded, said, name, words)
    if json_:
        print(json.dumps(report.as_json()))
    else:
        show(report)
    raise typer.Exit(report.verdict.exit_code)


def _write_page(
    file: Path, report: Report, app: App, said: list[tuple[float, str]], app_file: str, words: list[str]
) -> None:
    """Whole or not at all: a page that is there is one of a run that ended."""
    from semel.cli.check import kind_of, shown
    from semel.guarantees import Circumstances, analyse
    from semel.proof.occasion import occasion
    from semel.proof.page import page

    # The run's own broker is neither Apache Kafka nor a log that nobody named.
    kind = kind_of({"broker": "", "embedded": "embedded:."}.get(report.on, report.on))
    promised = analyse(app.graph(), Circumstances(Mode(report.mode), kind))
    if report.on == "broker":
        promised = replace(promised, notes=())
    beside = file.with_name(f".{file.name}.new")
    try:
        beside.write_text(page(report, promised, occasion(app_file, words), said, shown), encoding="utf-8")
        os.replace(beside, file)
    except OSError as why:
        beside.unlink(missing_ok=True)
        print(f"--html {file}: not written: {why.strerror}.", file=sys.stderr)
        return
    print(f"page: {file}", file=sys.stderr)


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM is Ctrl-C: the run ends and removes what is its own. Once: a second one would interrupt that."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def show(report: Report) -> None:
    """The report for a person."""
    print(
        f"\n{report.app} on {report.on}, {report.mode}, seed {report.seed}: {report.input_records} input records, "
        f"{report.kills_worker} workers and {report.kills_broker} brokers killed, {report.zombies} zombies "
        f"({report.refused} refused), {report.seconds:.0f} s\n"
    )
    print(ROW.format("output", "compared as", "expected", "present", "lost", "repeated", "wrong"))
    for o in report.outputs:
        print(ROW.format(o.name[:34], o.kind[:24], o.expected, o.present, o.lost, o.repeated, o.wrong))
        if o.unknown:
            print(f"    unknown: {o.unknown}")
    if repeats := _explained(report):
        print(f"\n{repeats}")
    if report.promises:
        print()
    for of in dict.fromkeys(one.of for one in report.promises):
        own = [one for one in report.promises if one.of == of]
        named = next(one.says for one in own if one.field == "name")
        claimed = [one for one in own if one.says != "nothing"]
        open_ = [one.field for one in claimed if one.untried]
        said = f"; not tried here: {', '.join(open_)}" if open_ else ""
        print(f"{of}, {named}: {len(claimed) - len(open_)} of {len(claimed)} fields of its contract tried{said}")
    for doubt in report.doubts:
        print(f"\ndoubt: {doubt}")
    if report.counterexample:
        print(f"\ncounter-example: {report.counterexample}")
    print(f"\nverdict: {report.verdict.value}")


def _explained(report: Report) -> str:
    """How the other lines are to be read when `input taken` says that records were taken again or never."""
    taken = next((o for o in report.outputs if o.name == "input taken"), None)
    if taken is None or not (taken.repeated or taken.lost):
        return ""
    return (
        "how to read this: each step is compared with what it took from the log. What an earlier step repeated or lost "
        "is in the states and outputs behind it, too, where it is not counted as wrong once more."
    )
