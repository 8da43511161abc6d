"""docs/exactly-once-in-an-hour.md, run from its first command to its last on Apache Kafka 4.3.1 and Postgres 18: what
is printed is what the page says. `python -m tests.servers.test_hour` writes it anew."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from semel.host.postgres import PostgresServer
from tests.support.guides import ROOT, SEMEL
from tests.support.kafka import KafkaProcess

PAGE = ROOT / "docs" / "exactly-once-in-an-hour.md"
BLOCK = re.compile(r"(?<=<!-- run -->\n```console\n).*?(?=```\n<!-- /run -->)", re.S)
FIRST = '{"customer":"ann","total":3}\n{"customer":"bob","total":5}\n{"customer":"ann","total":8}\n'
MORE = '{"customer":"bob","total":6}\n{"customer":"cem","total":1}\n'
# What the table must hold before Ctrl-C, by the command that is left then.
LEFT_WHEN = {
    "TABLE=totals_new semel run backfill.py": ("totals_new", 2),
    "semel run app.py": ("totals", 3),
}
WAIT_S = 180.0
IDLE_S = 3.0  # its position passes the marker behind its last record


class Hour:
    def __init__(self, folder: Path, kafka: str, dsn: str) -> None:
        self.folder, self.kafka, self.dsn = folder, kafka, dsn
        folder.mkdir(exist_ok=True)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env = {**os.environ, "PATH": path, "KAFKA": kafka, "DSN": dsn, "SEMEL_ON": f"kafka://{kafka}"}
        text = PAGE.read_text()
        for name, body in re.findall(r"```python (\S+)\n(.*?)```", text, re.S):
            (folder / name).write_text(body)
        (folder / "totals.jsonl").write_text(FIRST)
        (folder / "more.jsonl").write_text(MORE)

    def ran(self, command: str) -> str:
        words = re.sub(r"(^|(?<=[ ;]))semel (?=[a-z]+ )", f"{SEMEL} ", command)
        running = subprocess.Popen(
            ["bash", "-c", f"exec 2>&1; {'exec ' if command in LEFT_WHEN and '=' not in words else ''}{words}"],
            cwd=self.folder, env=self.env, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        if command in LEFT_WHEN:
            self.until(lambda: self.rows(*LEFT_WHEN[command]), running)
            time.sleep(IDLE_S)
            os.killpg(running.pid, signal.SIGINT)
        said, _ = running.communicate(timeout=WAIT_S)
        if (
            "End its workers first" in said or "A group has members until" in said
        ):  # the one that was left counts until its session times out
            time.sleep(1)
            return self.ran(command)
        return said

    def rows(self, table: str, count: int) -> bool:
        try:
            with psycopg.connect(self.dsn) as connection:
                found = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # type: ignore[arg-type]
        except psycopg.errors.UndefinedTable:
            return False
        return found is not None and found[0] >= count

    def until(self, condition: Callable[[], bool], running: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)

    def shown(self, text: str) -> str:
        place = self.dsn.rpartition("@")[2]
        text = text.replace(self.kafka, "kafka:9092").replace(place, "db/shop").replace(f"{self.folder}/", "")
        text = re.sub(r"\bpid \d+ on [\w.-]+", "pid 4711 on worker-1", text)
        text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "2026-11-23 17:00:00", text)
        text = re.sub(r" {2,}OWNER +SINCE", "                             OWNER                SINCE", text)
        text = re.sub(r"^.*Killed .*\n", "", text, flags=re.MULTILINE)  # bash's own line has the process id
        text = re.sub(r"\d+ commits?$", "1 commit", text, flags=re.MULTILINE)
        return re.sub(r" in \d+\.\d s", " in 0.1 s", text)

    def block(self, found: re.Match[str]) -> str:
        out = []
        for line in found[0].splitlines():
            if line.startswith("$ "):
                out += [line + "\n", self.shown(self.ran(line[2:]))]
                print("".join(out[-2:]), end="", flush=True)
        return "".join(out)


def played(folder: Path) -> str:
    with KafkaProcess(folder / "kafka") as kafka, PostgresServer(folder / "postgres") as server:
        hour = Hour(folder / "hour", kafka.address, server.dsn)
        return BLOCK.sub(hour.block, PAGE.read_text())


def test_the_page_is_what_happens(tmp_path: Path) -> None:
    """Word for word, but for process ids, times and places."""
    assert played(tmp_path) == PAGE.read_text()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        PAGE.write_text(played(Path(scratch)))
