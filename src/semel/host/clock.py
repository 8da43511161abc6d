"""The wall clock as the core is told it: milliseconds since the epoch, never going back while the process lives.

What passes while the machine is suspended has passed: an outside system's window (`sinks/window.py`) does not wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def _elapsed_s() -> float:
    """Linux: with the time of a suspended machine (clock_gettime(2), CLOCK_BOOTTIME); elsewhere the monotonic clock."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


def clock(wall_s: Callable[[], float] = time.time, elapsed_s: Callable[[], float] = _elapsed_s) -> Callable[[], int]:
    """The wall clock at the start plus what has passed since: a clock that is set back does not reach the core."""
    start_ms, start = wall_s() * 1000, elapsed_s()
    return lambda: int(start_ms + (elapsed_s() - start) * 1000)
