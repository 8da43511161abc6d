"""How a worker is asked to leave: SIGTERM and Ctrl-C.

Invariant: whoever is asked leaves in bounded time. The first signal is a question, answered between two rounds; a
second one, or too long an answer, ends the process at once, also where the main thread stands in a client library
that does not return: a thread of its own hears the signals through the wake-up descriptor. Ending like this is safe at
any moment, as `kill -9` is.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
import threading
import time
from typing import Any

LEAVE_MAX_S = 50.0  # the bounds on the way out (a commit, the deliveries' last batches) sum up to less
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class LeftEarly(BaseException):
    """A signal came before there was anything to commit. Not an Exception: it is raised inside whatever is being
    imported, and psycopg, for one, takes every Exception in there for a missing library."""


class Leaving:
    """As a context of the main thread. Until `later`, a signal raises LeftEarly where the start-up stands; then it sets
    `asked`. The second one ends the process."""

    def __init__(self, *, ignore_keyboard: bool) -> None:
        self.asked = False
        self.by = 0  # the signal that asked
        self._started = False
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1
        self._pipe: tuple[int, int] | None = None
        # Under a parent a Ctrl-C reaches both; the parent passes it on as SIGTERM.
        self._ignored = (signal.SIGINT,) if ignore_keyboard else ()

    def __enter__(self) -> Leaving:
        if threading.current_thread() is threading.main_thread():
            reader, writer = self._pipe = os.pipe()
            os.set_blocking(writer, False)
            self._wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            threading.Thread(target=_hear, args=(reader,), name="semel-leaving", daemon=True).start()
            for number in SIGNALS:
                handler = signal.SIG_IGN if number in self._ignored else self._signalled
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            os.close(self._pipe[1])  # the thread sees the end of it and closes the other

    def later(self) -> None:
        """From here on a signal is a question, not an interruption."""
        self._started = True

    def _signalled(self, number: int, frame: object) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        self.by = number
        if not self._started:
            raise LeftEarly


def _hear(reader: int) -> None:
    deadline: float | None = None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            print(
                f"error: asked to leave {LEAVE_MAX_S:.0f} s ago and still here; ending. What was not committed is read "
                "again at the next start. Where it stood:",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback()
            os._exit(1)
        heard = os.read(reader, 64)
        if not heard:
            os.close(reader)
            return
        for number in heard:
            if number in SIGNALS:
                if deadline is not None:
                    os._exit(128 + number)
                deadline = time.monotonic() + LEAVE_MAX_S
