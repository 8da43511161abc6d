"""Prometheus as a subject of the contract kit. `make` functions stand at module level: processes import them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from semel.sinks import Prometheus
from semel.testing.contracts import Subject, over_the_wire
from tests.support.prometheus import PrometheusProcess, samples


def absolute(address: str, suffix: str) -> Prometheus:
    """A series per id; n is its total, and the ms of its event: the kit's records have no other time."""
    return Prometheus(address, "entries", value="n", labels=["id"], at="n", timeout_s=5).renamed(suffix)


def read(address: str, suffix: str) -> Iterable[tuple[str, int]]:
    found = samples(address, f"entries{suffix}")
    assert all(at == value for _, at, value in found), "each value lies at its own stamp"
    return [(labels["id"], int(value)) for labels, _, value in found]


def left(address: str, suffix: str) -> Sequence[str]:
    return sorted({str(labels) for labels, _, _ in samples(address, f"entries{suffix}")})


def subject(make: Callable[[str, str], Any], server: PrometheusProcess) -> Subject:
    def crash() -> None:
        server.kill()
        server.start()

    return Subject(
        make=make,
        address=server.url,
        read=read,
        orphans=left,
        loses=lambda: over_the_wire(
            server.port, b"Remote-Write-Version", lambda port: f"http://127.0.0.1:{port}", answered=True
        ),
        crash=crash,
        poison=(*POISON,),
        hand_over_s=None,  # nothing is locked, so nothing has to be taken over
    )


# What Prometheus would take without a word, and hold something else.
POISON = (
    b'{"id": "p", "n": "many"}',
    b'{"id": "p", "n": null}',
    b'{"id": "", "n": 5}',
    b'{"id": null, "n": 5}',
    b'{"id": "p", "n": 9007199254740993}',
)
