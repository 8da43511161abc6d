"""What can be wrong with bytes from a peer. Each ends the connection with one logged line, never with a traceback."""

from __future__ import annotations


class WireError(Exception):
    """Base: the peer's bytes cannot be served. The message says what was wrong with them."""


class MalformedFrame(WireError):
    """The bytes are not what the schema of their API and version says."""


class UnsupportedRequest(WireError):
    """An API or a version that was not advertised. `api_key`, `version` and `correlation_id` as the peer sent them."""

    def __init__(self, api_key: int, version: int, correlation_id: int, reason: str) -> None:
        super().__init__(reason)
        self.api_key = api_key
        self.version = version
        self.correlation_id = correlation_id
