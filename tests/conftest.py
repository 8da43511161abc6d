"""What every tier shares: a failure is told when it happens, because a run may be ended before its summary.

A CI run that hung was cut off by its machine's time limit and left a lone `F` and nothing about whose it was. A test
that hangs has its stacks printed, and is then ended by pytest-timeout (pyproject.toml).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# What `make test-servers` runs and `make test` does not, besides the tests that are marked where they stand.
LONG = ("servers", "canaries", "sim/test_canaries.py")
# The contract kit's trials with real processes: killed, stopped, resumed late. Its others take milliseconds.
# What takes minutes and has its like among the others: the pages of docs played again, the same on one more log.
PROOF = (
    "servers/test_guides.py",
    "servers/test_hour.py",
    "servers/test_canaries.py::test_without_it_the_same_run_holds",
    "servers/test_operating.py::kafka",
    "servers/test_objects.py::test_on_apache_kafka",
    "servers/test_objects.py::test_verify_holds[broker]",
    "servers/test_kafka_topic.py::test_by_a_field_of_the_value",
    "servers/test_verify_sources.py::test_sources_hold_on_an_embedded_log",
    "servers/test_verify_sources.py::test_sources_hold_on_apache_kafka",
)
LONG_TRIALS = (
    "test_killed_at_every_step_twice",
    "test_a_process_that_comes_back_late_has_no_effect",
    "test_a_process_that_stops_holds_nobody_up",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.is_relative_to(HERE / place) for place in LONG) or item.name.startswith(LONG_TRIALS):
            item.add_marker(pytest.mark.long)
        for where in PROOF:
            place, _, named = where.partition("::")
            if item.path == HERE / place and named in item.name:
                item.add_marker(pytest.mark.proof)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # The reports of xdist's workers come to the process that prints as well.
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nFAILED {report.nodeid} ({report.when}, {report.duration:.1f} s)\n{report.longreprtext}", flush=True)
