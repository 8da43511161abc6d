"""The sinks of the contract TwoPhase, and PostgresAppended, beside one transaction, file or upload of the same client.

Ours prepare and commit; the two records of the delivery topic that lie between (written down, decided) are not in it:
they are the log's, one transaction of it each, as `BENCH=latency` has them. A cut has 10,000 records, as `records=`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import sinks as tables
from bench.sinks_common import CUT, Made, Peer, decoded


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[dict[str, Made]]:
    from semel.sinks import PostgresAppended, PostgresTwoPhase

    def sink_of(name: str, dsn: str, key: str | None) -> Any:
        return PostgresAppended(dsn, name) if name == "appended" else PostgresTwoPhase(dsn, name, key=key)

    with tables.postgres_like(folder, ("twice", "twice_kept", "appended"), sink_of) as made:
        yield {
            "PostgresTwoPhase, append": made["twice"],
            "PostgresTwoPhase, upsert": made["twice_kept"],
            "PostgresAppended (event id)": made["appended"],
        }


@contextlib.contextmanager
def mariadb(folder: Path) -> Iterator[dict[str, Made]]:
    from semel.sinks import MariaDBTwoPhase

    with tables.mariadb(folder, MariaDBTwoPhase) as made:
        yield {name.replace("MariaDB", "MariaDBTwoPhase"): one._replace(batch=CUT) for name, one in made.items()}


@contextlib.contextmanager
def files(folder: Path) -> Iterator[dict[str, Made]]:
    """The plain writer's file is synced and gets its name by a rename, which is synced, too."""
    from semel.sinks import Files

    def synced(at: Path) -> None:
        descriptor = os.open(at, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def peer() -> Peer:
        numbers = iter(range(1 << 30))
        (folder / "peer").mkdir()

        def write(batch: list[bytes]) -> None:
            final = folder / "peer" / f"{next(numbers):09}.jsonl"
            with final.with_suffix(".tmp").open("wb") as file:
                file.write(b"\n".join(batch) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            final.with_suffix(".tmp").rename(final)
            synced(final.parent)

        return write

    def shown(ours: bool) -> list[Any]:
        found = sink.complete() if ours else sorted((folder / "peer").glob("*.jsonl"))
        return sorted(row for path in found for row in decoded(path.read_bytes().splitlines()))

    sink = Files(folder / "ours")
    yield {"Files, JSON lines": Made(sink, peer, shown, CUT)}


@contextlib.contextmanager
def multipart(folder: Path) -> Iterator[dict[str, Made]]:
    """On SeaweedFS. The plain writer sends one upload in one part: create, part, complete."""
    import obstore
    from obstore.store import S3Store
    from tests.sinks.subjects import S3_BUCKET
    from tests.support.seaweed import SeaweedProcess

    from semel.sinks import MultipartObjects
    from semel.sinks.multipart_requests import Multipart

    with SeaweedProcess(folder / "seaweed") as server:
        options: Any = server.options()
        store = S3Store(S3_BUCKET, config=options, client_options={"allow_http": True})

        def peer() -> Peer:
            numbers = iter(range(1 << 30))
            client = Multipart(S3_BUCKET, "the plain writer", options)

            def write(batch: list[bytes]) -> None:
                upload = client.create(f"peer/{next(numbers):09}.jsonl", "")
                client.part(upload, 1, b"\n".join(batch) + b"\n")
                client.complete(upload, client.parts(upload))

            return write

        def shown(ours: bool) -> list[Any]:
            found: list[Any] = []
            for page in obstore.list(store, "ours" if ours else "peer"):
                for one in page:
                    if one["path"].endswith(".jsonl"):
                        found += decoded(bytes(obstore.get(store, one["path"]).bytes()).splitlines())
            return sorted(found)

        sink = MultipartObjects(f"s3://{S3_BUCKET}/ours", options=options)
        yield {"MultipartObjects, JSON lines (S3)": Made(sink, peer, shown, CUT)}
