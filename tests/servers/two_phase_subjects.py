"""The sinks of the contract TwoPhase as subjects of the contract kit. `make` functions stand at module level: processes
import them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from semel.host.postgres import PostgresServer
from semel.sinks import MariaDBTwoPhase, PostgresTwoPhase
from semel.testing.contracts import Subject, over_the_wire
from tests.servers import mariadb_subjects
from tests.sinks.subjects import HAND_OVER_S, at_port, left_in_postgres, read_postgres
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
