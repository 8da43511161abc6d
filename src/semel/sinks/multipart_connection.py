"""Cuts as multipart uploads: created and filled (prepared), completed once the log has decided.

    PREFIX/00001-00003/00001-00003-00000000000000000120-00000000000000000240-2.jsonl    attempt 2 of the cut
    PREFIX/_semel/delivery.json             whose objects these are, and of which log
    PREFIX/_semel/00001-00003.claim.json    how often partition 3 was claimed

Invariants: the attempt's number is in the key, and a list of uploads gives keys; so whoever aborts an upload aborts no
other owner's, and an upload that nobody has written down anywhere is known by its name. Of a cut only one attempt is
ever completed, so its records lie in one object. A store fences nobody: it is the log that refuses a superseded owner
its decision; the claims are there so that a second log (a copy in use) is seen.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from semel.contract import Attempt, Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks import positions
from semel.sinks.multipart_requests import Gone, Multipart, Upload
from semel.sinks.objects_connection import CONTROL, FOLDER, Control, control_of, decoded, folder_of
from semel.sinks.objects_form import fingerprint
from semel.sinks.objects_store import Away, Store, Taken, Version
from semel.sinks.sink import Diverged, SinkError
from semel.sinks.two_phase import settling

if TYPE_CHECKING:
    from semel.sinks.multipart import MultipartObjects


class Claimed(msgspec.Struct, frozen=True):
    epoch: int


class MultipartConnection:
    """See `ports.TwoPhaseConnection`."""

    def __init__(self, sink: MultipartObjects, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._store = Store(sink.plain.url, sink.where, sink.plain.options)
        self._multipart = Multipart(sink.bucket, sink.where, sink.plain.options)

    def prepare(self, value_type: object) -> Done | NotDone:
        try:
            self._store.tag(CONTROL)
        except Away as why:
            return NotDone(str(why))
        return Done()

    def notes(self) -> Sequence[str]:
        return ()

    # --- the claim ------------------------------------------------------------------------------------------------

    def take_over(
        self, delivery: DeliveryId, log: LogIdentity, latest: Attempt, decided: bool
    ) -> Claim | NotDone | Fenced:
        try:
            control = control_of(self._store, self._sink.where, delivery, log)
            folder = folder_of(control.incarnation, delivery.partition)
            epoch = self._claimed(folder)
            there: dict[Attempt, list[Upload]] = {}
            for upload in self._uploads(f"{folder}/"):
                if (attempt := attempt_of(upload.key)) is not None:
                    there.setdefault(attempt, []).append(upload)
            plan = settling(list(there), latest, decided)
            if plan.later:
                key = there[plan.later[0]][0].key
                return Fenced(f"{self._sink.where}: the upload {key} is there, of a later owner than the log tells")
            for attempt in plan.roll_back:
                for upload in there[attempt]:
                    self._aborted(upload)
            for attempt in plan.commit:
                self._completed(self._key(folder, attempt))
            after = f"{folder}/{folder}-{latest.start:020d}"
            ends = [one.end for key in self._store.keys(folder, after) if (one := attempt_of(key)) is not None]
        except Away as why:
            return NotDone(str(why))
        except Taken:
            return NotDone(f"{self._sink.where}: another delivery claims partition {delivery.partition} just now")
        # What lies before it may have been removed by a lifecycle rule.
        position = max(ends, default=latest.start)
        return Claim(delivery, epoch, control.incarnation, position, "", log)

    def _uploads(self, path: str) -> list[Upload]:
        """Below the prefix; keys as the store has them, without it."""
        start = f"{self._sink.prefix}/" if self._sink.prefix else ""
        return [Upload(one.key.removeprefix(start), one.id) for one in self._multipart.listed(start + path)]

    def _full(self, upload: Upload) -> Upload:
        return Upload(f"{self._sink.prefix}/{upload.key}" if self._sink.prefix else upload.key, upload.id)

    def _aborted(self, upload: Upload) -> None:
        with contextlib.suppress(Gone):
            self._multipart.abort(self._full(upload))

    def _claimed(self, folder: str) -> int:
        key = f"{FOLDER}/{folder}.claim.json"
        found = self._store.document(key)
        epoch = 1 if found is None else msgspec.json.decode(found[0], type=Claimed).epoch + 1
        self._store.replace(key, msgspec.json.encode(Claimed(epoch)), None if found is None else found[1])
        return epoch

    def _superseded(self, claim: Claim) -> Fenced | None:
        found = self._store.document(f"{FOLDER}/{folder_of(claim.incarnation, claim.delivery.partition)}.claim.json")
        newest = claim.epoch if found is None else msgspec.json.decode(found[0], type=Claimed).epoch
        if newest <= claim.epoch:
            return None
        return Fenced(
            f"{self._sink.where}: partition {claim.delivery.partition} was claimed by another delivery (epoch "
            f"{newest}, ours is {claim.epoch})"
        )

    # --- a cut ----------------------------------------------------------------------------------------------------

    def _key(self, folder: str, attempt: Attempt) -> str:
        name = f"{folder}-{attempt.start:020d}-{attempt.end:020d}-{attempt.number}"
        return f"{folder}/{name}{self._sink.shape.ending}"

    def _key_of(self, claim: Claim, attempt: Attempt) -> str:
        return self._key(folder_of(claim.incarnation, claim.delivery.partition), attempt)

    def prepare_cut(self, claim: Claim, attempt: Attempt, run: str, rows: Sequence[Row]) -> Outcome:
        assert attempt.start < attempt.end, attempt
        content = self._sink.shape.content(rows)
        body, key = self._sink.shape.pack(content), self._key_of(claim, attempt)
        try:
            if (fenced := self._superseded(claim)) is not None:
                return fenced
            self._steps.reached(Step.ROWS_BEFORE)
            upload = self._multipart.create(self._full(Upload(key, "")).key, fingerprint(content))
            size = self._sink.part_bytes
            for number, start in enumerate(range(0, len(body), size), 1):
                self._multipart.part(upload, number, body[start : start + size])
                self._steps.reached(Step.ROWS_AFTER)
            self._steps.reached(Step.PREPARE_BEFORE)
            # What the server has is what we have sent; the last look before it is decided.
            if len(self._multipart.parts(upload)) != -(-len(body) // size):
                return NotDone(f"{self._sink.where}: the upload of {key} lacks parts")
        except Away as why:
            return Unknown(str(why))
        except Gone as why:
            return NotDone(f"{why}: somebody has aborted it")
        self._steps.reached(Step.PREPARE_AFTER)
        return Done()

    def commit_cut(self, claim: Claim, attempt: Attempt) -> Outcome:
        key = self._key_of(claim, attempt)
        try:
            if (fenced := self._superseded(claim)) is not None:
                return fenced  # who has claimed settles it
            if self._completed(key):
                return Done()
        except Away as why:
            return Unknown(str(why))
        raise Diverged(
            f"{self._sink.where}: the log has decided {key}, which is neither being uploaded nor there: it was aborted "
            "(by hand, or by a lifecycle rule for unfinished uploads), or removed. Nothing more is delivered. Put it "
            f"back, or say what stands: `semel sink adopt APP.py {claim.delivery.sink}`."
        )

    def _completed(self, key: str) -> bool:
        """Whether the object is there, by this request or by one before it. The key is of one attempt of one owner."""
        uploads = [one for one in self._uploads(key) if one.key == key]
        try:
            for upload in map(self._full, uploads):
                self._multipart.complete(upload, self._multipart.parts(upload))
                return True
        except Gone:
            pass  # completed before, or aborted: some servers answer a repeated request like this, others with 200
        found = self._store.tag(key)
        if found is not None and not found[1]:
            raise SinkError(f"{self._sink.where}: {key} is there and is none of ours. Remove or move it once you know.")
        return found is not None

    def abandon(self, claim: Claim, attempt: Attempt) -> None:
        key = self._key_of(claim, attempt)
        with contextlib.suppress(Away, SinkError):
            for upload in self._uploads(key):
                if upload.key == key:
                    self._aborted(upload)

    def in_doubt(self) -> Sequence[str]:
        return [one.key for one in self._uploads("") if attempt_of(one.key) is not None]

    # --- for `semel sink` -----------------------------------------------------------------------------------------

    def left(self, app: str) -> Sequence[str] | NotDone:
        try:
            return self.in_doubt()
        except Away as why:
            return NotDone(str(why))

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        try:
            return self._remembered(app)[0]
        except Away as why:
            return NotDone(str(why))

    def _remembered(self, app: str) -> tuple[list[Remembered], Version | None]:
        found = self._store.document(CONTROL)
        if found is None:
            return [], None
        control = decoded(self._sink.where, found[0], app, self._sink.name)
        log = LogIdentity(control.topic_id, control.partitions)
        seen = []
        for partition in range(control.partitions):
            folder = folder_of(control.incarnation, partition)
            ends = [one.end for key in self._store.keys(folder) if (one := attempt_of(key)) is not None]
            claims = self._store.document(f"{FOLDER}/{folder}.claim.json")
            epoch = 0 if claims is None else msgspec.json.decode(claims[0], type=Claimed).epoch
            # Where nothing lies it cannot tell: readers, or a lifecycle rule, may have taken all away.
            seen.append(Remembered(partition, epoch, control.incarnation, max(ends, default=-1), "", log))
        return seen, found[1]

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        """The control object comes last: until it names the new incarnation, the delivery stops."""
        try:
            now, version = self._remembered(app)
            if changed := positions.changed(seen, now):
                return Fenced(f"{self._sink.where}: {changed}")
            for one in seen:  # a superseded owner begins no upload any more
                self._claimed(folder_of(one.incarnation, one.partition))
                self._steps.reached(Step.MOVE_PART)
            for upload in self._uploads(""):  # begun since nobody could decide any more
                if attempt_of(upload.key) is not None:
                    self._aborted(upload)
            for one in to:
                folder = folder_of(one.incarnation, one.partition)
                if any(attempt_of(key) is not None for key in self._store.keys(folder)):
                    return Fenced(f"{self._sink.where}: incarnation {one.incarnation} is in use already")
                self._claimed(folder)
                self._steps.reached(Step.MOVE_PART)
            last = to[0]
            control = Control(app, self._sink.name, last.incarnation, last.log.topic_id, last.log.partitions)
            self._store.replace(CONTROL, msgspec.json.encode(control), version)
        except Away as why:
            return Unknown(str(why))
        except Taken:
            return Fenced(f"{self._sink.where}: {positions.meanwhile('who has claimed it')}")
        return Done()

    # --- for semel verify -----------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        lines: list[bytes] = []
        for key in self._store.keys(""):
            if attempt_of(key) is not None and (found := self._store.read(key)) is not None:
                lines += self._sink.shape.lines(found[0])
        return lines

    def canonical(self, value: bytes) -> bytes:
        return self._sink.shape.line(value)

    def drop(self) -> None:
        if not self._sink.plain.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only objects that it has named itself.")
        for upload in self._uploads(""):  # never decided: a run of verify that was interrupted
            if attempt_of(upload.key) is not None:
                self._aborted(upload)
        self._store.clear()

    def close(self) -> None:
        self._multipart.close()


_KEY = re.compile(r"(?:.*/)?\d{5}-\d{5,}-(\d{20})-(\d{20})-(\d+)\.[a-z.]+")


def attempt_of(key: str) -> Attempt | None:
    """What a key's name says; None: not one of ours."""
    found = _KEY.fullmatch(key)
    return None if found is None else Attempt(int(found[1]), int(found[3]), int(found[2]))
