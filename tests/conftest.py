"""What every tier shares: a failure is told when it happens, because a run may be ended before its summary.

A CI run that hung was cut off by its machine's time limit and left a lone `F` and nothing about whose it was. A test
that hangs has its stacks printed, and is then ended by pytest-timeout (pyproject.toml).
"""

from __future__ import annotations

import os

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # The reports of xdist's workers come to the process that prints as well.
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nFAILED {report.nodeid} ({report.when}, {report.duration:.1f} s)\n{report.longreprtext}", flush=True)
