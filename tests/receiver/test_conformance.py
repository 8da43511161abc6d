"""The conformance test: it holds for our middleware on Starlette, FastAPI and Litestar, and fails naive receivers for
what they do wrong and for nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from semel.receiver.conformance import RULES, Group, Means, Verdict, as_json, check, worst
from tests.receiver.served import ROOT, Served


def address_of(kind: str, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("dsn" if kind.endswith("postgres") else "file"))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["starlette-sqlite", "fastapi-async-postgres"])
def test_it_holds_for_our_middleware(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every rule, crashes included, in a process of its own under uvicorn."""
    others = [group for group in Group if group is not Group.EXPIRY]
    with Served(kind, address_of(kind, request), tmp_path, RECEIVER_EXPIRES_S="2") as served:
        findings = check(served.url, means=Means(2.0), without=others)
    # On its own: a restart can take longer than those keys live.
    with Served(kind, address_of(kind, request), tmp_path) as served:
        findings += check(served.url, means=Means(None, served.restart), without=[Group.EXPIRY])
    assert len(findings) == len(RULES)
    assert [(f.rule.name, f.verdict, f.why) for f in findings if f.verdict is not Verdict.HOLDS] == []


@pytest.mark.long
@pytest.mark.parametrize("kind", ["fastapi-postgres", "starlette-async-postgres"])
def test_it_holds_for_the_other_halves(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The rules that take no restart: Starlette with coroutines, FastAPI with plain functions."""
    with Served(kind, address_of(kind, request), tmp_path) as served:
        findings = check(served.url, without=[Group.EXPIRY, Group.RESTART])
    assert [(f.rule.name, f.verdict, f.why) for f in findings if f.verdict is not Verdict.HOLDS] == []


@pytest.mark.long
def test_it_holds_on_litestar(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Crashes included; not expiry, which has two seconds in the check, and a start of Litestar may take as long."""
    kind = "litestar-async-postgres"
    with Served(kind, address_of(kind, request), tmp_path) as served:
        findings = check(served.url, without=[Group.EXPIRY], means=Means(restart=served.restart))
    assert [(f.rule.name, f.verdict, f.why) for f in findings if f.verdict is not Verdict.HOLDS] == []


# What each does wrong, and the rules that must see it. The others must hold: an alarm about everything tells nothing.
NAIVE: dict[str, dict[str, str]] = {
    "naive-ignores-keys": {
        "key-repeated": "the repetition was answered with another body",
        "key-missing": "answered with 201, not with 400",
        "key-at-once": "another body",
        "key-running": "answered with 201, not with 409",
        "crash-under-load": "effects",
    },
    "naive-memory": {
        "crash-after-answer": "2 effects, 1 wanted",
        "crash-floor": "1 effects, 0 wanted",
    },
    "naive-no-fingerprint": {
        "key-reused": "answered with 201, not with 422",
        "key-reused-elsewhere": "answered with 201, not with 422",
    },
    "naive-5xx-final": {"error-not-final": "the same request after the 503 was answered with 503"},
    "naive-floor-from-keys": {"floor-overtaken": "offset 11, sent in the order 10, 12, 11, 12, 10, 11: 0 effects"},
}


@pytest.mark.long
@pytest.mark.parametrize("kind", NAIVE)
def test_it_fails_a_naive_receiver_for_its_reason(kind: str, tmp_path: Path, file: Path) -> None:
    with Served(kind, str(file), tmp_path) as served:
        findings = check(served.url, without=[Group.EXPIRY], means=Means(restart=served.restart))
    why = {f.rule.name: f.why for f in findings if f.verdict is Verdict.FAILS}
    for name, reason in NAIVE[kind].items():
        if name == "crash-under-load" and name not in why:
            continue  # a matter of the moment at which it was killed
        assert reason in why.get(name, "(holds)"), (name, why)
    assert worst(findings) is Verdict.FAILS
    if kind != "naive-ignores-keys":
        of_the_draft = {
            f.rule.name for f in findings if f.rule.group is not Group.RESTART and f.verdict is Verdict.FAILS
        }
        expected = set(NAIVE[kind])
        if kind == "naive-floor-from-keys":
            expected |= {"floor-below", "floor-kept", "floor-at"}
        if kind == "naive-no-fingerprint":
            expected |= {"problems"}  # it wants to see a 422
        assert of_the_draft <= expected, why


def cli(*arguments: str, **said: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "semel", "receiver", "check", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        **said,
    )


WITHOUT = ("--without", "expiry", "--without", "restart")


@pytest.mark.long
def test_the_command_says_which_rules_hold(tmp_path: Path, file: Path) -> None:
    """Exit code 0 when all hold; 2 when some could not be tried; JSON with every request and answer."""
    with Served("starlette-sqlite", str(file), tmp_path) as served:
        done = cli(served.url, *WITHOUT)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "holds      key-repeated" in done.stdout and "0 fails, 0 not tried" in done.stdout
        untried = cli(served.url, "--without", "draft", "--without", "floor")
        assert untried.returncode == 2
        assert "not tried  crash-floor" in untried.stdout and "--restart" in untried.stdout
        found = json.loads(cli(served.url, "--json", *WITHOUT).stdout)
    assert found["verdicts"] == {"holds": len(found["rules"]), "fails": 0, "not tried": 0}
    missing = found["rules"][0]
    assert missing["rule"] == "key-missing" and missing["exchanges"][0]["status"] == 400
    assert "POST /check" in missing["exchanges"][0]["request"]


def test_the_command_shows_what_fails_with_request_and_answer(tmp_path: Path, file: Path) -> None:
    with Served("naive-no-fingerprint", str(file), tmp_path) as served:
        done = cli(served.url, *WITHOUT)
    assert done.returncode == 1
    assert "FAILS      key-reused" in done.stdout
    assert "the key with another body was answered with 201, not with 422." in done.stdout
    assert "→ POST /check" in done.stdout and "Idempotency-Key:" in done.stdout and "← 201" in done.stdout


def test_the_command_without_a_receiver(tmp_path: Path) -> None:
    """Nothing is said to hold or fail; no traceback."""
    done = cli("http://127.0.0.1:1/check", *WITHOUT)
    assert done.returncode == 2 and "0 holds, 0 fails" in done.stdout and "Connection refused" in done.stdout
    for arguments in (["127.0.0.1:1"], ["http://x/", "--header", "no"], ["http://x/", *every_group()]):
        done = cli(*arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert "error:" in done.stderr


def every_group() -> list[str]:
    return [word for group in Group for word in ("--without", str(group))]


def test_the_report_carries_every_exchange() -> None:
    findings = check("http://127.0.0.1:1/", without=[Group.RESTART])
    assert {f.verdict for f in findings} == {Verdict.NOT_TRIED} and worst(findings) is Verdict.NOT_TRIED
    assert json.loads(as_json("x", findings))["verdicts"]["not tried"] == len(findings)


def test_the_document_has_every_rule() -> None:
    """docs/receiver.md is for authors in other languages: each rule has its sentence and its anchor there."""
    text = (ROOT / "docs" / "receiver.md").read_text()
    for rule in RULES:
        assert f"`{rule.name}`" in text, rule.name
