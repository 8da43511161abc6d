"""What the commands that look at a log share: its URL, and how records are shown."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semel.errors import UsageError

if TYPE_CHECKING:
    from semel.host.looking import Look
    from semel.ports import Records

DEFAULT_URL = "embedded:./data"  # as `semel run`: what one wrote the other reads

On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="URL",
        help=f"kafka://HOST:PORT or embedded:DIR. Default: the variable SEMEL_ON, else {DEFAULT_URL}.",
    ),
]


def url_of(on: str | None) -> str:
    return on or os.environ.get("SEMEL_ON") or DEFAULT_URL


@contextmanager
def look(on: str | None, *, make: bool = False) -> Iterator[Look]:
    """The log to look at. UsageError for a URL that is none or a missing package; LogLost when nobody answers.
    `make`: an embedded folder that is not there yet is made."""
    url = url_of(on)
    log: Look
    if url.startswith("kafka://"):
        import_module("semel.host.kafka_client")  # first: it names its extra when confluent-kafka is missing
        from semel.host.kafka_look import KafkaLook

        log = KafkaLook(url)
    elif url.startswith("embedded:") and url != "embedded:":
        from semel.host.embedded_look import EmbeddedLook

        log = EmbeddedLook(url, make=make)
    else:
        raise UsageError(f"--on {url}: write kafka://HOST:PORT or embedded:DIR.")
    try:
        yield log
    finally:
        log.close()


def shown(data: bytes | None) -> str:
    """One field of a line of text: control characters and what is not UTF-8 escaped, null as such."""
    if data is None:
        return "null"
    text = data.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def as_json(data: bytes | None) -> Any:
    """A JSON value: text when it is UTF-8, else {"base64": …}."""
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def lines(records: Records, json_lines: bool) -> Iterator[str]:
    """One line per record: partition, offset, key and value between tabs, or a JSON object with all there is."""
    partition = records.source.partition
    rows = zip(records.offsets, records.timestamps, records.keys, records.values)
    if not json_lines:
        for offset, _, key, value in rows:
            yield f"{partition}\t{offset}\t{shown(key)}\t{shown(value)}"
        return
    headers = records.headers or [()] * len(records.offsets)
    for (offset, timestamp_ms, key, value), pairs in zip(rows, headers):
        yield json.dumps(
            {
                "partition": partition,
                "offset": offset,
                "timestamp": timestamp(timestamp_ms),
                "key": as_json(key),
                "value": as_json(value),
                "headers": [[name, as_json(data)] for name, data in pairs],
            },
            ensure_ascii=False,
        )


def timestamp(milliseconds: int) -> str | None:
    if milliseconds < 0:
        return None
    try:
        text = datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return str(milliseconds)
    return text.replace("+00:00", "Z")


def bytes_text(size: int | None) -> str:
    if size is None:
        return "-"
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
