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


LABELS = [
    (WHOLE, G.EXACTLY_ONCE, "then one of the sink with rows and position"),
    (VERSIONED, G.EFFECTIVELY_ONCE, "each record at the sink by the row's version"),
    (KEYED, G.EFFECTIVELY_ONCE, "each record at the sink by the cut's name"),
    (WINDOWED, G.ONCE_IN_WINDOW, "until it forgets (3600 s or 10,000 inserts)"),
    (TWO_PHASE, G.EXACTLY_ONCE, "prepared first and decided by a record of the log"),
    (DEDUPLICATED, G.EFFECTIVELY_ONCE, "up to the view totals_once: before it rows can be there twice"),
]


@pytest.mark.parametrize(("contract", "label", "boundary"), LABELS, ids=[c.name for c, _, _ in LABELS])
def test_each_contract_has_its_label_and_its_boundary(contract: Contract, label: Guarantee, boundary: str) -> None:
    """What a path is called behind each kind of sink, and where its atomic commit ends."""
    path = report(contract).paths[0]
    assert (path.guarantee, boundary in path.boundary) == (label, True), path.boundary
    assert any(contract.durability in reason for reason in path.reasons)
    assert bool(path.raises) == (label is not G.EXACTLY_ONCE)


@pytest.mark.parametrize("contract", EVERY, ids=lambda c: c.name)
@pytest.mark.parametrize("mode", [Mode.AT_LEAST_ONCE, Mode.AT_MOST_ONCE])
def test_no_contract_mends_the_mode(contract: Contract, mode: Mode) -> None:
    """Repeats that the log holds are records of their own; and what may be lost before a sink that may also repeat
    has no name."""
    expected = G.UNKNOWN if contract is WINDOWED and mode is Mode.AT_MOST_ONCE else G(mode.value)
    assert guarantee(contract, mode=mode) is expected


LACKS: list[tuple[Contract, dict[str, Any], Guarantee]] = [
    (WHOLE, {"fence": Fence.NONE}, G.AT_LEAST_ONCE),
    (WHOLE, {"resolution": Resolution.NONE}, G.AT_LEAST_ONCE),
    (WHOLE, {"atomicity": Atomicity.RECORD}, G.AT_LEAST_ONCE),
    (WHOLE, {"atomicity": Atomicity.NONE}, G.AT_LEAST_ONCE),
    (WHOLE, {"identity": Identity.NONE, "remembers_position": False}, G.AT_LEAST_ONCE),
    (WHOLE, {"remembers_position": False}, G.EFFECTIVELY_ONCE),
    (WHOLE, {"position": PositionIn.GROUP_OFFSETS}, G.AT_LEAST_ONCE),
    (WHOLE, {"position": PositionIn.DELIVERY_TOPIC}, G.AT_LEAST_ONCE),
    *((contract, {"settlement": Settlement.NONE}, G.AT_LEAST_ONCE) for contract in EVERY),
    *((contract, {"identity": Identity.NONE}, G.AT_LEAST_ONCE) for contract in EVERY[1:-1]),
    *((contract, {"atomicity": Atomicity.NONE}, G.AT_LEAST_ONCE) for contract in EVERY),
    *((contract, {"fence": Fence.NONE}, G.AT_LEAST_ONCE) for contract in EVERY[:-1]),
    *((contract, {"resolution": Resolution.NONE}, G.AT_LEAST_ONCE) for contract in EVERY),
    *((contract, {"durability": ""}, G.UNKNOWN) for contract in (*EVERY, BARE)),
    (VERSIONED, {"guarantee": G.EXACTLY_ONCE}, G.EFFECTIVELY_ONCE),
    (KEYED, {"guarantee": G.EXACTLY_ONCE}, G.EFFECTIVELY_ONCE),
    (KEYED, {"position": PositionIn.GROUP_OFFSETS}, G.AT_LEAST_ONCE),
    (TWO_PHASE, {"settlement": Settlement.CUT_REPEATED}, G.EFFECTIVELY_ONCE),
    (TWO_PHASE, {"position": PositionIn.GROUP_OFFSETS}, G.AT_LEAST_ONCE),
    (WINDOWED, {"window": None}, G.AT_LEAST_ONCE),
    (WINDOWED, {"guarantee": G.EXACTLY_ONCE}, G.ONCE_IN_WINDOW),
    (VERSIONED, {"window": Window(seconds=60)}, G.ONCE_IN_WINDOW),
    (DEDUPLICATED, {"through": ""}, G.AT_LEAST_ONCE),
    (DEDUPLICATED, {"guarantee": G.EXACTLY_ONCE}, G.EFFECTIVELY_ONCE),
]


@pytest.mark.parametrize(("contract", "lack", "label"), LACKS, ids=[f"{c.name}-{lack}" for c, lack, _ in LACKS])
def test_a_contract_is_not_believed_beyond_its_parts(
    contract: Contract, lack: dict[str, Any], label: Guarantee
) -> None:
    """Any field taken away, or a label put above the fields, and `check` says less, and why."""
    found = report(replace(contract, **lack), AtLeastOnce("as it is"))
    whole = report(contract, AtLeastOnce("as it is"))
    assert min(label, G.AT_LEAST_ONCE, key=lambda one: one.rank) is found.weakest
    assert guarantee(replace(contract, **lack), AtLeastOnce("as it is") if contract is BARE else None) is label
    assert found.paths[0].reasons != whole.paths[0].reasons


def test_every_window_is_told() -> None:
    """Seconds, inserts, both, or that nobody told: never left out."""
    for window, told in (
        (Window(seconds=60), "after 60 s:"),
        (Window(inserts=100), "after 100 inserts:"),
        (Window(3600, 10_000), "after 3600 s or 10,000 inserts:"),
        (Window(), "after a window that is not told:"),
    ):
        assert told in as_text(report(replace(WINDOWED, window=window)), str, width=1000)


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
