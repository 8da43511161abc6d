"""Planted bugs in the broker: each takes one mechanism out of a copy of the source; the named tests must then fail.

A checker is worth what it catches. What a bug would do to users is in the name of the test that finds it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Bug(NamedTuple):
    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


def scenario(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/scenarios/test_scenarios.py::test_scenario[{name}]" for name in names)


CRASHES = "tests/broker/test_crashes.py::test_what_was_shown_holds_wherever_the_power_fails"

BUGS = [
    Bug(
        "B1, B26: delayed requests of version 1 are served",
        "broker/transactions.py",
        "    if request.accepted < newest:\n        return True\n",
        "",
        scenario("b01_delayed_commit", "b26_delayed_offsets", "b26_delayed_offsets_of_an_old_client"),
    ),
    Bug(
        "B2: a late batch is not checked against the coordinator",
        "broker/produce.py",
        "        refusal = _transaction_refuses(broker, key, batch)\n",
        "        refusal = None\n",
        scenario("b02_late_produce"),
    ),
    Bug(
        "B7: a timeout does not fence",
        "broker/transactions.py",
        "    return replace(transaction, epoch=transaction.epoch + 1, last_epoch=NO_EPOCH)\n",
        "    return transaction\n",
        scenario("b07_commit_meets_timeout"),
    ),
    Bug(
        "B9: without an open transaction there is nothing to end",
        "broker/transactions.py",
        "        else:\n            assert found.state not in _PREPARED, found\n",
        "        else:\n            error = Error.INVALID_TXN_STATE\n",
        scenario("b09_empty_end"),
    ),
    Bug(
        "B10: recovery does not finish what was prepared",
        "broker/node.py",
        "        self._perform(transactions.finish_prepared(broker, now_ms))\n",
        "",
        scenario("b10_stuck_in_prepare"),
    ),
    Bug(
        "B11: COMPLETE goes before the markers",
        "broker/transactions.py",
        "    draft.add(complete)\n    return complete\n",
        "    at = next(i for i in reversed(range(len(draft.records) + 1)) if i == 0"
        " or isinstance(draft.records[i - 1][0], Transaction))\n"
        '    draft.records.insert(at, (complete, b""))\n    return complete\n',
        scenario("b11_torn_commit"),
    ),
    Bug(
        "B12: a commit forgets the partition of the offsets",
        "broker/transactions.py",
        "        if partition is not None and prepared.producer_id in partition.open_transactions:\n",
        "        if partition is not None and prepared.producer_id in partition.open_transactions"
        " and key[0] != draft.state.offsets_topic:\n",
        scenario("b12_offsets_and_outputs"),
    ),
    Bug(
        "B12: pending offsets look stable",
        "broker/offsets.py",
        "    if stable and group.is_unstable(place):\n",
        "    if False:\n",
        scenario("b12_offset_fetch_after_commit"),
    ),
    Bug(
        "B12: a later plain commit loses to the transaction",
        "broker/group_state.py",
        "                if marker.commit and (present is None or present.log_offset < stored.log_offset):\n",
        "                if marker.commit:\n",
        scenario("b12_offset_fetch_after_commit"),
    ),
    Bug(
        "B14: the generation is not checked",
        "broker/group_access.py",
        "    error = membership.refused(member_id, instance_id)\n"
        "    if error is not Error.NONE:\n        return error\n"
        "    if generation != membership.generation:\n        return Error.ILLEGAL_GENERATION\n"
        "    if membership.phase is Phase.COMPLETING and not transactional:\n",
        "    if membership.phase is Phase.COMPLETING and not transactional:\n",
        (
            *scenario("b14_zombie_consumer"),
            "tests/broker/test_groups.py::test_an_old_generation_or_a_stranger_changes_nothing",
        ),
    ),
    Bug(
        "B14: a generation that was handed out is forgotten in a crash",
        "broker/groups.py",
        "    draft.add(GroupGeneration(membership.id, membership.generation))\n",
        "",
        ("tests/broker/test_groups.py::test_a_generation_is_never_used_twice",),
    ),
    Bug(
        "B15: a new epoch is told before it is durable",
        "broker/transactions.py",
        "    draft.replies.append(Reply(request.connection, request.token, response))\n"
        "    return draft.ready()\n\n\ndef _initialised",
        "    draft.replies.append(Reply(request.connection, request.token, response, False))\n"
        "    return draft.ready()\n\n\ndef _initialised",
        scenario("b15_fencing_is_durable"),
    ),
    Bug(
        "B15: the epoch is not compared",
        "broker/transactions.py",
        "    if transaction.epoch != epoch:\n",
        "    if False:\n",
        scenario("b15_zombie_producer"),
    ),
    Bug(
        "B16: a retried initialisation is not recognised",
        "broker/transactions.py",
        "        if named_epoch == before.last_epoch and named_id in (before.producer_id, before.last_producer_id):\n",
        "        if False:\n",
        scenario("b16_retried_init"),
    ),
    Bug(
        "B18: the node goes on after a failed write",
        "broker/node.py",
        "        if self._broken:\n",
        "        if False:\n",
        ("tests/broker/test_crashes.py::test_a_disk_that_fails_ends_the_node_before_any_answer",),
    ),
    Bug(
        "B18: a handler changes the window itself",
        "broker/produce.py",
        "    base_offset = draft.append(key, partition, batch.data, batch.last_offset_delta + 1)\n",
        "    base_offset = draft.append(key, partition, batch.data, batch.last_offset_delta + 1)\n"
        "    if batch.producer_id >= 0 and draft.run > 1:\n        partition.producers.by_id.clear()\n",
        ("tests/broker/test_replay.py::test_the_state_after_a_replay_is_the_state_before",),
    ),
    Bug(
        "B19: ranges are compared, bytes are not",
        "log/producers.py",
        "                if used.crc != crc:\n",
        "                if False:\n",
        scenario("b19_other_payload"),
    ),
    Bug(
        "B21: the last stable offset does not wait for open transactions",
        "log/partition.py",
        "        first = next(iter(self._unstable), self.high_watermark)\n",
        "        first = self.high_watermark\n",
        scenario("b21_aborted_read"),
    ),
    Bug(
        "B21: aborted ranges are not told",
        "broker/fetch.py",
        "aborted = [AbortedTransaction(*row) for row in read.aborted] if committed else None",
        "aborted = [] if committed else None",
        scenario("b21_aborted_read"),
    ),
    Bug(
        "B24: a limit below a batch gives nothing",
        "broker/fetch.py",
        "min_one=total == 0",
        "min_one=False",
        scenario("b24_aborted_tail"),
    ),
    Bug(
        "B25, B27: everything leaves at once",
        "broker/node.py",
        "            if reply.waits and not durable:\n",
        "            if False:\n",
        (*scenario("b25_acked_is_kept", "b27_nothing_before_durable"), CRASHES),
    ),
    Bug(
        "B27: readers see what is applied",
        "broker/node.py",
        "        end = self.journal.end\n        durable = ",
        "        self.broker.state.durable(self.journal.end)\n        end = self.journal.end\n        durable = ",
        (*scenario("b27_nothing_before_durable"), CRASHES),
    ),
    Bug(
        "B27: OffsetFetch does not wait",
        "broker/offsets.py",
        "newest > broker.durable_position",
        "False",
        (
            *scenario("b27_nothing_before_durable"),
            "tests/broker/test_crashes.py::test_offsets_are_shown_only_when_they_are_durable",
        ),
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    """Each of the tests fails on the copy with the bug, by an assertion of its own and not by breaking it."""
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src" / "semel", source / "semel", ignore=shutil.ignore_patterns("__pycache__"))
    path = source / "semel" / bug.file
    text = path.read_text()
    assert text.count(bug.before) == 1, f"{bug.file} no longer has the text where this bug is planted"
    path.write_text(text.replace(bug.before, bug.after))
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    for test in bug.tests:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1, f"{test} did not see it:\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
        assert "FAILED" in done.stdout and "ERROR" not in done.stdout, done.stdout[-3000:]
