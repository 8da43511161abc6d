"""An HTTP endpoint as a source, declared: `HTTPEndpoint("127.0.0.1:8080", "/orders", key="customer")`.

Nothing is opened here: `http_endpoint_connection.py` serves it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from semel.contract import Guarantee, RecordIdentity, Replay, SourceContract, SourceFence, SourcePosition
from semel.errors import UsageError
from semel.source_ports import SourceConnection, SourceTrial
from semel.sources.source import SourceError, key_complaint, key_fields

CONTRACT = SourceContract(
    name="HTTPEndpoint",
    guarantee=Guarantee.ONCE_IN_WINDOW,
    identity=RecordIdentity.REQUEST_KEY,
    replay=Replay.SENDER,
    position=SourcePosition.WITH_RECORDS,
    fence=SourceFence.TRANSACTIONAL_ID,
    boundary="a key that is repeated after it expired (keep_s) is another request, unless its sender announces floors; "
    "a request that its sender gives up without an answer may or may not have been taken",
)


@dataclass(frozen=True, init=False)
class HTTPEndpoint:
    """Each POST to `path` is a record, or several: a JSON value or an array of them; of a topic of str or bytes the
    body as it is. It carries an Idempotency-Key and is answered 200 when its records are committed.

    `listen`: HOST:PORT. `key`: the field or fields that make the records' keys. `keep_s`: how long a key is kept.
    `body_bytes_max`: of one request. Put TLS and authentication in front of it.
    """

    listen: str
    path: str
    key: tuple[str, ...]
    keep_s: float
    body_bytes_max: int

    def __init__(
        self,
        listen: str,
        path: str = "/",
        *,
        key: str | Sequence[str] | None = None,
        keep_s: float = 86_400.0,
        body_bytes_max: int = 1 << 20,
    ) -> None:
        host, colon, port = listen.rpartition(":")
        if not colon or not host or not port.isdigit() or not 1 <= int(port) <= 65_535:
            raise SourceError(f"HTTPEndpoint {listen!r}: wanted is HOST:PORT.")
        if not path.startswith("/"):
            raise SourceError(f"HTTPEndpoint {listen}: path={path!r} begins with a slash.")
        if keep_s < 60:
            raise SourceError(
                f"HTTPEndpoint {listen}: keep_s={keep_s:g}; at least 60: a sender tries again for a while."
            )
        for name, value in (("listen", listen), ("path", path), ("key", key_fields(key)), ("keep_s", keep_s)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "body_bytes_max", body_bytes_max)

    @property
    def where(self) -> str:
        return f"HTTP endpoint {self.listen}{self.path}"

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def contract(self) -> SourceContract:
        return CONTRACT

    @property
    def ordered(self) -> bool:
        return False

    @property
    def transaction_ms(self) -> int:
        return 10_000

    @property
    def lanes(self) -> int:
        return 1  # who owns it listens

    def complaint(self, key: Any, value: Any) -> str:
        return key_complaint(self.where, self.key, key, value)

    def renamed(self, suffix: str) -> HTTPEndpoint:
        host, _, _ = self.listen.rpartition(":")
        port = 20_000 + zlib.crc32(f"{self.listen}{suffix}".encode()) % 10_000  # the same in every process of the run
        return HTTPEndpoint(
            f"{host}:{port}", self.path, key=self.key, keep_s=self.keep_s, body_bytes_max=self.body_bytes_max
        )

    def open(self, topic: Any, lane: int, follow: bool) -> SourceConnection:
        if not follow:
            raise UsageError(f"{self.where} has no end: serve it with `semel ingest --follow`, or by `semel run`.")
        from semel.sources.http_endpoint_connection import EndpointConnection

        return EndpointConnection(self, topic)

    def trial(self, topic: Any) -> SourceTrial:
        from semel.sources.http_endpoint_trial import EndpointTrial

        return EndpointTrial(self, topic)

    def __repr__(self) -> str:
        return f"<{self.where}>"
