"""The ingest's protocol: crashes at every step, zombies, answers that are lost, logs that are not the same any more."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from semel.contract import SourcePosition
from semel.ports import Step
from semel.sources import Files
from semel.sources.source import SourceDiverged, SourceError
from tests.sources.test_files import ids, lines, topic
from tests.sources.world import Died, Reader, die, values
from tests.support.outboxlog import OutboxLog

STEPS = (Step.INGEST_CLAIM, Step.INGEST_READ, Step.INGEST_RECORDS, Step.INGEST_POSITION, Step.INGEST_COMMIT)
COUNT = 40


@pytest.fixture
def files(tmp_path: Path) -> Files:
    for n in range(4):
        (tmp_path / f"{n}.jsonl").write_text(lines(*range(n * 10, n * 10 + 10)))
    return Files(str(tmp_path / "*.jsonl"), key="customer")


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("step", STEPS)
def test_ended_at_every_step_each_row_is_there_once(files: Files, step: Step, nth: int) -> None:
    """Again and again, until one gets through: nothing is lost and nothing repeated, in the order of each file."""
    log, declared = OutboxLog(), topic(files)
    died = 0
    for left in (nth, nth, 10**6):
        reader = Reader(log, declared, records_max=3, steps=die(step, left))
        try:
            reader.all()
        except Died:
            died += 1
            reader.dies()
    assert died == (2 if step is not Step.INGEST_CLAIM or nth == 1 else 0)
    assert ids(log) == list(range(COUNT))


@pytest.mark.parametrize("step", [Step.INGEST_READ, Step.INGEST_RECORDS, Step.INGEST_POSITION])
def test_a_zombie_is_refused(files: Files, step: Step) -> None:
    """Stopped in the middle of a transaction; its successor goes on from what was committed; what the zombie then sends
    or commits is refused, counted, and not there."""
    log, declared = OutboxLog(), topic(files)
    heirs: list[Reader] = []
    refused: Counter[Step] = Counter()

    class Stopped:
        def reached(self, at: Step) -> None:
            refused[at] += 1
            if at is step and refused[step] == 2:
                heirs.append(Reader(log, declared, records_max=7))
                heirs[0].turn(2)

    zombie = Reader(log, declared, records_max=3, steps=Stopped())
    zombie.turn(2)
    assert refused[Step.SOURCE_FENCED] == 1
    heirs[0].all()
    assert ids(log) == list(range(COUNT))


def test_what_the_former_ingest_commits_until_it_is_put_out_is_read(files: Files) -> None:
    """It commits once more while its successor begins: initialising ends that, so positions are read after it."""
    log, declared = OutboxLog(), topic(files)
    former = Reader(log, declared, records_max=3)
    former.turn(1)
    heir = Reader(log, declared, records_max=3)
    made = log.owner

    def late(transactional_id: str, timeout_ms: int) -> object:
        owner = made(transactional_id)
        initialise = owner.initialise

        def initialised() -> None:
            former.turn(1)
            initialise()

        owner.initialise = initialised  # type: ignore[method-assign]
        return owner

    heir.ingest._owners = late  # type: ignore[assignment]
    heir.all()
    assert ids(log) == list(range(COUNT))


@pytest.mark.parametrize("what", ["lost", "unheard", "refused"])
def test_an_answer_that_is_lost_is_no_guess(files: Files, what: str) -> None:
    """Committed or not: the next claim reads which, and goes on there."""
    log, declared, said = OutboxLog(), topic(files), []
    reader = Reader(log, declared, records_max=3, say=said.append)
    reader.turn(2)
    log.owners[-1].next = what
    reader.turn(30)
    reader.all()
    assert ids(log) == list(range(COUNT))
    assert log.owners[-1].initialised == 2 and len(said) == 2 and said[1].endswith("reading again")


def test_a_topic_made_anew_is_not_taken_for_the_former_one(files: Files) -> None:
    """Its positions would skip everything that was read into the former one."""
    log, declared = OutboxLog(), topic(files)
    Reader(log, declared).all()
    log.create("orders", 2)
    with pytest.raises(SourceDiverged, match=r"positions of another topic orders .* made anew"):
        Reader(log, declared).all()
    assert ids(log) == []
    del log.topics["orders-positions"]
    Reader(log, declared).all()
    assert ids(log) == list(range(COUNT))


def test_positions_that_are_gone_stop_the_ingest(files: Files) -> None:
    """All would be read a second time. Where the records are of others, one says so."""
    log, declared = OutboxLog(), topic(files)
    Reader(log, declared).all()
    del log.topics["orders-positions"]
    with pytest.raises(SourceError, match="holds records, and there is no orders-positions"):
        Reader(log, declared)
    log.create("orders", 2)
    log.append("orders", 0, b"k", b'{"id": -1}')
    with pytest.raises(SourceError, match="--begin orders"):
        Reader(log, declared)
    Reader(log, declared, begin=True).all()
    assert ids(log) == [-1, *range(COUNT)]


def test_a_log_put_back_reads_the_source_again(files: Files) -> None:
    """Records and positions go back together: what was lost comes again, once: what positions in the log buy."""
    log, declared = OutboxLog(), topic(files)
    reader = Reader(log, declared, records_max=3)
    reader.turn(4)
    copied = log.copy()
    reader.turn(3)
    reader.dies()
    log.put_back(copied)
    Reader(log, declared).all()
    assert ids(log) == list(range(COUNT))


def test_what_is_not_semels_or_not_as_it_was_is_said(files: Files) -> None:
    log, declared = OutboxLog(), topic(files)
    Reader(log, declared).all()
    log.append("orders-positions", 0, b"x", b"strange")
    with pytest.raises(SourceError, match="was not written by semel"):
        Reader(log, declared).all()
    log.append("orders-positions", 0, b"x", b'{"topic_id": "%s", "source": "Kittens", "at": 1}' % _id(log))
    with pytest.raises(SourceError, match="was fed by Kittens so far"):
        Reader(log, declared).all()
    log.topics["orders-positions"].config["cleanup.policy"] = "delete"
    with pytest.raises(SourceError, match="could forget what was read"):
        Reader(log, declared)


def _id(log: OutboxLog) -> bytes:
    return log.topics["orders"].topic_id.encode()


def test_records_of_one_key_keep_their_order_and_their_partition(files: Files) -> None:
    log, declared = OutboxLog(), topic(files)
    Reader(log, declared, records_max=3).all()
    for partition in log.topics["orders"].partitions:
        seen = [record.value for record in partition if record.visible]
        assert seen == sorted(seen, key=lambda v: int(v.split(b":")[1].split(b",")[0]))
    places = {r.key: p for p, rs in enumerate(log.topics["orders"].partitions) for r in rs if r.visible}
    assert len(places) == 3 and len(values(log, "orders")) == COUNT


def test_the_contract_says_where_the_position_is(files: Files) -> None:
    assert files.contract.position is SourcePosition.WITH_RECORDS
