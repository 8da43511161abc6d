"""`semel check` as a user sees it: the text and JSON of the flights, its exit codes, and no secrets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "flights.txt"


def check(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FLIGHTS_")}
    return subprocess.run(
        [sys.executable, "-m", "semel.cli.main", "check", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=clean | environ,
    )


def test_the_text_of_the_flights_is_the_one_we_show() -> None:
    """What the README prints is what check prints. After a change that is meant: write the new text to the file."""
    done = check("examples/flights.py", "--on", "kafka://127.0.0.1:9092")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == GOLDEN.read_text()


def test_the_json_has_a_path_per_output() -> None:
    """Each path with its guarantee, boundary, reasons and the user's line; the weakest of all."""
    report = json.loads(check("examples/flights.py", "--json").stdout)
    assert (report["app"], report["weakest"], len(report["paths"])) == ("flights", "exactly-once", 3)
    lines = (ROOT / "examples/flights.py").read_text().splitlines()
    for path in report["paths"]:
        assert set(path) == {"source", "sink", "guarantee", "boundary", "reasons", "raise", "file", "line"}
        assert path["source"] == "topic flights" and path["reasons"] and path["boundary"]
        assert path["file"] == "examples/flights.py" and ".write(" in lines[path["line"] - 1]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 0),
        (["--fail-under", "exactly-once"], 0),
        (["--mode", "at-least-once"], 0),
        (["--mode", "at-least-once", "--fail-under", "at-least-once"], 0),
        (["--mode", "at-least-once", "--fail-under", "exactly-once"], 1),
        (["--mode", "at-most-once", "--fail-under", "at-least-once", "--json"], 1),
        (["--fail-under", "twice"], 2),
        (["--on", "http://x"], 2),
    ],
)
def test_the_exit_code_tells_ci(words: list[str], code: int) -> None:
    """0: told. 1: below what was asked for. 2: asked wrongly."""
    done = check("examples/words.py", *words)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    """A file that is missing, broken, or makes no App: exit code 2, file and line, no traceback."""
    (tmp_path / "broken.py").write_text("x = 1\nraise ValueError('no luck')\n")
    (tmp_path / "empty.py").write_text("x = 1\n")
    for file, said in (("gone.py", "no such file"), ("broken.py", "broken.py:2"), ("empty.py", "makes no App")):
        done = check(str(tmp_path / file))
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "dsn", ["host=db user=me password=hunter2", "postgresql://me:hunter2@db/x?sslpassword=hunter2"]
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_passwords_are_never_printed(dsn: str, form: list[str]) -> None:
    """Not the sink's, not the log's."""
    done = check("examples/flights.py", *form, "--on", "kafka://me:hunter2@127.0.0.1:9092", FLIGHTS_POSTGRES=dsn)
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout + done.stderr
