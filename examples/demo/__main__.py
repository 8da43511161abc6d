"""`make demo`: three runs over the same input under the same kills, then the table, then `semel check`.

`DEMO_SEED` chooses the kills (1 by default), `DEMO_JSON=FILE` also writes the table. Exit code 0 only if exactly-once
lost, repeated and mistook nothing, and the two weaker modes show what they lost and repeated.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
from confluent_kafka import KafkaException
from examples.demo import data, outputs, reckon
from examples.demo.reckon import Line
from examples.demo.run import APP, ROOT, DemoFailed, Place, Run
from examples.demo.schedule import WORKERS, Event, Kind, schedule
from examples.demo.screen import Screen, result
from rich.console import Console

from semel.contract import Mode
from semel.errors import SemelError
from semel.host.postgres import PostgresServer
from semel.proof.processes import semel_command

WIDTH = 110  # of what goes to a file
MODES = (Mode.AT_MOST_ONCE, Mode.AT_LEAST_ONCE, Mode.EXACTLY_ONCE)


def main() -> int:
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    seed = os.environ.get("DEMO_SEED", "1")
    if not seed.isdigit():
        console.print(f"error: DEMO_SEED={seed}: a number, please", markup=False, highlight=False)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="semel-demo-"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends what it started, however it is asked to end
    try:
        code = demo(console, int(seed), folder)
    except (DemoFailed, SemelError, KafkaException) as failed:
        console.print(f"error: {failed}", markup=False, highlight=False)
        console.print(f"The logs of its processes are kept in {folder}", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("stopped; everything it started has ended", markup=False, highlight=False)
        code = 130
    if code == 0 or not os.environ.get("DEMO_KEEP"):
        shutil.rmtree(folder, ignore_errors=True)
    return code


def demo(console: Console, seed: int, folder: Path) -> int:
    console.print("Reading the flights that left New York in 2013, and computing what should come out …", style="dim")
    expected, stream = data.expected(), data.stream()
    events = schedule(seed, len(stream))
    modes = [mode for mode in MODES if mode in os.environ.get("DEMO_MODES", ",".join(MODES)).split(",")]
    lines: list[Line] = []
    with PostgresServer(folder / "postgres") as postgres:
        began = time.monotonic()
        screen = Screen(console, modes, len(stream))
        with screen:
            for mode in modes:
                place = _place(folder, postgres.dsn, mode)
                run = Run(mode, place, stream, screen, WORKERS)
                try:
                    watch = run.go(events)
                    lines += _reckoned(mode, expected, run, place)
                    watch.close()
                    run.stop()
                finally:
                    run.kill()
        seconds = time.monotonic() - began
    console.print()
    console.print(result(lines))
    console.print()
    killed = screen.runs[modes[-1]]
    console.print(
        f"Each mode: {killed.worker_kills} workers and {killed.broker_kills} brokers killed with kill -9, "
        f"{killed.zombies} zombies. Superseded writes refused: {killed.refused}. Seed {seed}, {seconds:.0f} s.",
        highlight=False,
        soft_wrap=True,
    )
    _check(console)
    complaints = reckon.verdict(lines)
    _write_json(seed, seconds, lines, complaints, events)
    for complaint in complaints:
        console.print(f"not as told: {complaint}", style="bold red", highlight=False)
    return 1 if complaints else 0


def _place(folder: Path, dsn: str, mode: str) -> Place:
    """A folder, a schema and a file of its own for each mode."""
    schema = mode.replace("-", "_")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    (folder / mode).mkdir()
    return Place(folder / mode, f"{dsn}?options=-csearch_path%3D{schema}", folder / mode / "alerts.db")


def _reckoned(mode: str, expected: data.Expected, run: Run, place: Place) -> list[Line]:
    watch = run.watch
    assert watch is not None
    run.progress.doing = "reckoning"
    if watch.end(watch.topic) != expected.flights:
        raise DemoFailed(f"{mode}: the input topic holds {watch.end(watch.topic):,} records, not {expected.flights:,}")
    totals = reckon.topic(mode, expected, watch.totals())
    table = reckon.table(mode, expected, *outputs.postgres_totals(place.dsn))
    alerts = reckon.alerts(mode, expected, outputs.sqlite_alerts(place.sqlite))
    found = [totals, table, alerts]
    run.progress.doing = "nothing lost or repeated" if all(line.clean for line in found) else "lost or repeated"
    run.progress.ended = time.monotonic()
    return found


def _check(console: Console) -> None:
    """What was promised, before any of this ran."""
    console.print()
    console.print("$ semel check examples/flights.py", style="bold")
    command = semel_command("check", str(APP.relative_to(ROOT)), "--on", "kafka://127.0.0.1:9092")
    sys.stdout.flush()
    subprocess.run(command, cwd=ROOT, check=True)


def _write_json(seed: int, seconds: float, lines: list[Line], complaints: list[str], events: list[Event]) -> None:
    file = os.environ.get("DEMO_JSON")
    if not file:
        return
    kinds = [event.kind for event in events]
    kills = {"worker": kinds.count(Kind.WORKER), "broker": kinds.count(Kind.BROKER), "zombies": kinds.count(Kind.STOP)}
    whole = {"seed": seed, "seconds": round(seconds, 1), **kills, "as_told": not complaints, "complaints": complaints}
    Path(file).write_text(json.dumps({**whole, "lines": [line.as_json() for line in lines]}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
