"""`semel ingest`, whole: a process, an embedded log, files; what it says and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

APP = """\
from dataclasses import dataclass
from semel import App, Builder, Topic
from semel.sources import Files

@dataclass(frozen=True)
class Order:
    id: int
    customer: str

orders = Topic("orders", key=str, value=Order, partitions=2, source=Files("in/*.csv", key="customer"))
plain = Topic("plain", key=str, value=str, partitions=1)

def build(b: Builder) -> None:
    b.read(orders).write(Topic("copies", key=str, value=Order))
    b.read(plain).write(Topic("others", key=str, value=str))

app = App("shop", build)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("id,customer\n" + "".join(f"{n},c{n % 3}\n" for n in range(500)))
    return tmp_path


def semel(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "semel.cli.main", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_it_reads_everything_then_ends_and_reads_nothing_twice(folder: Path) -> None:
    """Exit code 0 each time; the second call reads what came since; a bad row is named, exit code 1."""
    first = semel(folder, "ingest", "app.py")
    assert (first.returncode, first.stderr) == (0, "orders: 500 records read\n")
    with (folder / "in" / "a.csv").open("a") as file:
        file.write("500,c1\n")
    second = semel(folder, "ingest", "app.py")
    assert (second.returncode, second.stderr) == (0, "orders: 1 record read\n")
    there = semel(folder, "read", "orders")
    assert sorted(int(line.split('"id":')[1].split(",")[0]) for line in there.stdout.splitlines()) == list(range(501))
    (folder / "in" / "b.csv").write_text("id,customer\n501,c1\nx,c2\n")
    bad = semel(folder, "ingest", "app.py")
    assert bad.returncode == 1 and "error: b.csv line 3: Expected `int`" in bad.stderr and "Traceback" not in bad.stderr


def test_what_is_asked_wrongly_is_said(folder: Path) -> None:
    """Exit code 2, and nothing is made."""
    for words, why in (
        (("--topic", "plain"), "no topic that the app reads has this name and a source"),
        (("--begin", "plain"), "no topic of this name has a source here"),
        (("--on", "nonsense"), "is no log"),
    ):
        done = semel(folder, "ingest", "app.py", *words)
        assert done.returncode == 2 and why in done.stderr and "Traceback" not in done.stderr, done.stderr
    (folder / "app.py").write_text(APP.replace(', source=Files("in/*.csv", key="customer")', ""))
    done = semel(folder, "ingest", "app.py")
    assert done.returncode == 2 and "no topic that shop reads has a source" in done.stderr
    (folder / "app.py").write_text(APP.replace('key="customer"', 'key="nmae"'))
    done = semel(folder, "ingest", "app.py")
    assert done.returncode == 2 and "key=nmae is no field of Order" in done.stderr
