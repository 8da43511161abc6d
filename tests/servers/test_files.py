"""Files by fsync and rename: through the contract kit, and what only a folder can get wrong."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semel.contract import Attempt
from semel.ports import Done, Step
from semel.sinks import Files
from semel.sinks.sink import Diverged, SinkError
from semel.testing import operating, trials
from semel.testing.contracts import ContractTests, Refused, Subject, run
from tests.servers import two_phase_subjects as subjects
from tests.sinks.planted_sinks import Altered, Planted
from tests.sinks.test_cuts import DELIVERY, EVER, OUTBOX, Died, Worker, die, outbox, put
from tests.sinks.test_operate import moved


class TestFiles(ContractTests):
    """JSON lines."""

    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        return subjects.files_subject(subjects.files_jsonl, tmp_path)


@pytest.mark.parametrize("trial", [trials.plain, trials.torn, trials.poison, trials.zombie])
def test_csv_holds_too(trial: Any, tmp_path: Path) -> None:
    """With a form that refuses records."""
    run(subjects.files_subject(subjects.files_csv, tmp_path), trial)


# --- the kit finds what is planted -----------------------------------------------------------------------------------


def _under_its_own_name(connection: Any, claim: Any, attempt: Any, run: str, rows: Any) -> Any:
    outcome = connection.prepare_cut(claim, attempt, run, rows)
    connection._committed(
        connection._temporary(claim, attempt), connection._final(claim.incarnation, claim.delivery.partition, attempt)
    )
    return outcome


def _removes_nothing(connection: Any, delivery: Any, log: Any, latest: Any, decided: bool) -> Any:
    return connection.take_over(
        delivery, log, replace(latest, number=1 << 40) if decided else Attempt(0, 0, 0), decided
    )


def _gone_is_done(connection: Any, claim: Any, attempt: Any) -> Any:
    try:
        return connection.commit_cut(claim, attempt)
    except Diverged:
        return Done()


@pytest.mark.parametrize(
    ("mistake", "trial"),
    [
        ({"prepare_cut": _under_its_own_name}, trials.torn),  # readers see what was not decided
        ({"take_over": _removes_nothing}, trials.torn),  # temporary files of a dead owner stay
        ({"commit_cut": _gone_is_done}, trials.undone),
        ({"left": lambda *_: ()}, operating.unsettled),  # a move forgets what was decided
    ],
    ids=["visible at once", "orphan", "gone is done", "moved unsettled"],
)
def test_a_mistake_in_the_two_phases_is_found(mistake: dict[str, Any], trial: Any, tmp_path: Path) -> None:
    """S4, S5: each turns the kit red."""

    def make(address: str, suffix: str) -> Any:
        sink = subjects.files_jsonl(address, suffix)
        return Planted(sink, lambda connection: Altered(connection, **mistake))

    with pytest.raises((Refused, AssertionError)):
        run(replace(subjects.files_subject(subjects.files_jsonl, tmp_path), make=make), trial)


# --- what only a folder can get wrong --------------------------------------------------------------------------------


def fed(tmp_path: Path, count: int) -> tuple[Any, Files]:
    log = outbox()
    log.create(DELIVERY, 1, {"cleanup.policy": "compact"})
    put(log, *range(count))
    return log, Files(tmp_path / "orders", records=10)


def held(sink: Files) -> list[int]:
    return [json.loads(line) for path in sink.complete() for line in path.read_text().splitlines()]


def test_everything_is_synced_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Power cut: the file's bytes, then its temporary name, the decision, the rename, and the folder again."""
    log, sink = fed(tmp_path, 10)
    calls: list[str] = []
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        calls.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))[-11:])
        fsync(descriptor)

    worker = Worker(log, sink)
    worker.turn()  # claimed
    connection: Any = worker.delivery._connection
    rename = connection._rename
    connection._rename = lambda old, new: (calls.append("rename"), rename(old, new))
    monkeypatch.setattr("semel.sinks.files_connection.os.fsync", synced)
    worker.steps.at[Step.DECIDE_AFTER] = lambda: calls.append("decided")
    worker.turn(3)
    assert calls == ["sync 00010.1.tmp", "sync 00001-00000", "decided", "rename", "sync 00001-00000"]
    assert held(sink) == list(range(10))


def test_temporary_files_of_a_dead_owner_are_removed(tmp_path: Path) -> None:
    """S5: half written, prepared, and of a superseded owner that prepared late."""
    log, sink = fed(tmp_path, 30)
    for step in (Step.ROWS_AFTER, Step.PREPARE_AFTER):
        worker = Worker(log, sink)
        worker.steps.at[step] = die
        with pytest.raises(Died):
            worker.turn(3)
        assert len(sink.open().in_doubt()) == 1
    assert sink.complete() == []
    last = Worker(log, sink)
    last.turn(6)
    assert held(sink) == list(range(30))
    assert sink.open().in_doubt() == []
    assert [path.name for path in (tmp_path / "orders/_semel").iterdir() if path.name.startswith("0")] == [
        "00001-00000.0000000003"
    ]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_disk_that_is_full_or_fails_is_tried_again_under_another_number(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed sync nobody knows what is on the disk: that file is never committed."""
    log, sink = fed(tmp_path, 10)
    worker = Worker(log, sink)
    worker.turn()
    fsync, failed = os.fsync, []

    def failing(descriptor: int) -> None:
        if not failed and os.readlink(f"/proc/self/fd/{descriptor}").endswith(".tmp"):
            failed.append(1)
            raise OSError(5 if call == "fsync" else 28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr("semel.sinks.files_connection.os.fsync", failing)
    worker.turn(6)
    assert failed
    assert "No space left" in worker.said[0]
    assert held(sink) == list(range(10))
    assert sink.open().in_doubt() == []


def test_a_file_that_was_there_is_not_replaced(tmp_path: Path) -> None:
    """Somebody else's: nothing is renamed over it."""
    log, sink = fed(tmp_path, 10)
    worker = Worker(log, sink)
    worker.turn()
    stranger = tmp_path / "orders/00001-00000/00001-00000-00000000000000000000-00000000000000000010.jsonl"

    worker.steps.at[Step.DECIDE_AFTER] = lambda: stranger.write_text("another's")  # type: ignore[assignment, return-value]
    with pytest.raises(SinkError, match="is there already"):
        worker.turn(3)
    assert stranger.read_text() == "another's"


def test_readers_may_take_files_away(tmp_path: Path) -> None:
    """All of them, or all but the newest: what is not there any more is not delivered again. What was decided and is
    under neither name stops the delivery: nobody can tell whether a reader had it."""
    log, sink = fed(tmp_path, 20)
    Worker(log, sink).turn(5)
    sink.complete()[0].unlink()
    put(log, *range(20, 30))
    Worker(log, sink).turn(5)
    assert held(sink) == list(range(10, 30))
    for path in sink.complete():
        path.unlink()
    put(log, *range(30, 40))
    worker = Worker(log, sink)

    def gone() -> None:
        (left,) = (tmp_path / "orders/00001-00000").glob(".*.tmp")
        left.unlink()

    worker.steps.at[Step.SINK_BEFORE] = gone
    with pytest.raises(Diverged, match="under neither of its names"):
        worker.turn(5)


def test_other_logs_and_other_sinks_are_told_apart(tmp_path: Path) -> None:
    """S16: the folder says whose files these are; a person moves it to the other log."""
    log, sink = fed(tmp_path, 10)
    Worker(log, sink).turn(3)
    del log.topics[OUTBOX]
    again = outbox()
    again._made = 100  # another topic id
    again.create(OUTBOX, 1, EVER)
    again.create(DELIVERY, 1, {"cleanup.policy": "compact"})
    put(again, *range(100, 110))
    with pytest.raises(Diverged, match=r"re-created.*semel sink adopt APP.py orders"):
        Worker(again, sink).turn(3)
    assert moved(again, sink, 0, again=False, outbox=OUTBOX) == 2
    Worker(again, sink).turn(3)
    assert held(sink) == [*range(10), *range(100, 110)]
    with pytest.raises(SinkError, match="a folder of its own"):
        Worker(again, Files(tmp_path / "orders", name="other")).turn(3)


def test_a_copy_of_the_log_is_noticed(tmp_path: Path) -> None:
    """S12: two logs that went different ways; the claims of a partition are counted in the folder."""
    log, sink = fed(tmp_path, 10)
    copied = log.copy()
    first = Worker(log, sink)
    first.turn(3)
    log.put_back(copied)
    with pytest.raises(Diverged, match="went back behind the sink"):
        Worker(log, sink).turn(3)
    assert held(sink) == list(range(10))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """And one that is no folder; a URL is refused where it stands."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkError, match="can be written"):
        Files(tmp_path / "file" / "orders").open().prepare(None)
    with pytest.raises(SinkError, match="Objects"):
        Files("s3://bucket/x")
