"""The rules: what a path may be called, and that nothing is called more than its parts allow."""

from dataclasses import dataclass, replace
from typing import Any

import pytest

from semel import App, AtLeastOnce, AtMostOnce, Builder, Mode, Topic
from semel.contract import (
    Atomicity,
    Contract,
    Fence,
    Guarantee,
    Identity,
    Once,
    PositionIn,
    Resolution,
    Settlement,
    Window,
)
from semel.guarantees import Circumstances, LogKind, Report, analyse
from semel.guarantees.report import as_text, without_secrets

G = Guarantee
WHOLE = Contract(
    "Transactional",
    G.EXACTLY_ONCE,
    Identity.OFFSET,
    Atomicity.BATCH,
    remembers_position=True,
    fence=Fence.EPOCH_IN_TRANSACTION,
    resolution=Resolution.READ_POSITION_AFTER_CLAIM,
    durability="its own setting",
    position=PositionIn.SINK,
    settlement=Settlement.ROLLED_BACK,
)
BARE = Contract(
    "AtLeastOnce",
    G.AT_LEAST_ONCE,
    Identity.NONE,
    Atomicity.RECORD,
    False,
    Fence.NONE,
    Resolution.NONE,
    durability="each batch is synced",
)
VERSIONED = Contract(
    "Versioned",
    G.EFFECTIVELY_ONCE,
    Identity.VERSION,
    Atomicity.RECORD,
    False,
    Fence.OLDER_VERSION_LOSES,
    Resolution.SEND_AGAIN,
    durability="its own setting",
    position=PositionIn.SINK,
    settlement=Settlement.REPEATED,
)
KEYED = replace(
    VERSIONED,
    name="Keyed",
    identity=Identity.CUT,
    fence=Fence.CREATE_ONLY,
    resolution=Resolution.READ_BACK,
    position=PositionIn.DELIVERY_TOPIC,
    settlement=Settlement.CUT_REPEATED,
)
WINDOWED = replace(
    KEYED,
    name="Windowed",
    guarantee=G.ONCE_IN_WINDOW,
    identity=Identity.TOKEN,
    fence=Fence.FIRST_ANSWER,
    window=Window(3600, 10_000),
)
TWO_PHASE = replace(
    KEYED,
    name="TwoPhase",
    guarantee=G.EXACTLY_ONCE,
    atomicity=Atomicity.BATCH,
    fence=Fence.TRANSACTIONAL_ID,
    resolution=Resolution.READ_DECISION,
    settlement=Settlement.DECIDED,
)
DEDUPLICATED = replace(
    VERSIONED,
    name="Deduplicated",
    identity=Identity.EVENT_ID,
    fence=Fence.NONE,
    position=PositionIn.GROUP_OFFSETS,
    through="the view totals_once",
)
EVERY = (WHOLE, VERSIONED, KEYED, WINDOWED, TWO_PHASE, DEDUPLICATED)


@dataclass
class Place:
    """A sink of which only the contract matters."""

    contract: Contract
    name: str = "somewhere"
    where: str = "somewhere else"
    key: tuple[str, ...] | None = None
    kind: Any = Once

    def encode_value(self, value: object) -> bytes:
        raise AssertionError("check writes nothing")


orders, prices = Topic("orders", key=str, value=int), Topic("prices", key=str, value=int)
out = Topic("out", key=str, value=int)


def report(contract: Contract | None, accept: Any = None, **given: Any) -> Report:
    def build(b: Builder) -> None:
        stream = b.read(orders).filter(bool)
        if contract is None:
            stream.write(out)
        else:
            stream.write(Place(contract), accept=accept)  # type: ignore[call-overload]

    return analyse(App("shop", build).graph(), Circumstances(**given))


def guarantee(contract: Contract | None, accept: Any = None, **given: Any) -> Guarantee:
    return report(contract, accept, **given).weakest


@pytest.mark.parametrize("mode", Mode)
def test_to_a_topic_the_mode_decides(mode: Mode) -> None:
    """Within the log, the mode is the guarantee."""
    assert guarantee(None, mode=mode) == G(mode.value)


@pytest.mark.parametrize("mode", Mode)
def test_a_whole_contract_adds_nothing_weaker(mode: Mode) -> None:
    """Rows and position in one transaction: the sink is as good as the mode."""
    assert guarantee(WHOLE, mode=mode) == G(mode.value)


@pytest.mark.parametrize(
    "lack",
    [
        {"fence": Fence.NONE},
        {"resolution": Resolution.NONE},
        {"atomicity": Atomicity.RECORD},
        {"identity": Identity.NONE, "remembers_position": False},
    ],
)
def test_a_contract_is_not_believed_beyond_its_parts(lack: dict[str, Any]) -> None:
    """Claiming exactly-once without a fence, a resolution, or rows and position together is at-least-once."""
    found = report(replace(WHOLE, **lack))
    assert found.weakest is G.AT_LEAST_ONCE
    assert any("claims" in reason for reason in found.paths[0].reasons)


def test_a_weak_sink_is_weak_in_every_mode() -> None:
    """What was accepted is printed with its reason; a better sink would raise it."""
    path = report(BARE, AtLeastOnce("alerts may repeat")).paths[0]
    assert path.guarantee is G.AT_LEAST_ONCE
    assert any("alerts may repeat" in reason for reason in path.reasons)
    assert any("Postgres" in raises for raises in path.raises)


def test_what_may_lose_and_repeat_has_no_name() -> None:
    """At-most-once before an at-least-once sink: unknown, never one of the two (law 9)."""
    path = report(BARE, AtLeastOnce("fine"), mode=Mode.AT_MOST_ONCE).paths[0]
    assert path.guarantee is G.UNKNOWN and "--mode exactly-once" in path.raises
    assert guarantee(replace(BARE, guarantee=G.AT_MOST_ONCE), AtMostOnce("fine"), mode=Mode.AT_LEAST_ONCE) is G.UNKNOWN


def test_a_contract_that_says_nothing_is_unknown() -> None:
    """Unknown is an answer, and below every other when CI asks."""
    found = report(replace(WHOLE, guarantee=G.UNKNOWN), AtLeastOnce("who knows"))
    assert found.weakest is G.UNKNOWN and found.weakest.rank < G.AT_MOST_ONCE.rank


def test_every_pair_of_source_and_write_is_a_path() -> None:
    """Merged sources give a path each; a fold's state is named where a weaker mode would leave it wrong."""

    def build(b: Builder) -> None:
        both = b.read(orders).merge(b.read(prices))
        both.count(name="seen").changes().write(out)
        both.write(Place(WHOLE))  # type: ignore[call-overload]

    found = analyse(App("shop", build).graph(), Circumstances(mode=Mode.AT_LEAST_ONCE))
    assert [(p.source, p.sink) for p in found.paths] == [
        ("topic orders", "topic out"),
        ("topic prices", "topic out"),
        ("topic orders", "somewhere else"),
        ("topic prices", "somewhere else"),
    ]
    assert any("state seen" in reason for reason in found.paths[0].reasons)
    assert not any("state seen" in reason for reason in found.paths[2].reasons)


def test_no_path_is_no_promise() -> None:
    """Of nothing, the weakest is unknown."""
    assert replace(report(None), paths=()).weakest is G.UNKNOWN


def test_the_boundaries_are_always_named() -> None:
    """Offsets, backups, edits: in every report; Kafka's own on Kafka, with the note on transaction V1 to the word."""
    for kind in LogKind:
        text = " ".join(as_text(report(WHOLE, log=kind), str).split())
        for named in ("resetting the group's offsets", "from a backup", "editing a sink's rows"):
            assert named in text
        assert ("one it does not report could tear a transaction silently; V2 removes this." in text) == (
            kind == "kafka"
        )
    assert "a power cut can lose or tear" in as_text(report(None, durability="os"), str)


def test_secrets_are_taken_out_of_any_text() -> None:
    """URLs and key=value pairs; what is no secret stays."""
    assert without_secrets("kafka://u:p@h:9092/x") == "kafka://u:***@h:9092/x"
    assert without_secrets("host=h password='a b' user=u") == "host=h password=*** user=u"
    assert without_secrets("x?user=u&password=pw&a=b") == "x?user=u&password=***&a=b"
    assert without_secrets("at 127.0.0.1:5432/x") == "at 127.0.0.1:5432/x"
