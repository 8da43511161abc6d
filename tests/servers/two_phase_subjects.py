"""The sinks of the contract TwoPhase as subjects of the contract kit. `make` functions stand at module level: processes
import them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semel.host.postgres import PostgresServer
from semel.sinks import PostgresTwoPhase
from semel.testing.contracts import Subject, over_the_wire
from tests.sinks.subjects import HAND_OVER_S, at_port, left_in_postgres, read_postgres

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
