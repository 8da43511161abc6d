"""Every reply in every version served is written as kio would write it, and read back by kio."""

from __future__ import annotations

import io
import random

import pytest
from kio.serial import entity_reader, entity_writer

from semel.broker import messages
from semel.wire.incoming import HEADER, read_request
from semel.wire.schema import request_class, response_class
from semel.wire.versions import API_VERSIONS, SERVED
from semel.wire.writer import compiled_writer, varint, write_reply, write_request
from tests.wire.kio_objects import neutral, neutral_class, random_kio

REPLIES = [(key, version) for key, served in SERVED.items() for version in range(served.first, served.last + 1)]


@pytest.mark.parametrize(("key", "version"), REPLIES, ids=lambda value: str(value))
def test_every_reply_in_every_version_is_kios_to_the_byte(key: int, version: int) -> None:
    """The compiled writer and kio's own give the same bytes, for random content of every field."""
    entity = response_class(key, version)
    into = neutral_class(entity)
    for seed in range(20):
        kio_object = random_kio(entity, random.Random(f"{key} {version} {seed}"))
        expected = io.BytesIO()
        entity_writer(entity)(expected, kio_object)

        parts = write_reply(key, version, 77, neutral(kio_object, into))
        frame = b"".join(parts)

        header = 9 if entity.__flexible__ and key != API_VERSIONS else 8
        assert int.from_bytes(frame[:4]) == len(frame) - 4
        assert int.from_bytes(frame[4:8]) == 77
        assert frame[header:] == expected.getvalue()
        read, size = entity_reader(entity)(memoryview(frame[header:]).toreadonly(), 0)
        assert size == len(frame) - header
        assert read == kio_object


@pytest.mark.parametrize(("key", "version"), REPLIES, ids=lambda value: str(value))
def test_every_reply_can_be_left_at_its_defaults(key: int, version: int) -> None:
    """A class of broker.messages without arguments is a valid reply in all its versions."""
    entity = response_class(key, version)
    out = bytes(compiled_writer(entity, True)([], bytearray(), neutral_class(entity)()))
    _, size = entity_reader(entity)(out, 0)
    assert size == len(out)


def test_record_batches_leave_as_parts_of_their_own() -> None:
    """A Fetch reply is [head, chunk, …, tail]: no chunk is copied into another."""
    chunks = [memoryview(b"a" * 5000), b"b" * 6000]
    partition = messages.PartitionData(records=chunks)
    reply = messages.FetchResponse(responses=[messages.FetchableTopicResponse(topic="t", partitions=[partition])])
    for version in range(4, 19):
        parts = write_reply(1, version, 1, reply)
        assert any(part is chunks[0] for part in parts)
        assert any(part is chunks[1] for part in parts)


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (2**31 - 1, "ffffffff07")]
)
def test_varint(value: int, expected: str) -> None:
    """Seven bits at a time, lowest first (KIP-482)."""
    assert varint(value).hex() == expected


@pytest.mark.parametrize(("key", "version"), REPLIES, ids=lambda value: str(value))
def test_requests_of_our_own_clients_are_read_as_they_were_meant(key: int, version: int) -> None:
    """Written from a class of broker.requests, read back into an equal one; kio agrees on the bytes' meaning."""
    entity = request_class(key, version)
    for seed in range(10):
        kio_object = random_kio(entity, random.Random(f"{key} {version} {seed}"))
        body = io.BytesIO()
        entity_writer(entity)(body, kio_object)
        head = HEADER.pack(key, version, 9, 2) + b"me" + (b"\0" if entity.__flexible__ else b"")
        message = read_request(head + body.getvalue()).message
        frame = b"".join(write_request(key, version, 9, "me", message))
        assert int.from_bytes(frame[:4]) == len(frame) - 4
        assert read_request(frame[4:]).message == message
