"""A local store is used only if its changelog's own history says that it may be.

The story: a log was put back from a backup, another machine went on past the place, and the first one came back with
its state folder of before. Its offset fitted, so it went on from totals that this log had never had.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import pytest

from semel.ports import Position, TopicPartition
from semel.streams.lineage import HISTORIES_MAX, History, Lineage, read_lineage
from tests.streams.test_worker import Machine, broker, changelog, fill, final  # noqa: F401
from tests.support.memlog import MemBroker, MemLog

CHANGELOG = [TopicPartition("billing-sums-changelog", p) for p in range(4)]


def rebuilt(machine: Machine) -> list[str]:
    return [notice for notice in machine.notices if "is rebuilt" in notice]


def put_back(broker: MemBroker) -> MemBroker:  # noqa: F811
    """A copy: what happens to the one does not happen to the other."""
    return copy.deepcopy(broker)


def test_state_of_a_log_that_was_put_back_and_grew_past_it_is_rebuilt(broker: MemBroker) -> None:  # noqa: F811
    """Also when it went back to within the history that the store was written in."""
    a = Machine("a", broker)
    expected = fill(broker)
    a.run(30)
    backup = put_back(broker)
    fill(broker, 60, start=1_000)  # what the backup never sees
    a.run(30)
    a.worker.close(0)

    b = Machine("b", backup)
    backup.assign({"b": backup.all_partitions(["orders"])})
    for start in range(60, 300, 60):
        expected += fill(backup, 60, start=start)
        b.run(30)
    b.worker.close(0)
    used = [at for at in CHANGELOG if broker.logs[at]]
    assert used and all(len(backup.logs[at]) > len(broker.logs[at]) for at in used)

    a.broker = backup
    backup.assign({"a": backup.all_partitions(["orders"])})
    a.start()
    expected += fill(backup, 60, start=300)
    a.run(30)
    assert len(rebuilt(a)) == len(used) and "in a history that ended at offset" in rebuilt(a)[0]
    assert final(backup) == dict(expected) == changelog(backup)


def test_a_log_that_lost_the_last_transaction_of_the_store(broker: MemBroker) -> None:  # noqa: F811
    """The changes were still in the client's queue when the ends were asked before the commit: the lower bound fits the
    log that went back by this one transaction."""

    class Queueing(MemLog):
        def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
            mine = 0 if self._transaction is None else self._transaction.number
            logs = {at: self.broker.logs[at] for at in partitions}
            return {at: sum(not mine or entry.transaction != mine for entry in log) for at, log in logs.items()}

    a = Machine("a", broker, log=Queueing)
    expected = fill(broker)
    a.run(30)
    backup = put_back(broker)
    fill(broker, 20, start=1_000)
    a.run(30)
    a.worker.close(0)

    a.broker = backup
    a.start()
    expected += fill(backup, 20, start=60)
    a.run(30)
    assert rebuilt(a) and all("the log went back" in notice for notice in rebuilt(a))
    assert final(backup) == dict(expected) == changelog(backup)


def test_state_of_a_history_that_goes_on_is_used(broker: MemBroker) -> None:  # noqa: F811
    """Workers come and go on one log; nothing is rebuilt, only what is new is read."""
    a, b = Machine("a", broker), Machine("b", broker, start=False)
    expected = fill(broker)
    a.run(30)
    for turn in range(1, 4):
        leaving, coming = (a, b) if turn % 2 else (b, a)
        leaving.worker.close(0)
        broker.assign({coming.name: broker.all_partitions(["orders"])})
        coming.start()
        expected += fill(broker, 60, start=60 * turn)
        coming.run(30)
    assert not rebuilt(a) and not rebuilt(b)
    assert final(broker) == dict(expected) == changelog(broker)


def test_a_kill_between_restore_and_first_commit_costs_no_rebuild(broker: MemBroker) -> None:  # noqa: F811
    """What a restore writes belongs to the history before; its own is not known to the log yet."""
    a = Machine("a", broker)
    fill(broker)
    a.run(30)
    broker.assign({"b": broker.all_partitions(["orders"])})
    b = Machine("b", broker)
    b.run(3)
    assert b.worker.progress.restored
    b.start()
    b.run(3)
    assert not rebuilt(b) and not b.worker.progress.restored


def test_positions_that_were_forgotten_or_set_by_another_tool_cost_a_rebuild(broker: MemBroker) -> None:  # noqa: F811
    """Kafka forgets what a group has not committed for 7 days in topics it does not read; then nothing is known."""
    a = Machine("a", broker)
    expected = fill(broker)
    a.run(30)
    del broker.offsets[CHANGELOG[0]]
    broker.offsets[CHANGELOG[1]] = Position(5, "set by hand")
    a.start()
    expected += fill(broker, 20, start=60)
    a.run(30)
    assert len(rebuilt(a)) == 2 and "does not know" in rebuilt(a)[0]
    assert final(broker) == dict(expected) == changelog(broker)


def test_a_position_in_the_changelog_is_committed_once_a_store_interval_not_with_every_commit(
    broker: MemBroker,  # noqa: F811
) -> None:
    """It names a dozen histories at most, far below Kafka's limit for metadata."""
    a = Machine("a", broker)
    fill(broker)
    a.run(4)
    before = dict(broker.offsets)
    fill(broker, 20, start=60)
    commits = a.worker.progress.commits
    broker.offsets = {at: position for at, position in broker.offsets.items() if at not in CHANGELOG}
    a.run(2)
    assert a.worker.progress.commits == commits + 1 and not set(CHANGELOG) & set(broker.offsets)
    fill(broker, 20, start=80)
    a.run(30)
    fill(broker, 20, start=100)
    a.run(4)
    used = [at for at in CHANGELOG if broker.logs[at]]
    assert used and {at: broker.offsets[at] for at in used} == {at: before[at] for at in used}
    lineage = Lineage()
    for n in range(100):
        lineage = lineage.followed_by(f"0123456789.{n}", 10**12 + n)
    assert len(lineage.position().metadata) < 600 and len(lineage.histories) == HISTORIES_MAX
    assert read_lineage(lineage.position()) == lineage


@pytest.mark.parametrize(("id", "bound"), [("a", 10), ("b", 30), ("c", None), ("d", -1), ("", -1)])
def test_a_history_is_bounded_by_where_the_next_one_began(id: str, bound: int | None) -> None:
    lineage = Lineage((History("a", 0), History("b", 10), History("c", 30)))
    assert lineage.bound(id) == bound and Lineage().bound(id) == -1
