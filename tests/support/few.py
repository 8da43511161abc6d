"""A plugin for the second run of `make test-servers`: more than a few failures are no accident of a busy machine."""

from __future__ import annotations

import pytest

FEW = 5


def pytest_collection_finish(session: pytest.Session) -> None:
    if len(session.items) > FEW:
        pytest.exit(f"{len(session.items)} tests failed, more than {FEW}: not run again", returncode=1)
