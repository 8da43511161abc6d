"""A port for a server that will be killed and come back on it.

The kernel gives connections their local port out of the ephemeral range; a server that chose its port there (by
binding to 0) can find it taken by some connection when it starts again, or a client that calls it meanwhile can be
connected to itself. So ports are chosen outside that range, and only where there is nothing outside, by the kernel.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST = 10_000  # below are the ports that people know
TRIES = 200


def candidates(rng: random.Random | None = None) -> list[int]:
    """Ports outside the ephemeral range, in random order, at most `TRIES`."""
    try:
        low, high = map(int, RANGE.read_text().split())
    except (OSError, ValueError):
        low, high = 32_768, 60_999  # Linux' default; elsewhere the ephemeral range mostly begins at 49152
    outside = [port for port in range(LOWEST, 65_536) if not low <= port <= high]
    return (rng or random.SystemRandom()).sample(outside, min(TRIES, len(outside)))


def free_port(host: str = "127.0.0.1", count: int = 1) -> int:
    """The first of `count` adjacent ports that are free now."""
    for port in candidates():
        if all(_is_free(host, port + i) for i in range(count)):
            return port
    if count > 1:
        raise OSError(f"no {count} adjacent free ports on {host}")
    with socket.socket() as probe:
        probe.bind((host, 0))
        given: int = probe.getsockname()[1]
        return given


def _is_free(host: str, port: int) -> bool:
    if port > 65_535:
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)  # an address in TIME_WAIT can be bound; one that listens cannot
        except OSError:
            return False
        return True
