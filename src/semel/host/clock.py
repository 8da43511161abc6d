"""The wall clock as the core is told it: milliseconds since the epoch, never going back while the process lives."""

from __future__ import annotations

import time
from collections.abc import Callable


def clock() -> Callable[[], int]:
    """The wall clock at the start plus what has passed since: a clock that is set back does not reach the core."""
    start_ms, start = time.time() * 1000, time.monotonic()
    return lambda: int(start_ms + (time.monotonic() - start) * 1000)
