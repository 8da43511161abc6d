"""Several workers on one machine: a process for each, and one that starts them again.

Invariants: the parent opens no client, thread or folder (it forks, and a fork must inherit none of these); a worker
that was killed is started again at once under the same slot, so that it takes over its own partitions; a worker that
ended with an error of its own ends all of them, because the same error waits for the others; and no worker outlives
the parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

# A worker killed sooner than this after its start waits before the next one, a little longer each time.
HEALTHY_S = 5.0
PAUSE_MAX_S = 5.0
FREE_RESTARTS = 3
LEAVE_TIMEOUT_S = 60.0

_WATCHED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class _Child:
    slot: int
    pid: int = 0
    started: float = 0.0
    quick_deaths: int = 0
    due: float = 0.0  # when pid is 0: not to be started before


def pause_after(quick_deaths: int) -> float:
    """Seconds to wait before a worker that died young is started again."""
    if quick_deaths <= FREE_RESTARTS:
        return 0.0
    return float(min(PAUSE_MAX_S, 0.1 * 2 ** (quick_deaths - FREE_RESTARTS)))


def supervise(workers: int, work: Callable[[int], int]) -> int:
    """Runs `work(slot)` in `workers` processes until SIGTERM or Ctrl-C, or until one fails; returns the exit code.
    A second signal kills them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    children = [_Child(slot) for slot in range(workers)]
    leaving_since = 0.0
    code = 0
    try:
        while True:
            now = time.monotonic()
            if not leaving_since:
                for child in children:
                    if not child.pid and now >= child.due:
                        _start(child, work)
            elif not any(child.pid for child in children):
                return code
            elif now - leaving_since > LEAVE_TIMEOUT_S:
                _all(children, signal.SIGKILL)
            caught = signal.sigtimedwait(_WATCHED, 0.5)
            if caught is not None and caught.si_signo in (signal.SIGTERM, signal.SIGINT):
                _all(children, signal.SIGKILL if leaving_since else signal.SIGTERM)
                leaving_since = leaving_since or time.monotonic()
            for child in children:
                ended = _ended(child)
                if ended is None:
                    continue
                if ended >= 0 and not leaving_since:
                    code = ended
                    leaving_since = time.monotonic()
                    _all(children, signal.SIGTERM)
                elif ended > 0:
                    code = code or ended
                elif not leaving_since:
                    _say(f"worker {child.slot + 1} of {workers} was ended by {_name(-ended)}; starting it again")
    finally:
        _all(children, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)


def _start(child: _Child, work: Callable[[int], int]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        child.pid, child.started = pid, time.monotonic()
        return
    code = 1
    try:
        _die_with(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        code = work(child.slot)
    except BaseException:  # a bug: told here, because nothing of the parent's may run in this process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the parent's own exit handlers are not ours


def _ended(child: _Child) -> int | None:
    """None while it lives; its exit code, or the signal that ended it as a negative number."""
    if not child.pid:
        return None
    pid, status = os.waitpid(child.pid, os.WNOHANG)
    if not pid:
        return None
    ended = os.waitstatus_to_exitcode(status)
    now = time.monotonic()
    child.pid = 0
    child.quick_deaths = child.quick_deaths + 1 if now - child.started < HEALTHY_S else 0
    child.due = now + pause_after(child.quick_deaths)
    return ended


def _all(children: list[_Child], what: signal.Signals) -> None:
    for child in children:
        if child.pid:
            os.kill(child.pid, what)  # not yet waited for: the pid is still its own


def _die_with(parent: int) -> None:
    """The system ends this process when its parent dies, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
