"""What a request means, and what becomes of it: the rules of docs/receiver.md, each as the sentence says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semel.receiver import rules
from semel.receiver.rules import Answer, DoneBelow, Kept, Place, Problem, Replay, Run, Sent


def parsed(key: str | None = '"a"', floor: str | None = None, body: bytes = b"", **said: Any) -> Any:
    headers = [(b"Idempotency-Key", key.encode("latin-1"))] if key is not None else []
    headers += [(b"Semel-Floor", floor.encode("latin-1"))] if floor is not None else []
    return rules.parse(headers + said.pop("more", []), said.pop("method", "POST"), b"/hook", body, **said)


def test_a_missing_key_is_refused_with_what_to_do() -> None:
    problem = parsed(None, where="POST /hook")
    assert isinstance(problem, Problem)
    assert (problem.name, problem.status) == ("key-missing", 400)
    body = json.loads(problem.body("https://example.org/keys"))
    assert body["type"] == "https://example.org/keys#key-missing"
    assert "POST /hook" in body["detail"] and "Idempotency-Key:" in body["next"]
    assert (b"link", b'<https://example.org/keys>; rel="describedby"') in problem.headers("https://example.org/keys")


MALFORMED = [
    "a",
    "'a'",
    '"',
    '"a',
    'a"',
    '""',
    '"a" "b"',
    '"a", "b"',
    '"\\a"',
    '"ä"',
    '"a\x07"',
    '"a";',
    '"a";B=1',
    "1",
]


@pytest.mark.parametrize("value", [*MALFORMED, "?1", ":YQ==:", '"' + "x" * 256 + '"'])
def test_what_is_not_one_quoted_string_is_refused(value: str) -> None:
    """RFC 9651, section 3.3.3; the draft, section 2.1."""
    problem = parsed(value)
    assert isinstance(problem, Problem) and problem.name == "key-malformed" and problem.status == 400


def test_two_key_headers_are_refused() -> None:
    problem = parsed('"a"', more=[(b"idempotency-key", b'"a"')])
    assert isinstance(problem, Problem) and problem.name == "key-malformed"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ('"a"', "a"),
        ('  "a b"  ', "a b"),
        (r'"a\"b\\c"', r'a"b\c'),
        ('"a";x', "a"),
        ('"a"; x=1;y="z;q";t=tok/en:1;b=?0;u=:YQ==:;d=-1.5', "a"),
    ],
)
def test_a_quoted_string_with_or_without_parameters_is_a_key(value: str, key: str) -> None:
    """The parameters of the item mean nothing here, and are no error."""
    assert parsed(value).key == key


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255))
def test_any_printable_text_survives_quoting(key: str) -> None:
    quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert parsed(quoted).key == key


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_header_bytes_are_an_answer_and_not_a_crash(key: bytes, floor: bytes) -> None:
    found = rules.parse([(b"idempotency-key", key), (b"semel-floor", floor)], "POST", b"/", b"")
    assert isinstance(found, Sent | Problem)


def test_a_floor_names_its_sender_and_the_place_of_the_request() -> None:
    sent = parsed('"1763900000000-4f2a/3/17"', '12;sender="billing.alerts"')
    assert (sent.place, sent.floor) == (Place("1763900000000-4f2a", 3, 17), 12)
    assert sent.sender == "|billing.alerts"
    assert parsed('"i/3/17/2"', '12;sender="s"').place == Place("i", 3, 17), "one record may yield several requests"


@pytest.mark.parametrize(
    ("key", "floor"),
    [
        ('"i/0/5"', "5"),
        ('"i/0/5"', '"5";sender="s"'),
        ('"i/0/5"', '5;sender=""'),
        ('"i/0/5"', "5;sender=s"),
        ('"i/0/5"', '-1;sender="s"'),
        ('"i/0/5"', '5.0;sender="s"'),
        ('"i/0/5"', '1234567890123456;sender="s"'),
        ('"five"', '5;sender="s"'),
        ('"i/0/05"', '5;sender="s"'),
        ('"i/0/-5"', '5;sender="s"'),
        ('"/0/5"', '5;sender="s"'),
    ],
)
def test_a_malformed_floor_is_refused(key: str, floor: str) -> None:
    problem = parsed(key, floor)
    assert isinstance(problem, Problem) and problem.name == "floor-malformed" and problem.status == 400


def test_two_floors_are_refused() -> None:
    problem = parsed('"i/0/5"', '5;sender="s"', more=[(b"semel-floor", b'4;sender="s"')])
    assert isinstance(problem, Problem) and problem.name == "floor-malformed"


def test_a_floor_above_the_requests_own_offset_is_refused() -> None:
    """The sender would say in one breath that this delivery was answered and that it was not."""
    problem = parsed('"i/0/5"', '6;sender="s"')
    assert isinstance(problem, Problem) and problem.name == "floor-above-key" and problem.status == 400


def test_without_a_floor_a_key_of_that_form_is_only_a_key() -> None:
    assert parsed('"i/0/5"').place is None


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_no_two_clients_share_a_sender(a: str, b: str, c: str, d: str) -> None:
    """What one client calls itself cannot make it another."""
    if (a, b) != (c, d):
        assert rules.sender_of(a, b) != rules.sender_of(c, d)


def test_the_fingerprint_is_of_method_path_and_body() -> None:
    one = parsed(body=b"x").fingerprint
    assert parsed(body=b"x", more=[(b"x-trace", b"2")]).fingerprint == one
    assert parsed(body=b"y").fingerprint != one
    assert parsed(body=b"x", method="PATCH").fingerprint != one


KEPT = Kept("f", Answer(201, (), b"made"), expires_ms=100)


@pytest.mark.parametrize(
    ("sent", "kept", "floor", "now_ms", "decided"),
    [
        (Sent("s", "k", "f"), None, 0, 0, Run()),
        (Sent("s", "k", "f"), KEPT, 0, 99, Replay(KEPT)),
        (Sent("s", "k", "g"), KEPT, 0, 99, "key-reused"),
        (Sent("s", "k", "f"), KEPT, 0, 100, Run()),  # the draft: a key that has expired is a new one
        (Sent("s", "k", "g"), KEPT, 0, 100, Run()),
        (Sent("s", "k", "f", Place("i", 0, 7), 5), None, 7, 0, Run()),  # at the floor: not answered yet
        (Sent("s", "k", "f", Place("i", 0, 6), 5), None, 7, 0, DoneBelow(7)),
    ],
)
def test_what_becomes_of_a_request(sent: Sent, kept: Kept | None, floor: int, now_ms: int, decided: Any) -> None:
    found = rules.decide(sent, kept, floor, now_ms)
    assert (found.name if isinstance(found, Problem) else found) == decided


def test_a_key_of_a_sender_with_a_floor_never_expires_at_or_above_it() -> None:
    """Its answer may never have arrived, and the retry may come tomorrow."""
    kept = Kept("f", Answer(201, (), b""), expires_ms=100, placed=True)
    assert rules.decide(Sent("s", "k", "f", Place("i", 0, 7), 5), kept, 7, 10**15) == Replay(kept)


def test_what_is_final() -> None:
    assert [s for s in (200, 204, 302, 400, 404, 409, 410, 422) if not rules.is_final(s)] == []
    assert [s for s in (401, 403, 408, 425, 429, 500, 502, 503, 504) if rules.is_final(s)] == []


def test_headers_worth_keeping() -> None:
    """Not those of one connection or one moment, and no cookies."""
    headers = [
        (b"Location", b"/1"),
        (b"Date", b"now"),
        (b"Set-Cookie", b"s=1"),
        (b"Content-Length", b"2"),
        (b"ETag", b"e"),
    ]
    assert rules.keepable(headers) == ((b"location", b"/1"), (b"etag", b"e"))
