"""What is too long for CI: `make proof`, or `make proof WHAT=name[,name]`; `WHAT=list` tells the names.

Each campaign is one command. Its report, with commit, machine, seconds, exit code and the command's own last words,
is kept in `docs/proof/NAME.md`. Resumable: a campaign that already ended with 0 at this commit is not run again
(`WHAT=name` by name runs it anyway).
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "docs" / "proof"


@dataclass(frozen=True)
class Campaign:
    """One long command, why it is run, and how many of its last lines are the result."""

    why: str
    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    lines: int = 30
    page: bool = False  # it writes docs/proof/NAME.md itself


def pytest(*words: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-rA", "--timeout", "0", "-o", "faulthandler_timeout=0", *words]


SEMEL = str(Path(sys.executable).parent / "semel")
CAMPAIGNS = {
    "fresh": Campaign("the README on a bare machine, five seeds of the demo, two users", ["tests/fresh.sh"]),
    "clients": Campaign(
        "four clients copy 100,000 records each, the broker killed twice",
        pytest("tests/servers/test_clients.py"), {"RECORDS": "100000"},
    ),
    "delayed": Campaign(
        "a delayed EndTxn or TxnOffsetCommit, 50 times",
        pytest("tests/servers/test_delayed_requests.py"), {"ROUNDS": "50"},
    ),
    "canaries": Campaign(
        "every planted bug is found, those with real processes too", pytest("tests/canaries"), {"CANARIES": "all"}
    ),
    "verify": Campaign(
        "the flights on semel broker, 200 crashes of workers and broker",
        pytest("tests/servers/test_verify.py::test_exactly_once_holds"), {"CRASHES": "200"},
    ),
    "sinks": Campaign(
        "every sink against its real server and every source, 100 crashes each; nothing left behind",
        [sys.executable, "-m", "tests.proof.sinks"], page=True,
    ),
    "kafka": Campaign(
        "the flights on Apache Kafka, 100 crashes of workers",
        pytest("tests/servers/test_kafka.py::test_verify_holds_on_apache_kafka"), {"KAFKA_CRASHES": "100"},
    ),
    "bridge": Campaign(
        "topics of other clusters, Apache Kafka and semel broker: the whole contract kit on both",
        pytest("tests/servers/test_kafka_topic.py"), {"KIT": "all"},
    ),
    "mongodb": Campaign(
        "MongoDB's protocol, imitated (FerretDB 1.24 over SQLite): contract kit, planted mistakes, verify",
        pytest("tests/servers/test_mongodb.py"), {"FERRETDB": "build"},
    ),
    "sinks-mongodb": Campaign(
        "the same imitation under 100 crashes; written into docs/proof/sinks.md",
        [sys.executable, "-m", "tests.proof.sinks", "mongodb"], page=True,
    ),
    "elsewhere": Campaign(
        "what `make test-servers` leaves to here: the same on one more log, the pages of docs played again",
        pytest("-m", "proof", "--ignore=tests/proof", "tests"),
    ),
    "guides": Campaign(
        "the guides of all sinks and sources, played again on the real servers; MongoDB's on its imitation",
        pytest("tests/servers/test_guides.py"), {"SEMEL_PROOF": "1"},
    ),
    "sim": Campaign("2,000 seeds of the simulator", [SEMEL, "sim", "--seeds", "1:2001", "--json"]),
}  # fmt: skip


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def commit() -> str:
    found = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "tests", "examples")
    return found + (" with uncommitted changes" if changed else "")


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return f"{platform.platform()}, {os.cpu_count()} cores, {memory} GiB, Python {platform.python_version()}"


def run(name: str, campaign: Campaign, commit: str) -> bool:
    print(f"{name}: {campaign.why}", flush=True)
    began = time.monotonic()
    log = ROOT / ".work" / f"proof-{name}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as out:
        done = subprocess.run(
            campaign.command, cwd=ROOT, env={**os.environ, **campaign.env}, stdout=out, stderr=subprocess.STDOUT
        )
    seconds = time.monotonic() - began
    if campaign.page:
        print(f"{name}: exit code {done.returncode} after {seconds:.0f} s (docs/proof/{name}.md)", flush=True)
        return done.returncode == 0
    said = "\n".join(log.read_text(errors="replace").splitlines()[-campaign.lines :])
    shown = " ".join([*(f"{k}={v}" for k, v in campaign.env.items()), *campaign.command])
    shown = shown.replace(sys.executable, "python").replace(SEMEL, "semel")
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / f"{name}.md").write_text(
        f"# {name}: {campaign.why}\n\n"
        f"- commit {commit}\n- machine: {machine()}\n- command: `{shown}`\n"
        f"- exit code {done.returncode}, {seconds:.0f} s, {time.strftime('%Y-%m-%d')}\n\n```\n{said}\n```\n"
    )
    print(f"{name}: exit code {done.returncode} after {seconds:.0f} s (docs/proof/{name}.md)", flush=True)
    return done.returncode == 0


def main(words: list[str]) -> int:
    wanted = [w for word in words for w in word.split(",") if w]
    if wanted == ["list"]:
        for name, campaign in CAMPAIGNS.items():
            print(f"{name:10} {campaign.why}")
        return 0
    unknown = [w for w in wanted if w not in CAMPAIGNS]
    if unknown:
        print(f"error: no campaign named {', '.join(unknown)}; there are: {', '.join(CAMPAIGNS)}", file=sys.stderr)
        return 2
    at = commit()
    good = True
    for name in wanted or CAMPAIGNS:
        report = REPORTS / f"{name}.md"
        if not wanted and report.exists():
            text = report.read_text()
            if f"- commit {at}\n" in text and "\n- exit code 0," in text:
                print(f"{name}: done before at this commit")
                continue
        good &= run(name, CAMPAIGNS[name], at)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
