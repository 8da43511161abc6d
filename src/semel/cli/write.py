"""`semel write`: each line of a file becomes a record.

Invariant: it reports success only when every line was acknowledged; the producer is idempotent, so a retry after a
lost answer writes nothing twice. Calling it again writes everything again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from semel.cli.logs import On, look
from semel.errors import SemelError, UsageError

PARTITIONS_NEW = 1


def write(
    topic: Annotated[str, typer.Argument(help="The topic to write to; made with one partition when it is not there.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file, or - for stdin.")],
    on: On = None,
    key: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Lines are JSON objects: use this field as the key.")
    ] = None,
) -> None:
    """Write each line of a file as a record, in order per key."""
    with _opened(file) as source, look(on, make=True) as log:
        log.create(topic, PARTITIONS_NEW)
        writer = log.writer()
        send = writer.writer(topic)
        count = 0
        started = time.monotonic()
        now_ms = int(time.time() * 1000)
        for number, line in enumerate(source, 1):
            value = line.rstrip(b"\r\n")
            try:
                name = _key(value, key) if key is not None else None
            except NoKey as why:
                writer.flush()
                said = " The lines before it were written." if count else ""
                raise SemelError(f"{file}, line {number} {why}{said}") from None
            send(-1, name, value, now_ms, None)
            count += 1
        writer.flush()
        took_s = time.monotonic() - started
        writer.close()
    print(f"{count} records written to {topic} in {took_s:.1f} s", file=sys.stderr)


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        source = Path(file).open("rb")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}. Give a file, or - for stdin.") from None
    with source:
        yield source


class NoKey(Exception):
    """Why a line has no key."""


def _key(line: bytes, field: str) -> bytes | None:
    try:
        found = json.loads(line)[field]
    except ValueError:
        raise NoKey("is not JSON: --key needs JSON objects.") from None
    except (KeyError, TypeError):
        raise NoKey(f"has no field {field!r}.") from None
    if found is None:
        return None
    return found.encode() if isinstance(found, str) else json.dumps(found).encode()
