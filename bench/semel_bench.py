"""semel over the full topic `in`: the two topologies. Prints JSON when everything is committed.

    python -m bench.semel_bench kafka://H:P map|totals
    python -m bench.semel_bench embedded:DIR map|totals
    python -m bench.semel_bench fill embedded:DIR|kafka://H:P COUNT

The clock runs from the first record taken until the last commit; CPU is all of this process's until then, its start,
the client's threads and, embedded, the log included. Output topics are new for each run (BENCH_OUT); what is in them
is compared with the orders afterwards.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
import uuid
from pathlib import Path

import msgspec

os.environ.setdefault("BENCH_OUT", f"out-{uuid.uuid4().hex[:8]}")

from bench import orders
from bench.topologies import Small, Total, map_app, totals_app
from semel.host.store import Stores
from semel.ports import Log, NewTopic, Position, TopicPartition
from semel.streams.worker import Worker

PARTITIONS = 4


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def connected(url: str, name: str) -> tuple[Log, object]:
    """A session, and what must be closed after it."""
    if url.startswith("kafka://"):
        from semel.host.cluster import open_cluster

        return open_cluster(url, group=name, member=f"{name}.0", transactional_id=f"{name}.0"), None
    from semel.host.embedded import EmbeddedLog
    from semel.host.engine import Engine

    engine = Engine(Path(url.removeprefix("embedded:")), durability=os.environ.get("BENCH_DURABILITY", "fsync"))
    return EmbeddedLog(engine, group=name, member=f"{name}.0", transactional_id=f"{name}.0"), engine


def fill(url: str, count: int) -> None:
    """The orders into `in`, without transactions (Kafka Streams' bench finds its end by offsets)."""
    if url.startswith("kafka://"):
        from confluent_kafka import Producer
        from confluent_kafka.admin import AdminClient
        from confluent_kafka.admin import NewTopic as Wanted

        address = url.removeprefix("kafka://")
        admin = AdminClient({"bootstrap.servers": address})
        admin.create_topics([Wanted("in", PARTITIONS, 1)])["in"].result(30)
        producer = Producer({"bootstrap.servers": address, "enable.idempotence": True, "batch.size": 1_000_000,
                             "partitioner": "murmur2_random", "queue.buffering.max.messages": 500_000,
                             "queue.buffering.max.kbytes": 500_000})  # fmt: skip
        for one in orders.orders(count):
            while True:
                try:
                    producer.produce("in", orders.value(*one), orders.key(one[0]), timestamp=one[3])
                    break
                except BufferError:
                    producer.poll(0.01)
        assert producer.flush(120) == 0
        return
    from semel.host.embedded import EmbeddedLog
    from semel.host.engine import Engine

    engine = Engine(Path(url.removeprefix("embedded:")))
    log = EmbeddedLog(engine)
    log.create([NewTopic("in", PARTITIONS)])
    write = log.writer("in")
    for one in orders.orders(count):
        write(-1, orders.key(one[0]), orders.value(*one), one[3], None)
    log.flush()
    log.close()
    engine.close()


def main(url: str, topology: str) -> None:
    app = map_app if topology == "map" else totals_app
    state = Path(tempfile.mkdtemp(prefix="bench-state-"))
    log, engine = connected(url, app.name)
    stores = Stores(state)
    worker = Worker(app.graph(), log, stores.store, commit_interval_ms=app.commit_interval_ms)
    partitions = [TopicPartition("in", p) for p in range(PARTITIONS)]
    total = sum(log.ends(partitions).values())
    worker.start(_now())
    began, first = 0.0, 0
    while True:
        taken = worker.run_once(_now())
        if taken and not began:
            began, first = time.perf_counter(), taken
        if worker.progress.records >= total and not worker._touched():
            break
    seconds, cpu_s = time.perf_counter() - began, cpu()
    committed = log.committed(partitions)
    at_end = sum((position or Position(0)).offset for position in committed.values())
    assert at_end == total, f"committed {at_end} of {total}"
    check(log, app.graph().app, topology, total)
    worker.close(_now())
    log.close()
    if engine is not None:
        engine.close()  # type: ignore[attr-defined]
    stores.close()
    shutil.rmtree(state, ignore_errors=True)
    count = total - first
    print(json.dumps({"records_per_s": count / seconds, "cpu_s_per_million": cpu_s / total * 1e6,
                      "commits": worker.progress.commits}))  # fmt: skip


def check(log: Log, out: str, topology: str, total: int) -> None:
    """A fast wrong answer is none: every positive order once, or every customer's last total."""
    positive, positive_sum, totals = orders.expected(total)
    partitions = [TopicPartition(out, p) for p in range(PARTITIONS)]
    ends = log.ends(partitions)
    values = [value for at in partitions for records in log.read(at, 0, ends[at]) for value in records.values]
    if topology == "map":
        ids = {msgspec.json.decode(value or b"", type=Small).id for value in values}
        paid = sum(msgspec.json.decode(value or b"", type=Small).amount for value in values)
        assert (len(values), len(ids), paid) == (positive, positive, positive_sum), (len(values), len(ids), positive)
        return
    last = {found.customer: found.total for found in (msgspec.json.decode(v or b"", type=Total) for v in values)}
    assert last == totals, f"{sum(last.get(c) != t for c, t in totals.items())} totals are wrong"


def _now() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        fill(sys.argv[2], int(sys.argv[3]))
    else:
        main(sys.argv[1], sys.argv[2])
