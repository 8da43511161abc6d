"""TwoPhase: what a delivery concludes from the log's record and the sink's answer. Pure.

    cut, attempt n → prepared at the sink under n → decided: a record of the delivery topic → committed → position

Each arrow is one step of one system, and the log's record says in which of them a new owner begins: without a decision
nothing of the cut is visible, and everything prepared is rolled back; with it the sink commits, whoever asks it.

Invariants: what an attempt prepared is committed only after a record with `decided` of that very attempt; no attempt's
number is used by two owners (FAULTS S17), so a superseded owner that goes on settles nothing but its own; and a
partition has one record, so no decision can be torn from its cut.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from msgspec.structs import replace

from semel.contract import (
    Atomicity,
    Attempt,
    Claim,
    Contract,
    DeliveryId,
    Fence,
    Guarantee,
    Identity,
    LogIdentity,
    PositionIn,
    Resolution,
    Settlement,
)
from semel.sinks.agreement import CHOICE
from semel.sinks.cuts import Cut, Progress, refused_in
from semel.sinks.sink import Ahead, Diverged, SinkError

NAME_BYTES_MAX = 200  # of a prepared transaction of Postgres; what has no limit of its own keeps to it
DIGITS = 19  # of an offset


def two_phase(durability: str) -> Contract:
    """The contract of a sink that prepares."""
    return Contract(
        name="TwoPhase",
        guarantee=Guarantee.EXACTLY_ONCE,
        identity=Identity.CUT,
        atomicity=Atomicity.BATCH,
        remembers_position=False,
        fence=Fence.TRANSACTIONAL_ID,
        resolution=Resolution.READ_DECISION,
        durability=durability,
        position=PositionIn.DELIVERY_TOPIC,
        settlement=Settlement.DECIDED,
    )


# --- the record ------------------------------------------------------------------------------------------------------


def attempt_of(cut: Cut) -> Attempt:
    return Attempt(cut.start, cut.attempt, cut.end)


def latest(found: Progress | None) -> tuple[Attempt, bool]:
    """The last attempt that was written down, and whether it was decided. Where no cut is under way: one before all
    that begin at the position."""
    if found is None or found.cut is None:
        position = 0 if found is None else found.position
        return Attempt(position, 0, position), False
    return attempt_of(found.cut), found.cut.decided


def decided(progress: Progress) -> Progress:
    assert progress.cut is not None and not progress.cut.decided, progress
    return replace(progress, cut=replace(progress.cut, decided=True))


def resumed(claim: Claim, found: Progress | None, here: LogIdentity, place: str) -> Progress:
    """Where a new owner goes on, after the sink has settled what was in doubt. Diverged where the sink holds something
    else than the log has decided."""
    if found is None or found.incarnation < claim.incarnation:
        _held(claim, 0, place)
        return Progress(claim.incarnation, here.topic_id, here.partitions, 0, "", refused=refused_in(found, here))
    if found.incarnation > claim.incarnation:
        raise Diverged(
            f"{place}: the sink stands at incarnation {claim.incarnation}, the log at {found.incarnation}: the sink "
            "was put back from a backup, its control record was removed, or a move of its position was interrupted. "
            f"{CHOICE}"
        )
    cut = found.cut
    if cut is not None and cut.decided:
        _held(claim, cut.end, place)
        return replace(found, position=cut.end, mark=cut.mark, cut=None)
    _held(claim, found.position, place)
    # What is prepared under the former number is gone; a former owner may still try to prepare it again.
    return found if cut is None else replace(found, cut=replace(cut, attempt=cut.attempt + 1))


def _held(claim: Claim, wanted: int, place: str) -> None:
    if claim.position in (wanted, -1):
        return
    if claim.position > wanted:
        raise Ahead(
            f"{place}: it holds what was delivered up to offset {claim.position}, and the log has decided up to "
            f"{wanted} only: the log went back behind the sink (a backup put back, a tail lost in a power cut), or a "
            f"copy of it is in use. {CHOICE}"
        )
    raise Diverged(
        f"{place}: the log has decided up to offset {wanted}, and the sink holds up to {claim.position} and nothing "
        "prepared beyond it: the sink was put back from a backup, or somebody rolled back what was prepared. Nothing "
        "was delivered. Put back the newer one."
    )


def stranger(reason: str, place: str) -> Diverged:
    """What is prepared later than what is written down was written down before, in the log that this is of. So when the
    same is read twice, each time after the id was initialised, this is not that log."""
    return Diverged(
        f"{place}: {reason}; the log knows of no such attempt, asked twice: it went back behind the sink (a backup "
        "put back, a tail lost in a power cut), or a copy of it is in use. What is prepared was left as it is: commit "
        f"it or roll it back by hand once you know. {CHOICE}"
    )


# --- names -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settling:
    """What is to become of the prepared things of one delivery, by their attempts."""

    commit: tuple[Attempt, ...]
    roll_back: tuple[Attempt, ...]
    later: tuple[Attempt, ...]  # of an owner that we have not heard of: not to be touched


def settling(prepared: list[Attempt], latest: Attempt, decided: bool) -> Settling:
    return Settling(
        tuple(one for one in prepared if decided and one == latest),
        tuple(one for one in prepared if one <= latest and not (decided and one == latest)),
        tuple(one for one in prepared if one > latest),
    )


def prefix(delivery: DeliveryId, where: str, bytes_max: int = NAME_BYTES_MAX) -> str:
    """What the names of all attempts of one delivery begin with; SinkError where they would be too long."""
    text = f"{delivery_prefix(delivery.app, delivery.sink)}{delivery.partition}:"
    longest = len(text.encode()) + 2 * DIGITS + len("-:") + 10
    if longest > bytes_max:
        raise SinkError(
            f"{where}: the name of a prepared transaction would have {longest} bytes, {bytes_max} are allowed: "
            "choose a shorter name for the app or the sink (name=)."
        )
    return text


def delivery_prefix(app: str, sink: str) -> str:
    """What the names of all partitions of a delivery begin with."""
    return f"semel:{app}:{sink}:"


def name_of(delivery: DeliveryId, attempt: Attempt, where: str) -> str:
    """semel:APP:SINK:PARTITION:START-END:ATTEMPT"""
    return f"{prefix(delivery, where)}{attempt.start}-{attempt.end}:{attempt.number}"


def attempt_in(name: str, prefix: str) -> Attempt | None:
    """None: not a name of this delivery."""
    found = _NUMBERS.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
    return None if found is None else Attempt(int(found[1]), int(found[3]), int(found[2]))


_NUMBERS = re.compile(r"(\d+)-(\d+):(\d+)")
