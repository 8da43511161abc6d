"""What the Java client and librdkafka write, we read; what depends on no codec's version, we write the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from semel.record import Columns, Marker, columns, encode, parse_all, parse_marker

GOLDEN = Path(__file__).parent / "golden"
JAVA: list[dict[str, Any]] = json.loads((GOLDEN / "java.json").read_text())
LIBRDKAFKA: list[dict[str, Any]] = json.loads((GOLDEN / "librdkafka.json").read_text())["batches"]


def shown(data: bytes | None) -> str | None:
    if data is None:
        return None
    return data.hex() if len(data) <= 64 else "sha256:" + hashlib.sha256(data).hexdigest()


def rows(found: Columns) -> list[list[Any]]:
    """The records as the JSON files have them."""
    headers = found.headers or [()] * len(found.offsets)
    return [
        [offset, timestamp, shown(key), shown(value), [[name, shown(v)] for name, v in record_headers]]
        for offset, timestamp, key, value, record_headers in zip(
            found.offsets, found.timestamps, found.keys, found.values, headers, strict=True
        )
    ]


@pytest.mark.parametrize("file", sorted({entry["file"] for entry in JAVA}))
def test_java_batches_are_read_as_java_reads_them(file: str) -> None:
    """Header and records of every batch that the Java client wrote are what it says they are."""
    expected = [dict(entry) for entry in JAVA if entry["file"] == file]
    batches = parse_all((GOLDEN / file).read_bytes())
    assert len(batches) == len(expected)
    for batch, entry in zip(batches, expected, strict=True):
        found = columns(batch)
        assert rows(found) == entry.pop("records")
        entry.pop("file")
        assert entry == {
            "base_offset": batch.base_offset,
            "last_offset": batch.last_offset,
            "leader_epoch": batch.leader_epoch,
            "crc": batch.crc,
            "compression": batch.compression,
            "append_time": batch.is_append_time,
            "max_timestamp": batch.max_timestamp,
            "producer_id": batch.producer_id,
            "producer_epoch": batch.producer_epoch,
            "base_sequence": batch.base_sequence,
            "transactional": batch.is_transactional,
            "control": batch.is_control,
        }


@pytest.mark.parametrize("entry", LIBRDKAFKA, ids=lambda entry: str(entry["file"]))
def test_librdkafka_batches_hold_what_was_produced(entry: dict[str, Any]) -> None:
    """Every record given to librdkafka comes back, under every codec, idempotent and transactional."""
    (batch,) = parse_all((GOLDEN / entry["file"]).read_bytes())
    assert rows(columns(batch)) == entry["records"]
    assert batch.is_transactional == entry["transactional"]
    assert batch.producer_id > 0 and batch.producer_epoch == 0 and batch.base_sequence == 0
    assert batch.compression.name.lower() in entry["file"]


@pytest.mark.parametrize("file", ["java-none.bin", "java-none-transactional.bin"])
def test_uncompressed_batches_are_written_as_java_writes_them(file: str) -> None:
    """Decoded and encoded again, a Java batch is the same bytes."""
    data = (GOLDEN / file).read_bytes()
    (batch,) = parse_all(data)
    found = columns(batch)
    assert (
        encode(
            found.values,
            found.keys,
            found.timestamps,
            found.headers,
            base_offset=batch.base_offset,
            producer_id=batch.producer_id,
            producer_epoch=batch.producer_epoch,
            base_sequence=batch.base_sequence,
            transactional=batch.is_transactional,
            leader_epoch=batch.leader_epoch,
        )
        == data
    )


@pytest.mark.parametrize("commit", [True, False])
def test_markers_are_java_s(commit: bool) -> None:
    """A marker is the bytes that Kafka's coordinator would have written, and says what it decided."""
    from semel.record import marker, placed

    data = (GOLDEN / f"java-marker-{'commit' if commit else 'abort'}.bin").read_bytes()
    (batch,) = parse_all(data)
    assert parse_marker(batch) == Marker(commit, 11)
    assert placed(marker(commit, 4001, 3, 11, 1_700_000_000_000), 42, 7) == data
