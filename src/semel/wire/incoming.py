"""One request, or one reply, from one frame: its header, then its body.

Invariant: a request that is returned is of an API and version in `SERVED`; everything else is a MalformedFrame or an
UnsupportedRequest.
"""

from __future__ import annotations

import dataclasses
from struct import Struct
from typing import Any, NamedTuple

from semel.wire.errors import MalformedFrame, UnsupportedRequest
from semel.wire.reader import read_reply_body, read_request_body, skip_tags
from semel.wire.schema import request_class, response_class
from semel.wire.versions import API_VERSIONS, METADATA, SERVED

HEADER = Struct(">hhih")  # api key, version, correlation id, length of the client id: a legacy string in all versions


class Incoming(NamedTuple):
    api_key: int
    version: int
    correlation_id: int
    client_id: str | None
    message: Any  # a class of broker.requests


def read_request(frame: bytes) -> Incoming:
    """The request in a frame (without its length). Record batches stay views into `frame`."""
    if len(frame) < HEADER.size:
        raise MalformedFrame(f"a request of {len(frame)} bytes is shorter than its header")
    api_key, version, correlation_id, client_id_size = HEADER.unpack_from(frame)
    served = SERVED.get(api_key)
    if served is None:
        raise UnsupportedRequest(api_key, version, correlation_id, f"API key {api_key} is not served")
    if not served.first <= version <= served.last:
        reason = f"{served.name} version {version} is not served, {served.first} to {served.last} are"
        raise UnsupportedRequest(api_key, version, correlation_id, reason)
    entity = request_class(api_key, version)
    try:
        client_id, position = _client_id(frame, client_id_size)
        if entity.__flexible__:
            position = skip_tags(frame, position)
        message = read_request_body(entity, frame, position)
    except MalformedFrame as error:
        raise MalformedFrame(f"{served.name} version {version}: {error}") from None
    except IndexError:
        raise MalformedFrame(f"{served.name} version {version}: the frame ends within its header") from None
    if api_key == METADATA and version == 0 and not message.topics:
        # Version 0 asks for all topics with an empty list, later ones with null.
        message = dataclasses.replace(message, topics=None)
    return Incoming(api_key, version, correlation_id, client_id, message)


def _client_id(frame: bytes, size: int) -> tuple[str | None, int]:
    if size == -1:
        return None, HEADER.size
    end = HEADER.size + size
    if size < 0 or end > len(frame):
        raise MalformedFrame(f"a client id of {size} bytes in a frame of {len(frame)}")
    try:
        return frame[HEADER.size : end].decode(), end
    except UnicodeDecodeError:
        raise MalformedFrame("the client id is not UTF-8") from None


def correlation_of(frame: bytes) -> int:
    """The correlation id of a reply, by which its reader finds out what it answers."""
    if len(frame) < 4:
        raise MalformedFrame(f"a reply of {len(frame)} bytes is shorter than its header")
    return int.from_bytes(frame[:4], signed=True)


def read_reply(api_key: int, version: int, frame: bytes) -> Any:
    """The reply to a request of ours in a frame (without its length), as `broker.messages` has it."""
    entity = response_class(api_key, version)
    flexible = bool(entity.__flexible__) and api_key != API_VERSIONS
    try:
        return read_reply_body(entity, frame, skip_tags(frame, 4) if flexible else 4)
    except IndexError:
        raise MalformedFrame("the frame ends within its header") from None
