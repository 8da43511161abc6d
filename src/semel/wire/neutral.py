"""From kio's classes, one per version, to ours, one for all: `broker.requests` and `broker.messages`."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from semel.broker import admin_messages, admin_requests, messages, requests
from semel.wire.schema import KioClass


def request_type(entity: KioClass) -> Any:
    """The class of `broker.requests` (or `admin_requests`) for a kio request."""
    found = getattr(requests, entity.__name__, None) or getattr(admin_requests, entity.__name__, None)
    assert found is not None, f"{entity.__name__} has no class in broker.requests"
    return found


def reply_type(entity: KioClass) -> Any:
    found = getattr(messages, entity.__name__, None) or getattr(admin_messages, entity.__name__, None)
    assert found is not None, f"{entity.__name__} has no class in broker.messages"
    return found


def nested_class(hint: Any) -> Any:
    """The dataclass inside Sequence[X], tuple[X, ...], X | None."""
    if dataclasses.is_dataclass(hint):
        return hint
    for part in typing.get_args(hint):
        if (found := nested_class(part)) is not None:
            return found
    return None
