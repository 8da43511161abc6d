"""The rules of docs/receiver.md as requests to any receiver, in any language: which hold, which fail, and by what.

The endpoint under test is a small one that its author mounts behind the receiver (docs/receiver.md shows it): it has
an effect that can be counted, and does on request what a handler may do: be slow, fail, die.

Invariant: a rule that could not be tried is never said to hold (law 9).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import partial
from typing import Any

from semel.receiver.probe import CannotTell, Exchange, Probe, Reply

RESTART_S = 30.0


class Group(StrEnum):
    DRAFT = "draft"  # draft-ietf-httpapi-idempotency-key-header, and what makes it one effect
    FLOOR = "floor"  # Semel-Floor: a sender that never needs its keys to live for ever
    EXPIRY = "expiry"  # wants a receiver whose keys expire within seconds
    RESTART = "restart"  # wants a way to kill the receiver and start it again


class Verdict(StrEnum):
    HOLDS = "holds"
    FAILS = "fails"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Means:
    """What the test may use besides requests."""

    expires_s: float | None = None
    restart: Callable[[], None] | None = None  # kills the receiver as a crash does, and starts it again


Try = Callable[[Probe, Means], None]


class Broken(Exception):
    """The rule does not hold; the message says by what."""


@dataclass(frozen=True, slots=True)
class Rule:
    name: str  # also its anchor in docs/receiver.md
    group: Group
    sentence: str
    tried: Try


@dataclass(frozen=True, slots=True)
class Finding:
    rule: Rule
    verdict: Verdict
    why: str = ""
    exchanges: Sequence[Exchange] = field(default_factory=tuple)


RULES: list[Rule] = []


def rule(group: Group, sentence: str) -> Callable[[Try], Try]:
    def add(tried: Try) -> Try:
        RULES.append(Rule(tried.__name__.strip("_").replace("_", "-"), group, sentence, tried))
        return tried

    return add


def check(
    url: str,
    *,
    without: Collection[Group] = (),
    means: Means | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 10.0,
    told: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """Tries every rule, in the order of docs/receiver.md; `told` is given each finding as it is there."""
    means = means or Means()
    findings: list[Finding] = []
    reached: str | None = None  # why nothing can be told
    for one in RULES:
        if one.group in without:
            continue
        if not findings:
            reached = _reached(Probe(url, headers, timeout_s))
        if reached is not None:
            finding = Finding(one, Verdict.NOT_TRIED, reached)
        else:
            finding = _tried(one, Probe(url, headers, timeout_s), means)
        findings.append(finding)
        told(finding)
    return findings


def _reached(probe: Probe) -> str | None:
    """Why nothing can be told of this endpoint; None when something can."""
    try:
        probe.effects(probe.name())
    except CannotTell as why:
        return str(why)
    return None


def _tried(one: Rule, probe: Probe, means: Means) -> Finding:
    verdict, because = Verdict.HOLDS, ""
    try:
        one.tried(probe, means)
    except Broken as why:
        verdict, because = Verdict.FAILS, str(why)
    except CannotTell as why:
        verdict, because = Verdict.NOT_TRIED, str(why)
    return Finding(one, verdict, because, tuple(probe.exchanges))


def as_json(url: str, findings: Sequence[Finding]) -> str:
    def shown(finding: Finding) -> dict[str, Any]:
        return {
            "rule": finding.rule.name,
            "group": finding.rule.group,
            "sentence": finding.rule.sentence,
            "verdict": finding.verdict,
            "why": finding.why,
            "exchanges": [
                {
                    "request": exchange.request,
                    "status": exchange.reply.status or None,
                    "headers": dict(exchange.reply.headers),
                    "body": exchange.reply.body.decode(errors="replace"),
                    "why": exchange.reply.why,
                }
                for exchange in finding.exchanges
            ],
        }

    counted = {verdict: sum(f.verdict is verdict for f in findings) for verdict in Verdict}
    return json.dumps({"url": url, "verdicts": counted, "rules": list(map(shown, findings))}, indent=2)


# --- what rules are made of -------------------------------------------------------------------------------------------


def want(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


def quoted(key: str) -> str:
    return f'"{key}"'


def succeeded(reply: Reply, what: str = "the request") -> Reply:
    want(200 <= reply.status < 300, f"{what} was answered with {_status(reply)}, not with a success")
    return reply


def refused(reply: Reply, status: int, what: str) -> Reply:
    want(reply.status == status, f"{what} was answered with {_status(reply)}, not with {status}")
    return reply


def effects(probe: Probe, effect: str, wanted: int, what: str) -> None:
    found = probe.effects(effect)
    want(found == wanted, f"{what}: {found} effects, {wanted} wanted")


def same(first: Reply, again: Reply, what: str) -> None:
    want(again.status == first.status, f"{what} was answered with {_status(again)}, the first with {_status(first)}")
    want(again.body == first.body, f"{what} was answered with another body than the first")
    for name in ("content-type", "check-run"):
        want(
            again.headers.get(name) == first.headers.get(name),
            f"{what} has {name}: {again.headers.get(name)}, the first {first.headers.get(name)}",
        )


def _status(reply: Reply) -> str:
    return str(reply.status) if reply.status else f"nothing ({reply.why})"


def problem(reply: Reply, what: str) -> None:
    """RFC 9457, or a Link to a description."""
    if 'rel="describedby"' in reply.headers.get("link", "") or "rel=describedby" in reply.headers.get("link", ""):
        return
    kind = reply.headers.get("content-type", "none").partition(";")[0]
    want(kind == "application/problem+json", f"{what} has content type {kind} and no Link rel=describedby")
    try:
        body = json.loads(reply.body)
    except ValueError:
        body = None
    want(isinstance(body, dict) and bool(body.get("title")), f"{what} has no title")


# --- the draft --------------------------------------------------------------------------------------------------------


@rule(Group.DRAFT, "A request without a key is refused with 400, and has no effect.")
def key_missing(probe: Probe, means: Means) -> None:
    effect = probe.name()
    refused(probe.post(effect, None), 400, "a request without Idempotency-Key")
    effects(probe, effect, 0, "after it")


@rule(Group.DRAFT, "A key that is not one quoted string of 1 to 255 characters is refused with 400, without effect.")
def key_malformed(probe: Probe, means: Means) -> None:
    effect = probe.name()
    for key in (effect, '""', f'"{effect}', quoted("x" * 256), (quoted(effect), quoted(effect + "-2"))):
        shown = key if isinstance(key, str) else " and ".join(key)
        refused(probe.post(effect, key), 400, f"the key {shown[:60]}")
    effects(probe, effect, 0, "after them")


@rule(Group.DRAFT, "A first request runs, and has its effect; the key's parameters, if any, mean nothing.")
def key_first(probe: Probe, means: Means) -> None:
    for suffix in ("", ";v=1"):
        effect = probe.name()
        succeeded(probe.post(effect, quoted(probe.name()) + suffix))
        effects(probe, effect, 1, "after it")


@rule(Group.DRAFT, "The same request again gets the first answer (status, body, headers of the result), and no effect.")
def key_repeated(probe: Probe, means: Means) -> None:
    effect, key = probe.name(), quoted(probe.name())
    first = succeeded(probe.post(effect, key))
    for _ in range(2):
        same(first, probe.post(effect, key), "the repetition")
    effects(probe, effect, 1, "after three requests with one key")


@rule(Group.DRAFT, "A key with another body is refused with 422, and the first answer stays.")
def key_reused(probe: Probe, means: Means) -> None:
    effect, other, key = probe.name(), probe.name(), quoted(probe.name())
    first = succeeded(probe.post(effect, key))
    refused(probe.post(other, key), 422, "the key with another body")
    effects(probe, other, 0, "the other body's")
    same(first, probe.post(effect, key), "the first request, sent again")


@rule(Group.DRAFT, "A key with another path or query is refused with 422.")
def key_reused_elsewhere(probe: Probe, means: Means) -> None:
    effect, key = probe.name(), quoted(probe.name())
    succeeded(probe.post(effect, key))
    refused(probe.post(effect, key, query="other=1"), 422, "the key with another query")
    effects(probe, effect, 1, "after both")


@rule(
    Group.DRAFT, "While the first request runs, the same one is refused with 409 and Retry-After; later it is replayed."
)
def key_running(probe: Probe, means: Means) -> None:
    effect, key = probe.name(), quoted(probe.name())
    first = probe.started(lambda: probe.post(effect, key, sleep_ms=2000))
    probe.pause(0.5)
    meanwhile = probe.post(effect, key)
    answered = succeeded(first(), "the slow first request")
    refused(meanwhile, 409, "the same request, sent 0.5 s into the 2 s of the first,")
    want("retry-after" in meanwhile.headers, "the 409 has no Retry-After")
    same(answered, probe.post(effect, key), "the request after that")
    effects(probe, effect, 1, "after three requests with one key")


@rule(Group.DRAFT, "Of many equal requests at once one runs; the others get its answer, or 409.")
def key_at_once(probe: Probe, means: Means) -> None:
    effect, key = probe.name(), quoted(probe.name())
    replies = probe.at_once([lambda: probe.post(effect, key, sleep_ms=20)] * 8)
    done = [reply for reply in replies if reply.status != 409]
    want(bool(done), "all eight were answered with 409")
    for reply in done:
        same(succeeded(done[0]), reply, "one of eight equal requests")
    effects(probe, effect, 1, "after eight requests with one key")


@rule(Group.DRAFT, "A final error is a result: the same request again gets it, and is not run.")
def error_final(probe: Probe, means: Means) -> None:
    effect, key = probe.name(), quoted(probe.name())
    first = refused(probe.post(effect, key, status=404), 404, "a request whose handler answers 404")
    same(first, probe.post(effect, key), "the repetition")


@rule(Group.DRAFT, "A 5xx is not final: its request leaves no effect, and the same one runs again.")
def error_not_final(probe: Probe, means: Means) -> None:
    effect, key = probe.name(), quoted(probe.name())
    refused(probe.post(effect, key, status=503), 503, "a request whose handler writes and then answers 503")
    effects(probe, effect, 0, "after the 503")
    again = succeeded(probe.post(effect, key), "the same request after the 503")
    effects(probe, effect, 1, "after the success")
    same(again, probe.post(effect, key), "the repetition of the success")


@rule(
    Group.DRAFT, "Refusals say what and where next: application/problem+json with a title, or a Link rel=describedby."
)
def problems(probe: Probe, means: Means) -> None:
    effect, key = probe.name(), quoted(probe.name())
    problem(refused(probe.post(effect, None), 400, "a request without key"), "the 400")
    succeeded(probe.post(effect, key))
    problem(refused(probe.post(probe.name(), key), 422, "the key with another body"), "the 422")


@rule(Group.DRAFT, "Each kept answer tells until when its key is kept: Semel-Key-Expires.")
def expiry_announced(probe: Probe, means: Means) -> None:
    reply = succeeded(probe.post(probe.name(), quoted(probe.name())))
    text = reply.headers.get("semel-key-expires")
    want(text is not None, "the answer has no Semel-Key-Expires")
    try:
        parsedate_to_datetime(text or "")
    except ValueError:
        raise Broken(f"Semel-Key-Expires: {text} is not a date as RFC 9110, section 5.6.7, has it") from None


# --- floors -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sender:
    """One sender with one incarnation, as the endpoint sees it."""

    probe: Probe
    name: str
    incarnation: str

    def post(self, effect: str, offset: int, floor: int, *, partition: int = 0, incarnation: str = "") -> Reply:
        return self.probe.post(
            effect,
            quoted(f"{incarnation or self.incarnation}/{partition}/{offset}"),
            floor=f'{floor};sender="{self.name}"',
        )


def sender(probe: Probe) -> _Sender:
    return _Sender(probe, probe.name(), probe.name())


@rule(Group.FLOOR, "An answer to a request with Semel-Floor tells the highest floor that is kept; it never sinks.")
def floor_kept(probe: Probe, means: Means) -> None:
    one = sender(probe)
    for offset, floor, kept in ((10, 7, 7), (12, 9, 9), (11, 8, 9)):
        reply = succeeded(one.post(probe.name(), offset, floor))
        found = reply.headers.get("semel-floor")
        want(found == str(kept), f"after the floor {floor} the answer has Semel-Floor: {found}, not {kept}")


@rule(
    Group.FLOOR,
    "What was overtaken runs: 12 done before 11 arrives does not make 11 done. Only the sender's floor does.",
)
def floor_overtaken(probe: Probe, means: Means) -> None:
    one = sender(probe)
    names = {offset: probe.name() for offset in (10, 11, 12)}
    for offset in (10, 12, 11):
        succeeded(one.post(names[offset], offset, 10), f"offset {offset}")
    for offset in (12, 10, 11):
        succeeded(one.post(names[offset], offset, 10), f"offset {offset} again")
    for offset, name in names.items():
        effects(probe, name, 1, f"offset {offset}, sent in the order 10, 12, 11, 12, 10, 11")


@rule(
    Group.FLOOR,
    "Below the floor a key that is not there is answered as done (2xx, Semel-Answer: done), without effect.",
)
def floor_below(probe: Probe, means: Means) -> None:
    one = sender(probe)
    succeeded(one.post(probe.name(), 20, 20))
    late = probe.name()
    reply = succeeded(one.post(late, 19, 15), "offset 19, late, below the floor 20")
    effects(probe, late, 0, "below the floor")
    found = reply.headers.get("semel-answer")
    want(found == "done", f"it has Semel-Answer: {found}, not done")


@rule(Group.FLOOR, "At the floor a request runs: the floor is the lowest offset without a final answer.")
def floor_at(probe: Probe, means: Means) -> None:
    one, effect = sender(probe), probe.name()
    succeeded(one.post(probe.name(), 21, 20))
    succeeded(one.post(effect, 20, 20), "offset 20, at the floor 20,")
    effects(probe, effect, 1, "at the floor")


@rule(Group.FLOOR, "Floors of other incarnations, partitions and senders say nothing.")
def floor_apart(probe: Probe, means: Means) -> None:
    one, other = sender(probe), sender(probe)
    succeeded(one.post(probe.name(), 30, 30))
    apart: dict[str, Callable[[str], Reply]] = {
        "another incarnation": lambda effect: one.post(effect, 5, 5, incarnation=other.incarnation),
        "another partition": lambda effect: one.post(effect, 5, 5, partition=1),
        "another sender": lambda effect: _Sender(probe, other.name, one.incarnation).post(effect, 5, 5),
    }
    for what, send in apart.items():
        effect = probe.name()
        succeeded(send(effect), f"offset 5 of {what}")
        effects(probe, effect, 1, f"offset 5 of {what}, below the floor 30 of the first")


@rule(Group.FLOOR, "Equal keys of different senders are different keys.")
def floor_senders(probe: Probe, means: Means) -> None:
    one, other = sender(probe), sender(probe)
    names = probe.name(), probe.name()
    succeeded(one.post(names[0], 3, 3))
    succeeded(_Sender(probe, other.name, one.incarnation).post(names[1], 3, 3), "the same key of another sender")
    for name in names:
        effects(probe, name, 1, "each")


@rule(
    Group.FLOOR,
    "A floor above the request's own offset, or one that cannot be read, is refused with 400, without effect.",
)
def floor_malformed(probe: Probe, means: Means) -> None:
    one, effect = sender(probe), probe.name()
    refused(one.post(effect, 5, 6), 400, "offset 5 with the floor 6")
    key = quoted(f"{one.incarnation}/0/5")
    for floor in ("5", f'five;sender="{one.name}"', '5;sender=""'):
        refused(probe.post(effect, key, floor=floor), 400, f"Semel-Floor: {floor}")
    refused(
        probe.post(effect, quoted(effect), floor=f'5;sender="{one.name}"'), 400, "a floor with a key without offset"
    )
    effects(probe, effect, 0, "after them")


# --- expiry -----------------------------------------------------------------------------------------------------------


@rule(Group.EXPIRY, "At or above the floor a key is kept, however old: its answer may never have arrived.")
def expiry_above_floor(probe: Probe, means: Means) -> None:
    one, effect = sender(probe), probe.name()
    first = succeeded(one.post(effect, 8, 8))
    _expire(probe, means)
    succeeded(one.post(probe.name(), 9, 8))
    same(first, one.post(effect, 8, 8), "the repetition after the expiry")
    effects(probe, effect, 1, "after the expiry")


@rule(Group.EXPIRY, "Below the floor an expired key has no second effect.")
def expiry_below_floor(probe: Probe, means: Means) -> None:
    one, effect = sender(probe), probe.name()
    succeeded(one.post(effect, 8, 8))
    succeeded(one.post(probe.name(), 9, 9))
    _expire(probe, means)
    succeeded(one.post(probe.name(), 10, 9))
    succeeded(one.post(effect, 8, 8), "the repetition after the expiry")
    effects(probe, effect, 1, "after the expiry")


@rule(Group.EXPIRY, "Until it expires a key without floor is kept; the date in Semel-Key-Expires is not passed yet.")
def expiry_not_before(probe: Probe, means: Means) -> None:
    effect, key = probe.name(), quoted(probe.name())
    began_s = probe.now_s()
    first = succeeded(probe.post(effect, key))
    probe.pause(_expires_s(means) * 0.3)
    again = probe.post(effect, key)
    _not_expired(probe, means, began_s)
    same(first, again, "the repetition at a third of its time")


def _expires_s(means: Means) -> float:
    if means.expires_s is None:
        raise CannotTell("the test was not told after how many seconds keys expire (--expires-s)")
    return means.expires_s


def _not_expired(probe: Probe, means: Means, began_s: float) -> None:
    """A slow machine or a slow restart is no fault of the receiver: what came after the expiry tells nothing."""
    took_s = probe.now_s() - began_s
    if means.expires_s is not None and took_s >= means.expires_s:
        raise CannotTell(f"it took {took_s:.1f} s, and keys expire after {means.expires_s:g} s: let them live longer")


def _expire(probe: Probe, means: Means) -> None:
    probe.pause(_expires_s(means) + 1.1)  # announced in whole seconds


# --- crashes ----------------------------------------------------------------------------------------------------------


@rule(Group.RESTART, "Keys and answers survive a crash: killed after the answer, the receiver replays it.")
def crash_after_answer(probe: Probe, means: Means) -> None:
    effect, key = probe.name(), quoted(probe.name())
    restart = _restart(means)
    began_s = probe.now_s()
    first = succeeded(probe.post(effect, key))
    restart(probe)
    again = probe.post(effect, key)
    _not_expired(probe, means, began_s)
    effects(probe, effect, 1, "after the request, a restart, and the request")
    same(first, again, "the repetition after a restart")


@rule(Group.RESTART, "Floors survive a crash.")
def crash_floor(probe: Probe, means: Means) -> None:
    one, late = sender(probe), probe.name()
    restart = _restart(means)
    succeeded(one.post(probe.name(), 20, 20))
    restart(probe)
    succeeded(one.post(late, 19, 15), "offset 19, late, below the floor 20")
    effects(probe, late, 0, "below the floor, after a restart")


@rule(Group.RESTART, "Killed while its handler runs, the receiver has done nothing; the same request runs.")
def crash_in_handler(probe: Probe, means: Means) -> None:
    effect, key = probe.name(), quoted(probe.name())
    restart = _restart(means)
    died = probe.post(effect, key, kill="now")
    if died.status:
        raise CannotTell(f"Check-Kill: now shall kill the endpoint's process; it answered {died.status}")
    restart(probe)
    effects(probe, effect, 0, "after a handler that wrote and was killed")
    succeeded(probe.post(effect, key), "the same request after the restart")
    effects(probe, effect, 1, "after the request was sent again")


@rule(Group.RESTART, "Killed under load: whatever had no answer is sent again, and each effect is there once.")
def crash_under_load(probe: Probe, means: Means) -> None:
    restart = _restart(means)
    one = sender(probe)
    waiting = {offset: probe.name() for offset in range(24)}
    names = dict(waiting)
    for turn in range(3):
        sends = [_load(one, offset, name, min(waiting)) for offset, name in waiting.items()]
        replies = probe.started(partial(probe.at_once, sends))
        probe.pause(0.05 * (turn + 1))
        restart(probe)
        for offset, reply in replies():
            if 200 <= reply.status < 300:
                del waiting[offset]
        if not waiting:
            break
    for offset in list(waiting):
        for _ in range(40):
            reply = _load(one, offset, waiting[offset], min(waiting))()[1]
            if reply.status not in (0, 409) and reply.status < 500:
                break
            probe.pause(0.25)
        succeeded(reply, f"offset {offset}, sent again after the restarts,")
        del waiting[offset]
    for offset, name in names.items():
        effects(probe, name, 1, f"offset {offset}")


def _load(one: _Sender, offset: int, effect: str, floor: int) -> Callable[[], tuple[int, Reply]]:
    key, told = quoted(f"{one.incarnation}/0/{offset}"), f'{floor};sender="{one.name}"'
    return lambda: (offset, one.probe.post(effect, key, floor=told, sleep_ms=10))


def _restart(means: Means) -> Callable[[Probe], None]:
    if means.restart is None:
        raise CannotTell("the test was not told how to kill the receiver and start it again (--restart)")
    again = means.restart

    def restart(probe: Probe) -> None:
        again()
        probe.wait_until_served(RESTART_S)

    return restart


def worst(findings: Iterable[Finding]) -> Verdict:
    found = {finding.verdict for finding in findings}
    return next(verdict for verdict in (Verdict.FAILS, Verdict.NOT_TRIED, Verdict.HOLDS) if verdict in found)
