"""The sinks of the contract TwoPhase as subjects of the contract kit. `make` functions stand at module level: processes
import them."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import obstore

from semel.host.postgres import PostgresServer
from semel.sinks import Files, MariaDBTwoPhase, MultipartObjects, PostgresTwoPhase
from semel.sinks.multipart_requests import Multipart
from semel.testing.contracts import Entry, Subject, lost_at_the_call, over_the_wire
from tests.servers import mariadb_subjects
from tests.sinks.subjects import (
    HAND_OVER_S,
    S3_BUCKET,
    _bucket,
    at_port,
    left_in_a_folder,
    left_in_postgres,
    read_postgres,
    s3_options,
)
from tests.support.mariadb import MariaDBServer

CUTS: dict[str, Any] = {"records": 10, "seconds": 0.01}
# A cut follows the one before it without a gap: 10 records, 990, and the kit goes on at 1,000.
LARGE = 990


def postgres_keyed(address: str, suffix: str) -> PostgresTwoPhase:
    return PostgresTwoPhase(address, "entries", key="id", hand_over_s=HAND_OVER_S, **CUTS).renamed(suffix)


def postgres_appended(address: str, suffix: str) -> PostgresTwoPhase:
    return PostgresTwoPhase(address, "entries", hand_over_s=HAND_OVER_S, **CUTS).renamed(suffix)


def postgres_subject(make: Callable[[str, str], Any], server: PostgresServer, address: str) -> Subject:
    def crash() -> None:
        server.kill()
        server.start()

    return Subject(
        make=make,
        address=address,
        read=read_postgres,
        orphans=left_in_postgres,
        loses=lambda: over_the_wire(server.port, b"COMMIT PREPARED", lambda port: at_port(address, port)),
        crash=crash,
        hand_over_s=HAND_OVER_S,
        large=LARGE,
    )


# --- MariaDB ---------------------------------------------------------------------------------------------------------


def mariadb_keyed(address: str, suffix: str) -> MariaDBTwoPhase:
    hand_over_s = mariadb_subjects.HAND_OVER_S
    return MariaDBTwoPhase(address, "entries", key="id", hand_over_s=hand_over_s, **CUTS).renamed(suffix)


def mariadb_appended(address: str, suffix: str) -> MariaDBTwoPhase:
    return MariaDBTwoPhase(address, "entries", hand_over_s=mariadb_subjects.HAND_OVER_S, **CUTS).renamed(suffix)


def mariadb_subject(make: Callable[[str, str], Any], server: MariaDBServer) -> Subject:
    plain = mariadb_subjects.subject(make, server)
    return replace(
        plain,
        loses=lambda: over_the_wire(server.port, b"XA COMMIT", lambda port: mariadb_at_port(server, port)),
        large=LARGE,
    )


def mariadb_at_port(server: MariaDBServer, port: int) -> str:
    return server.url.replace(f":{server.port}/", f":{port}/")


# --- files -----------------------------------------------------------------------------------------------------------


def files_jsonl(address: str, suffix: str) -> Files:
    return Files(address, name="entries", **CUTS).renamed(suffix)


def files_csv(address: str, suffix: str) -> Files:
    return Files(address, name="entries", format="csv", value=Entry, compression="gzip", **CUTS).renamed(suffix)


def read_files(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    """Every file that a reader who lists folders sees: hidden names are not among them."""
    for file in sorted(Path(address + suffix).glob("0*/[!.]*")):
        if file.suffix == ".gz":
            lines = gzip.decompress(file.read_bytes()).decode().splitlines()
            yield from ((r["id"], int(r["n"])) for r in csv.DictReader(lines))
        else:
            yield from ((r["id"], r["n"]) for r in map(json.loads, file.read_text().splitlines()))


def arm_files(connection: Any, instead: Callable[[Callable[[], Any]], Any]) -> None:
    phases = connection.phases
    rename = phases._rename

    def once(old: Any, new: Any) -> None:
        phases._rename = rename
        instead(lambda: rename(old, new))

    phases._rename = once


def files_subject(make: Callable[[str, str], Any], folder: Path) -> Subject:
    address = str(folder / "kit")
    return Subject(
        make=make,
        address=address,
        read=read_files,
        orphans=left_in_a_folder,
        loses=lambda: lost_at_the_call(address, arm_files, lambda: OSError(5, "Input/output error")),
        poison=() if make is files_jsonl else (b'{"id": "p", "m": 1}', b"[1]"),
        hand_over_s=1.0,
        large=LARGE,
    )


# --- multipart uploads -----------------------------------------------------------------------------------------------


def multipart(address: str, suffix: str) -> MultipartObjects:
    """`address` is the server's endpoint."""
    sink = MultipartObjects(f"s3://{S3_BUCKET}/parts", name="entries", options=s3_options(address), **CUTS)
    return sink.renamed(suffix)


def left_in_parts(address: str, suffix: str) -> Sequence[str]:
    """Objects, and uploads that nobody has completed or aborted."""
    sink = multipart(address, suffix)
    uploads = Multipart(sink.bucket, sink.where, sink.plain.options).listed(f"parts{suffix}/")
    objects = [one["path"] for chunk in obstore.list(_bucket(address), prefix=f"parts{suffix}") for one in chunk]
    return [*objects, *(f"upload {one.key}" for one in uploads)]


def read_parts(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    for key in (one["path"] for chunk in obstore.list(_bucket(address), prefix=f"parts{suffix}") for one in chunk):
        if "/_semel/" not in key:
            lines = bytes(obstore.get(_bucket(address), key).bytes()).splitlines()
            yield from ((r["id"], r["n"]) for r in map(json.loads, lines))


def multipart_subject(port: int, crash: Callable[[], None]) -> Subject:
    def at(port: int) -> str:
        return f"http://127.0.0.1:{port}"

    return Subject(
        make=multipart,
        address=at(port),
        read=read_parts,
        orphans=left_in_parts,
        loses=lambda: over_the_wire(port, b"<CompleteMultipartUpload>", at),
        crash=crash,
        poison=(),
        hand_over_s=2.0,
        large=LARGE,
    )
