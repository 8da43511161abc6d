"""`semel dedup` as a person meets it: what it prints, what it refuses, and in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from semel.cli.dedup import dedup
from semel.sinks.dedup import TRIED, SqlDialect

APP = """
from dataclasses import dataclass
from semel import App, Topic
from semel.sinks import Postgres, PostgresAppended

@dataclass(frozen=True)
class Click:
    id: str
    n: int

clicks = Topic("clicks", key=str, value=Click)

def build(b):
    read = b.read(clicks)
    read.write(PostgresAppended("postgresql://me:s3cret@127.0.0.1:1/web", "web.clicks", name="events"))
    read.write(Postgres("postgresql://me:s3cret@127.0.0.1:1/web", "latest", key="id"))

app = App("web", build)
"""


@pytest.fixture
def app(tmp_path: Path) -> str:
    (tmp_path / "app.py").write_text(APP)
    return str(tmp_path / "app.py")


def semel(*words: str) -> tuple[str, Any]:
    done = CliRunner().invoke(dedup, list(words))
    return done.output, done.exception


def test_the_view_of_each_dialect_says_whether_it_was_run(app: str) -> None:
    """Nothing is opened; what is generated and not run is named so, in the text that people copy."""
    for dialect in SqlDialect:
        said, error = semel("view", app, "events", "--dialect", dialect.value)
        assert error is None
        comment, statement = said.strip().split("\n")
        assert comment == f"-- {dialect.value}: {TRIED[dialect]}."
        assert statement.startswith("CREATE OR REPLACE VIEW ") and statement.endswith(";")
        assert ("never run" in comment) == (dialect in (SqlDialect.BIGQUERY, SqlDialect.SNOWFLAKE))
    said, _ = semel("view", app, "events", "--dialect=bigquery", "--table=project.shop.clicks")
    assert said.split("\n")[1] == (
        "CREATE OR REPLACE VIEW `project`.`shop`.`clicks_once` AS SELECT `id`, `n`, `semel_event` FROM "
        "`project`.`shop`.`clicks` WHERE TRUE QUALIFY ROW_NUMBER() OVER (PARTITION BY `semel_event` ORDER BY "
        "`semel_event`) = 1;"
    )


def test_the_step_says_what_it_did(tmp_path: Path) -> None:
    """For people and as JSON."""
    parquet.write_table(pa.table({"semel_event": ["a", "a", "b"]}), tmp_path / "1.parquet")
    said, error = semel("run", str(tmp_path))
    assert error is None and "removed 1 of 3 rows as repeats, 2 left" in said
    said, _ = semel("run", str(tmp_path), "--json")
    assert {k: v for k, v in json.loads(said).items() if k != "seconds"} == {
        "where": str(tmp_path), "rows": 2, "removed": 0, "left": 2, "notes": [],
    }  # fmt: skip


def test_what_cannot_be_is_refused_in_words(app: str, tmp_path: Path) -> None:
    """Another sink, no sink, no table; never with a password."""
    for words, says in (
        (("view", app, "latest"), "its rows carry no event id (its contract is Transactional)"),
        (("view", app, "none"), "has no sink 'none'; it has events, latest"),
        (("run", app), "of which sink?"),
        (("run", app, "events"), "127.0.0.1:1/web"),
        (("run", "postgresql://me:s3cret@127.0.0.1:1/web"), "wants TABLE or SCHEMA.TABLE"),
        (("run", str(tmp_path), "--table=t"), "--table is of a database"),
        (("run", str(tmp_path / "none")), "no app, no postgresql://"),
        (("run", str(tmp_path), "--id= ,"), "name one column at least"),
    ):
        said, error = semel(*words)
        assert says in str(error), (words, said, error)
        assert "s3cret" not in f"{said}{error}"
