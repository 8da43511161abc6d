"""Cuts as objects: created, never replaced; a control object with the incarnation; a manifest per partition.

    PREFIX/00001-00003/00001-00003-00000000000000000120-00000000000000000240.jsonl
    PREFIX/_semel/delivery.json            whose objects these are, and of which log
    PREFIX/_semel/00001-00003.json         which objects of partition 3 are complete
    (in a folder: delivery.0000000001.json and so on; the highest number counts)

Invariants: the bytes under a key never change, so a second write of a cut, by whomever, changes nothing; "it is there
already" is success only when what is there has the same content (a store can refuse our own second attempt, and can
hold somebody else's object). A manifest changes only from the version that was read (conditional PUT) and under the
epoch of its last claim: it says which cut is under way before the object is put, so two logs that went different ways
(a copy in use) never put two cuts that overlap; and it names an object only after it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec.structs import replace

from semel.contract import Claim, DeliveryId, LogIdentity, Remembered, Row
from semel.ports import Done, Fenced, NotDone, Outcome, Step, Steps, Unknown
from semel.sinks import positions
from semel.sinks.objects_form import fingerprint
from semel.sinks.objects_store import Away, Store, Taken, Version
from semel.sinks.sink import Diverged, SinkError, or_adopt

if TYPE_CHECKING:
    from semel.sinks.objects import Objects

FOLDER = "_semel"
CONTROL = f"{FOLDER}/delivery.json"
LISTED_MAX = 100  # objects that a manifest names; the ones before are found by listing
TRIES = 3


class Control(msgspec.Struct, frozen=True):
    app: str
    sink: str
    incarnation: int
    topic_id: str
    partitions: int


class Complete(msgspec.Struct, frozen=True):
    """One object that is whole and will not change. `sha256` is of its content, before compression; objects that the
    manifest no longer names have none, and `records` -1."""

    key: str
    partition: int
    start: int
    end: int
    records: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """`position`: the end of the last complete object; all before it are there, without a gap. `epoch` counts claims.
    `under_way`: the cut whose object is being put, or was when its owner died."""

    incarnation: int
    partition: int
    epoch: int = 0
    position: int = 0
    under_way: tuple[int, int] | None = None
    objects: int = 0
    records: int = 0
    last: tuple[Complete, ...] = ()

    def followed_by(self, one: Complete) -> Manifest:
        assert one.start == self.position, (one, self.position)
        return replace(
            self,
            position=one.end,
            under_way=None,
            objects=self.objects + 1,
            records=self.records + one.records,
            last=(*self.last, one)[-LISTED_MAX:],
        )


class _Kept(NamedTuple):
    manifest: Manifest
    version: Version | None  # None: there is none yet


class _Superseded(Exception):
    """Another delivery has claimed the partition since."""


class ObjectsConnection:
    """See `ports.SinkConnection` and `CutDelivery`."""

    def __init__(self, sink: Objects, steps: Steps) -> None:
        self._sink, self._steps = sink, steps
        self._store = Store(sink.url, sink.where, sink.options, sink.store)
        self._kept: dict[tuple[int, int], _Kept] = {}

    def prepare(self, value_type: object) -> Done | NotDone:
        try:
            self._store.tag(CONTROL)
        except Away as why:
            return NotDone(str(why))
        return Done()

    def notes(self) -> Sequence[str]:
        return ()

    # --- the claim --------------------------------------------------------------------------------------------------

    def claim(self, delivery: DeliveryId, log: LogIdentity) -> Claim | NotDone:
        """The next epoch. The position is the end of what lies here, or may come here still: by the manifest, by the
        cut that is under way, by what is there besides."""
        try:
            control = control_of(self._store, self._sink.where, delivery, log)
            at = control.incarnation, delivery.partition
            kept = self._read(*at)
            manifest = replace(kept.manifest, epoch=kept.manifest.epoch + 1)
            # Before it is listed: after this nobody else begins a cut.
            self._kept[at] = _Kept(manifest, self._put(manifest, kept.version))
            whole = self._whole(manifest)
        except Away as why:
            return NotDone(str(why))
        except Taken:
            return NotDone(f"{self._sink.where}: another delivery claims partition {delivery.partition} just now")
        position = max([whole, *(manifest.under_way or ())])
        return Claim(delivery, manifest.epoch, control.incarnation, position, "", log)

    def _whole(self, manifest: Manifest) -> int:
        """The end of the last object that is there, whether or not the manifest names it yet."""
        folder = folder_of(manifest.incarnation, manifest.partition)
        listed = self._store.keys(folder, f"{folder}/{folder}-{manifest.position:020d}")
        return max([manifest.position, *(found.end for key in listed if (found := parsed(key)) is not None)])

    def _read(self, incarnation: int, partition: int) -> _Kept:
        found = self._store.document(manifest_key(incarnation, partition))
        if found is None:
            kept = _Kept(Manifest(incarnation, partition), None)
        else:
            kept = _Kept(_manifest(found[0], self._sink.where), found[1])
        self._kept[incarnation, partition] = kept
        return kept

    # --- a cut ------------------------------------------------------------------------------------------------------

    def write(self, claim: Claim, start: int, end: int, run: str, rows: Sequence[Row]) -> Outcome:
        partition = claim.delivery.partition
        content = self._sink.shape.content(rows)
        tag = fingerprint(content)
        body = self._sink.shape.pack(content, rows)  # a record that has no place is refused before anything is written
        key = key_of(claim.incarnation, partition, start, end) + self._sink.shape.ending
        one = Complete(key, partition, start, end, len(rows), tag)
        self._steps.reached(Step.ROWS_BEFORE)
        try:
            if self._change(claim, one, begins=True):
                self._steps.reached(Step.OBJECT_BEFORE)
                try:
                    self._store.create(key, body, tag)
                except Taken:
                    self._compare(key, tag)
                self._steps.reached(Step.OBJECT_AFTER)
                self._change(claim, one, begins=False)
            else:
                self._compare(key, tag, complete=True)  # a repeat
        except Away as why:
            return Unknown(str(why))
        except _Superseded as why:
            return Fenced(str(why))
        self._steps.reached(Step.ROWS_AFTER)
        return Done()

    def _compare(self, key: str, tag: str, complete: bool = False) -> None:
        """Returns when what lies there is what we wanted to write. `complete`: the manifest says that it is there."""
        found = self._store.tag(key)
        if found is None and complete:
            raise Diverged(
                f"{self._sink.where}: the manifest is past the cut of {key}, which is not there: it was removed "
                "before its position was written, or another log delivers here. Nothing more is delivered."
            )
        if found is None:
            raise Away(f"{self._sink.where}: {key} was refused, and is not there; it is sent again")
        there = found[1]
        if not there:  # the store keeps no metadata
            body = self._store.read(key)
            there = "" if body is None else self._sink.shape.fingerprint_in(body[0])
        if there != tag:
            raise SinkError(
                f"{self._sink.where}: {key} is there already, with other bytes ({found[0]} of them, content "
                f"{there[:12] or 'not of this form'}; ours is {tag[:12]}). Nothing was replaced. Somebody else writes "
                "under this prefix, or the object was changed: remove or move it once you know, then start the app "
                "again; or give the sink another prefix."
            )
        self._store.sync(key)

    def _change(self, claim: Claim, one: Complete, *, begins: bool) -> bool:
        """The manifest says that this cut is under way (`begins`), or that it is complete. False: it was complete."""
        at = claim.incarnation, one.partition
        for _ in range(TRIES):
            kept = self._kept.get(at) or self._read(*at)
            manifest = kept.manifest
            if manifest.epoch > claim.epoch:
                raise _Superseded(
                    f"{self._sink.where}: partition {one.partition} was claimed by another delivery "
                    f"(epoch {manifest.epoch}, ours is {claim.epoch})"
                )
            if manifest.position >= one.end:
                return False
            if begins and manifest.under_way == (one.start, one.end):
                return True
            manifest = self._filled(manifest, one.start)
            if manifest.position != one.start or manifest.under_way not in (None, (one.start, one.end)):
                told = "" if manifest.under_way is None else f", and the cut {list(manifest.under_way)} is under way"
                raise Diverged(
                    f"{self._sink.where}: the manifest of partition {one.partition} ends at {manifest.position}{told}; "
                    f"{one.key} does not follow it: another log delivers here (a copy in use?), or the manifest was "
                    "changed. Nothing more is delivered."
                )
            manifest = replace(manifest, under_way=(one.start, one.end)) if begins else manifest.followed_by(one)
            del self._kept[at]  # whatever happens now, it is another one
            try:
                self._kept[at] = _Kept(manifest, self._put(manifest, kept.version))
            except Taken:
                continue
            return True
        raise Away(f"{self._sink.where}: the manifest of partition {one.partition} changes under us")

    def _put(self, manifest: Manifest, version: Version | None) -> Version:
        key = manifest_key(manifest.incarnation, manifest.partition)
        return self._store.replace(key, msgspec.json.encode(manifest), version)

    def _filled(self, manifest: Manifest, end: int) -> Manifest:
        """With the objects up to `end` that it does not name though they are there: a manifest that was removed, or put
        back from a backup. The objects are the truth; a manifest is made of them."""
        if manifest.position >= end:
            return manifest
        folder = folder_of(manifest.incarnation, manifest.partition)
        for key in self._store.keys(folder, f"{folder}/{folder}-{manifest.position:020d}"):
            one = parsed(key)
            if one is None or one.start != manifest.position or one.end > end:
                continue
            found = self._store.read(key)
            if found is not None:
                shape = self._sink.shape
                records, sha256 = len(shape.lines(found[0])), shape.fingerprint_in(found[0])
                manifest = manifest.followed_by(Complete(key, one.partition, one.start, one.end, records, sha256))
        return manifest

    # --- for `semel sink` -------------------------------------------------------------------------------------------

    def remembered(self, app: str) -> Sequence[Remembered] | NotDone:
        try:
            found = self._store.document(CONTROL)
            if found is None:
                return []
            control = decoded(self._sink.where, found[0], app, self._sink.name)
            return [self._remembered(control, partition) for partition in range(control.partitions)]
        except Away as why:
            return NotDone(str(why))

    def _remembered(self, control: Control, partition: int) -> Remembered:
        manifest = self._read(control.incarnation, partition).manifest
        whole = self._whole(manifest)
        position = max([whole, *(manifest.under_way or ())])
        log = LogIdentity(control.topic_id, control.partitions)
        return Remembered(partition, manifest.epoch, control.incarnation, position, "", log, whole=whole)

    def move(self, app: str, seen: Sequence[Remembered], to: Sequence[Remembered]) -> Outcome:
        """The control object comes last: until it names the new incarnation, nobody writes under it. A move that was
        interrupted is made again, under the incarnation after."""
        try:
            found = self._store.document(CONTROL)
            now = [] if found is None else self.remembered(app)
            if isinstance(now, NotDone):
                return now
            if changed := positions.changed(seen, now):
                return Fenced(f"{self._sink.where}: {changed}")
            for one in seen:  # a superseded owner, also one on a copy of the log, begins no cut any more
                kept = self._kept[one.incarnation, one.partition]
                self._put(replace(kept.manifest, epoch=kept.manifest.epoch + 1), kept.version)
            for one in to:
                kept = self._read(one.incarnation, one.partition)
                if kept.manifest.objects or kept.manifest.under_way:
                    return Fenced(f"{self._sink.where}: incarnation {one.incarnation} is in use already")
                manifest = Manifest(one.incarnation, one.partition, kept.manifest.epoch + 1, one.position)
                self._put(manifest, kept.version)
            last = to[0]
            control = Control(app, self._sink.name, last.incarnation, last.log.topic_id, last.log.partitions)
            self._store.replace(CONTROL, msgspec.json.encode(control), None if found is None else found[1])
        except Away as why:
            return Unknown(str(why))
        except Taken:
            return Fenced(f"{self._sink.where}: somebody else changes it just now")
        finally:
            self._kept.clear()
        return Done()

    # --- for `semel verify` -----------------------------------------------------------------------------------------

    def rows(self) -> Sequence[bytes]:
        lines: list[bytes] = []
        for one in complete(self._sink):
            found = self._store.read(one.key)
            if found is None:
                raise SinkError(f"{self._sink.where}: {one.key} is complete by its manifest, and gone.")
            lines += self._sink.shape.lines(found[0])
        return lines

    def canonical(self, value: bytes) -> bytes:
        return self._sink.shape.line(value)

    def drop(self) -> None:
        if not self._sink.suffix:
            raise SinkError(f"{self._sink.where}: semel removes only objects that it has named itself.")
        self._store.clear()

    def close(self) -> None:
        self._kept.clear()


# --- the control object -----------------------------------------------------------------------------------------------


def decoded(where: str, body: bytes, app: str, sink: str) -> Control:
    try:
        control = msgspec.json.decode(body, type=Control)
    except msgspec.MsgspecError as why:
        raise Diverged(f"{where}: {CONTROL} was not written by semel ({why}): put it back.") from None
    if (control.app, control.sink) != (app, sink):
        raise SinkError(
            f"{where}: these are the objects of sink {control.sink} of app {control.app}; {sink} of {app} would mix "
            "with them. Give each a prefix of its own."
        )
    return control


def control_of(store: Store, where: str, delivery: DeliveryId, log: LogIdentity) -> Control:
    """What the control object says, which is made where there is none; Diverged where it is of another log."""
    wanted = Control(delivery.app, delivery.sink, 1, log.topic_id, log.partitions)
    found = store.document(CONTROL)
    if found is None:
        try:
            store.replace(CONTROL, msgspec.json.encode(wanted), None)
            return wanted
        except Taken:  # another partition's owner was faster, or it was we, and the answer was lost
            if (found := store.document(CONTROL)) is None:
                raise
    control = decoded(where, found[0], delivery.app, delivery.sink)
    if (control.topic_id, control.partitions) != (log.topic_id, log.partitions):
        raise Diverged(
            f"{where}: the outbox was re-created or re-partitioned: these objects are of topic id "
            f"{control.topic_id or 'unknown'} with {control.partitions} partitions, the outbox is "
            f"{log.topic_id or 'unknown'} with {log.partitions}. Offsets of the one mean nothing in the other, so "
            f"nothing was delivered. Either put the former log back, or {or_adopt(delivery.sink)}"
        )
    return control


# --- names -----------------------------------------------------------------------------------------------------------


def folder_of(incarnation: int, partition: int) -> str:
    return f"{incarnation:05d}-{partition:05d}"


def key_of(incarnation: int, partition: int, start: int, end: int) -> str:
    """Without ending. In the order of the names, the objects of a partition are in the order of their records."""
    folder = folder_of(incarnation, partition)
    return f"{folder}/{folder}-{start:020d}-{end:020d}"


def manifest_key(incarnation: int, partition: int) -> str:
    return f"{FOLDER}/{folder_of(incarnation, partition)}.json"


def parsed(key: str) -> Complete | None:
    """What an object's name says; None when it is not one of ours."""
    name, _, _ = key.rpartition("/")[2].partition(".")
    parts = name.split("-")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        return None
    _, partition, start, end = map(int, parts)
    return Complete(key, partition, start, end, -1, "")


def _manifest(body: bytes, where: str) -> Manifest:
    try:
        return msgspec.json.decode(body, type=Manifest)
    except msgspec.MsgspecError as why:
        raise Diverged(f"{where}: a manifest was not written by semel ({why}): put it back.") from None


def complete(sink: Objects) -> list[Complete]:
    """Of every incarnation and partition, in order."""
    store = Store(sink.url, sink.where, sink.options, sink.store)
    found: list[Complete] = []
    try:
        for key in store.documents(FOLDER):
            body = None if key == CONTROL else store.document(key)
            if body is None:
                continue
            manifest = _manifest(body[0], sink.where)
            if len(manifest.last) < manifest.objects:
                first = manifest.last[0].start
                folder = folder_of(manifest.incarnation, manifest.partition)
                listed = (one for key in store.keys(folder) if (one := parsed(key)) is not None)
                found += [one for one in listed if one.end <= first]
            found += manifest.last
    except Away as why:
        raise SinkError(f"{why}. Try again when the store answers.") from None
    return found
