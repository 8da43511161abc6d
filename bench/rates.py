"""Produce and consume rates of confluent-kafka against a broker. Prints JSON.

python -m bench.rates BOOTSTRAP produce BATCH_BYTES COUNT    1 KB records, idempotent, a new topic
python -m bench.rates BOOTSTRAP consume TOPIC                from its start to its present end
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

PARTITIONS = 4


def produce(bootstrap: str, batch_bytes: int, count: int) -> dict[str, object]:
    topic = f"raw-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "batch.size": batch_bytes,
                         "linger.ms": 5, "delivery.report.only.error": True, "queue.buffering.max.messages": 200_000,
                         "queue.buffering.max.kbytes": 1_000_000})  # fmt: skip
    payload = os.urandom(1000)
    producer.produce(topic, payload)  # the connection and the producer id are not what is measured
    assert producer.flush(60) == 0
    began = time.perf_counter()
    for i in range(count):
        while True:
            try:
                producer.produce(topic, payload)
                break
            except BufferError:
                producer.poll(0.005)
        if i % 10_000 == 0:
            producer.poll(0)
    assert producer.flush(120) == 0
    seconds = time.perf_counter() - began
    return {"topic": topic, "records_per_s": count / seconds, "mb_per_s": count / seconds / 1000}


def consume(bootstrap: str, topic: str) -> dict[str, object]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "enable.auto.commit": False,
                         "auto.offset.reset": "earliest", "fetch.queue.backoff.ms": 5,
                         "queued.max.messages.kbytes": 200_000})  # fmt: skip
    ends = [consumer.get_watermark_offsets(TopicPartition(topic, p), 30)[1] for p in range(PARTITIONS)]
    consumer.assign([TopicPartition(topic, p, 0) for p in range(PARTITIONS)])
    total, count, began, first = sum(ends), 0, 0.0, 0
    while count < total:
        messages = consumer.consume(10_000, 1.0)
        if messages and not began:
            began, first = time.perf_counter(), len(messages)
        count += len(messages)
    seconds = time.perf_counter() - began
    consumer.close()
    return {"records_per_s": (count - first) / seconds, "mb_per_s": (count - first) / seconds / 1000}


if __name__ == "__main__":
    bootstrap, what, *rest = sys.argv[1:]
    done = produce(bootstrap, int(rest[0]), int(rest[1])) if what == "produce" else consume(bootstrap, rest[0])
    print(json.dumps(done))
