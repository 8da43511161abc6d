"""Commit latency: N transactional producers, each begin, one record of 1 KB, commit, for S seconds. Prints JSON.

python -m bench.latency BOOTSTRAP PRODUCERS SECONDS
"""

from __future__ import annotations

import json
import sys
import threading
import time

from confluent_kafka import Producer


def main(bootstrap: str, count: int, seconds: float) -> None:
    taken: list[float] = []
    lock = threading.Lock()
    producers = []
    for i in range(count):
        producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": f"lat-{count}-{i}", "linger.ms": 0,
                             "log_level": 0})  # fmt: skip
        producer.init_transactions(60)
        producer.begin_transaction()
        producer.produce("lat", b"x" * 1000)
        producer.commit_transaction(60)
        producers.append(producer)
    end = time.perf_counter() + seconds

    def run(producer: Producer) -> None:
        mine = []
        while time.perf_counter() < end:
            producer.begin_transaction()
            producer.produce("lat", b"x" * 1000)
            began = time.perf_counter()
            producer.commit_transaction(60)
            mine.append(time.perf_counter() - began)
        with lock:
            taken.extend(mine)

    threads = [threading.Thread(target=run, args=(p,)) for p in producers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken.sort()
    print(json.dumps({"p50_ms": taken[len(taken) // 2] * 1e3, "p99_ms": taken[int(len(taken) * 0.99)] * 1e3,
                      "per_s": len(taken) / seconds}))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
