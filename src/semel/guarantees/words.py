"""Whether a contract holds together: its word, its fields and the type that `write` sees say one thing.

Pure: the contract kit refuses what this names, and `semel verify` calls a run with such a contract unknown. Invariant:
every field of a contract is looked at, so one that is deleted or weakened is named.
"""

from __future__ import annotations

from typing import NamedTuple

from semel.contract import (
    Atomicity,
    Contract,
    Fence,
    Guarantee,
    Identity,
    PositionIn,
    RecordIdentity,
    Replay,
    Resolution,
    Settlement,
    SourceContract,
    SourceFence,
    SourcePosition,
)
from semel.guarantees.rules import lowered, lowered_source


class Fields(NamedTuple):
    """What the word of DESIGN's table allows each field to be."""

    guarantee: Guarantee
    identity: frozenset[Identity]
    atomicity: frozenset[Atomicity]
    remembers_position: bool
    position: frozenset[PositionIn]
    fence: frozenset[Fence]
    resolution: frozenset[Resolution]
    settlement: frozenset[Settlement]
    window: bool = False
    through: bool = False


WEAK = ("AtLeastOnce", "AtMostOnce")
_ANY_POSITION = frozenset(PositionIn)
_VISIBLE = frozenset((Atomicity.BATCH, Atomicity.RECORD))
_AGAIN = frozenset((Resolution.SEND_AGAIN, Resolution.READ_BACK, Resolution.READ_POSITION_AFTER_CLAIM))
_REPEATED = frozenset((Settlement.REPEATED, Settlement.CUT_REPEATED))

WORDS = {
    "Transactional": Fields(
        Guarantee.EXACTLY_ONCE,
        frozenset((Identity.OFFSET,)),
        frozenset((Atomicity.BATCH,)),
        True,
        frozenset((PositionIn.SINK,)),
        frozenset((Fence.EPOCH_IN_TRANSACTION, Fence.TRANSACTIONAL_ID)),
        frozenset((Resolution.READ_POSITION_AFTER_CLAIM,)),
        frozenset((Settlement.ROLLED_BACK,)),
    ),
    "Versioned": Fields(
        Guarantee.EFFECTIVELY_ONCE,
        frozenset((Identity.VERSION,)),
        _VISIBLE,
        False,
        _ANY_POSITION,
        frozenset((Fence.OLDER_VERSION_LOSES,)),
        _AGAIN,
        frozenset((Settlement.REPEATED,)),
    ),
    "Keyed": Fields(
        Guarantee.EFFECTIVELY_ONCE,
        frozenset((Identity.CUT, Identity.REQUEST_KEY)),
        _VISIBLE,
        False,
        _ANY_POSITION,
        frozenset((Fence.CREATE_ONLY, Fence.FIRST_ANSWER)),
        _AGAIN,
        _REPEATED,
    ),
    "Windowed": Fields(
        Guarantee.ONCE_IN_WINDOW,
        frozenset((Identity.TOKEN, Identity.CUT, Identity.REQUEST_KEY, Identity.VERSION, Identity.SAMPLE)),
        _VISIBLE,
        False,
        _ANY_POSITION,
        frozenset((Fence.CREATE_ONLY, Fence.FIRST_ANSWER, Fence.OLDER_VERSION_LOSES)),
        _AGAIN,
        _REPEATED,
        window=True,
    ),
    "TwoPhase": Fields(
        Guarantee.EXACTLY_ONCE,
        frozenset((Identity.CUT,)),
        frozenset((Atomicity.BATCH,)),
        False,
        frozenset((PositionIn.DELIVERY_TOPIC, PositionIn.SINK)),
        frozenset((Fence.TRANSACTIONAL_ID, Fence.EPOCH_IN_TRANSACTION)),
        frozenset((Resolution.READ_DECISION,)),
        frozenset((Settlement.DECIDED,)),
    ),
    "Deduplicated": Fields(
        Guarantee.EFFECTIVELY_ONCE,
        frozenset((Identity.EVENT_ID,)),
        _VISIBLE,
        False,
        _ANY_POSITION,
        frozenset(Fence),
        _AGAIN,
        _REPEATED,
        through=True,
    ),
}


def once(contract: Contract) -> bool:
    """Whether it claims that a repeat has no second effect."""
    return contract.guarantee.rank > Guarantee.AT_LEAST_ONCE.rank


def disagreement(c: Contract, kind: str) -> str:
    """The first thing that does not fit, in words; "" where all does. `kind`: the name of the sink's type."""
    weak = kind == "Weak"
    if not weak and kind != c.name:
        return f"its type is {kind}, not {c.name}"
    if weak == once(c):
        return f"its type is {kind}, and it claims {c.guarantee}"
    if (finding := lowered(c)) is not None:
        return finding.reason
    if (word := WORDS.get(c.name)) is None:
        return "" if weak and c.name in WEAK else f"no contract is named {c.name!r}: {', '.join((*WORDS, *WEAK))}"
    if c.guarantee is not word.guarantee:
        return f"{c.name} is {word.guarantee}, it claims {c.guarantee}"
    for name in ("identity", "atomicity", "position", "fence", "resolution", "settlement"):
        said, allowed = getattr(c, name), getattr(word, name)
        if said not in allowed:
            return f"{c.name} with {name} {said!s}: it has {' or '.join(sorted(allowed))}"
    for name in ("window", "through", "remembers_position"):
        said, wanted = bool(getattr(c, name)), getattr(word, name)
        if said != wanted:
            return f"{c.name} {'has' if wanted else 'has no'} {name}"
    return ""


def source_disagreement(c: SourceContract) -> str:
    """The same of a source, whose parts carry what it may claim: no more, and no less either."""
    if not c.name:
        return "its contract has no name"
    if (finding := lowered_source(c)) is not None:
        return finding.reason
    whole = (
        c.identity is not RecordIdentity.NONE
        and c.replay is not Replay.NONE
        and c.position is SourcePosition.WITH_RECORDS
        and c.fence is not SourceFence.NONE
    )
    if whole and not once_source(c):
        return f"{c.name} claims {c.guarantee}, and its parts carry more: what of the source takes it back?"
    return ""


def once_source(c: SourceContract) -> bool:
    return c.guarantee.rank > Guarantee.AT_LEAST_ONCE.rank
