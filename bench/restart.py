"""From kill -9 of a worker to the next committed transaction of its restart, on `semel broker`.

    python -m bench.restart [--rounds 10] [--durability fsync]

The app counts per key, with a state and a repartition, and reads a steady trickle. Each round kills its one worker,
starts it again at once under the same identity, and waits until a reader of committed records has seen a count of
something that was written after the kill: behind it lies everything, the interpreter and its imports, the group, the
end of the transaction that was left open, the restore, processing, the commit. Prints each round, median and maximum.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from semel import App, Topic

KEYS = 1_000
TRICKLE_S = 0.01
WAIT_S = 60.0

ticks = Topic("ticks", key=str, value=int, partitions=4)
counts = Topic("counts", key=str, value=list[int], partitions=4)


def last_and_count(state: list[int], tick: int) -> list[int]:
    return [max(state[0], tick), state[1] + 1]


app = App(
    "restarts",
    lambda b: (
        b.read(ticks).key_by(lambda n: f"k{n % KEYS}").fold([0, 0], last_and_count, name="seen").changes().write(counts)
    ),
)


def trickle(servers: str, sent: list[int], stop: threading.Event) -> None:
    """Numbers, one after the other; `sent[0]` is the last one."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": servers, "linger.ms": 0, "log_level": 0, "error_cb": lambda error: None})
    while not stop.wait(TRICKLE_S):
        sent[0] += 1
        producer.produce("ticks", str(sent[0]).encode(), key=str(sent[0]).encode())
        producer.poll(0)
    producer.flush(10)


class Seen(threading.Thread):
    """The largest number that a committed output tells of, and when it was seen."""

    def __init__(self, servers: str) -> None:
        super().__init__(daemon=True)
        from confluent_kafka import Consumer

        self.consumer = Consumer(
            {
                "bootstrap.servers": servers,
                "group.id": "looks",
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 50,
                "log_level": 0,
            }
        )
        self.consumer.subscribe(["counts"])
        self.newest = 0
        self.moved = threading.Condition()

    def run(self) -> None:
        while True:
            messages = self.consumer.consume(1_000, 0.01)
            newest = max((json.loads(m.value() or b"[0]")[0] for m in messages if m.error() is None), default=0)
            if newest > self.newest:
                with self.moved:
                    self.newest = newest
                    self.moved.notify_all()

    def wait_past(self, number: int) -> None:
        with self.moved:
            if not self.moved.wait_for(lambda: self.newest > number, WAIT_S):
                raise SystemExit(f"error: no commit within {WAIT_S:.0f} s")


def main() -> None:
    import confluent_kafka.admin
    from tests.support.broker import BrokerProcess

    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--rounds", type=int, default=10)
    words.add_argument("--durability", choices=("fsync", "os"), default="fsync")
    asked = words.parse_args()
    took = []
    with tempfile.TemporaryDirectory(prefix="semel-restart-") as folder:
        broker = BrokerProcess(Path(folder) / "data", durability=asked.durability)
        command = [sys.executable, "-m", "semel", "run", __file__, "--on", f"kafka://{broker.address}"]
        command += ["--state", str(Path(folder) / "state")]
        stop, sent = threading.Event(), [0]
        kafka: Any = confluent_kafka.admin  # its names are not declared as exported
        admin = kafka.AdminClient({"bootstrap.servers": broker.address, "log_level": 0})
        for future in admin.create_topics([kafka.NewTopic(name, 4) for name in ("ticks", "counts")]).values():
            future.result(30)
        feeder = threading.Thread(target=trickle, args=(broker.address, sent, stop))
        seen = Seen(broker.address)
        worker = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            feeder.start()
            seen.start()
            for turn in range(asked.rounds):
                seen.wait_past(sent[0])
                time.sleep(1.0 + 0.037 * turn)  # somewhere else in the commit interval each time
                began, number = time.monotonic(), sent[0]
                worker.send_signal(signal.SIGKILL)
                worker.wait()
                worker = subprocess.Popen(command, stdout=subprocess.DEVNULL)
                seen.wait_past(number)
                took.append(time.monotonic() - began)
                print(f"{turn + 1}: {took[-1]:.2f} s, load {os.getloadavg()[0]:.1f}", flush=True)
        finally:
            stop.set()
            worker.kill()
            worker.wait()
            feeder.join()
            broker.close()
    print(f"median {statistics.median(took):.2f} s, max {max(took):.2f} s, of {len(took)}, at {asked.durability}")


if __name__ == "__main__":
    main()
