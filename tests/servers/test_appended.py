"""Rows with event ids on a Postgres that is killed: the whole contract kit, and `semel verify` through the view."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from semel.host.postgres import PostgresServer
from semel.sinks import dedup
from semel.testing import trials
from semel.testing.contracts import ContractTests, Refused, Subject, run
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


@pytest.fixture
def plain(postgres: PostgresServer) -> Subject:
    return subjects.postgres_subject(subjects.postgres_once, postgres, postgres.dsn)


# --- planted ---------------------------------------------------------------------------------------------------------


def _all_rows(*words: Any, **more: Any) -> str:
    return real_view(*words, **more).replace('DISTINCT ON ("semel_event")', "").partition("ORDER BY")[0]


def _by_values(*words: Any, **more: Any) -> str:
    return (
        real_view(*words, **more)
        .replace('DISTINCT ON ("semel_event")', 'DISTINCT ON ("id")')
        .replace('ORDER BY "semel_event"', 'ORDER BY "id"')
    )


real_view = dedup.view


@pytest.mark.parametrize(
    ("what", "planted", "names"),
    [
        ("view", _all_rows, ("replay", "recut", "repeats", "zombie", "torn")),
        ("view", _by_values, ("plain",)),
        ("event_ids", lambda app, sink, incarnation, partition, offsets: [str(o) for o in offsets], ("reborn",)),
        ("event_ids", lambda app, sink, incarnation, partition, offsets: [str(o // 2) for o in offsets], ("plain",)),
    ],
    ids=["no dedup", "dedup by a value", "no incarnation", "two events of one id"],
)
def test_a_view_or_an_id_that_does_not_hold_is_found(
    what: str, planted: Callable[..., str], names: tuple[str, ...], plain: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The view without the dedup repeats, one by other columns loses, and so do ids that name two records."""
    monkeypatch.setattr(dedup, what, planted)
    for name in names:
        with pytest.raises(Refused):
            run(plain, getattr(trials, name))


def test_a_subject_that_does_not_say_what_is_stored_is_refused(plain: Subject) -> None:
    """Or a sink that stores no repeats would pass as one whose view removes them."""
    with pytest.raises(Refused, match="stored="):
        run(replace(plain, stored=None), trials.repeats)
    with pytest.raises(Refused, match="had nothing to remove"):
        run(replace(plain, stored=lambda *_: 300), trials.repeats)


# --- semel verify ----------------------------------------------------------------------------------------------------


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
    code, report, said = verified(page, f"--crashes={CRASHES}", "--seed=7", APPENDED_POSTGRES=postgres.dsn)
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
