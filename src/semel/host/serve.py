"""From a folder and an address to a broker that serves: lock, recovery, server, and the way back.

Invariant: the folder is locked before anything in it is read, until the process ends or `serve` returns; nobody is
served before recovery is synced.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import random
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from semel.broker.config import Config
from semel.broker.node import Node
from semel.errors import SemelError, UsageError
from semel.host.disk import Disk
from semel.host.free_port import candidates
from semel.host.lock import FolderLock
from semel.host.server import Server, clock
from semel.host.steps import steps_from
from semel.log.errors import FolderProblem

logger = logging.getLogger("semel.broker")


def serve(folder: Path, listen: str, advertise: str | None, durability: str, settings: Sequence[str]) -> None:
    """Returns after SIGTERM or SIGINT. UsageError for what was asked wrongly, SemelError for what went wrong."""
    host, port = parse_address(listen, "--listen")
    advertised = parse_address(advertise, "--advertise") if advertise is not None else None
    if advertised is None and host in ("0.0.0.0", "::"):
        raise UsageError(
            f"--listen {listen} takes connections from everywhere, but clients must be told one address to come back "
            f"to: add --advertise HOST:{port}, with the name under which they reach this machine."
        )
    config = Config.parse([*settings, f"durability={durability}"])
    _log_to_stderr()
    listening = _bound(host, port)
    try:
        lock = FolderLock.take(_made(folder))
    except SemelError:
        listening.close()
        raise
    try:
        started = time.monotonic()
        now_ms = clock()
        try:
            node = Node(
                Disk(folder), config, now_ms=now_ms(), steps=steps_from(os.environ), random=random.SystemRandom()
            )
        except FolderProblem as problem:
            raise type(problem)(f"{folder}: {problem}") from problem
        except OSError as error:
            raise SemelError(
                f"{folder}: recovery failed: {error.strerror or error}. Nothing was served and nothing that was "
                f"acknowledged is lost. Mend that (space, rights, the disk), then start again."
            ) from None
        logger.info("%s recovered in %.2f s, durability=%s", folder, time.monotonic() - started, config.durability)

        def ready(host: str, port: int) -> None:
            told, told_port = advertised or (host, port)
            node.address = told, told_port or port
            print(f"ready {host}:{port}", flush=True)

        asyncio.run(Server(node, folder, now_ms).run(listening, ready))
        node.close()
        logger.info("stopped")
    finally:
        listening.close()
        lock.release()


def parse_address(text: str, option: str) -> tuple[str, int]:
    """HOST:PORT, with [HOST] for IPv6."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{option} {text}: write HOST:PORT, for example 127.0.0.1:9092 (port 0: any free one).")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _bound(host: str, port: int) -> socket.socket:
    """Bound, not listening yet: an address in use is found out before the folder is touched, and nobody connects
    before the broker serves."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if port or not _bound_outside(bound, address):
            bound.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SemelError(
                f"{host}:{port} is in use. Stop what listens there, choose another port with --listen {host}:PORT, or "
                f"port 0 for a free one."
            ) from None
        raise SemelError(
            f"cannot listen on {host}:{port}: {error.strerror or error}. Give an address of this machine with --listen."
        ) from None
    return bound


def _bound_outside(bound: socket.socket, address: tuple[object, ...]) -> bool:
    """Port 0: one that the kernel does not give to connections, so that the broker can come back on it."""
    for port in candidates():
        with contextlib.suppress(OSError):
            bound.bind((address[0], port, *address[2:]))
            return True
    return False


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{folder} is a file, not a folder. Give a folder for the log.") from None
    except OSError as error:
        raise SemelError(f"{folder}: cannot be made ({error.strerror}). Choose another folder.") from None
    return folder


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("semel")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
