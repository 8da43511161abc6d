"""Requests to OpenSearch, each sent once: an answer, or why there is none.

Invariant: nothing here is sent twice. `NeverLeft` is raised only where no byte of the request can have arrived;
whatever else goes wrong is `NoAnswer`, and nobody here knows what it did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import msgspec
import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError

from semel.sinks.sink import SinkError

if TYPE_CHECKING:
    from semel.sinks.opensearch import OpenSearch


class NoAnswer(Exception):
    """The request may have had its effect."""


class NeverLeft(NoAnswer):
    """It has had none."""


class Http:
    """One connection, which is made when first needed and again after a loss."""

    def __init__(self, sink: OpenSearch) -> None:
        self._sink = sink
        timeout = urllib3.Timeout(connect=max(1.0, sink.timeout_s / 3), read=sink.timeout_s)
        given: dict[str, Any] = {"maxsize": 1, "block": True, "retries": False, "timeout": timeout}
        if sink.tls:
            self._pool: urllib3.HTTPConnectionPool = urllib3.HTTPSConnectionPool(
                sink.host, sink.port, ca_certs=sink.ca_file, **given
            )
        else:
            self._pool = urllib3.HTTPConnectionPool(sink.host, sink.port, **given)

    def exchange(self, method: str, path: str, body: bytes | object = None, **query: object) -> tuple[int, Any]:
        """Status and body of the answer. Bytes are sent as lines of JSON, anything else as JSON."""
        headers = dict(self._sink.headers)
        said: bytes | None = None
        if isinstance(body, bytes):
            said = body
            headers["Content-Type"] = "application/x-ndjson"
        elif body is not None:
            said = msgspec.json.encode(body)
            headers["Content-Type"] = "application/json"
        url = self._sink.path + path + ("?" + urlencode({k: _word(v) for k, v in query.items()}) if query else "")
        try:
            answer = self._pool.urlopen(method, url, body=said, headers=headers, redirect=False)
            data = answer.data
        except SSLError as why:
            raise SinkError(f"{self._sink.where}: TLS fails: {why}. Check the address and ca_file=.") from None
        except (NewConnectionError, ConnectTimeoutError) as why:
            raise NeverLeft(_brief(why)) from None
        except (HTTPError, OSError) as why:
            raise NoAnswer(_brief(why)) from None
        try:
            return answer.status, msgspec.json.decode(data) if data else None
        except msgspec.DecodeError:
            return answer.status, None  # of a middleman: a page

    def close(self) -> None:
        self._pool.close()


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _brief(why: BaseException) -> str:
    """Without the library's own object before it, and without the headers, which it does not print."""
    return str(why).rpartition(": ")[2].strip().rstrip(".") or type(why).__name__
