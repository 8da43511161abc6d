"""HTTP as a sink: a POST per record, each with its Idempotency-Key. Contract: Keyed, or Windowed where keys expire.

Invariant: an answer counts as final only if it says so: 2xx, or a refusal that is about this record. Everything else is
unknown or not yet, and the same request is sent again under the same key, by us and never by the client library
(SERVERS, HTTP). The floor that travels with it is the lowest offset without a final answer.

Before a receiver that forgets its keys the requests go by cuts (`cut_delivery.py`): each cut is written down, with its
time, before its first request leaves, so that one that may have been sent is sent again within the window only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

import msgspec

from semel.contract import (
    Atomicity,
    Contract,
    Fence,
    Guarantee,
    Identity,
    Keyed,
    Once,
    PositionIn,
    Resolution,
    Settlement,
    Window,
    Windowed,
)
from semel.ports import Steps
from semel.sinks.cuts import Rule
from semel.sinks.declared import Declared
from semel.sinks.sink import SinkError

if TYPE_CHECKING:
    from semel.sinks.http_connection import HTTPConnection

KEYED = Contract(
    name="Keyed",
    guarantee=Guarantee.EFFECTIVELY_ONCE,
    identity=Identity.REQUEST_KEY,
    atomicity=Atomicity.RECORD,
    remembers_position=False,
    fence=Fence.FIRST_ANSWER,
    resolution=Resolution.SEND_AGAIN,
    durability="the receiver answers after its commit, with its effect, key and answer in one transaction",
    position=PositionIn.GROUP_OFFSETS,
    settlement=Settlement.REPEATED,
)


class HTTP(Declared):
    """`HTTP(url)`: a receiver that keeps Idempotency-Keys and the sender's floor (docs/receiver.md). One that forgets
    its keys after a time and knows no floor: `HTTP(url, forgets_after_s=86400)`, which is a window and no more.

    `headers` travel with each request (credentials belong there; they are never shown). `in_flight` requests are on
    their way at once; records of one key stay in order. `timeout_s`: how long an answer may take; after `patience_s`
    without progress the delivery says so. `rows_url`: where the receiver shows what it holds, for `semel verify`."""

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        headers: Mapping[str, str] | None = None,
        forgets_after_s: float | None = None,
        in_flight: int = 4,
        timeout_s: float = 10.0,
        patience_s: float = 5.0,
        rows_url: str | None = None,
        _suffix: str = "",
    ) -> None:
        self.url = _split(url)
        self.rows_url = None if rows_url is None else _split(rows_url)
        self.headers = dict(headers or {})
        for header, value in self.headers.items():
            if not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", header) or not re.fullmatch(r"[\x20-\x7e]*", value):
                raise SinkError(
                    f"HTTP {self.url.hostname}: the header {header!r} has a name or value that cannot travel."
                )
        if in_flight < 1:
            raise SinkError(f"in_flight={in_flight}: at least one request must be on its way.")
        if forgets_after_s is not None and forgets_after_s <= timeout_s:
            raise SinkError(
                f"HTTP {self.url.hostname}: forgets_after_s={forgets_after_s:g} is not longer than an answer may take "
                f"(timeout_s={timeout_s:g}): no request could ever be sent again."
            )
        self.forgets_after_s, self.in_flight = forgets_after_s, in_flight
        self.timeout_s, self.patience_s = timeout_s, patience_s
        self.suffix = _suffix
        assert self.url.hostname is not None
        self._name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", self.url.hostname + self.url.path).strip("-")

    @property
    def where(self) -> str:
        port = f":{self.url.port}" if self.url.port else ""
        return f"POST {self.url.scheme}://{self.url.hostname}{port}{self.url.path}"

    @property
    def kind(self) -> type[Once]:
        return Keyed if self.forgets_after_s is None else Windowed

    @property
    def contract(self) -> Contract:
        if self.forgets_after_s is None:
            return KEYED
        return replace(
            KEYED,
            name="Windowed",
            guarantee=Guarantee.ONCE_IN_WINDOW,
            window=Window(seconds=self.forgets_after_s),
            position=PositionIn.DELIVERY_TOPIC,
            settlement=Settlement.CUT_REPEATED,
        )

    @property
    def rule(self) -> Rule | None:
        """When a cut is due: at once, with what was read. None: there are no cuts."""
        return None if self.forgets_after_s is None else Rule(records=1_000, ms=0)

    def encode_value(self, value: object) -> bytes:
        try:
            return msgspec.json.encode(value)
        except (TypeError, ValueError, OverflowError) as why:
            raise SinkError(f"{self.where}: a {type(value).__name__} cannot be written as JSON: {why}.") from None

    def renamed(self, suffix: str) -> HTTP:
        def moved(url: SplitResult) -> str:
            return url._replace(path=url.path.rstrip("/") + suffix).geturl()

        return HTTP(
            moved(self.url),
            name=self._name,
            headers=self.headers,
            forgets_after_s=self.forgets_after_s,
            in_flight=self.in_flight,
            timeout_s=self.timeout_s,
            patience_s=self.patience_s,
            rows_url=None if self.rows_url is None else moved(self.rows_url),
            _suffix=self.suffix + suffix,
        )

    def open(self, steps: Steps) -> HTTPConnection:
        from semel.sinks.http_connection import HTTPConnection

        return HTTPConnection(self, steps)

    def __repr__(self) -> str:
        return f"<{self.where}>"


def _split(url: str) -> SplitResult:
    found = urlsplit(url)
    if found.scheme not in ("http", "https") or not found.hostname or found.fragment:
        raise SinkError(f"{url.partition('?')[0]}: an address like https://example.org/hook is wanted.")
    if found.username or found.password:
        raise SinkError(
            f"{found.scheme}://…@{found.hostname}: credentials in an address end in logs. Give them as "
            'headers={"Authorization": …}.'
        )
    return found


# --- what an answer means ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answered:
    """Final: it has had its effect, once."""


@dataclass(frozen=True, slots=True)
class Again:
    """The same request is to be sent again. `unknown`: it may have had its effect."""

    reason: str
    after_s: float = 0.0
    unknown: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The receiver will never take this record. `kept`: it says that this answer is kept with the key, so that no
    request with the record, however late, has another one."""

    reason: str
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Reused:
    """The receiver knows this key with another request: the log is not the one that it was."""

    reason: str


@dataclass(frozen=True, slots=True)
class Misplaced:
    """Nothing about the record: the address, the credentials or the receiver is not what was declared."""

    reason: str


Meaning = Answered | Again | Refused | Reused | Misplaced
SAID = frozenset(("first", "replayed", "not-kept"))  # Semel-Answer: the application itself has answered
KEPT = frozenset(("first", "replayed"))  # … and this answer is kept with the key
LATER = frozenset((408, 421, 425, 429))
AFTER_MAX_S = 300.0


def meaning(status: int, headers: Mapping[str, str], body: bytes, floors: bool, now_s: float) -> Meaning:
    """What an answer says about its record. `floors`: the receiver was declared to keep them."""
    from_application = headers.get("semel-answer") in SAID
    told = _told(status, body)
    if 200 <= status < 300:
        if floors and "semel-floor" not in headers:
            return Misplaced(
                "its answers have no Semel-Floor: it keeps no floor, and will forget its keys. Put semel.receiver "
                "before it (docs/receiver.md), or declare how long it keeps them: forgets_after_s="
            )
        return Answered()
    if 300 <= status < 400:
        return Misplaced(f"it answers {status}, elsewhere: {headers.get('location', 'it does not say where')}")
    if status >= 500 or status in LATER:
        return Again(told, _after(headers, now_s), unknown=status >= 500 and not from_application)
    if status == 409 and not from_application:
        return Again(told, _after(headers, now_s) or 0.1, unknown=True)
    if status == 422 and not from_application:
        return Reused(told)
    if status in (401, 403, 407):
        return Misplaced(f"{told}. Give it credentials (headers=) that it takes")
    return Refused(told, kept=headers.get("semel-answer") in KEPT)


def _told(status: int, body: bytes) -> str:
    text = " ".join(body[:300].decode(errors="replace").split())
    return f"it answers {status}{f': {text}' if text else ''}"


def _after(headers: Mapping[str, str], now_s: float) -> float:
    """Retry-After in seconds, from its number or date; 0 without one that can be read."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return min(float(value), AFTER_MAX_S)
    try:
        return min(max(0.0, parsedate_to_datetime(value).timestamp() - now_s), AFTER_MAX_S)
    except (ValueError, TypeError):
        return 0.0
