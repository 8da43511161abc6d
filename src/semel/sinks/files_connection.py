"""Cuts as files: written under a temporary name and synced, then renamed, and the folder synced.

    FOLDER/00001-00003/00001-00003-00000000000000000120-00000000000000000240.jsonl      committed
    FOLDER/00001-00003/.00001-00003-00000000000000000120-00000000000000000240.2.tmp     prepared, as attempt 2
    FOLDER/_semel/delivery.json                   whose files these are, and of which log
    FOLDER/_semel/00001-00003.0000000007          the seventh claim of partition 3

Invariants: a file is renamed only when all of it was synced, and its name is synced before it is called committed; no
file is ever replaced; a temporary name belongs to one attempt, so whoever removes one removes nothing that another
owner has prepared. A folder fences nobody: it is the log that refuses a superseded owner its decision. The claims are
there so that a second log (a copy in use) is seen.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from semel.contract import Attempt, Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks import positions
from semel.sinks.sink import Diverged, SinkError, or_adopt
from semel.sinks.two_phase import settling

if TYPE_CHECKING:
    from semel.sinks.files import Files

FOLDER = "_semel"
CONTROL = "delivery.json"


class Control(msgspec.Struct, frozen=True):
    app: str
    sink: str
    incarnation: int
    topic_id: str
    partitions: int


class Prepared(NamedTuple):
    path: Path
    incarnation: int
    attempt: Attempt


class FilesConnection:
    """See `ports.TwoPhaseConnection`."""

    def __init__(self, sink: Files, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._folder = sink.folder
        self._rename = os.rename  # where a test loses an answer

    def prepare(self, value_type: object) -> Done | NotDone:
        try:
            _made(self._folder / FOLDER)
        except OSError as why:
            return self._away(why, "it cannot be created")
        return Done()

    def notes(self) -> Sequence[str]:
        return ()

    def _away(self, why: OSError, what: str) -> NotDone:
        if isinstance(why, PermissionError | NotADirectoryError) or why.errno == 30:  # a read-only file system
            raise SinkError(f"{self._sink.where}: {what}: {why.strerror}. Name a folder that can be written.") from None
        return NotDone(f"{self._sink.where}: {what}: {why.strerror}")

    # --- the claim ------------------------------------------------------------------------------------------------

    def take_over(
        self, delivery: DeliveryId, log: LogIdentity, latest: Attempt, decided: bool
    ) -> Claim | NotDone | Fenced:
        try:
            control = self._control(delivery, log)
            folder = self._folder / place(control.incarnation, delivery.partition)
            _made(folder)
            epoch = self._claimed(control.incarnation, delivery.partition)
            if epoch is None:
                return NotDone(f"{self._sink.where}: another delivery claims partition {delivery.partition} just now")
            there = {one.attempt: one.path for one in prepared(folder) if one.incarnation == control.incarnation}
            plan = settling(list(there), latest, decided)
            if plan.later:
                name = there[plan.later[0]].name
                return Fenced(f"{self._sink.where}: {name} is there, of a later owner than the log tells")
            for attempt in plan.roll_back:
                there[attempt].unlink(missing_ok=True)
            for attempt in plan.commit:
                self._committed(there[attempt], self._final(control.incarnation, delivery.partition, attempt))
            if there:
                _synced(folder)
            ends = [one.end for path in folder.iterdir() if (one := cut_of(path)) is not None]
            # All of them may have been taken away by who reads them.
            position = max(ends, default=-1 if decided or latest.start else 0)
        except OSError as why:
            return self._away(why, f"partition {delivery.partition} could not be claimed")
        return Claim(delivery, epoch, control.incarnation, position, "", log)

    def _control(self, delivery: DeliveryId, log: LogIdentity) -> Control:
        wanted = Control(delivery.app, delivery.sink, 1, log.topic_id, log.partitions)
        path = self._folder / FOLDER / CONTROL
        if not path.exists():
            beside = path.with_name(f".{CONTROL}.{os.getpid()}.{id(self)}")
            _written(beside, msgspec.json.encode(wanted))
            with contextlib.suppress(FileExistsError):  # another partition's owner was faster
                os.link(beside, path)
            beside.unlink()
            _synced(path.parent)
        control = self._said(delivery.app, path)
        if (control.topic_id, control.partitions) != (log.topic_id, log.partitions):
            raise Diverged(
                f"{self._sink.where}: the outbox was re-created or re-partitioned: these files are of topic id "
                f"{control.topic_id or 'unknown'} with {control.partitions} partitions, the outbox is "
                f"{log.topic_id or 'unknown'} with {log.partitions}. Offsets of the one mean nothing in the other, so "
                f"nothing was delivered. Either put the former log back, or {or_adopt(delivery.sink)}"
            )
        return control

    def _said(self, app: str, path: Path) -> Control:
        try:
            control = msgspec.json.decode(path.read_bytes(), type=Control)
        except msgspec.MsgspecError as why:
            raise Diverged(
                f"{self._sink.where}: {FOLDER}/{CONTROL} was not written by semel ({why}): put it back."
            ) from None
        if (control.app, control.sink) != (app, self._sink.name):
            raise SinkError(
                f"{self._sink.where}: these are the files of sink {control.sink} of app {control.app}; "
                f"{self._sink.name} of {app} would mix with them. Give each a folder of its own."
            )
        return control

    def _claims(self, incarnation: int, partition: int) -> dict[int, Path]:
        stem = place(incarnation, partition) + "."
        found = (path for path in (self._folder / FOLDER).iterdir() if path.name.startswith(stem))
        return {int(path.name.removeprefix(stem)): path for path in found if path.name.removeprefix(stem).isdigit()}

    def _claimed(self, incarnation: int, partition: int) -> int | None:
        """The next epoch; None when somebody else has taken it at this moment."""
        claims = self._claims(incarnation, partition)
        epoch = max(claims, default=0) + 1
        path = self._folder / FOLDER / f"{place(incarnation, partition)}.{epoch:010d}"
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return None
        _synced(path.parent)
        for old in claims.values():
            old.unlink(missing_ok=True)
        return epoch

    def _superseded(self, claim: Claim) -> Fenced | None:
        newest = max(self._claims(claim.incarnation, claim.delivery.partition), default=claim.epoch)
        if newest <= claim.epoch:
            return None
        return Fenced(
            f"{self._sink.where}: partition {claim.delivery.partition} was claimed by another delivery (epoch "
            f"{newest}, ours is {claim.epoch})"
        )

    # --- a cut ----------------------------------------------------------------------------------------------------

    def _final(self, incarnation: int, partition: int, attempt: Attempt) -> Path:
        stem = place(incarnation, partition)
        return self._folder / stem / f"{stem}-{attempt.start:020d}-{attempt.end:020d}{self._sink.shape.ending}"

    def _temporary(self, claim: Claim, attempt: Attempt) -> Path:
        stem = place(claim.incarnation, claim.delivery.partition)
        return self._folder / stem / f".{stem}-{attempt.start:020d}-{attempt.end:020d}.{attempt.number}.tmp"

    def prepare_cut(self, claim: Claim, attempt: Attempt, run: str, rows: Sequence[Row]) -> Outcome:
        assert attempt.start < attempt.end, attempt
        body = self._sink.shape.pack(self._sink.shape.content(rows))
        path = self._temporary(claim, attempt)
        try:
            if (fenced := self._superseded(claim)) is not None:
                return fenced
            self._steps.reached(Step.ROWS_BEFORE)
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(body)
                    file.flush()
                    self._steps.reached(Step.ROWS_AFTER)
                    self._steps.reached(Step.PREPARE_BEFORE)
                    os.fsync(file.fileno())
                _synced(path.parent)
            except OSError:
                # After a failed sync nobody knows what the disk holds: this one is never committed.
                path.unlink(missing_ok=True)
                raise
        except OSError as why:
            return self._away(why, f"{path.name} could not be written")
        self._steps.reached(Step.PREPARE_AFTER)
        return Done()

    def commit_cut(self, claim: Claim, attempt: Attempt) -> Outcome:
        final = self._final(claim.incarnation, claim.delivery.partition, attempt)
        try:
            if (fenced := self._superseded(claim)) is not None:
                return fenced  # who has claimed settles it
            if self._committed(self._temporary(claim, attempt), final):
                return Done()
        except OSError as why:
            return Unknown(f"{self._sink.where}: whether {final.name} has its name is not known: {why.strerror}")
        raise Diverged(
            f"{self._sink.where}: the log has decided {final.name}, and it is there under neither of its names: it was "
            "taken away or removed by hand. Nothing more is delivered. Put it back, or, if it was taken away by who "
            f"reads it, put an empty file there once: {final}"
        )

    def _committed(self, temporary: Path, final: Path) -> bool:
        """Whether it is there under its own name, synced; False: under neither."""
        if final.exists() and temporary.exists():
            raise SinkError(
                f"{self._sink.where}: {final.name} is there already, and was not written by this delivery. Nothing was "
                "replaced. Remove or move it once you know, then start the app again."
            )
        try:
            self._rename(temporary, final)
        except FileNotFoundError:  # a former attempt of ours, or another owner, has done so
            if not final.exists():
                return False
        _synced(final.parent)
        return True

    def abandon(self, claim: Claim, attempt: Attempt) -> None:
        with contextlib.suppress(OSError):
            self._temporary(claim, attempt).unlink(missing_ok=True)

    def in_doubt(self) -> Sequence[str]:
        folders = sorted(path for path in self._folder.glob("*-*") if path.is_dir())
        return [str(one.path.relative_to(self._folder)) for folder in folders for one in prepared(folder)]

    # --- for `semel sink` -----------------------------------------------------------------------------------------

    def left(self, app: str) -> Sequence[str] | NotDone:
        try:
            return self.in_doubt()
        except OSError as why:
            return self._away(why, "it cannot be listed")

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        try:
            return self._remembered(app)
        except OSError as why:
            return self._away(why, "it cannot be read")

    def _remembered(self, app: str) -> list[Remembered]:
        path = self._folder / FOLDER / CONTROL
        if not path.exists():
            return []
        control = self._said(app, path)
        log = LogIdentity(control.topic_id, control.partitions)
        seen = []
        for partition in range(control.partitions):
            folder = self._folder / place(control.incarnation, partition)
            files = folder.iterdir() if folder.is_dir() else ()
            ends = [one.end for path in files if (one := cut_of(path)) is not None]
            epoch = max(self._claims(control.incarnation, partition), default=0)
            # Where nothing lies it cannot tell: readers may have taken all away.
            seen.append(Remembered(partition, epoch, control.incarnation, max(ends, default=-1), "", log))
        return seen

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        """The control file comes last: until it names the new incarnation, the delivery stops."""
        path = self._folder / FOLDER / CONTROL
        try:
            if changed := positions.changed(seen, self._remembered(app)):
                return Fenced(f"{self._sink.where}: {changed}")
            claimed = positions.meanwhile("who has claimed it")
            for one in seen:  # a superseded owner begins no file any more
                if self._claimed(one.incarnation, one.partition) is None:
                    return Fenced(f"{self._sink.where}: {claimed}")
                self._steps.reached(Step.MOVE_PART)
            for name in self.in_doubt():  # begun since nobody could decide any more
                (self._folder / name).unlink(missing_ok=True)
            for one in to:
                folder = self._folder / place(one.incarnation, one.partition)
                if folder.is_dir() and any(cut_of(file) is not None for file in folder.iterdir()):
                    return Fenced(f"{self._sink.where}: incarnation {one.incarnation} is in use already")
                if self._claimed(one.incarnation, one.partition) is None:
                    return Fenced(f"{self._sink.where}: {claimed}")
                self._steps.reached(Step.MOVE_PART)
            last = to[0]
            control = Control(app, self._sink.name, last.incarnation, last.log.topic_id, last.log.partitions)
            beside = path.with_name(f".{CONTROL}.{os.getpid()}.{id(self)}")
            _written(beside, msgspec.json.encode(control))
            os.replace(beside, path)
            _synced(path.parent)
        except OSError as why:
            return Unknown(f"{self._sink.where}: a part of the move failed: {why.strerror}")
        return Done()

    # --- for semel verify -----------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        return [line for path in complete(self._folder) for line in self._sink.shape.lines(path.read_bytes())]

    def canonical(self, value: bytes) -> bytes:
        return self._sink.shape.line(value)

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only folders that it has named itself.")
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None: ...


# --- names -----------------------------------------------------------------------------------------------------------

_CUT = re.compile(r"(\d{5})-(\d{5,})-(\d{20})-(\d{20})\.[a-z.]+")
_TEMPORARY = re.compile(r"\.(\d{5})-(\d{5,})-(\d{20})-(\d{20})\.(\d+)\.tmp")


def place(incarnation: int, partition: int) -> str:
    return f"{incarnation:05d}-{partition:05d}"


def cut_of(path: Path) -> Attempt | None:
    """Of a committed file; None: not one of ours. (Which attempt it was, nobody needs to know.)"""
    found = _CUT.fullmatch(path.name)
    return None if found is None else Attempt(int(found[3]), 0, int(found[4]))


def prepared(folder: Path) -> Iterator[Prepared]:
    for path in sorted(folder.iterdir()):
        if (found := _TEMPORARY.fullmatch(path.name)) is not None:
            yield Prepared(path, int(found[1]), Attempt(int(found[3]), int(found[5]), int(found[4])))


def complete(folder: Path) -> list[Path]:
    """In the order of incarnations, partitions and offsets."""
    return sorted(path for path in folder.glob("*-*/*") if cut_of(path) is not None)


# --- syncing ---------------------------------------------------------------------------------------------------------


def _written(path: Path, body: bytes) -> None:
    with path.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def _synced(folder: Path) -> None:
    """The names in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _made(folder: Path) -> None:
    """The folder is there, and so is its name, and those of the folders above that were made for it."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing:
        _synced(one.parent)
