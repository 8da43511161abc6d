"""Takes the golden batches of librdkafka: golden/librdkafka-*.bin and librdkafka.json, which says what each holds.

    .venv/bin/python tests/record/capture.py

librdkafka brings a broker for its own tests (`test.mock.num.brokers`), which keeps what was produced as it came; the
bytes are fetched from it over a plain socket. Not a test: run it to take them again with another version.
"""

from __future__ import annotations

import hashlib
import io
import json
import socket
import struct
from datetime import timedelta
from pathlib import Path

from confluent_kafka import Producer, libversion
from kio.schema.fetch.v11 import request as fetch
from kio.schema.fetch.v11.response import FetchResponse
from kio.schema.types import BrokerId, TopicName
from kio.serial import entity_reader, entity_writer
from kio.static.primitive import i8, i32, i64

GOLDEN = Path(__file__).parent / "golden"
T = 1_700_000_000_000
RECORDS: list[tuple[bytes | None, bytes | None, int, list[tuple[str, bytes | None]]]] = [
    (b"key", b"value", T, []),
    (None, b"no key", T + 1, []),
    (b"no value, earlier", None, T - 5, []),
    (None, None, T + 70_000, []),
    (b"", b"", T + 100_000_000, []),
    (b"headers", b"two", T + 2, [("a", b"1"), ("é", None), ("b", b"")]),
    *[(f"k{i}".encode(), b"abcdefgh " * (i % 16), T + i, []) for i in range(70)],
]
LARGE = (b"several blocks", b"abcdefgh " * 20_000, T, [])


def fetched(address: str, topic: str) -> bytes:
    """Everything in partition 0 of `topic`, as the mock broker stored it."""
    request = fetch.FetchRequest(
        replica_id=BrokerId(-1),
        max_wait=timedelta(milliseconds=100),
        min_bytes=i32(0),
        max_bytes=i32(1 << 24),
        isolation_level=i8(0),
        session_id=i32(0),
        session_epoch=i32(-1),
        topics=(
            fetch.FetchTopic(
                topic=TopicName(topic),
                partitions=(
                    fetch.FetchPartition(
                        partition=i32(0),
                        current_leader_epoch=i32(-1),
                        fetch_offset=i64(0),
                        log_start_offset=i64(-1),
                        partition_max_bytes=i32(1 << 24),
                    ),
                ),
            ),
        ),
        forgotten_topics_data=(),
        rack_id="",
    )
    body = io.BytesIO()
    body.write(struct.pack(">hhih", 1, 11, 1, -1))
    entity_writer(fetch.FetchRequest)(body, request)
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(struct.pack(">i", body.tell()) + body.getvalue())
        stream = connection.makefile("rb")
        (size,) = struct.unpack(">i", stream.read(4))
        frame = stream.read(size)
    response, _ = entity_reader(FetchResponse)(memoryview(frame).toreadonly(), 4)
    (partition,) = response.responses[0].partitions
    return bytes(partition.records or b"")


def shown(data: bytes | None) -> str | None:
    if data is None:
        return None
    return data.hex() if len(data) <= 64 else "sha256:" + hashlib.sha256(data).hexdigest()


def main() -> None:
    expected = []
    for codec in ("none", "gzip", "snappy", "lz4", "zstd"):
        for transactional in (False, True):
            name = codec + ("-transactional" if transactional else "")
            settings = {
                "bootstrap.servers": "",
                "test.mock.num.brokers": 1,
                "compression.type": codec,
                "linger.ms": 500,
                "batch.num.messages": 1000,
                "enable.idempotence": True,
            }
            if transactional:
                settings["transactional.id"] = name
            producer = Producer(settings)
            (broker,) = producer.list_topics(name, timeout=10).brokers.values()
            if transactional:
                producer.init_transactions(10)
                producer.begin_transaction()
            records = RECORDS + ([LARGE] if codec != "none" else [])
            for key, value, timestamp, headers in records:
                producer.produce(name, value, key, partition=0, timestamp=timestamp, headers=headers)
            producer.flush(10)
            data = fetched(f"{broker.host}:{broker.port}", name)
            if transactional:
                producer.commit_transaction(10)
            (GOLDEN / f"librdkafka-{name}.bin").write_bytes(data)
            expected.append(
                {
                    "file": f"librdkafka-{name}.bin",
                    "transactional": transactional,
                    "records": [
                        [i, timestamp, shown(key), shown(value), [[k, shown(v)] for k, v in headers]]
                        for i, (key, value, timestamp, headers) in enumerate(records)
                    ],
                }
            )
    text = json.dumps({"librdkafka": libversion()[0], "batches": expected}, indent=None)
    (GOLDEN / "librdkafka.json").write_text(text.replace("[[", "[\n[").replace("], [", "],\n["))


if __name__ == "__main__":
    main()
