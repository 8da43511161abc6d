"""The broker as a server: sockets, the clock, the disk's sync thread, around one `Node` that decides.

Requests are stepped as they are read; answers that wait for nothing leave at once. Per turn of the loop everything
that was appended is written together, and while there is something unsynced one sync runs in a thread; what it made
durable releases the answers that waited. So one sync serves all who came while the one before it ran.

Invariant: no answer leaves that the node has not released, and after a failed write or sync none leaves at all.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semel.broker.config import OS
from semel.broker.events import ConnectionClosed, Event, Reply, Request, Tick
from semel.errors import SemelError
from semel.host.connection import Connection, factory
from semel.host.size import LOOK_S, SizeWatch
from semel.wire.incoming import Incoming

if TYPE_CHECKING:
    from semel.broker.node import Node

logger = logging.getLogger("semel.server")

FRAME_BYTES_MAX = 100 << 20  # as Kafka's socket.request.max.bytes
STOP_S_MAX = 20.0
GOODBYE_S_MAX = 1.0


class ServerFailed(SemelError):
    """The server can no longer promise anything and has ended without answering."""


def clock() -> Callable[[], int]:
    """Milliseconds since the epoch that never go back: the wall clock at the start plus what has passed since."""
    start_ms, start = time.time() * 1000, time.monotonic()
    return lambda: int(start_ms + (time.monotonic() - start) * 1000)


class Server:
    """Serves `node` until `stop`. `run` is the whole life."""

    def __init__(self, node: Node, folder: Path, now_ms: Callable[[], int]) -> None:
        self.frame_bytes_max = FRAME_BYTES_MAX
        self._node = node
        self._size = SizeWatch(folder)
        self._syncs = node.config.durability != OS
        self._folder = folder
        self._now_ms = now_ms
        self._connections: dict[int, Connection] = {}
        self._touched: set[Connection] = set()  # with answers to send at the end of this turn
        self._turn_due = False
        self._syncing: Future[int] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="semel-sync")
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ms: int | None = None
        self._failure: BaseException | None = None
        self._stopping: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._quiet: asyncio.Event | None = None

    # life

    async def run(self, bound: socket.socket, ready: Callable[[str, int], None]) -> None:
        """Listens on a bound socket, calls `ready`, serves until a signal; ServerFailed when it cannot go on."""
        loop = self._loop = asyncio.get_running_loop()
        self._stopping, self._quiet = asyncio.Event(), asyncio.Event()
        loop.set_exception_handler(self._unhandled)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        listening = await loop.create_server(factory(self), sock=bound, backlog=1024)
        address = bound.getsockname()
        ready(address[0], address[1])
        self._schedule()
        self._watch_size()
        await self._stopping.wait()
        listening.close()
        await self._wind_down()

    def _watch_size(self) -> None:
        """In the loop's default executor: listing a large folder must not hold up answers."""
        assert self._loop is not None
        self._loop.run_in_executor(None, self._size.look)
        self._loop.call_later(LOOK_S, self._watch_size)

    def _signalled(self, number: int) -> None:
        assert self._stopping is not None
        if self._stopping.is_set():
            os._exit(128 + number)  # asked twice: at once
        self.stop(f"{signal.Signals(number).name}; a second signal ends it at once")

    def stop(self, reason: str) -> None:
        """Ends `run` in good order."""
        assert self._stopping is not None
        logger.info("stopping (%s)", reason)
        self._stopping.set()

    async def _wind_down(self) -> None:
        """What was promised leaves, the rest is cut off; then the state is made cheap to read again."""
        assert self._quiet is not None
        if self._failure is None:
            self._schedule()
            try:
                await asyncio.wait_for(self._quiet.wait(), STOP_S_MAX)
            except TimeoutError:
                logger.warning("the disk did not finish a sync in %.0f s: ending without it", STOP_S_MAX)
                os._exit(1)
        for connection in list(self._connections.values()):
            connection.abort() if self._failure is not None else connection.close()
        deadline = time.monotonic() + GOODBYE_S_MAX
        while self._connections and time.monotonic() < deadline:
            await asyncio.sleep(0.01)  # the last answers leave
        if self._failure is not None:
            raise ServerFailed(self._explained(self._failure)) from None
        self._thread.shutdown()

    # what connections report

    def opened(self, connection: Connection) -> int:
        self._connections[connection.number] = connection
        return connection.number

    def closed(self, connection: Connection) -> None:
        self._connections.pop(connection.number, None)
        self._step(ConnectionClosed(connection.number))

    def handled(self) -> frozenset[int] | None:
        return self._node.handled

    def request(self, connection: Connection, token: int, incoming: Incoming) -> None:
        assert self._stopping is not None
        if self._stopping.is_set():
            return  # no answer: its sender finds the connection closed and asks again
        self._step(
            Request(
                connection.number,
                token,
                incoming.message,
                incoming.api_key,
                incoming.version,
                connection.number,
                incoming.client_id or "",
                connection.host,
            )
        )

    # steps, writes and syncs

    def _step(self, event: Event) -> None:
        if self._failure is not None:
            return
        try:
            replies = self._node.step(event, self._now_ms())
        except Exception as error:
            self._fail(error)
            return
        if self._node.untold:
            for damage in self._node.untold:
                logger.error("damaged: %s", damage)
            self._node.untold.clear()
        self._deliver(replies)
        self._schedule()

    def _deliver(self, replies: Iterable[Reply]) -> None:
        for reply in replies:
            connection = self._connections.get(reply.connection)
            if connection is None:
                continue
            if reply.close:
                connection.close("a request that an older connection had sent came too late to be served (FAULTS B1)")
                continue
            connection.answer(reply.token, reply.message)
            self._touched.add(connection)

    def _schedule(self) -> None:
        if not self._turn_due and self._loop is not None:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """The end of a turn: one write for all that was stepped, a sync if none runs, the answers, the timer."""
        self._turn_due = False
        if self._failure is not None:
            return
        try:
            self._make_durable()
        except Exception as error:
            self._fail(error)
            return
        touched, self._touched = self._touched, set()
        for connection in touched:
            connection.flush()
        self._arm()

    def _make_durable(self) -> None:
        """Writes what was appended; then starts a sync, or a checkpoint, when none runs."""
        assert self._stopping is not None and self._quiet is not None
        node = self._node
        if node.unsynced:
            written = node.write()
            if not self._syncs:
                self._deliver(node.synced(written, self._now_ms()))  # written is durable: nothing to wait for
        if self._syncing is not None:
            return
        last = self._stopping.is_set() and not self._quiet.is_set()
        if node.checkpoint_due or last:
            node.checkpoint()
            self._deliver(node.synced(node.sync(), self._now_ms()))
        elif node.unsynced:
            self._syncing = self._thread.submit(node.sync)
            self._syncing.add_done_callback(self._sync_over)
        if last and not node.unsynced:
            self._quiet.set()

    def _sync_over(self, done: Future[int]) -> None:
        """In the sync thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._synced, done)

    def _synced(self, done: Future[int]) -> None:
        self._syncing = None
        if self._failure is not None:
            return
        try:
            self._deliver(self._node.synced(done.result(), self._now_ms()))
        except Exception as error:
            self._fail(error)
            return
        self._turn()

    def _arm(self) -> None:
        """One timer, for the next moment at which the node wants to be woken."""
        assert self._loop is not None
        wake_at_ms = self._node.wake_at_ms
        if wake_at_ms == self._timer_ms:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_ms = wake_at_ms
        if wake_at_ms is not None:
            delay_s = max(0, wake_at_ms - self._now_ms()) / 1000
            self._timer = self._loop.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = self._timer_ms = None
        self._step(Tick())

    # failure

    def _fail(self, error: BaseException) -> None:
        """From here on nothing is answered: what reached the disk is unknown, and the next start finds out."""
        if self._failure is not None:
            return
        self._failure = error
        if not isinstance(error, OSError | SemelError):
            logger.error("the broker met a bug of its own and ends before it answers", exc_info=error)
        for connection in list(self._connections.values()):
            connection.abort()
        assert self._stopping is not None and self._quiet is not None
        self._stopping.set()
        self._quiet.set()

    def _explained(self, error: BaseException) -> str:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"{self._folder}: the disk is full. Nothing unanswered was promised; what was answered is safe. "
                f"Free space on that disk, then start the broker again on the same folder."
            )
        if isinstance(error, OSError):
            return (
                f"{self._folder}: writing or syncing failed ({error.strerror or error}). What reached the disk is "
                f"unknown, so nothing more was answered. Check the disk, then start again: recovery finds out."
            )
        if isinstance(error, SemelError):
            return str(error)
        return f"the broker met a bug of its own ({type(error).__name__}: {error}). Start it again; recovery is safe."

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What asyncio reports: a peer's reset, no descriptors left; a line, never a traceback."""
        error = context.get("exception")
        logger.warning("%s%s", context.get("message", "asyncio"), f": {error}" if error else "")
