"""Planted bugs in the ingest and in the sources; see `test_processor_and_sinks.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.canaries.test_processor_and_sinks import Bug, Edit
from tests.canaries.test_processor_and_sinks import test_a_planted_bug_is_found as planted_and_found

INGEST = "tests/sources/test_ingest.py::"
FILES = "tests/sources/test_files.py::"
TABLE = "tests/servers/sources/test_postgres_table.py::"
HTTP = "tests/sources/test_http_endpoint.py::"
CHANGES = "tests/servers/sources/test_postgres_changes.py::"
CRASHES = INGEST + "test_ended_at_every_step_each_row_is_there_once"

BUGS = [
    Bug(
        "S10: the records are committed before the position, in a transaction of their own",
        (
            Edit(
                "sources/ingest.py",
                "        self._steps.reached(Step.INGEST_RECORDS)\n",
                "            owner.commit()\n        self._steps.reached(Step.INGEST_RECORDS)\n",
            ),
        ),
        (CRASHES,),
    ),
    Bug(
        "S10: the position is committed before the records",
        (
            Edit(
                "sources/ingest.py",
                "        if portion.rows:\n"
                "            sent = owner.send([self._record(row) for row in portion.rows])\n",
                "        if portion.rows:\n"
                "            owner.send([NewRecord(*lane.at, at.encode(),\n"
                "                                  positions.encoded(lane.topic_id, 'Files', value), 0)\n"
                "                        for at, value in portion.positions.items()])\n"
                "            owner.commit()\n"
                "            sent = owner.send([self._record(row) for row in portion.rows])\n",
            ),
        ),
        (CRASHES,),
    ),
    Bug(
        "S1: the positions are read before the id is initialised",
        (
            Edit(
                "sources/ingest.py",
                "        lane.owner.initialise()\n        try:\n",
                "        try:\n",
            ),
            Edit(
                "sources/ingest.py",
                "        lane.connection = connection\n",
                "        lane.owner.initialise()\n        lane.connection = connection\n",
            ),
        ),
        (INGEST + "test_what_the_former_ingest_commits_until_it_is_put_out_is_read",),
    ),
    Bug(
        "S8: a commit without an answer is taken for done",
        (Edit("sources/ingest.py", "            case Done():\n", "            case Done() | Unknown():\n"),),
        (INGEST + "test_an_answer_that_is_lost_is_no_guess",),
        "after anything but Done",
    ),
    Bug(
        "S16: positions of another topic of this name count",
        (Edit("sources/positions.py", "        if written.topic_id != topic_id:\n", "        if False:\n"),),
        (INGEST + "test_a_topic_made_anew_is_not_taken_for_the_former_one",),
        "DID NOT RAISE",
    ),
    Bug(
        "a file is known by its name",
        (
            Edit(
                "sources/files_reading.py",
                "(name for name in may_be if self._same(path, self._known[name]))",
                "iter(may_be)",
            ),
        ),
        (FILES + "test_a_file_that_is_not_what_was_read_stops_the_ingest[rewritten in place]",),
        "DID NOT RAISE",
    ),
    Bug(
        "a renamed file is a new one",
        (Edit("sources/files_reading.py", "and known.at and self._same(path, known):", "and False:"),),
        (FILES + "test_a_renamed_file_goes_on",),
        "not the file that was read",
    ),
    Bug(
        "a line is taken before it has ended",
        (
            Edit(
                "sources/files_lines.py",
                "            if not self._ended(raw):\n                if self._follow:\n",
                "            if not self._ended(raw):\n                if False:\n",
            ),
        ),
        (FILES + "test_a_file_that_grows_is_followed",),
        "Input data was truncated",
    ),
    Bug(
        "a table: open transactions that have written are not waited for",
        (
            Edit(
                "sources/postgres_table_connection.py", "bound, self._held(connection), 0.0", "bound, frozenset(), 0.0"
            ),
        ),
        (TABLE + "test_a_row_that_commits_late_under_a_lower_number_is_not_left_out[identity]",),
    ),
    Bug(
        "a table: who holds it is asked before the bound is taken",
        (
            Edit(
                "sources/postgres_table_connection.py",
                "            if self._known is not None:\n"
                "                self._check_not_back(connection, self._known)\n",
                "            before = self._held(connection)\n",
            ),
            Edit("sources/postgres_table_connection.py", "bound, self._held(connection), 0.0", "bound, before, 0.0"),
        ),
        (TABLE + "test_who_wrote_before_the_bound_was_taken_is_waited_for",),
    ),
    Bug(
        "a table: rows of transactions above the oldest open one are read",
        (
            Edit(
                "sources/postgres_table_connection.py",
                '"{} < pg_snapshot_xmin(pg_current_snapshot())"',
                '"{} < pg_snapshot_xmax(pg_current_snapshot())"',
            ),
        ),
        (TABLE + "test_a_row_that_commits_late_under_a_lower_number_is_not_left_out[xid8]",),
    ),
    Bug(
        "a table: ordered by the cursor's text",
        (
            Edit(
                "sources/postgres_table_connection.py",
                'join(sql.Identifier("t", name) for name in self._source.cursor)',
                "join(map(sql.Identifier, self._source.cursor))",
            ),
        ),
        (TABLE + "test_ended_at_a_step_each_row_is_there_once[identity-ingest.read]",),
    ),
    Bug(
        "a table: a sequence that went back is not noticed",
        (Edit("sources/postgres_table_connection.py", "if last < int(known.after[0]):", "if False:"),),
        (TABLE + "test_a_table_that_is_not_the_one_that_was_read_stops_it",),
        "DID NOT RAISE",
    ),
    Bug(
        "an endpoint answers before the commit",
        (
            Edit(
                "sources/http_endpoint_connection.py",
                "                    self._portion.append(waiting)\n",
                "                    waiting.reply(answer_of(len(waiting.records)))\n",
            ),
        ),
        (HTTP + "test_an_answer_of_the_log_that_is_lost_is_told_as_unknown",),
    ),
    Bug(
        "an endpoint forgets the keys that its predecessor took",
        (Edit("sources/http_endpoint_connection.py", "TakenKeys(positions, round", "TakenKeys({}, round"),),
        (HTTP + "test_a_crash_before_the_answer_is_resolved_by_the_same_key[ingest.commit]",),
    ),
    Bug(
        "S18: what lies below the floor is run again",
        (Edit("sources/http_endpoint_keys.py", "self.floor(sent) or 0, now_ms)", "0, now_ms)"),),
        (HTTP + "test_floors_keep_what_expiry_forgets",),
    ),
    Bug(
        "changes: the slot lets go before the log has committed",
        (
            Edit(
                "sources/postgres_changes_connection.py",
                "        return Portion(rows, {self._name: msgspec.json.encode(self._known)})\n",
                "        self.committed()\n"
                "        return Portion(rows, {self._name: msgspec.json.encode(self._known)})\n",
            ),
        ),
        (CHANGES + "test_the_slot_lets_go_of_what_is_in_the_log_and_of_no_more",),
    ),
    Bug(
        "changes: the snapshot is several transactions",
        (
            Edit(
                "sources/postgres_changes_connection.py",
                "            return Portion(rows, complete=False)\n",
                "            here = ChangesAt(self._system, self._oid, self._source.slot, self._point, last=0)\n"
                "            known, found = self._known, self._portion(rows, here)\n"
                "            self._known = known\n            return found\n",
            ),
        ),
        (CHANGES + "test_ended_at_every_step_each_change_is_there_once[2-ingest.read]",),
    ),
    Bug(
        "changes: what the slot gives again is taken again",
        (
            Edit(
                "sources/postgres_changes_connection.py",
                "in (one for one in peeked if one.end_lsn > known.lsn):\n",
                "in peeked:\n",
            ),
            Edit("sources/postgres_changes_connection.py", "        if at is known:\n", "        if not rows:\n"),
        ),
        (CHANGES + "test_ended_at_every_step_each_change_is_there_once[2-ingest.commit]",),
    ),
    Bug(
        "changes: what is left out as known is not compared with what was read",
        (
            Edit(
                "sources/postgres_changes_connection.py",
                "        if there and known.last >= 0:\n",
                "        if False:\n",
            ),
        ),
        (CHANGES + "test_a_server_that_went_another_way_under_places_that_were_read_stops",),
        says="DID NOT RAISE",
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    """On a copy of the source with the bug in it."""
    planted_and_found(bug, tmp_path)
