"""Planted bugs in the receiver and the HTTP sink: each takes out one mechanism; the named test must then fail."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.canaries import test_processor_and_sinks as planting
from tests.canaries.test_processor_and_sinks import Bug, Edit

RECEIVER = "tests/receiver/test_receiver.py::"
HISTORIES = "tests/receiver/test_histories.py::TestHistories"
HTTP = "tests/sinks/test_http.py::"

BUGS = [
    Bug(
        "S18: the floor is taken from the keys",
        (
            Edit(
                "receiver/keys.py",
                '        "floor": sent.floor,\n',
                '        "floor": place.offset + 1 if place else 0,\n',
            ),
            Edit(
                "receiver/sqlite.py",
                "        if sent.floor is not None and sent.floor > self.floor:\n",
                "        if sent.floor is not None:\n",
            ),
        ),
        (RECEIVER + "test_what_parallel_requests_overtake_is_not_lost[sqlite]", HISTORIES),
        "rror",  # AssertionError, or Hypothesis' own report of it
    ),
    Bug(
        "S7: a 5xx is kept as the answer",
        (
            Edit(
                "receiver/rules.py", "    return status < 500 and status not in NOT_FINAL\n", "    return status > 0\n"
            ),
        ),
        (RECEIVER + "test_an_answer_that_is_not_final_is_passed_on_and_forgotten[sqlite-503]",),
    ),
    Bug(
        "S10: the key is kept outside the handler's transaction, on SQLite",
        (
            Edit(
                "receiver/sqlite.py",
                '            connection.execute("RELEASE semel_handler")\n',
                '            connection.execute("RELEASE semel_handler")\n'
                '            connection.execute("COMMIT")\n            connection.execute("BEGIN IMMEDIATE")\n',
            ),
        ),
        (RECEIVER + "test_without_its_key_nothing_is_committed[sqlite]",),
    ),
    Bug(
        "S10: the key is kept outside the handler's transaction, on Postgres",
        (
            Edit(
                "receiver/postgres.py",
                '                await connection.execute("RELEASE SAVEPOINT semel_handler")\n',
                '                await connection.execute("COMMIT; BEGIN")\n',
            ),
        ),
        (RECEIVER + "test_without_its_key_nothing_is_committed[async-postgres]",),
    ),
    Bug(
        "S7: another request under a used key is answered",
        (
            Edit(
                "receiver/rules.py",
                "        if kept.fingerprint == sent.fingerprint:\n",
                "        if kept.fingerprint:\n",
            ),
        ),
        (RECEIVER + "test_the_same_key_with_another_request_is_refused[sqlite]",),
    ),
    Bug(
        "S7: an expired key is forgotten at or above the floor",
        (Edit("receiver/keys.py", " AND (k.log_offset IS NULL OR k.log_offset < f.floor)\n", "\n"),),
        (RECEIVER + "test_what_has_expired_below_the_floor_is_known_as_done_and_above_it_is_kept[postgres]",),
    ),
    Bug(
        "S7: an error's writes are committed with it",
        (Edit("receiver/middleware.py", "undo=answer.status >= 400", "undo=False"),),
        (RECEIVER + "test_a_final_error_is_kept_and_leaves_nothing_else[sqlite-404]", HISTORIES),
        "rror",
    ),
    Bug(
        "S14: a paused receiver holds its key",
        (
            Edit(
                "receiver/postgres.py",
                'f"SET LOCAL idle_in_transaction_session_timeout = {int(running_s * 1000)}"',
                '"SET LOCAL idle_in_transaction_session_timeout = 0"',
            ),
        ),
        ("tests/receiver/test_databases.py::test_postgres_ends_the_transaction_of_a_paused_receiver[postgres]",),
        "TimeoutError",
    ),
    Bug(
        "S7: the key is not locked while its request runs",
        (
            Edit(
                "receiver/postgres.py",
                'LOCK = "SELECT pg_try_advisory_xact_lock(%s)"',
                'LOCK = "SELECT %s IS NOT NULL"',
            ),
        ),
        (RECEIVER + "test_while_the_first_runs_the_second_is_told_so[postgres]",),
        "TimeoutError",
    ),
    Bug(
        "S18: the sink announces the request's own offset as the floor",
        (
            Edit(
                "sinks/http_connection.py",
                "                floor = self._open[0]\n",
                "                floor = row.offset\n",
            ),
        ),
        (HTTP + "test_the_floor_waits_for_the_slowest",),
    ),
    Bug(
        "S7: each try has a key of its own",
        (
            Edit(
                "sinks/http_connection.py",
                """f'"{self._place}/{row.offset}"'}""",
                """f'"{self._place}/{row.offset}-{time.monotonic_ns()}"'}""",
            ),
        ),
        (HTTP + "test_an_answer_that_never_comes_is_unknown",),
    ),
    Bug(
        "S8: a request without an answer is taken for done",
        (
            Edit(
                "sinks/http_connection.py",
                '            return Again(f"no answer: {str(why) or type(why).__name__}", unknown=True)\n',
                "            return Answered()\n",
            ),
        ),
        (HTTP + "TestHTTP::test_a_commit_that_never_arrived_is_mended",),
        "efused",
    ),
    Bug(
        "S16: the key does not name the topic's id",
        (
            Edit(
                "sinks/http_connection.py",
                'f"{claim.log.topic_id}.{claim.log.partitions}.{claim.incarnation}{self._sink.suffix}"',
                'f"log.{claim.log.partitions}.{claim.incarnation}{self._sink.suffix}"',
            ),
        ),
        (HTTP + "test_a_topic_made_anew_has_other_keys",),
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HISTORIES_AS_FOUND", "1")
    planting.test_a_planted_bug_is_found(bug, tmp_path)
