"""Rows with event ids on a Postgres that is killed: the whole contract kit, and `semel verify` through the view."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from semel.host.postgres import PostgresServer
from semel.testing.contracts import ContractTests, Subject
from tests.sinks import subjects
from tests.support.planted import ROOT

CRASHES = 12


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("appended")) as server:
        yield server
        server.kill()


class TestPostgresAppended(ContractTests):
    """Compared behind the view; rows before it are counted."""

    @pytest.fixture
    def subject(self, postgres: PostgresServer) -> Subject:
        return subjects.postgres_subject(subjects.postgres_once, postgres, postgres.dsn)


def verified(page: Path, *words: str, **environ: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "semel.cli.main", "verify", "tests/servers/apps/appended.py", "--json"]
    done = subprocess.run(
        [*command, f"--html={page}", *words],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, f"{done.stdout}\n{done.stderr}"


def test_verify_reads_through_the_view(postgres: PostgresServer, tmp_path: Path) -> None:
    """Killed at every step of the path: repeats were stored, and behind the view each row is there once. The report
    goes to a page, too."""
    page = tmp_path / "report.html"
    code, report, said = verified(page, f"--crashes={CRASHES}", "--seed=5", APPENDED_POSTGRES=postgres.dsn)
    assert (code, report.get("verdict"), report.get("counterexample")) == (0, "holds", None), said
    assert report["outputs"]["sink each"]["present"] > 0
    assert report["stored"]["each"] > report["outputs"]["sink each"]["present"], "no repeat was stored: nothing tried"
    with psycopg.connect(postgres.dsn) as connection:
        assert not connection.execute("SELECT relname FROM pg_class WHERE relname ~ 'orders|semel_'").fetchall()
    assert "holds" in page.read_text()


def test_verify_finds_a_view_that_removes_nothing(postgres: PostgresServer, tmp_path: Path) -> None:
    """Planted: repeats come through. Counter-example and page name the committed record that is there twice."""
    page = tmp_path / "report.html"
    kills = ("--crashes=2", "--at=sink.after", "--at=position.before")
    code, report, said = verified(page, *kills, APPENDED_POSTGRES=postgres.dsn, APPENDED_PLANTED="view")
    assert (code, report.get("verdict")) == (1, "broken"), said
    found = report["outputs"]["sink each"]
    assert found["repeated"] > 0 and not found["lost"] and not found["wrong"], said
    assert "there 2 times (committed once as appended-each-outbox-" in report["counterexample"]
    told = page.read_text()
    assert "Verdict: broken" in told and "committed once as appended-each-outbox-" in told
