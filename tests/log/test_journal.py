"""The journal keeps what it said was synced, yields a prefix of what was appended, tells damage from a torn tail."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from semel.log import CorruptJournal, FolderError, Journal, JournalFailed
from semel.log import journal as journal_module
from semel.ports import Disk as DiskPort
from semel.sim.disk import Disk, Faults, PowerCut

Record = tuple[bytes, bytes]


def opened(disk: DiskPort) -> tuple[Journal, list[Record]]:
    journal = Journal.open(disk)
    return journal, [(entry.meta, bytes(entry.payload)) for entry in journal.replay()]


def numbered(number: int, dice: Random) -> Record:
    return b"%d" % number, bytes([number % 256]) * dice.randrange(0, 9000)


class Run:
    """A random use of a journal that knows what it may lose."""

    def __init__(self, disk: Disk, dice: Random, known: list[Record] | None = None) -> None:
        self.disk = disk
        self.dice = dice
        self.appended: list[Record] = list(known or [])
        self.durable = len(self.appended)
        self.journal: Journal | None = None

    def go(self, steps: int) -> None:
        journal, found = opened(self.disk)
        assert found[: self.durable] == self.appended[: self.durable]
        self.appended = found
        self.durable = len(found)
        self.journal = journal
        written = self.durable
        for _ in range(steps):
            match self.dice.randrange(8):
                case 0 | 1 | 2 | 3:
                    meta, payload = numbered(len(self.appended), self.dice)
                    self.appended.append((meta, payload))
                    journal.append(meta, payload)
                case 4 | 5:
                    journal.write()
                    written = len(self.appended)
                case 6:
                    # The sync covers what was written before it, no more.
                    journal.sync()
                    self.durable = max(self.durable, written)
                case 7 if self.dice.random() < 0.3:
                    journal.checkpoint(list(self.appended))
                    journal.drop_before(journal.checkpoint_position)
                    self.durable = written = len(self.appended)
        self.written = written


def check_after(disk: Disk, run: Run) -> list[Record]:
    _, found = opened(disk)
    assert found == run.appended[: len(found)], "replay yields a prefix of what was appended"
    assert len(found) >= run.durable, "what was synced is there"
    return found


@pytest.mark.parametrize("seed", range(12))
def test_a_power_cut_at_every_operation_loses_nothing_that_was_synced(seed: int) -> None:
    whole = Run(Disk(Random(seed)), Random(seed))
    whole.go(40)
    for cut_at in range(1, whole.disk.operations + 1):
        disk = Disk(Random(seed * 1000 + cut_at))
        disk.cut_at = cut_at
        run = Run(disk, Random(seed))
        with pytest.raises(PowerCut):
            run.go(40)
        check_after(disk.crash(), run)


@pytest.mark.parametrize("seed", range(6))
def test_recovery_itself_may_be_cut_at_every_operation(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the tail is large enough to be rewritten in several pieces."""
    monkeypatch.setattr(journal_module, "REWRITE_BYTES", 10_000)
    for ending in (Disk.crash, Disk.killed):
        disk = Disk(Random(seed))
        run = Run(disk, Random(seed))
        run.go(60)
        assert run.journal is not None
        run.journal.write()
        least = len(run.appended) if ending is Disk.killed else run.durable
        cut_at = 0
        while True:
            cut_at += 1
            after = _again(seed, ending)
            after.cut_at = cut_at
            try:
                _, found = opened(after)
            except PowerCut:
                # Killed in its recovery, then once more: nothing written is lost; a power cut keeps what was synced.
                _, again = opened(after.killed())
                assert again == run.appended[: len(again)]
                assert len(again) >= least
                after = _again(seed, ending)
                after.cut_at = cut_at
                with pytest.raises(PowerCut):
                    opened(after)
                _, again = opened(after.crash())
                assert again == run.appended[: len(again)]
                assert len(again) >= run.durable
                continue
            assert found == run.appended[: len(found)]
            assert len(found) >= least
            break


def _again(seed: int, ending: Callable[[Disk], Disk]) -> Disk:
    disk = Disk(Random(seed))
    run = Run(disk, Random(seed))
    run.go(60)
    assert run.journal is not None
    run.journal.write()
    return ending(disk)


@pytest.mark.parametrize("seed", range(30))
def test_what_replay_yielded_survives_the_next_power_cut(seed: int) -> None:
    """A tail read back after kill -9 was never synced: trusting it would show readers what a power cut then takes."""
    dice = Random(seed)
    disk = Disk(dice)
    run = Run(disk, dice)
    for _ in range(5):
        run.go(15)
        assert run.journal is not None
        run.journal.write()
        disk = disk.killed() if dice.random() < 0.6 else disk.crash()
        run.disk = disk
        journal, found = opened(disk)
        assert journal.synced == journal.end
        run.appended, run.durable = found, len(found)
        run.disk = disk = disk.crash()
        assert opened(disk.copy())[1] == found


@pytest.mark.parametrize("seed", range(40))
def test_failed_writes_and_syncs(seed: int) -> None:
    """fsyncgate: a failed sync drops pages that still read well. The journal refuses everything after it, and the next
    start writes the tail again instead of trusting it."""
    dice = Random(seed)
    disk = Disk(dice)
    run = Run(disk, dice)
    failures = 0
    for _ in range(6):
        disk.faults = Faults(append=0.05, sync=0.2)
        try:
            run.go(40)
        except OSError:
            failures += 1
            if run.journal is not None and run.journal.failed is not None:
                for call in (run.journal.write, run.journal.sync, lambda: run.journal and run.journal.append(b"x")):
                    with pytest.raises(JournalFailed, match="Start again"):
                        call()
        disk = disk.killed() if dice.random() < 0.7 else disk.crash()
        disk.faults = Faults()
        _, found = opened(disk)
        assert found == run.appended[: len(found)]
        assert len(found) >= run.durable
        run.appended, run.durable = found, len(found)
        disk = disk.crash()
        disk.faults = Faults()
        assert opened(disk)[1] == found
        disk = run.disk = disk.killed()
        run.journal = None
    assert failures


def test_a_torn_tail_is_cut_at_every_byte() -> None:
    for cut in range(0, 300, 7):
        disk = Disk(Random(0))
        journal, _ = opened(disk)
        for number in range(3):
            journal.append(b"meta%d" % number, b"p" * 50)
        end = journal.write()
        journal.sync()
        journal.append(b"tail", b"t" * 300)
        journal.write()
        disk.open("journal/00000000000000000000.log").truncate(end + cut)
        _, found = opened(disk.killed())
        assert len(found) == 3


def test_damage_below_the_known_synced_position_names_file_and_byte() -> None:
    disk = Disk(Random(0))
    journal, _ = opened(disk)
    first = journal.append(b"first", b"1" * 100)
    journal.append(b"second", b"2" * 100)
    journal.write()
    journal.sync()
    journal.append(b"third", b"3" * 100)  # carries the position synced so far
    journal.write()
    disk = disk.killed()
    disk.damage("journal/00000000000000000000.log", first + 60)
    before = disk.copy()
    with pytest.raises(CorruptJournal, match=rf"journal/0{{20}}\.log: damaged at byte {first} .*synced.*backup"):
        opened(disk)
    assert disk.copy().open("journal/00000000000000000000.log").read(0, 10_000) == before.open(
        "journal/00000000000000000000.log"
    ).read(0, 10_000)


def test_damage_is_found_after_a_clean_end_even_in_the_last_record() -> None:
    disk = Disk(Random(0))
    journal, _ = opened(disk)
    journal.append(b"only", b"1" * 100)
    journal.close()
    disk = disk.killed()
    disk.damage("journal/00000000000000000000.log", 60)
    with pytest.raises(CorruptJournal):
        opened(disk)


def test_every_damaged_byte_of_a_synced_record_is_found() -> None:
    disk = Disk(Random(0))
    journal, _ = opened(disk)
    end = journal.append(b"first", b"1" * 20)
    journal.write()
    journal.sync()
    journal.append(b"second")
    journal.write()
    journal.sync()
    disk = disk.killed()
    for at in range(end):
        copy = disk.copy()
        copy.damage("journal/00000000000000000000.log", at, 0x10)
        with pytest.raises(CorruptJournal, match="at byte 0 "):
            opened(copy)


def test_a_clean_end_leaves_nothing_to_rewrite() -> None:
    disk = Disk(Random(0))
    for expected in range(4):
        journal, found = opened(disk)
        assert len(found) == expected
        journal.append(b"r%d" % expected)
        journal.close()
        disk = disk.crash()
        assert disk.list("journal") == ["00000000000000000000.log"]


def test_replay_starts_at_the_newest_checkpoint_and_older_files_go() -> None:
    disk = Disk(Random(0))
    journal, _ = opened(disk)
    for number in range(10):
        journal.append(b"%d" % number, b"x" * 1000)
    assert journal.bytes_since_checkpoint == journal.end
    journal.checkpoint([(b"state", b"ten")])
    assert journal.bytes_since_checkpoint == 0
    assert len(disk.list("journal")) == 2
    journal.drop_before(journal.checkpoint_position)
    assert len(disk.list("journal")) == 1
    journal.append(b"11")
    journal.write()
    journal.sync()
    journal, found = opened(disk.crash())
    assert found == [(b"state", b"ten"), (b"11", b"")]


def test_a_checkpoint_of_nothing_new_replaces_none() -> None:
    """Twice in a row, and on an empty journal."""
    disk = Disk(Random(0))
    journal, _ = opened(disk)
    for number in range(3):
        journal.checkpoint([(b"state", b"%d" % number)])
    assert opened(disk.crash())[1] == [(b"state", b"2")]


def test_positions_go_on_over_restarts_and_checkpoints() -> None:
    disk = Disk(Random(0))
    last = 0
    for round_ in range(6):
        journal, _ = opened(disk)
        assert journal.end >= last
        last = journal.append(b"x", b"y" * 100)
        assert last == journal.end
        journal.write()
        assert journal.sync() == last
        if round_ % 2:
            last = journal.checkpoint([(b"state", b"")])
        disk = disk.crash()


def test_a_missing_file_is_an_error() -> None:
    disk = Disk(Random(0))
    journal, _ = opened(disk)
    journal.append(b"x", b"y" * 100)
    journal.checkpoint([(b"state", b"")])
    second = disk.list("journal")[1]
    disk.remove("journal/00000000000000000000.log")
    # The checkpoint stands for itself.
    assert opened(disk.copy())[1] == [(b"state", b"")]
    disk.open(f"journal/{second}").truncate(0)
    with pytest.raises(CorruptJournal, match=r"an older file is missing"):
        opened(disk)


def test_a_file_that_is_no_journal_file_is_left_alone() -> None:
    disk = Disk(Random(0))
    disk.open("journal/notes.txt").append([b"mine"])
    with pytest.raises(FolderError, match=r"journal/notes\.txt"):
        opened(disk)
    assert disk.exists("journal/notes.txt")


def test_a_journal_file_inside_a_payload_is_not_taken_for_frames() -> None:
    """Frames found behind a torn one count as proof of damage; bytes that a user stored are no frames."""
    disk = Disk(Random(0))
    journal, _ = opened(disk)
    for _ in range(20):
        journal.append(b"x", b"y" * 50)
        journal.write()
        journal.sync()
    stolen = disk.open("journal/00000000000000000000.log").read(0, 10_000)
    journal.append(b"broken", b"z" * 50)
    journal.append(b"thief", stolen)
    journal.write()
    end = journal.synced
    disk = disk.killed()
    disk.damage("journal/00000000000000000000.log", end + 40)
    assert len(opened(disk)[1]) == 20


def test_sync_beside_a_checkpoint_never_claims_too_much() -> None:
    """A sync that started before a checkpoint returns the position it covered then."""
    disk = Disk(Random(0))
    journal, _ = opened(disk)
    journal.append(b"x")
    position = journal.write()
    assert journal.sync() == position
    journal.append(b"later")
    assert journal.sync() == position
