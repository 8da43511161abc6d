"""What each sink was put through: docs/proof/sinks.md, made of the tests as pytest collects them, of what the subjects
of the kit can do, of the planted bugs, and of the results that `make proof WHAT=sinks` has left.

Nothing in it is written by hand but which of these belongs to which sink. What is not there is said to be missing.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from semel.contract import Weak
from semel.testing.contracts import Subject
from tests.support.campaigns import IMITATED, SINKS, SOURCES
from tests.support.planted import CANARIES, ROOT

COLLECTED = ("tests/sinks", "tests/servers", "tests/canaries", "tests/receiver")
FULL = 100
KILLED, ZOMBIES = "test_killed_at_every_step_twice", "test_a_process_that_comes_back_late_has_no_effect"
MISSING = "missing"
_SERVER: Any = SimpleNamespace(port=9, url="http://127.0.0.1:9/", dsn="postgresql://127.0.0.1:9/d", restart=None)
_FOLDER = Path("/nowhere")


@dataclass(frozen=True)
class Known:
    """`kit`: the class, and with which fixture where it has several. `files`: of the sink, below src/semel. `looks`:
    the system in tests/servers/test_orphans.py. `planted`: tests that plant bugs in this sink, by the start of their
    ids, besides the canaries that change its files."""

    kit: str
    param: str
    subject: Any
    files: tuple[str, ...]
    looks: str
    planted: tuple[str, ...] = ()


def _known() -> dict[str, Known]:
    from tests.servers import (
        clickhouse_subjects,
        kafka_subjects,
        lake_subjects,
        mariadb_subjects,
        mongodb_subjects,
        opensearch_subjects,
        prometheus_subjects,
        redis_subjects,
        two_phase_subjects,
    )
    from tests.sinks import subjects, test_http

    def postgres(make: Any) -> Subject:
        return subjects.postgres_subject(make, _SERVER, _SERVER.dsn)

    kit, servers = "tests/sinks/test_kit.py::", "tests/servers/"
    phases = "test_a_mistake_in_the_two_phases_is_found"
    delta = servers + "test_delta.py::"
    return {
        "postgres": Known(
            kit + "TestPostgres", "keyed", lambda: postgres(subjects.postgres_keyed),
            ("sinks/postgres_connection.py", "sinks/postgres_session.py", "sinks/postgres_batch.py"), "postgres",
        ),
        "versioned": Known(
            kit + "TestPostgres", "versioned", lambda: postgres(subjects.postgres_versioned),
            ("sinks/postgres_versioned_connection.py",), "postgres",
            ("tests/sinks/test_versioned.py::test_a_guard", "tests/sinks/test_versioned.py::test_a_mistake"),
        ),
        "appended": Known(
            servers + "test_appended.py::TestPostgresAppended", "", lambda: postgres(subjects.postgres_once),
            ("sinks/postgres_appended", "sinks/dedup.py"), "postgres",
            (servers + "test_appended.py::test_a_view", servers + "test_appended.py::test_verify_finds"),
        ),
        "two-phase": Known(
            servers + "test_postgres_two_phase.py::TestPostgresTwoPhase", "",
            lambda: two_phase_subjects.postgres_subject(two_phase_subjects.postgres_keyed, _SERVER, _SERVER.dsn),
            ("sinks/postgres_two_phase", "sinks/two_phase.py"), "postgres",
            (servers + "test_postgres_two_phase.py::" + phases,),
        ),
        "mariadb": Known(
            servers + "test_mariadb.py::TestMariaDB", "keyed",
            lambda: mariadb_subjects.subject(mariadb_subjects.keyed, _SERVER),
            ("sinks/mariadb_connection.py",), "mariadb",
            (servers + "test_mariadb.py::test_a_mistake_in_the_transaction_is_found",),
        ),
        "xa": Known(
            servers + "test_mariadb_two_phase.py::TestMariaDBTwoPhase", "",
            lambda: two_phase_subjects.mariadb_subject(two_phase_subjects.mariadb_keyed, _SERVER),
            ("sinks/mariadb_two_phase", "sinks/two_phase.py"), "mariadb",
            (servers + "test_mariadb_two_phase.py::" + phases,),
        ),
        "sqlite": Known(
            kit + "TestSQLite", "keyed", lambda: subjects.sqlite_subject(subjects.sqlite_keyed, _FOLDER),
            ("sinks/sqlite_connection.py",), "sqlite",
            ("tests/sinks/test_kit_finds.py::test_a_mistake_in_the_transaction_is_found",),
        ),
        "duckdb": Known(
            servers + "test_duckdb.py::TestDuckDB", "",
            lambda: lake_subjects.duckdb_subject(lake_subjects.duckdb_keyed, _FOLDER),
            ("sinks/duckdb_connection.py", "sinks/duckdb_file.py"), "duckdb",
            (servers + "test_duckdb.py::test_a_mistake", servers + "test_duckdb.py::test_a_file_that_is_kept_open"),
        ),
        "delta": Known(
            delta + "TestDelta", "", lambda: lake_subjects.delta_subject(lake_subjects.delta_keyed, _FOLDER),
            ("sinks/delta_connection.py",), "lake", (delta + "test_a_planted_mistake_is_found",),
        ),
        "delta-s3": Known(
            delta + "TestDeltaOnS3", "",
            lambda: lake_subjects.delta_s3_subject(lake_subjects.delta_s3_keyed, 9, lambda: None),
            ("sinks/delta_connection.py",), "s3", (delta + "test_a_planted_mistake_is_found",),
        ),
        "iceberg": Known(
            servers + "test_iceberg.py::TestIceberg", "",
            lambda: lake_subjects.iceberg_subject(lake_subjects.iceberg_keyed, _FOLDER),
            ("sinks/iceberg_connection.py",), "lake",
            (servers + "test_iceberg.py::test_a_planted_mistake", servers + "test_iceberg.py::test_what_a_catalog"),
        ),
        "objects": Known(
            servers + "test_objects.py::TestS3", "", lambda: subjects.s3_subject(9, lambda: None),
            ("sinks/objects_connection.py", "sinks/objects_store.py", "sinks/cut_delivery.py"), "s3",
        ),
        "multipart": Known(
            servers + "test_multipart.py::TestMultipart", "",
            lambda: two_phase_subjects.multipart_subject(9, lambda: None),
            ("sinks/multipart", "sinks/two_phase.py"), "s3", (servers + "test_multipart.py::" + phases,),
        ),
        "files": Known(
            servers + "test_files.py::TestFiles", "",
            lambda: two_phase_subjects.files_subject(two_phase_subjects.files_jsonl, _FOLDER),
            ("sinks/files_connection.py", "sinks/two_phase.py"), "files", (servers + "test_files.py::" + phases,),
        ),
        "http": Known(
            "tests/sinks/test_http.py::TestHTTP", "", lambda: test_http.subject_of(_SERVER, test_http.hook),
            ("sinks/http", "receiver/"), "receiver",
            ("tests/sinks/test_http.py::test_a_plain_endpoint", "tests/sinks/test_http_app.py::test_without"),
        ),
        "redis": Known(
            servers + "test_redis.py::TestRedis", "", lambda: redis_subjects.subject(redis_subjects.hashes, _SERVER),
            ("sinks/redis",), "redis", (servers + "test_redis.py::test_a_mistake",),
        ),
        "valkey": Known(
            servers + "test_redis.py::TestValkey", "", lambda: redis_subjects.subject(redis_subjects.strings, _SERVER),
            ("sinks/redis",), "redis", (servers + "test_redis.py::test_a_mistake",),
        ),
        "opensearch": Known(
            servers + "test_opensearch.py::TestOpenSearch", "",
            lambda: opensearch_subjects.subject(opensearch_subjects.documents, _SERVER),
            ("sinks/opensearch",), "opensearch",
            (servers + "test_opensearch.py::test_a_mistake", servers + "test_opensearch.py::test_a_hard_delete"),
        ),
        "kafka-topic": Known(
            servers + "test_kafka_topic.py::TestOnApacheKafka", "",
            lambda: kafka_subjects.subject(kafka_subjects.by_stream, "127.0.0.1:9", _SERVER, None),
            ("sinks/kafka_topic.py", "host/kafka_sink.py", "host/kafka_owner.py"), "kafka",
            tuple(
                servers + f"test_kafka_topic.py::test_a_{name}"
                for name in ("mistake", "position_behind", "late_end_of_transaction_tears_nothing[B1")
            ),
        ),
        "clickhouse": Known(
            servers + "test_clickhouse.py::TestTokens", "",
            lambda: clickhouse_subjects.subject(clickhouse_subjects.tokens, _SERVER),
            ("sinks/clickhouse.py", "sinks/clickhouse_connection.py", "sinks/window.py", "sinks/cut_delivery.py"),
            "clickhouse",
            (servers + "test_clickhouse.py::test_a_mistake", servers + "test_clickhouse.py::test_a_window_that_nobody"),
        ),
        "clickhouse-appended": Known(
            servers + "test_clickhouse.py::TestAppended", "",
            lambda: clickhouse_subjects.subject(clickhouse_subjects.appended, _SERVER),
            ("sinks/clickhouse_appended", "sinks/dedup.py"), "clickhouse",
            (servers + "test_clickhouse.py::test_a_view_that_is_no_view",),
        ),
        "prometheus": Known(
            servers + "test_prometheus.py::TestInOrder", "",
            lambda: prometheus_subjects.subject(prometheus_subjects.absolute, _SERVER),
            ("sinks/prometheus",), "prometheus",
            tuple(
                servers + f"test_prometheus.py::test_{name}"
                for name in ("a_mistake", "stamps_of_the_clock", "a_refusal_that_is_taken")
            ),
        ),
        "mongodb": Known(
            servers + "test_mongodb.py::TestImitatedMongoDB", "",
            lambda: mongodb_subjects.subject(mongodb_subjects.documents, _SERVER),
            ("sinks/mongodb",), "mongodb", (servers + "test_mongodb.py::test_a_mistake",),
        ),
    }  # fmt: skip


# --- what is there ---------------------------------------------------------------------------------------------------


@functools.cache
def collected() -> Sequence[str]:
    """The ids of all tests, as pytest finds them (MongoDB's too, which `make proof` runs)."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    environ = {**os.environ, "FERRETDB": "build"}
    done = subprocess.run([*command, *COLLECTED], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)
    found = [line for line in done.stdout.splitlines() if "::" in line and not line.startswith(("ERROR", " "))]
    assert done.returncode == 0 and len(found) > 1_000, f"{done.stdout[-2_000:]}{done.stderr[-2_000:]}"
    return tuple(found)


def canaries(files: Sequence[str]) -> list[str]:
    """The planted bugs that change one of these files: of tests/canaries, and the patches that verify must see."""
    found = []
    for module in sorted(path.stem for path in CANARIES.glob("test_*.py")):
        for bug in getattr(importlib.import_module(f"tests.canaries.{module}"), "BUGS", ()):
            changed = [edit.file for edit in getattr(bug, "edits", (bug,))]
            if any(path.startswith(file) for path in changed for file in files):
                found.append(bug.name)
    for patch in sorted((CANARIES / "verify").glob("*.patch")):
        changed = re.findall(r"^\+\+\+ b?/?(?:src/)?(?:semel/)?(\S+)", patch.read_text(), re.MULTILINE)
        if any(path.startswith(file) for path in changed for file in files):
            found.append(f"{patch.stem} (found by verify)")
    return found


def _loses(subject: Subject) -> str:
    if subject.loses is None:
        return MISSING
    with subject.loses() as way:
        return "at the commit call" if type(way).__name__ == "_CallLoss" else "on the wire"


def _has(ids: Sequence[str], kit: str, test: str, param: str) -> bool:
    wanted = f"{kit}::{test}"
    if not param:
        return any(id == wanted or id.startswith(f"{wanted}[") for id in ids)
    return any(id.startswith(f"{wanted}[") and param in id.partition("[")[2] for id in ids)


def _planted(ids: Sequence[str], known: Known) -> str:
    told = canaries(known.files)
    for start in known.planted:
        names = sorted(
            {id.partition("[")[2].rstrip("]") or id.rpartition("::")[2] for id in ids if id.startswith(start)}
        )
        told += [name for name in names if name not in told]
    return "; ".join(told).replace("|", "/") or MISSING


def _short(name: str) -> str:
    from tests.servers.test_verify_sinks import ELSEWHERE, PROVED, SHORT

    if name in ELSEWHERE:
        return f"`{ELSEWHERE[name].rpartition('::')[0].removeprefix('tests/servers/')}`"
    told = [crashes for names, (crashes, _) in SHORT.items() if name in names.split("+")]
    if told:
        return f"{told[0]} kills"
    return "only in the proof" if name in IMITATED or name in PROVED else MISSING


def _proved(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return MISSING
    if result["verdict"] != "holds" or result["left"]:
        return f"**{result['verdict']}**: {len(result['left'])} left behind"
    return f"{result['kills']} kills: holds" if result["crashes"] >= FULL else f"only {result['kills']} kills: holds"


def _orphans(name: str, known: Known, ids: Sequence[str]) -> str:
    from tests.servers.test_orphans import IN_OPENSEARCH, PLANTS

    plants = IN_OPENSEARCH if known.looks == "opensearch" else PLANTS.get(known.looks, (None, []))[1]
    return f"{len(plants)} kinds planted" if plants else "looked at, nothing planted"


# --- the page --------------------------------------------------------------------------------------------------------

HEAD = """# What each sink was put through

Made by `python -m tests.proof.sinks --page` from the tests themselves, and held true by
`tests/servers/test_put_through.py`. `make proof WHAT=sinks` runs the campaigns and writes their results here.

- *kit*: the contract kit against the real system: killed at every step of the protocol twice; the answer to a commit
  lost, before and after its effect; a process that is stopped and comes back after its successor. (On Valkey and,
  for `DeltaLake`, on S3 the kills are in `make proof` only.)
- *verify, short*: `semel verify` in `make test-servers`. *verify, 100*: the same in `make proof`, at least 100 kills.
- *orphans*: before and after each run of verify everything in the system is listed with its own client (tables,
  prepared transactions, uploads, files, locks, sessions, keys, processes, temporary files): what was not there before
  was left behind, and the run has failed. How many kinds are planted and seen.
- *planted bugs*: mechanisms taken out, and a test that must then fail.
"""


WEAK = (
    "`Lines` (a file, or standard output) is in no line above, because there is nothing to hold it to: it is the weak "
    "sink, at-least-once, which `write` takes with `accept=` only. A crash between the lines and the group's offset "
    "writes lines again and loses none: `tests/sinks/test_delivery.py::test_a_weak_sink_goes_by_the_groups_offsets`."
)


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    ids, known = collected(), _known()
    lines = [HEAD, "| sink | kit: killed twice at each step | kit: answers lost | kit: zombies | verify, short | "
             "verify, 100 | orphans | planted bugs |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    lacks: list[str] = []
    for name, campaign in {**SINKS, **IMITATED}.items():
        one = known[name]
        cells = {
            "kit: killed twice at each step": "yes" if _has(ids, one.kit, KILLED, one.param) else MISSING,
            "kit: answers lost": _loses(one.subject()),
            "kit: zombies": "yes" if _has(ids, one.kit, ZOMBIES, one.param) else MISSING,
            "verify, short": _short(name),
            "verify, 100": _proved(results.get(name)),
            "orphans": _orphans(name, one, ids),
            "planted bugs": _planted(ids, one),
        }
        imitated = ", imitated by FerretDB" if name in IMITATED else ""
        lines.append(f"| {campaign.title}{imitated} | " + " | ".join(cells.values()) + " |")
        lacks += [f"- {campaign.title}: {what}" for what, told in cells.items() if told == MISSING]
    lines += ["", "## What is missing", "", *(lacks or ["Nothing of these."]), *_unknown(ids, known), ""]
    lines += _results(results)
    return "\n".join(lines) + "\n"


def _unknown(ids: Sequence[str], known: Mapping[str, Known]) -> list[str]:
    """Sinks without a campaign, and classes of the kit that belong to no line above."""
    import semel.sinks

    assert semel.sinks.Lines().kind is Weak, "a sink that promises more has a campaign"
    told = {campaign.title.split(" ")[0] for campaign in {**SINKS, **IMITATED}.values()} | {"Lines"}
    found = [f"- {name}: no campaign" for name in sorted(set(semel.sinks.__all__) - told)]
    found += ["", WEAK]
    kits = {id.partition(f"::{KILLED}")[0] for id in ids if f"::{KILLED}" in id}
    others = sorted(kit for kit in kits - {one.kit for one in known.values()} if "::" in kit)
    return found + ([f"\nAlso in the kit, and of no line above: {', '.join(others)}."] if others else [])


def _results(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "## The campaigns", "",
        "Sinks that were run together were in one app: each kill is a kill of each of them. *zombies*: resumed after "
        "their successor's commit, and how many of them were refused (none: unknown). *lost on the wire*: requests "
        "that never arrived, answers that never came back. *rows*: in the end, by sink.", "",
        "| run | log | kills | steps struck | zombies, refused | lost on the wire | rows | lost, repeated, wrong | "
        "left behind | verdict | seconds | commit |", "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    runs: dict[tuple[str, str], Mapping[str, Any]] = {}
    for told in results.values():
        runs.setdefault((told["together"], told["on"]), told)
    for told in runs.values():
        rows = ", ".join(f"{name.removeprefix('sink ')} {count}" for name, count in sorted(told["rows"].items()))
        wire = f"{told['lost_requests']}, {told['lost_answers']}" if told["lost_requests"] else "—"
        lines.append(
            f"| {told['together']} | {told['on']} | {told['kills']} | {told['struck']} | {told['zombies']}, "
            f"{told['refused']} | {wire} | {rows} | {told['lost']}, {told['repeated']}, {told['wrong']} | "
            f"{len(told['left'])} | {told['verdict']} | {told['seconds']:.0f} | {told['commit']} |"
        )
    for name, told in results.items():
        if told["verdict"] != "holds" or told["left"]:
            why = " ".join(" ".join([*told["doubts"], *told["left"]]).split())
            lines.append(f"\n`{name}`: {told['counterexample'] or ''} {why[:600]}")
    machines = sorted({told["machine"] for told in results.values()})
    lines += ["", *(f"Machine: {one}, beside other work." for one in machines)]
    missing = [name for name in SOURCES if name not in results]
    return [*lines, *(f"\nNot run yet: {', '.join(missing)}." for _ in missing[:1])]
