"""One DuckDB file, for all deliveries of this process: who has it open, and for how long.

Opening it, and the checkpoint when it is closed, cost as much as a batch of 10,000 rows. Invariant: one thread at a
time uses it; it is open only while it is used, or for IDLE_S after a batch that said `lingers`; at a stretch no longer
than TURN_S and the use that goes past it, after which it is left closed for GAP_S, so that readers and other workers
have their turn; and after an error it is closed, so that nobody goes on with what that left.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

import duckdb

from semel.sinks.file_locks import identity

LOOK_S = 0.01  # how often a file that another process has is tried
TURN_S, GAP_S = 1.0, 0.03
IDLE_S = 0.1  # longer than it takes to read and decode the next batch of a backlog
LOCKED = "Could not set lock"


class Busy(Exception):
    """Another process, or another delivery of this one, has the file."""


class DuckDBFile:
    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._since = 0.0  # from when on the file has been in use by this process, with no gap for others
        self._closed = 0.0
        self._lingers = False  # whether it is left open after this use
        self._left: duckdb.DuckDBPyConnection | None = None  # open, and used by nobody
        self._identity = (0, 0)  # of the file that is left open
        self._until = 0.0  # how long it stays so
        self._watched = False

    @contextlib.contextmanager
    def opened(self, wait_s: float) -> Iterator[duckdb.DuckDBPyConnection]:
        """Raises Busy after `wait_s`."""
        until = time.monotonic() + wait_s
        if not self._lock.acquire(timeout=wait_s):
            raise Busy
        try:
            connection = self._taken() or self._connected(until)
            self._lingers = False
            try:
                yield connection
            except BaseException:
                self._lingers = False
                raise
            finally:
                self._given_back(connection)
        finally:
            self._lock.release()

    def lingers(self) -> None:
        """Said by who has it open, in no transaction: the next use comes at once."""
        self._lingers = True

    def closed(self) -> None:
        """Returns when it is not left open any more; a use is not waited for."""
        if self._lock.acquire(blocking=False):  # else it is in use, and who uses it decides
            try:
                self._let_go()
            finally:
                self._lock.release()

    def _taken(self) -> duckdb.DuckDBPyConnection | None:
        """What was left open, if it is still the file of that name."""
        left, self._left = self._left, None
        if left is not None and identity(self._path) != self._identity:
            self._close(left)
            return None
        return left

    def _connected(self, until: float) -> duckdb.DuckDBPyConnection:
        while True:
            try:
                connection = duckdb.connect(self._path)
                break
            except duckdb.IOException as why:
                if LOCKED not in str(why):
                    raise
                if time.monotonic() >= until:
                    raise Busy from None
                time.sleep(LOOK_S)
        if time.monotonic() - self._closed > GAP_S:
            self._since = time.monotonic()
        return connection

    def _given_back(self, connection: duckdb.DuckDBPyConnection) -> None:
        over = time.monotonic() - self._since > TURN_S
        if self._lingers and not over:
            self._left, self._identity = connection, identity(self._path)
            self._until = time.monotonic() + IDLE_S
            if not self._watched:
                self._watched = True
                threading.Thread(target=self._watch, daemon=True, name="semel duckdb").start()
            return
        self._close(connection)
        if over:
            time.sleep(GAP_S)

    def _watch(self) -> None:
        """Closes what was left open and is not taken up again. One thread for a stretch: starting one for each batch
        costs as much as its decoding."""
        while True:
            time.sleep(max(0.0, self._until - time.monotonic()))
            with self._lock:
                if self._left is None or time.monotonic() >= self._until:
                    self._let_go()
                    self._watched = False
                    return

    def _let_go(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            self._close(left)

    def _close(self, connection: duckdb.DuckDBPyConnection) -> None:
        # The checkpoint may fail (a full disk); what was committed is in the log beside the file.
        with contextlib.suppress(duckdb.Error):
            connection.close()
        self._closed = time.monotonic()


_files: dict[str, DuckDBFile] = {}


def file_of(path: str) -> DuckDBFile:
    return _files.setdefault(os.path.realpath(path), DuckDBFile(os.path.realpath(path)))
