"""`semel write`: each line of a file becomes a record.

Invariant: it reports success only when every line was acknowledged; the producer is idempotent, so a retry after a
lost answer writes nothing twice. Ended early, by Ctrl-C or a line that is none, it says how many lines are in, and
`--skip` goes on behind them. Calling it again writes everything again.
"""

from __future__ import annotations

import json
import signal
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
    topic: Annotated[str, typer.Argument(help="The topic to write to; made when it is not there.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file, or - for stdin.")],
    on: On = None,
    key: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Lines are JSON objects: use this field as the key.")
    ] = None,
    skip: Annotated[int, typer.Option(metavar="N", min=0, help="Leave out the first N lines: they are in.")] = 0,
    partitions: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many the topic has or is made with. Default: one.")
    ] = None,
) -> None:
    """Write each line of a file as a record, in order per key."""
    with _opened(file) as source, look(on, make=True) as log, _Asked() as asked:
        log.create(topic, partitions or PARTITIONS_NEW)
        if partitions is not None and (found := log.partitions(topic)) != partitions:
            raise UsageError(
                f"{topic} has {found} partitions, not {partitions}. Leave --partitions out, or write elsewhere."
            )
        writer = log.writer()
        send = writer.writer(topic)
        done = skip  # lines
        started = time.monotonic()
        now_ms = int(time.time() * 1000)
        try:
            for number, line in enumerate(source, 1):
                if number <= skip:
                    continue
                value = line.rstrip(b"\r\n")
                name = _key(value, key) if key is not None else None
                asked.wait = True
                send(-1, name, value, now_ms, None)
                done = number
                asked.wait = False
                if asked.heard:
                    raise KeyboardInterrupt
        except (NoKey, KeyboardInterrupt) as why:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one ends it at once
            writer.flush()
            if done:
                print(f"{_lines(done)} in. To go on behind them: --skip {done}", file=sys.stderr)
            if isinstance(why, NoKey):
                raise SemelError(f"{file}, line {done + 1} {why}") from None
            raise
        writer.flush()
        took_s = time.monotonic() - started
        writer.close()
    print(f"{max(0, done - skip)} records written to {topic} in {took_s:.1f} s", file=sys.stderr)


def _lines(count: int) -> str:
    return "The first line is" if count == 1 else f"The first {count:,} lines are"


class _Asked:
    """Ctrl-C, heard between two lines: never with one sent that is not counted."""

    def __init__(self) -> None:
        self.wait = False
        self.heard = False

    def __enter__(self) -> _Asked:
        self._before = signal.signal(signal.SIGINT, self._signalled)
        return self

    def __exit__(self, *raised: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _signalled(self, number: int, frame: object) -> None:
        if not self.wait:
            raise KeyboardInterrupt
        self.heard = True


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
