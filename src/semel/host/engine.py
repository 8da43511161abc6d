"""The embedded log's engine: one broker node in this process, its folder locked, shared by the threads that use it.

The same folder as `semel broker DIR`, the same core, no sockets. Invariants: no caller gets an answer before what it
shows is durable; threads that wait at the same time share one sync; and since nobody else can have the folder, every
transaction found open at the start was left by the dead and is aborted before anyone reads.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from semel.broker.config import FSYNC, Config
from semel.broker.events import ConnectionClosed, Reply, Request
from semel.broker.node import Node
from semel.broker.requests import InitProducerIdRequest
from semel.errors import SemelError, UsageError
from semel.host.clock import clock
from semel.host.disk import Disk
from semel.host.lock import FolderLock
from semel.host.steps import steps_from
from semel.log.errors import FolderProblem
from semel.ports import LogLost, Steps

INIT_PRODUCER_ID = 22


class Ask(NamedTuple):
    """One request. The versions are the newest whose fields the embedded log uses."""

    api_key: int
    version: int
    message: Any


Ticket = tuple[int, int]  # connection, token


class Engine:
    """Opens DIR: recovers it, and holds its lock until `close`."""

    def __init__(self, folder: Path, *, durability: str = FSYNC, steps: Steps | None = None) -> None:
        self.folder = folder
        self.name = f"embedded:{folder}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"{folder} is a file, not a folder. Give a folder for the log: embedded:DIR") from None
        except OSError as error:
            raise SemelError(f"{folder}: cannot be made ({error.strerror}). Choose another folder.") from None
        self._now_ms = clock()
        self._lock = threading.RLock()
        self._syncing = threading.Lock()  # one sync at a time; taken before `_lock`, never inside it
        self._moved = threading.Condition(self._lock)
        self._answers: dict[Ticket, Any] = {}
        self._connections = itertools.count(1)
        self._tokens = itertools.count(1)
        self._owners: dict[str, int] = {}
        self._failure: str | None = None
        self._closed = False
        self.version = 0  # grows whenever something became visible
        self._held = FolderLock.take(folder)
        try:
            config = Config(durability=durability)
            self._node = Node(
                Disk(folder),
                config,
                now_ms=self._now_ms(),
                random=random.SystemRandom(),
                steps=steps or steps_from(os.environ),
            )
            self._end_leavings()
        except FolderProblem as problem:
            self._held.release()
            raise type(problem)(f"{folder}: {problem}") from problem
        except OSError as error:
            self._held.release()
            raise SemelError(
                f"{folder}: recovery failed: {error.strerror or error}. Nothing that was acknowledged is lost. "
                "Mend that (space, rights, the disk), then start again."
            ) from None
        except BaseException:
            self._held.release()
            raise

    def _end_leavings(self) -> None:
        connection = self.connect()
        for transactional_id in sorted(self._node.broker.state.open):
            self.ask(connection, Ask(INIT_PRODUCER_ID, 4, InitProducerIdRequest(transactional_id)))
        self.disconnect(connection)

    # --- asking ---

    def connect(self) -> int:
        with self._lock:
            return next(self._connections)

    def disconnect(self, connection: int) -> None:
        with self._lock:
            if not self._closed and self._failure is None:
                self._keep(self._node.step(ConnectionClosed(connection), self._now_ms()))
            self._owners = {group: owner for group, owner in self._owners.items() if owner != connection}
            for ticket in [ticket for ticket in self._answers if ticket[0] == connection]:
                del self._answers[ticket]

    def own(self, group: str, connection: int) -> None:
        """`connection` is the group's only member from now on."""
        with self._lock:
            self._owners[group] = connection
            self._moved.notify_all()

    def owns(self, group: str, connection: int) -> bool:
        return self._owners.get(group) == connection

    def post(self, connection: int, asked: Iterable[Ask]) -> list[Ticket]:
        """Takes the steps at once; what they answer is fetched by `wait`."""
        with self._lock:
            self._check()
            tickets = []
            try:
                now_ms = self._now_ms()
                for api_key, version, message in asked:
                    ticket = connection, next(self._tokens)
                    tickets.append(ticket)
                    request = Request(*ticket, message, api_key, version, accepted=connection)
                    self._keep(self._node.step(request, now_ms))
                if self._node.unsynced:
                    self._node.write()  # not kept in memory until somebody commits
            except BaseException as failed:
                self._fail(failed)
                raise
            return tickets

    def wait(self, tickets: Sequence[Ticket]) -> list[Any]:
        """The answers, once they may be seen."""
        while True:
            with self._lock:
                self._check()
                if all(ticket in self._answers for ticket in tickets):
                    return [self._answers.pop(ticket) for ticket in tickets]
            with self._syncing:
                with self._lock:
                    if all(ticket in self._answers for ticket in tickets):
                        continue  # the sync that we waited for was ours too
                self._sync()

    def ask(self, connection: int, *asked: Ask) -> Any:
        """The answer to the last of them."""
        return self.wait(self.post(connection, asked))[-1]

    def damage(self, topic: str, partition: int) -> str | None:
        """What readers of that partition met, when it is damaged."""
        return self._node.broker.damaged.get((topic, partition))

    def wait_moved(self, version: int, timeout_s: float) -> None:
        """Returns when something became visible since `version`, or after the timeout."""
        with self._moved:
            if self.version == version and self._failure is None:
                self._moved.wait(timeout_s)
            self._check()

    # --- inside ---

    def _keep(self, replies: Iterable[Reply]) -> None:
        for reply in replies:
            assert not reply.close, "the broker ends connections only for what sockets can do"
            self._answers[reply.connection, reply.token] = reply.message

    def _sync(self) -> None:
        """With `_syncing` held: makes durable what has been posted."""
        try:
            with self._lock:
                self._check()
                self._node.write()
            position = self._node.sync()
            with self._lock:
                self._keep(self._node.synced(position, self._now_ms()))
                if self._node.checkpoint_due:
                    self._node.checkpoint()
                self.version += 1
                self._moved.notify_all()
        except BaseException as failed:
            self._fail(failed)
            raise

    def _check(self) -> None:
        if self._failure is not None:
            raise LogLost(self._failure)
        if self._closed:
            raise LogLost(f"{self.name}: it has been closed")

    def _fail(self, failed: BaseException) -> None:
        """What reached the disk is unknown from here on: nothing more is answered, and the next start finds out."""
        if self._failure is not None or isinstance(failed, LogLost):
            return
        if isinstance(failed, OSError) and failed.errno in (errno.ENOSPC, errno.EDQUOT):
            self._failure = (
                f"{self.folder}: the disk is full. What was committed is safe, the open transaction is aborted. "
                "Free space on that disk, then start again."
            )
        elif isinstance(failed, OSError):
            self._failure = (
                f"{self.folder}: writing or syncing failed ({failed.strerror or failed}). What was committed is safe. "
                "Check the disk, then start again: recovery finds out what reached it."
            )
        elif isinstance(failed, SemelError):
            self._failure = str(failed)
        else:
            self._failure = f"{self.name}: a bug of ours ({type(failed).__name__}: {failed}). Start again."
        with self._lock:
            self._moved.notify_all()
        if isinstance(failed, OSError):
            raise LogLost(self._failure) from failed

    def close(self) -> None:
        """A clean end: the state is cheap to read again. A second call does nothing."""
        with self._syncing, self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if self._failure is None:
                    self._node.write()
                    self._node.synced(self._node.sync(), self._now_ms())
                    self._node.checkpoint()
                    self._node.close()
            except OSError as failed:
                self._failure = str(failed)
                raise LogLost(
                    f"{self.folder}: it could not be closed in good order ({failed.strerror or failed}). What was "
                    "committed is safe. Check the disk and its space; the next start reads a little more."
                ) from failed
            finally:
                self._held.release()
                self._moved.notify_all()
