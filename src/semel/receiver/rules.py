"""What a receiver of idempotent requests decides: pure functions of the request, of what is kept, and of the time.

The rules are those of draft-ietf-httpapi-idempotency-key-header, and one more for senders that announce a floor
(docs/receiver.md has them numbered, for receivers in other languages).

Invariant: a request runs only if its key is not kept, and lies at or above the highest floor that its sender has
*announced*. A mark taken from the keys that arrived would lose what parallel requests overtake: 12 is done before 11
arrives, and 11 would be taken for done (FAULTS S18).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

KEY_CHARS_MAX = 255
RETRY_AFTER_S = 1

# Statuses that say nothing lasting about the request: too early, too often, not allowed yet, or the server's fault.
# They are passed on and forgotten, so that the same key is run again (SERVERS, HTTP: a 5xx is not final).
NOT_FINAL = frozenset((401, 403, 407, 408, 421, 425, 429))

# Of one answer or one connection, not of the result; cookies are secrets, and have no place in a table.
NOT_KEPT = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"te", b"trailer"),
        *(b"transfer-encoding", b"upgrade", b"content-length", b"date", b"server", b"set-cookie"),
        *(b"semel-answer", b"semel-floor", b"semel-key-expires"),
    )
)

Headers = Sequence[tuple[bytes, bytes]]


def is_final(status: int) -> bool:
    """Whether this answer is the result of the request, to be kept and replayed."""
    return status < 500 and status not in NOT_FINAL


# --- requests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a delivery of the sender stands: a key of the form incarnation/partition/offset."""

    incarnation: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that carries a key."""

    sender: str  # whose key it is: equal keys of different senders have nothing to do with each other
    key: str
    fingerprint: str
    place: Place | None = None  # with a floor only: a foreign client's key means nothing to us
    floor: int | None = None  # every delivery of this incarnation and partition below it was answered finally


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal: what, where, what next (RFC 9457)."""

    name: str
    status: int
    title: str
    detail: str
    next: str
    more: Mapping[str, Any] = field(default_factory=dict)
    retry_after_s: int | None = None

    def body(self, documentation: str) -> bytes:
        return json.dumps(
            {
                "type": f"{documentation}#{self.name}" if documentation else f"urn:semel:receiver:{self.name}",
                "title": self.title,
                "status": self.status,
                "detail": self.detail,
                "next": self.next,
                **self.more,
            }
        ).encode()

    def headers(self, documentation: str) -> list[tuple[bytes, bytes]]:
        found = [(b"content-type", b"application/problem+json"), (b"content-language", b"en")]
        if documentation:
            found.append((b"link", f'<{documentation}>; rel="describedby"'.encode()))
        if self.retry_after_s is not None:
            found.append((b"retry-after", str(self.retry_after_s).encode()))
        return found


_CHARS = r'(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*'
_ITEM = rf"(?:\"{_CHARS}\"|-?\d+(?:\.\d+)?|[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*|:[A-Za-z0-9+/=]*:|\?[01])"
_NAME = r"[a-z*][a-z0-9_\-.*]*"
_PARAMETERS = rf"((?:; *{_NAME}(?:={_ITEM})?)*)"
_PARAMETER = re.compile(rf'; *({_NAME})(?:=(?:"({_CHARS})"|{_ITEM}))?')
_KEY = re.compile(rf' *"({_CHARS})"{_PARAMETERS} *')
_FLOOR = re.compile(rf" *([0-9]{{1,15}}){_PARAMETERS} *", re.ASCII)
_PLACE = re.compile(r"([A-Za-z0-9._~:-]{1,64})/(0|[1-9][0-9]{0,8})/(0|[1-9][0-9]{0,14})(?:/(?:0|[1-9][0-9]{0,8}))?")


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def parse(
    headers: Headers, method: str, target: bytes, body: bytes, client: str = "", where: str = ""
) -> Sent | Problem:
    """The key of a request and what it stands for, or why it is refused. `client` is who the application has found
    the client to be; `where` names the operation for the messages."""
    keys = [value for name, value in headers if name.lower() == b"idempotency-key"]
    if not keys:
        return Problem(
            "key-missing",
            400,
            "Idempotency-Key is missing",
            f"{where} runs once per key, and this request has none. Nothing was done.",
            'Send a header such as Idempotency-Key: "8e03978e-40d5-43e8-bc93-6894a57f9324", and the same one with '
            "each repetition of this request.",
        )
    found = _KEY.fullmatch(keys[0].decode("latin-1"))
    key = _unescaped(found[1]) if found else ""
    if len(keys) > 1 or not 1 <= len(key) <= KEY_CHARS_MAX:
        return Problem(
            "key-malformed",
            400,
            "Idempotency-Key is malformed",
            f"{where}: "
            + (
                f"{len(keys)} Idempotency-Key headers in one request"
                if len(keys) > 1
                else f"{_shown(keys[0])} is not a quoted string of 1 to {KEY_CHARS_MAX} characters"
            )
            + ". Nothing was done.",
            'Send exactly one, its value in double quotes (RFC 9651, section 3.3.3), with \\ before " and \\ in it.',
        )
    fingerprint = _fingerprint(method, target, body)
    floors = [value for name, value in headers if name.lower() == b"semel-floor"]
    if not floors:
        return Sent(sender_of(client, ""), key, fingerprint)
    told = _FLOOR.fullmatch(floors[0].decode("latin-1")) if len(floors) == 1 else None
    place = _PLACE.fullmatch(key)
    sender = _sender(told[2]) if told else ""
    if told is None or not sender or place is None:
        return Problem(
            "floor-malformed",
            400,
            "Semel-Floor is malformed",
            f"{where}: "
            + (
                f"the key {_shown(key.encode())} has not the form incarnation/partition/offset that a floor needs"
                if told and sender
                else f"{_shown(b', '.join(floors))} is not one integer with the sender's name"
            )
            + ". Nothing was done.",
            'Send Semel-Floor: 17;sender="billing.alerts" with Idempotency-Key: "INCARNATION/PARTITION/OFFSET", or '
            "leave Semel-Floor out.",
        )
    at, floor = Place(place[1], int(place[2]), int(place[3])), int(told[1])
    if floor > at.offset:
        return Problem(
            "floor-above-key",
            400,
            "Semel-Floor lies above the request's own offset",
            f"{where}: the sender says that every delivery below {floor} was answered finally, and sends {at.offset}. "
            "Nothing was done.",
            "The floor is the lowest offset without a final answer. To deliver again, take a new incarnation.",
        )
    return Sent(sender_of(client, sender), key, fingerprint, at, floor)


def sender_of(client: str, announced: str) -> str:
    """Whose keys these are: who the application says the client is, and the name that the sender gives itself."""
    return client.replace("%", "%25").replace("|", "%7C") + "|" + announced


def _sender(parameters: str) -> str:
    """The parameter `sender`, a string of 1 to 255 characters; "" when there is none. The last one counts."""
    found = [part for part in _PARAMETER.finditer(parameters) if part[1] == "sender"]
    value = found[-1][2] if found else None
    return "" if value is None or len(value) > KEY_CHARS_MAX else _unescaped(value)


def _fingerprint(method: str, target: bytes, body: bytes) -> str:
    """Of what makes it this request and no other: method, path with query, body. Not its headers."""
    return hashlib.sha256(b"\n".join((method.encode(), target, body))).hexdigest()


def _shown(value: bytes) -> str:
    text = value[:80].decode("latin-1")
    return text + ("…" if len(value) > 80 else "")


# --- decisions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What the client gets."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """A key with its final answer, as the application's database holds it."""

    fingerprint: str
    answer: Answer
    expires_ms: int
    placed: bool = False  # its sender announces floors: it lasts until it is below the floor, however late that is


@dataclass(frozen=True, slots=True)
class Run:
    """Nothing is known of this key: the request is to be handled."""


@dataclass(frozen=True, slots=True)
class Replay:
    kept: Kept


@dataclass(frozen=True, slots=True)
class DoneBelow:
    """Its answer is forgotten, but the sender has told that it had got it."""

    floor: int


def decide(sent: Sent, kept: Kept | None, floor: int, now_ms: int) -> Run | Replay | DoneBelow | Problem:
    """What becomes of a request, given what is kept under its key and the highest floor its sender has announced."""
    if kept is not None and (kept.placed or kept.expires_ms > now_ms):
        if kept.fingerprint == sent.fingerprint:
            return Replay(kept)
        return Problem(
            "key-reused",
            422,
            "Idempotency-Key is already used",
            f"The key {_shown(sent.key.encode())} was used before, for another method, path or body. Nothing was done.",
            "A repetition repeats the request byte by byte. For another request, take another key.",
        )
    if sent.place is not None and sent.place.offset < floor:
        return DoneBelow(floor)
    return Run()


def keepable(headers: Headers) -> tuple[tuple[bytes, bytes], ...]:
    """The headers of an answer that belong to the result."""
    return tuple((bytes(name).lower(), bytes(value)) for name, value in headers if name.lower() not in NOT_KEPT)


def about(answer: str, floor: int | None, expires_ms: int | None) -> list[tuple[bytes, bytes]]:
    """The headers that say what an answer is: first, replayed, done (its answer is forgotten) or not-kept; the
    highest floor that is kept; until when the key is."""
    found = [(b"semel-answer", answer.encode())]
    if floor is not None:
        found.append((b"semel-floor", str(floor).encode()))
    if expires_ms is not None:
        found.append((b"semel-key-expires", formatdate(expires_ms / 1000, usegmt=True).encode()))
    return found


def done_answer(floor: int) -> Answer:
    body = {"answered": True, "detail": f"This delivery lies below the sender's floor {floor}: it was answered before."}
    return Answer(200, ((b"content-type", b"application/json"),), json.dumps(body).encode())


def running(sent: Sent) -> Problem:
    return Problem(
        "key-running",
        409,
        "A request with this Idempotency-Key is running",
        f"The first request with the key {_shown(sent.key.encode())} has no answer yet; this one was not handled.",
        "Send the same request again after the time that Retry-After says.",
        retry_after_s=RETRY_AFTER_S,
    )


def unavailable(where: str) -> Problem:
    return Problem(
        "keys-unavailable",
        503,
        "The keys cannot be reached",
        f"{where} does not answer, is locked or refused the transaction. Whether this request had an effect is known "
        "when its key can be read.",
        "Send the same request with the same key again: it runs if it has not yet, else the table answers.",
        retry_after_s=RETRY_AFTER_S,
    )


def body_too_long(limit: int) -> Problem:
    return Problem(
        "body-too-long",
        413,
        "The body is too long",
        f"The receiver takes bodies of up to {limit:,} bytes, since it compares them. Nothing was done.",
        "Send less in one request, or raise body_bytes_max of the receiver.",
    )


def answer_too_long(limit: int) -> Problem:
    return Problem(
        "answer-too-long",
        500,
        "The answer is too long to be kept",
        f"An answer is kept with its key, up to {limit:,} bytes, and this one is longer or without end. "
        "Everything that the request had written was undone.",
        "Answer with less (an address instead of the content), or raise answer_bytes_max of the receiver.",
    )


def transaction_ended(where: str) -> Problem:
    return Problem(
        "transaction-not-ours",
        500,
        "The handler's transaction cannot be committed",
        f"{where}: the handler has ended the transaction itself, or left it failed. The key was not kept.",
        "The receiver commits. Let the handler write with the connection it is given, never commit nor roll back.",
    )
