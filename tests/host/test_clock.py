"""The core's clock: what has passed since the start, whatever becomes of the wall clock."""

from __future__ import annotations

import time

import pytest

from semel.host.clock import clock


def test_a_wall_clock_that_is_set_does_not_reach_the_core() -> None:
    wall, elapsed = [1_000.0], [50.0]
    now_ms = clock(lambda: wall[0], lambda: elapsed[0])
    wall[0], elapsed[0] = 10.0, 53.5
    assert now_ms() == 1_003_500


def test_a_suspended_machine_is_time_that_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Story: a sink that forgets after a minute compared with the wall clock what was stamped with a clock that stood
    still while the machine was suspended: each new cut was late before it was sent, and the delivery hung."""
    passed = {time.CLOCK_BOOTTIME: 100.0}  # it counts what the monotonic clock leaves out
    monkeypatch.setattr(time, "clock_gettime", lambda which: passed[which])
    now_ms = clock(lambda: 1_000.0)
    passed[time.CLOCK_BOOTTIME] += 3_600.0
    assert now_ms() == 4_600_000
