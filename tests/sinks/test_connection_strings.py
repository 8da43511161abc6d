"""A connection string that cannot be read is not shown: libpq's words quote it, and the password with it."""

from __future__ import annotations

import pytest

from semel.sinks import Postgres
from semel.sinks.postgres_session import PostgresSession
from semel.sinks.sink import SinkError
from semel.sources.postgres_session import ReadingSession
from semel.sources.source import SourceError

WRONG = ["mysql://me:hunter2@h/db", "postgresql+psycopg://me:hunter2@h/db"]


@pytest.mark.parametrize("dsn", WRONG)
def test_a_sink_does_not_show_it(dsn: str) -> None:
    session = PostgresSession(Postgres(dsn, "totals"), lambda _, __: None)
    with pytest.raises(SinkError, match=r"cannot be read\. Write postgresql://") as refused:
        session.connected()
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("dsn", WRONG)
def test_a_source_does_not_show_it(dsn: str) -> None:
    with pytest.raises(SourceError, match=r"cannot be read\. Write postgresql://") as refused:
        ReadingSession(dsn, "Postgres table events").connected()
    assert "hunter2" not in str(refused.value)
