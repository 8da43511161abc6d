"""The HTTP sink beside plain POSTs of the same bodies: as many connections, kept open, by the same client.

Two lines, because the guard has two halves: against the same receiver, which takes the plain writer's keys (one of its
own for each request), the sink's half shows; against one without semel.receiver, the whole.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.sinks_common import Made, Peer, decoded

IN_FLIGHT = 4


@contextlib.contextmanager
def http_(folder: Path) -> Iterator[dict[str, Made]]:
    from tests.receiver.served import Served

    from semel.sinks import HTTP

    names = ("ours", "keyed", "ours-2", "naive")
    files = {name: folder / f"{name}.db" for name in names}
    with contextlib.ExitStack() as stack:
        at = {
            name: stack.enter_context(
                Served("naive" if name == "naive" else "ours", str(files[name]), folder, "bench.hook")
            )
            for name in names
        }

        def peer(name: str, keys: bool) -> Callable[[], Peer]:
            def made() -> Peer:
                lines = [http.client.HTTPConnection("127.0.0.1", at[name].port, timeout=30) for _ in range(IN_FLIGHT)]
                pool = stack.enter_context(ThreadPoolExecutor(IN_FLIGHT))
                run, numbers = uuid.uuid4().hex, itertools.count()

                def sent(line: http.client.HTTPConnection, bodies: list[bytes]) -> None:
                    for body in bodies:
                        headers = {"Content-Type": "application/json"}
                        if keys:
                            headers["Idempotency-Key"] = f'"{run}-{next(numbers)}"'
                        line.request("POST", "/hook", body, headers)
                        answer = line.getresponse()
                        assert answer.status == 201, answer.read()
                        answer.read()

                def write(batch: list[bytes]) -> None:
                    parts = [batch[number::IN_FLIGHT] for number in range(IN_FLIGHT)]
                    list(pool.map(sent, lines, parts))

                return write

            return made

        def shown(ours: str, theirs: str) -> Callable[[bool], list[Any]]:
            def read(mine: bool) -> list[Any]:
                with contextlib.closing(sqlite3.connect(files[ours if mine else theirs])) as db:
                    return sorted(decoded([body.encode() for (body,) in db.execute("SELECT body FROM entries")]))

            return read

        def sink(name: str) -> Any:
            return HTTP(f"http://127.0.0.1:{at[name].port}/hook", name=name, in_flight=IN_FLIGHT)

        yield {
            "HTTP, the same receiver": Made(sink("ours"), peer("keyed", True), shown("ours", "keyed"), 500, 1_500),
            "HTTP, a receiver without keys": Made(
                sink("ours-2"), peer("naive", False), shown("ours-2", "naive"), 500, 1_500
            ),
        }
