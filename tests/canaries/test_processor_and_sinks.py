"""Planted bugs in the processor and at the sinks: each takes one mechanism out of a copy of the source; the named test
must then fail, by what it compares and not because the copy does not run.

`docs/faults.md` names these beside the failures of the field that they bring back.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PROCESSOR = "tests/scenarios/test_processor.py::"
WORKER = "tests/streams/test_worker.py::"
DELIVERY = "tests/sinks/test_delivery.py::"
PROCESSES = "tests/sinks/test_processes.py::"
REAL_LOGS = "tests/sinks/test_real_logs.py::"


class Edit(NamedTuple):
    file: str
    before: str
    after: str


class Bug(NamedTuple):
    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    says: str = "assert"  # what the failing test tells
    slow: bool = False  # real processes, up to a minute: with CANARIES=all, as `make proof WHAT=canaries` has it


BUGS = [
    Bug(
        "P1: the last stable offset taken for the end",
        (Edit("host/kafka_admin.py", "IsolationLevel.READ_UNCOMMITTED", "IsolationLevel.READ_COMMITTED"),),
        (PROCESSOR + "test_p1_handed_over_twice_within_the_transaction_timeout_of_a_dead_owner",),
        "after",
        slow=True,
    ),
    Bug(
        "P1: the target is read before the offsets",
        (
            Edit(
                "streams/worker.py",
                "        committed = self._log.committed(asked)\n",
                "        self._log.ends(partitions)\n        committed = self._log.committed(asked)\n",
            ),
        ),
        (WORKER + "test_the_target_is_read_after_the_offsets",),
    ),
    Bug(
        "P2: the store is written before the commit",
        (
            Edit(
                "streams/worker.py",
                "        if self._mode is Mode.EXACTLY_ONCE:\n            self._steps.reached(Step.OUTPUT_AFTER)\n",
                "        for task in keep:\n            for name, state in task.states.items():\n"
                "                state.committed(*[ends[self._changelog(task, name)]] * 2, 0)\n"
                "        if self._mode is Mode.EXACTLY_ONCE:\n            self._steps.reached(Step.OUTPUT_AFTER)\n",
            ),
        ),
        ("tests/streams/test_worker_histories.py::test_whatever_happens_the_end_is_the_fold_of_the_input",),
    ),
    Bug(
        "P3: the offsets go before the transaction, outside of it",
        (
            Edit(
                "streams/worker.py",
                "            done = self._judge(self._log.commit(positions))\n",
                "            self._log.commit_offsets(positions)\n"
                "            done = self._judge(self._log.commit(positions))\n",
            ),
        ),
        (WORKER + "test_what_a_kill_does_in_each_mode",),
    ),
    Bug(
        "P5: the delivery reads what is not committed",
        (
            Edit(
                "host/cluster.py",
                '    "isolation.level": "read_committed",',
                '    "isolation.level": "read_uncommitted",',
            ),
        ),
        (PROCESSOR + "test_p5_a_slow_sink_holds_up_no_transaction_and_sees_none_that_is_open",),
        slow=True,
    ),
    Bug(
        "P11: a task that wrote sends no offset",
        (
            Edit(
                "streams/worker.py",
                "for task in touched for at, position in task.positions().items()}",
                "for task in touched[:1] for at, position in task.positions().items()}",
            ),
        ),
        (WORKER + "test_each_transaction_that_wrote_carries_the_offsets_of_every_task_that_wrote",),
    ),
    Bug(
        "P14: a Producer outlives a lost connection, and the broker serves what comes late",
        (
            Edit("host/kafka_producer.py", "        return bool(self._lines.failures)\n", "        return False\n"),
            Edit("broker/transactions.py", "    if request.accepted < newest:\n        return True\n", ""),
        ),
        (PROCESSOR + "test_p14_a_delayed_request_under_a_running_app[26]",),
        "after",
        slow=True,
    ),
    Bug(
        "S8: a commit without an answer is taken for done",
        (
            Edit(
                "sinks/postgres_batch.py",
                'return Unknown(f"{where}: COMMIT of [{start}, {end}) was not answered: {brief(why)}")',
                "return Done()",
            ),
        ),
        (DELIVERY + "test_a_commit_without_an_answer_is_resolved_by_a_claim",),
    ),
    Bug(
        "S1: neither epoch nor position is compared",
        (
            Edit(
                "sinks/postgres_connection.py",
                '            "WHERE app = %s AND sink = %s AND partition = %s AND epoch = %s AND position = %s',
                '            "WHERE app = %s AND sink = %s AND partition = %s AND %s > 0 AND %s >= 0',
            ),
        ),
        (DELIVERY + "test_a_superseded_delivery_is_fenced_and_counted",),
    ),
    Bug(
        "S10: the rows are committed before the position",
        (
            Edit(
                "sinks/sqlite_connection.py",
                "        self._rows(connection, upserts, deletes)\n        self._steps.reached(Step.ROWS_AFTER)\n",
                "        self._rows(connection, upserts, deletes)\n"
                '        connection.execute("COMMIT")\n        connection.execute("BEGIN IMMEDIATE")\n'
                "        self._steps.reached(Step.ROWS_AFTER)\n",
            ),
        ),
        (PROCESSES + "test_killed_at_every_step_each_record_is_there_once",),
    ),
    Bug(
        "S12: a position is not validated against the log",
        (
            Edit(
                "sinks/origin.py",
                "    mark = parsed(run)\n    if mark is None:\n",
                "    mark = None\n    if mark is None:\n",
            ),
        ),
        (REAL_LOGS + "test_a_folder_put_back_stops_the_delivery",),
        "DID NOT RAISE",
    ),
    Bug(
        "S14: the holder of the lock is left alone",
        (Edit("sinks/postgres_session.py", "SELECT pg_terminate_backend(%s)", "SELECT %s"),),
        # In the middle of a COPY: there no timeout of the server's ends the holder in the claimer's stead.
        (DELIVERY + "test_postgres_a_claim_puts_out_an_owner_that_stands_in_the_middle_of_a_copy",),
    ),
    Bug(
        "S15: the outbox is partitioned by the stream's key",
        (
            Edit(
                "streams/compile.py",
                '        if not node.sink.key and not getattr(node.sink, "partitions_outbox", False):\n',
                "        if True:\n",
            ),
        ),
        ("tests/streams/test_driver.py::test_a_sink_gets_rows_keyed_by_its_own_key",),
    ),
    Bug(
        "S16: the identity of the topic is not compared",
        (
            Edit(
                "sinks/positions.py", "        if row.topic_id != log.topic_id:\n", "        if row.topic_id is None:\n"
            ),
        ),
        (DELIVERY + "test_a_topic_made_anew_stops_the_delivery",),
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    """On a copy of the source with the bug in it."""
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src" / "semel", source / "semel", ignore=shutil.ignore_patterns("__pycache__"))
    for edit in bug.edits:
        path = source / "semel" / edit.file
        text = path.read_text()
        assert text.count(edit.before) == 1, f"{edit.file} no longer has the text where this bug is planted"
        path.write_text(text.replace(edit.before, edit.after))
    if bug.slow and os.environ.get("CANARIES") != "all":
        pytest.skip("slow: CANARIES=all")  # but it can still be planted
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    for test in bug.tests:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=short", test]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 1, f"{test} did not see it:\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
        assert bug.says in done.stdout, done.stdout[-3000:]
        broken = re.findall(r"^E +((?:Type|Name|Attribute)Error: .*)", done.stdout, re.MULTILINE)
        assert not broken, f"the planted text itself does not run any more: {broken}"
