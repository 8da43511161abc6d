"""`semel broker`: one folder, one port, until SIGTERM or SIGINT.

Invariant: `ready HOST:PORT` is the only line on stdout, printed when a client may connect. Exit code 0 after a signal,
1 when it could not start or could not go on, 2 when it was asked wrongly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def broker(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The data folder; made when it is not there.")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0: any free one.")] = (
        "127.0.0.1:9092"
    ),
    advertise: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The address clients are told, when it is another one.")
    ] = None,
    durability: Annotated[
        str,
        typer.Option(
            help="fsync: what was acknowledged survives a power cut. os: it survives a killed process, and a power "
            "cut may lose it and tear transactions (what Kafka does by default)."
        ),
    ] = "fsync",
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A broker setting; may be repeated.")
    ] = None,
) -> None:
    """Serve a folder as a log that speaks Kafka's protocol, with its exactly-once machinery."""
    from semel.host.serve import serve

    serve(folder, listen, advertise, durability, setting or [])
