"""Requests are read in every version, whatever unknown tags they carry; garbage is a defined error and nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import random
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kio.serial import entity_writer

from semel.wire.errors import MalformedFrame, UnsupportedRequest, WireError
from semel.wire.incoming import HEADER, correlation_of, read_reply, read_request
from semel.wire.neutral import request_type
from semel.wire.schema import fields_of, request_class, response_class
from semel.wire.versions import SERVED
from semel.wire.writer import write_reply
from tests.wire.kio_objects import neutral, neutral_class, random_kio

REQUESTS = [(key, version) for key, served in SERVED.items() for version in range(served.first, served.last + 1)]


def written(kio_object: Any) -> bytes:
    out = io.BytesIO()
    entity_writer(type(kio_object))(out, kio_object)
    return out.getvalue()


def framed(key: int, version: int, body: bytes, *, client: bytes = b"tester", tags: bytes = b"\x00") -> bytes:
    flexible = request_class(key, version).__flexible__
    return HEADER.pack(key, version, 5, len(client)) + client + (tags if flexible else b"") + body


def random_request(key: int, version: int, seed: int) -> Any:
    return random_kio(request_class(key, version), random.Random(f"{key} {version} {seed}"))


def compare(read: Any, kio_object: Any) -> None:
    """`read` says what `kio_object` says, and has every attribute that handlers may read."""
    for field in fields_of(type(kio_object)):
        theirs = getattr(kio_object, field.name)
        if not hasattr(read, field.name):
            continue  # a field that broker.requests leaves out because no handler reads it
        ours = getattr(read, field.name)
        if field.name == "topics" and theirs == () and ours is None:
            continue  # Metadata 0
        if field.entity is not None and theirs is not None:
            pairs = zip(ours, theirs, strict=True) if field.array else [(ours, theirs)]
            for our, their in pairs:
                compare(our, their)
        else:
            assert ours == theirs, field.name


@pytest.mark.parametrize(("key", "version"), REQUESTS, ids=lambda value: str(value))
def test_every_request_in_every_version(key: int, version: int) -> None:
    """Header and body come back as they were sent, and no attribute that a handler may read is missing."""
    into = request_type(request_class(key, version))
    for seed in range(10):
        kio_object = random_request(key, version, seed)
        incoming = read_request(framed(key, version, written(kio_object)))
        assert (incoming.api_key, incoming.version, incoming.correlation_id) == (key, version, 5)
        assert incoming.client_id == "tester"
        compare(incoming.message, kio_object)
        assert_complete(incoming.message, into)


def assert_complete(message: Any, into: type[Any]) -> None:
    hints = typing.get_type_hints(into)
    for field in dataclasses.fields(into):
        value = getattr(message, field.name)
        nested = next((part for part in flattened(hints[field.name]) if dataclasses.is_dataclass(part)), None)
        if nested is not None and value is not None:
            for item in value if isinstance(value, tuple) else (value,):
                assert_complete(item, typing.cast("type[Any]", nested))


def flattened(hint: Any) -> Iterator[Any]:
    yield hint
    for part in typing.get_args(hint):
        yield from flattened(part)


@pytest.mark.parametrize(("key", "version"), REQUESTS, ids=lambda value: str(value))
def test_every_reply_in_every_version(key: int, version: int) -> None:
    """Our own clients read replies with the same reader: what was written as kio would is read back."""
    entity = response_class(key, version)
    for seed in range(10):
        kio_object = random_kio(entity, random.Random(f"{key} {version} {seed}"))
        expected = neutral(kio_object, neutral_class(entity))
        frame = b"".join(write_reply(key, version, 3, expected))[4:]
        assert correlation_of(frame) == 3
        read = read_reply(key, version, frame)
        assert joined(read) == joined(expected)


def joined(message: Any) -> Any:
    """Sequences as tuples, record chunks as one: for comparison."""
    if dataclasses.is_dataclass(message):
        return [(field.name, joined(getattr(message, field.name))) for field in dataclasses.fields(message)]
    if isinstance(message, list | tuple):
        if message and isinstance(message[0], bytes | memoryview):
            return b"".join(message)
        return tuple(joined(item) for item in message)
    return message


@pytest.mark.parametrize(
    ("key", "version"), [pair for pair in REQUESTS if request_class(*pair).__flexible__], ids=lambda value: str(value)
)
def test_unknown_tagged_fields_are_skipped(key: int, version: int) -> None:
    """A newer client's tags, in the header and at the end of the body, change nothing (KIP-482)."""
    entity = request_class(key, version)
    plain = {field.name: field.default for field in fields_of(entity) if field.tag is not None}
    kio_object = dataclasses.replace(random_request(key, version, 1), **plain)
    body = written(kio_object)
    assert body[-1] == 0  # the count of its tagged fields
    tagged = body[:-1] + b"\x02" + b"\x63\x03abc" + b"\xff\x7f\x00"
    incoming = read_request(framed(key, version, tagged, tags=b"\x01\x05\x02xy"))
    compare(incoming.message, kio_object)


def test_null_for_an_array_that_may_not_be_null_is_refused() -> None:
    """kio's reader lets it pass; a handler would fail on it."""
    with pytest.raises(MalformedFrame, match=r"Produce version 8.*topic_data is null"):
        read_request(framed(0, 8, b"\xff\xff" + b"\xff\xff" + b"\x00\x00\x00\x64" + b"\xff\xff\xff\xff"))


def test_bytes_left_over_are_ignored_in_requests_and_refused_in_replies() -> None:
    """Kafka ignores them; in a reply they mean that the two sides do not agree on the schema."""
    body = written(random_request(12, 0, 1))
    assert read_request(framed(12, 0, body + b"zz")).message == read_request(framed(12, 0, body)).message
    with pytest.raises(MalformedFrame, match="2 bytes are left over"):
        read_reply(12, 0, bytes(4) + b"\x00\x00" + b"zz")


def test_all_topics_as_librdkafka_asks_for_them() -> None:
    """Its null array has three bytes too many; Kafka ignores what follows, and so must we."""
    frame = bytes.fromhex("0003000d00000003000772646b61666b610000000000010000")  # AdminClient.list_topics()
    assert read_request(frame).message.topics is None


def test_metadata_0_asks_for_all_topics_with_an_empty_list() -> None:
    """Handlers know only null, as later versions say it."""
    assert read_request(framed(3, 0, b"\x00\x00\x00\x00")).message.topics is None
    assert read_request(framed(3, 1, b"\x00\x00\x00\x00")).message.topics == ()


@pytest.mark.parametrize(("key", "version"), [(0, 2), (0, 12), (26, 5), (18, 5), (4, 0), (-1, -1), (9999, 1)])
def test_what_is_not_served_is_refused_with_its_correlation_id(key: int, version: int) -> None:
    """The connection needs it to answer ApiVersions, and the log line names the rest."""
    with pytest.raises(UnsupportedRequest) as refused:
        read_request(HEADER.pack(key, version, 41, -1))
    assert (refused.value.api_key, refused.value.version, refused.value.correlation_id) == (key, version, 41)


@given(st.binary(max_size=60), st.sampled_from(REQUESTS))
@settings(max_examples=1500, deadline=None)
def test_garbage_is_a_wire_error_and_nothing_else(garbage: bytes, request_: tuple[int, int]) -> None:
    """Any bytes after a plausible header are read or refused; there is no third way."""
    with contextlib.suppress(WireError):
        read_request(framed(*request_, garbage))


@given(st.binary(max_size=40))
@settings(max_examples=500, deadline=None)
def test_garbage_headers(garbage: bytes) -> None:
    """Any bytes at all."""
    with contextlib.suppress(WireError):
        read_request(garbage)


@given(st.sampled_from(REQUESTS), st.integers(0, 3), st.data())
@settings(max_examples=1500, deadline=None)
def test_damaged_requests(request_: tuple[int, int], seed: int, data: st.DataObject) -> None:
    """A real request with one byte changed and its end cut off."""
    body = bytearray(written(random_request(*request_, seed)))
    if len(body) > 5000:
        del body[5000:]
    if body:
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.integers(0, 255))
        del body[data.draw(st.integers(at, len(body))) :]
    with contextlib.suppress(WireError):
        read_request(framed(*request_, bytes(body)))


def test_a_huge_array_length_is_refused_before_anything_is_allocated() -> None:
    """kio's native reader asks for 34 GB on the last of these and aborts: any peer could kill the broker."""
    for key, version, body in [
        (3, 1, b"\x7f\xff\xff\xff"),
        (3, 1, b"\x00\xff\xff\xff"),
        (3, 12, b"\xff\xff\xff\xff\x0f"),
        (0, 9, bytes(7) + b"\xff\xff\xff\xff\x0f"),
    ]:
        with pytest.raises(MalformedFrame, match="more than the frame has bytes"):
            read_request(framed(key, version, body))
