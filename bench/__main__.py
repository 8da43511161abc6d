"""`make bench`: semel beside its peers, in turns, with their spread. Figures of shared machines drift: trust ratios
of one run. BENCH="brokers processors latency startup sinks" chooses; ROUNDS, RECORDS and SECONDS set the size.

Needs what `make test-servers` needs (a JDK, Maven) and, for Quix Streams, an environment of its own, made here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from bench.servers import Server, cpu_s, rss_mib
from bench.table import ratios, spread, table

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = int(os.environ.get("ROUNDS", "3"))
RECORDS = int(os.environ.get("RECORDS", "2000000"))
SECONDS = float(os.environ.get("SECONDS", "6"))
Figures = dict[str, dict[str, list[float]]]


def python(module: str, *words: object, interpreter: str = sys.executable, timeout_s: float = 900) -> dict[str, float]:
    """Runs a measurement in a process of its own; the last line it prints is its JSON."""
    command = [interpreter, *(["-m", module] if interpreter == sys.executable else [module]), *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def brokers() -> None:
    """Produce (16 KB and 1 MB batches) and consume, confluent-kafka on both sides, and the broker's own CPU."""
    figures: Figures = defaultdict(lambda: defaultdict(list))
    kinds = ("semel-fsync", "kafka-flush", "semel-os", "kafka")
    servers = {kind: Server(kind) for kind in kinds}
    try:
        for turn in range(ROUNDS + 1):  # the first is the warm-up
            for kind, server in servers.items():
                for batch, count in ((16_384, RECORDS // 8), (1_000_000, RECORDS // 8)):
                    before = cpu_s(server.pid)
                    made = python("bench.rates", server.address, "produce", batch, count)
                    cost = (cpu_s(server.pid) - before) / count * 1e6
                    read = python("bench.rates", server.address, "consume", made["topic"])
                    if turn:
                        size = "16 KB" if batch == 16_384 else "1 MB"
                        figures[kind][f"produce {size}, records/s"].append(made["records_per_s"])
                        figures[kind][f"broker CPU s per million, {size}"].append(cost)
                        figures[kind][f"consume after {size}, records/s"].append(read["records_per_s"])
    finally:
        for server in servers.values():
            server.stop()
    columns = list(figures["kafka"])
    rows = {kind: [spread(figures[kind][c]) for c in columns] for kind in kinds}
    rows["ratio at os: semel-os / kafka"] = [ratios(figures["semel-os"][c], figures["kafka"][c]) for c in columns]
    rows["ratio with sync: semel-fsync / kafka-flush"] = [
        ratios(figures["semel-fsync"][c], figures["kafka-flush"][c]) for c in columns
    ]
    print(table(f"Brokers, 1 KB records, {PARTITIONS_NOTE}", columns, rows), flush=True)


PARTITIONS_NOTE = "4 partitions, idempotent producer, confluent-kafka on both sides"


def latency() -> None:
    """Commit latency and transactions per second with 1, 10 and 100 transactional producers."""
    kinds = ("semel-fsync", "kafka-flush", "semel-os", "kafka")
    figures: Figures = defaultdict(lambda: defaultdict(list))
    columns = []
    servers = {kind: Server(kind) for kind in kinds}
    try:
        for turn in range(ROUNDS + 1):
            for count in (1, 10, 100):
                for kind, server in servers.items():
                    got = python("bench.latency", server.address, count, SECONDS if turn else 2)
                    if turn:
                        for name, figure in (("p50 ms", "p50_ms"), ("p99 ms", "p99_ms"), ("per s", "per_s")):
                            figures[kind][f"{count}: {name}"].append(got[figure])
        columns = list(figures["kafka"])
    finally:
        for server in servers.values():
            server.stop()
    rows = {kind: [spread(figures[kind][c]) for c in columns] for kind in kinds}
    rows["ratio at os: semel-os / kafka"] = [ratios(figures["semel-os"][c], figures["kafka"][c]) for c in columns]
    rows["ratio with sync: semel-fsync / kafka-flush"] = [
        ratios(figures["semel-fsync"][c], figures["kafka-flush"][c]) for c in columns
    ]
    print(table("Commit latency: producers: figure", columns, rows), flush=True)


def startup() -> None:
    """From the start of the command on an empty folder until it serves, and resident memory then."""
    figures: Figures = defaultdict(lambda: defaultdict(list))
    for _ in range(max(ROUNDS, 3)):
        for kind in ("semel-fsync", "kafka"):
            with Server(kind) as server:
                figures[kind]["start, s"].append(server.start_s)
                figures[kind]["resident, MiB"].append(rss_mib(server.pid))
                figures[kind]["CPU to start, s"].append(cpu_s(server.pid))
    columns = list(figures["kafka"])
    rows = {kind: [spread(figures[kind][c]) for c in columns] for kind in figures}
    rows["ratio"] = [ratios(figures["semel-fsync"][c], figures["kafka"][c]) for c in columns]
    print(table("Start on an empty folder", columns, rows), flush=True)


def processors() -> None:
    """The two topologies over a full topic: records/s and CPU seconds of the processor per million records."""
    from bench.processors import run

    run(ROUNDS, RECORDS)


def sinks() -> None:
    """Rows per second of each sink beside the fastest plain writer of the same client."""
    from bench.sinks import run

    run(ROUNDS)


def main() -> int:
    chosen = os.environ.get("BENCH", "startup brokers latency processors sinks").split()
    parts = {"brokers": brokers, "latency": latency, "startup": startup, "processors": processors, "sinks": sinks}
    unknown = [name for name in chosen if name not in parts]
    if unknown:
        print(f"error: no benchmark named {unknown}; there are: {', '.join(parts)}", file=sys.stderr)
        return 2
    print(f"{ROUNDS} rounds in turns after a warm-up; median (min–max); ratios paired by round")
    for name in chosen:
        parts[name]()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
