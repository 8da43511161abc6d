"""The Postgres that the demo and the tests start: a child of ours, with nothing left behind."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import psycopg
import pytest

from semel.errors import UsageError
from semel.host import postgres
from semel.host.postgres import PostgresServer


def test_it_serves_is_killed_and_serves_again(tmp_path: Path) -> None:
    """What was committed is there after a kill, on the same port; the password is not world-readable."""
    with PostgresServer(tmp_path / "a folder" / ("long" * 30)) as server:
        with psycopg.connect(server.dsn) as connection:
            connection.execute("CREATE TABLE t AS SELECT 1")
        port = server.port
        server.kill()
        server.start()
        assert server.port == port
        with psycopg.connect(server.dsn) as connection:
            assert connection.execute("SELECT * FROM t").fetchone() == (1,)
        assert (server.folder / "password").stat().st_mode & 0o077 == 0
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(server.dsn.replace("//postgres:", "//postgres:wrong"))
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.dsn)


def test_without_the_wheel_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A missing extra has its install line."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'semel\[demo\]'"):
        PostgresServer(tmp_path)


def test_where_namespaces_are_forbidden_an_account_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As root without `unshare`: an account that exists, and a folder of its own under the temporary directory."""
    import os
    import shutil

    if os.geteuid() != 0:
        pytest.skip("only root has to become somebody else")
    monkeypatch.setattr(postgres, "UNSHARE", ("false",))
    with PostgresServer(tmp_path) as server, psycopg.connect(server.dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    shutil.rmtree(server.log.parent)
