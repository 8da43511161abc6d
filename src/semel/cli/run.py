"""`semel run`: one app, until Ctrl-C or SIGTERM. Exit code 0, 1 (the app or its log failed), 2 (asked wrongly)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from semel.contract import Mode


def run(
    app: Annotated[str, typer.Argument(metavar="APP.py[:NAME]", help="The file that makes the App.")],
    on: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="URL",
            help="embedded:DIR or kafka://HOST:PORT. Default: SEMEL_ON, else embedded:./data.",
        ),
    ] = None,
    mode: Annotated[Mode, typer.Option(help="What a crash may do to the results.")] = Mode.EXACTLY_ONCE,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that share the partitions (on Kafka); a killed one is started again.")
    ] = 1,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="Local state and this machine's identity. Default: .semel/APP; on embedded:DIR it is DIR/state/APP.",
        ),
    ] = None,
    session_timeout_ms: Annotated[
        int | None,
        typer.Option(
            "--session-timeout-ms",
            min=1_000,
            envvar="SEMEL_SESSION_MS",
            help="How long a silent worker keeps its partitions (on Kafka). Default: 10000.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="[HOST:]PORT",
            envvar="SEMEL_METRICS",
            help="Serve what the app and its sinks count to Prometheus there; worker number n at PORT + n - 1.",
        ),
    ] = None,
) -> None:
    """Run an app on the embedded log, on `semel broker` or on Apache Kafka."""
    from semel.host.load import load_app
    from semel.host.worker import run_app

    code = 0
    try:
        run_app(
            load_app(app),
            on or os.environ.get("SEMEL_ON") or "embedded:./data",
            mode,
            workers,
            # `semel verify` gives its workers a corner of their own, and has them trace what they write.
            prefix=os.environ.get("SEMEL_PREFIX", ""),
            trace=os.environ.get("SEMEL_TRACE", "") == "1",
            state_dir=state,
            session_timeout_ms=session_timeout_ms,
            metrics=metrics,
        )
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is committed and closed. What the interpreter would still do is wait for the threads of the client
    # library, without a bound.
    os._exit(code)
