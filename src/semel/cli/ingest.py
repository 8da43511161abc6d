"""`semel ingest`: reads the sources of an app into their topics, once.

Exit code 0 when everything was read (or, with --follow, after Ctrl-C), 1 when a source or the log stopped it, 2 when it
was asked wrongly.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from semel.cli.logs import On, url_of


def ingest(
    app: Annotated[str, typer.Argument(metavar="APP.py[:NAME]", help="The file that makes the App.")],
    on: On = None,
    topic: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only the source of this topic; repeatable.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on reading what comes, until Ctrl-C.")] = False,
    begin: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="This topic holds records of others already, and none of its source."),
    ] = None,
) -> None:
    """Read the sources of an app into their topics, each record once, then end.

    Called again it reads what came since. `semel run` does the same while it runs; both may run at once.
    """
    from semel.host.load import load_app
    from semel.host.worker import run_ingest

    code = 0
    try:
        run_ingest(
            load_app(app),
            url_of(on),
            topics=topic or (),
            follow=follow,
            begin=begin or (),
            prefix=os.environ.get("SEMEL_PREFIX", ""),
        )
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is committed and closed; what the interpreter would still do is wait for a client library's threads.
    os._exit(code)
