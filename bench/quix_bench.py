"""Quix Streams over the full topic `in`: the two topologies of bench/topologies.py. Prints JSON when all is committed.

Runs in an environment of its own (`.venv-quix`): Quix Streams pins an older confluent-kafka.
"""

import json
import logging
import os
import sys
import tempfile
import threading
import time
import uuid

from confluent_kafka import Consumer, TopicPartition
from quixstreams import Application

bootstrap, topology = sys.argv[1:3]
group = "quix-" + uuid.uuid4().hex[:8]
logging.disable(logging.WARNING)
app = Application(
    broker_address=bootstrap, consumer_group=group, auto_offset_reset="earliest", processing_guarantee="exactly-once",
    commit_interval=0.1, state_dir=tempfile.mkdtemp(), loglevel="ERROR",
    consumer_extra_config={"fetch.queue.backoff.ms": 5, "queued.max.messages.kbytes": 200_000},
    producer_extra_config={"linger.ms": 5, "batch.size": 1_000_000, "queue.buffering.max.messages": 1_000_000},
)  # fmt: skip
source = app.topic("in", value_deserializer="json", key_deserializer="bytes")
target = app.topic("out-" + group, value_serializer="json", key_serializer="bytes")
frame = app.dataframe(source)
if topology == "map":
    frame = frame.filter(lambda o: o["amount"] > 0)
    frame = frame.apply(lambda o: {"id": o["id"], "customer": o["customer"], "amount": o["amount"]})
else:

    def add(order, state):
        total = state.get("t", 0) + order["amount"]
        state.set("t", total)
        return {"customer": order["customer"], "total": total}

    frame = frame.apply(add, stateful=True)
frame = frame.to_topic(target)


def watch() -> None:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group})
    partitions = [TopicPartition("in", p) for p in consumer.list_topics("in", timeout=10).topics["in"].partitions]
    end = sum(consumer.get_watermark_offsets(p, timeout=10)[1] for p in partitions)
    start = None
    while True:
        done = sum(max(0, p.offset) for p in consumer.committed(partitions, timeout=10))
        if done > 0 and start is None:
            start = (time.perf_counter(), done)
        if done >= end and start is not None:
            seconds = time.perf_counter() - start[0]
            cpu = sum(os.times()[:2])  # with its start, as the others'
            count = end - start[1]
            print(json.dumps({"records_per_s": count / seconds, "cpu_s_per_million": cpu / end * 1e6}), flush=True)
            app.stop()
            return
        time.sleep(0.05)


threading.Thread(target=watch, daemon=True).start()
app.run()
