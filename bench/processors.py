"""The two topologies of bench/topologies.py over a full topic, exactly-once, commits every 100 ms, in turns: semel on
the embedded log, semel on Apache Kafka, Kafka Streams, Quix Streams. CPU is the processor's own process, not the
broker's (embedded: the log is in it).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections import defaultdict
from pathlib import Path

from bench.servers import Server
from bench.table import ratios, spread, table

ROOT = Path(__file__).resolve().parents[1]
STREAMS = ROOT / "bench" / "streams"
QUIX = ROOT / ".venv-quix"
QUIX_PINS = ("quixstreams==3.28.1", "msgspec==0.22.0")


def run(rounds: int, count: int) -> None:
    if not list((STREAMS / "libs").glob("streams-bench-*.jar")):
        subprocess.run(["mvn", "-B", "-ntp", "-q", "-f", str(STREAMS / "pom.xml"), "package"], check=True)
    if not (QUIX / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(QUIX)], check=True)
        subprocess.run([str(QUIX / "bin" / "pip"), "install", "-q", *QUIX_PINS], check=True)
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    embedded = Path(tempfile.mkdtemp(prefix="bench-embedded-"))
    with Server("kafka") as kafka:
        url = f"kafka://{kafka.address}"
        _said([sys.executable, "-m", "bench.semel_bench", "fill", url, str(count)])
        _said([sys.executable, "-m", "bench.semel_bench", "fill", f"embedded:{embedded}", str(count)])
        try:
            for turn in range(rounds + 1):
                for topology in ("map", "totals"):
                    for peer, command in _commands(kafka.address, url, embedded, topology).items():
                        if peer == "Quix Streams" and not turn:
                            continue  # it has no JIT and no caches to warm
                        found = _said(command)
                        if turn:
                            cpu = found.get("cpu_s_per_million") or found["cpu_s"] / count * 1e6
                            figures[peer][f"{topology}, records/s"].append(found["records_per_s"])
                            figures[peer][f"{topology}, CPU s per million"].append(cpu)
        finally:
            shutil.rmtree(embedded, ignore_errors=True)
    columns = list(figures["Kafka Streams"])
    rows = {peer: [spread(figures[peer][c]) for c in columns] for peer in figures}
    for peer in ("semel on Kafka", "semel embedded"):
        for other in ("Kafka Streams", "Quix Streams"):
            rows[f"ratio: {peer} / {other}"] = [ratios(figures[peer][c], figures[other][c]) for c in columns]
    print(table(f"Processors, {count:,} orders of 186 bytes, 4 partitions, exactly-once, 100 ms", columns, rows))


def _commands(address: str, url: str, embedded: Path, topology: str) -> dict[str, list[str]]:
    own = [sys.executable, "-m", "bench.semel_bench"]
    return {
        "semel embedded": [*own, f"embedded:{embedded}", topology],
        "semel on Kafka": [*own, url, topology],
        "Kafka Streams": [
            str(STREAMS / "run-bench.sh"), "--bootstrap", address, "--mode", "eos", "--topology", topology,
            "--commit-interval-ms", "100", "--out", f"streams-{uuid.uuid4().hex[:8]}",
        ],
        "Quix Streams": [str(QUIX / "bin" / "python"), str(ROOT / "bench" / "quix_bench.py"), address, topology],
    }  # fmt: skip


def _said(command: list[str]) -> dict[str, float]:
    """Runs one measurement; its last line is JSON (filling says nothing)."""
    env = {**os.environ, "BENCH_OUT": f"out-{uuid.uuid4().hex[:8]}"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found: dict[str, float] = json.loads(lines[-1]) if lines else {}
    return found
