"""The rules: each looks at one path and says how much it allows, why, where that was learnt, and what would raise it.

A rule is data and code side by side. It sees the facts of a path (the nodes it runs through, the sink's contract, the
mode, the log) and answers with a `Finding` or with None, when it has nothing to say. The path's guarantee is what all
findings together allow (`combined`). A rule that cannot tell from the facts says *unknown*, never *yes* (law 9).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from semel.contract import (
    AtMostOnce,
    Atomicity,
    Contract,
    Fence,
    Guarantee,
    Identity,
    Mode,
    PositionIn,
    RecordIdentity,
    Replay,
    Resolution,
    Settlement,
    SourceContract,
    SourceFence,
    SourcePosition,
    Window,
)
from semel.streams.graph import Fold, FoldKind, Node, Read, Repartition, Write

G = Guarantee


class LogKind(StrEnum):
    """What the app runs on, as far as its URL tells. `kafka://` may be `semel broker` or Apache Kafka."""

    EMBEDDED = "embedded"
    KAFKA = "kafka"
    UNTOLD = "untold"


@dataclass(frozen=True, slots=True)
class Facts:
    """One path: from `read` through `through` to `write`."""

    read: Read
    through: tuple[Node, ...]
    write: Write
    contract: Contract | None  # None: the end is a topic of the same log
    mode: Mode
    log: LogKind
    durability: str  # "fsync", "os" or "" where nobody said


@dataclass(frozen=True, slots=True)
class Finding:
    """`allows` None: the rule lowers nothing, the reason is worth knowing all the same."""

    allows: Guarantee | None
    reason: str
    raises: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    look: Callable[[Facts], Finding | None]
    source: str


def combined(findings: Sequence[Finding]) -> Guarantee:
    """What all findings together allow. What may lose and may also repeat is none of the named guarantees: unknown."""
    allowed = {finding.allows for finding in findings if finding.allows is not None}
    if G.AT_MOST_ONCE in allowed and allowed & {G.AT_LEAST_ONCE, G.ONCE_IN_WINDOW}:
        return G.UNKNOWN
    return min(allowed, key=lambda guarantee: guarantee.rank, default=G.UNKNOWN)


def listed(names: Sequence[str]) -> str:
    return ", ".join(names)


# --- the modes ---------------------------------------------------------------------------------------------------


def exactly_once_mode(f: Facts) -> Finding | None:
    if f.mode is not Mode.EXACTLY_ONCE:
        return None
    what = "outputs" if not [n for n in f.through if isinstance(n, Fold)] else "outputs, state"
    return Finding(G.EXACTLY_ONCE, f"{what} and the offset of {f.read.topic.name} commit in one transaction of the log")


def at_least_once_mode(f: Facts) -> Finding | None:
    if f.mode is not Mode.AT_LEAST_ONCE:
        return None
    return Finding(
        G.AT_LEAST_ONCE,
        "the mode: outputs are written first, then the offset; a crash between the two writes them again",
        "--mode exactly-once",
    )


def at_most_once_mode(f: Facts) -> Finding | None:
    if f.mode is not Mode.AT_MOST_ONCE:
        return None
    return Finding(
        G.AT_MOST_ONCE,
        "the mode: the offset is committed first, then the outputs are written; a crash between the two loses them",
        "--mode exactly-once",
    )


def folds_do_not_forget(f: Facts) -> Finding | None:
    """A label speaks of records; what is folded twice or not at all makes every later value wrong."""
    states = [node for node in f.through if isinstance(node, Fold) and node.kind is not FoldKind.DISTINCT]
    if not states or f.mode is Mode.EXACTLY_ONCE:
        return None
    names = listed([f"{s.name} ({s.place})" for s in states])
    how = "counted twice" if f.mode is Mode.AT_LEAST_ONCE else "not counted"
    return Finding(
        None, f"a record {how} stays in the state {names}: values can be wrong, not only repeated or missing"
    )


def distinct_takes_for_seen(f: Facts) -> Finding | None:
    """A record is seen when the state says so. Where state and outputs do not commit together, a crash between the two
    leaves a record that was seen and never passed on; its replay is then left out."""
    states = [node for node in f.through if isinstance(node, Fold) and node.kind is FoldKind.DISTINCT]
    if not states or f.mode is Mode.EXACTLY_ONCE:
        return None
    names = listed([f"{s.name} ({s.place})" for s in states])
    if f.mode is Mode.AT_MOST_ONCE:
        return Finding(None, f"{names}: a state that is lost in a crash lets a later repeat pass")
    return Finding(
        G.UNKNOWN,
        f"{names}: state and outputs are not written together, so a record can be held for seen whose output was lost",
        "--mode exactly-once",
    )


def through_a_repartition(f: Facts) -> Finding | None:
    topics = [node.topic for node in f.through if isinstance(node, Repartition)]
    if not topics:
        return None
    if f.mode is Mode.EXACTLY_ONCE:
        return Finding(None, f"through {listed(topics)}, written in one transaction and read committed in the next")
    return Finding(None, f"through {listed(topics)}: each hop can repeat or lose once more")


# --- the sources -------------------------------------------------------------------------------------------------


def what_the_source_says(f: Facts) -> Finding | None:
    """How the records of a topic came into it. A topic without a source is filled by others: the path begins there."""
    source = f.read.topic.source
    if source is None:
        return None
    c = source.contract
    return Finding(
        c.guarantee,
        f"{c.name}, {source.where}: a record is named by {c.identity}; the position is {c.position}; fenced by: "
        f"{c.fence}; {c.replay}",
    )


def what_the_source_lacks(f: Facts) -> Finding | None:
    source = f.read.topic.source
    return None if source is None else lowered_source(source.contract)


def lowered_source(c: SourceContract) -> Finding | None:
    """None: the fields carry the label."""
    if not c.boundary:
        return Finding(
            G.UNKNOWN,
            f"{c.name} claims {c.guarantee}, but does not say what of the source it does not see",
            "a source that names its boundary",
        )
    if c.guarantee.rank <= G.AT_MOST_ONCE.rank:
        return None
    if c.replay is Replay.NONE:
        return Finding(
            G.AT_MOST_ONCE,
            f"{c.name} claims {c.guarantee}, but what was read and not committed cannot be read again: it is lost",
            "a source that can be read again",
        )
    if c.guarantee.rank <= G.AT_LEAST_ONCE.rank:
        return None
    lacks = []
    if c.identity is RecordIdentity.NONE:
        lacks.append("nothing tells which records were read")
    if c.position is not SourcePosition.WITH_RECORDS:
        lacks.append("the position is not in the transaction of the records")
    if c.fence is SourceFence.NONE:
        lacks.append("nothing stops a superseded ingest")
    if lacks:
        return Finding(G.AT_LEAST_ONCE, f"{c.name} claims {c.guarantee}, but {'; '.join(lacks)}", "another source")
    return None


def what_the_source_does_not_see(f: Facts) -> Finding | None:
    source = f.read.topic.source
    return (
        None if source is None else Finding(None, f"outside what {source.where} can tell: {source.contract.boundary}")
    )


def refused_rows(f: Facts) -> Finding | None:
    topic = f.read.topic
    if topic.source is None or topic.on_error != "dead-letter":
        return None
    return Finding(None, f"rows that are no {topic.name} go to {topic.name}-refused instead, in the same transaction")


# --- the sinks ---------------------------------------------------------------------------------------------------


def what_the_contract_says(f: Facts) -> Finding | None:
    c = f.contract
    if c is None:
        return None
    if c.guarantee.rank > G.AT_LEAST_ONCE.rank:
        raises = "" if c.guarantee is G.EXACTLY_ONCE else f"a sink that keeps the position beside the rows {BESIDE}"
        return Finding(c.guarantee, f"{c.name}: {_held_by(c)}", raises)
    if c.guarantee is G.UNKNOWN:
        return Finding(
            G.UNKNOWN,
            f"{c.name}: this contract says nothing about repeats or losses",
            "a sink whose contract says how a repeated write is recognised",
        )
    return Finding(
        c.guarantee,
        f"{c.name}: {'repeats' if c.guarantee is G.AT_LEAST_ONCE else 'losses'} are not kept out by this sink",
        f"a sink that keeps the position beside the rows {BESIDE}",
    )


BESIDE = "(Postgres, MariaDB, SQLite, DuckDB, Delta, Iceberg, a topic of another Kafka cluster)"


def _held_by(c: Contract) -> str:
    held = []
    if c.remembers_position:
        held.append("rows and position in one transaction of the sink")
    elif c.identity is not Identity.NONE:
        held.append(f"a repeated write is recognised by {c.identity}")
        held.append(f"the position is in {c.position}")
    if c.fence is not Fence.NONE:
        held.append(f"fenced by: {c.fence}")
    if c.settlement not in (Settlement.NONE, Settlement.ROLLED_BACK):
        held.append(f"what was left in doubt: {c.settlement}")
    return "; ".join(held) or c.name


def what_the_sink_forgets(f: Facts) -> Finding | None:
    """A window is never left out: past it a repeat, or a zombie, has its effect a second time (FAULTS S7)."""
    c = f.contract
    if c is None or c.window is None:
        return None
    return Finding(
        G.ONCE_IN_WINDOW,
        f"{c.name} forgets what it has seen after {c.window}: a retry, a replay or a zombie that comes later has its "
        "effect again",
        "a window longer than any outage, which no sink can promise; or a sink that never forgets",
    )


def behind_a_view(f: Facts) -> Finding | None:
    c = f.contract
    if c is None or not c.through:
        return None
    return Finding(
        G.EFFECTIVELY_ONCE,
        f"{c.name}: rows are appended, repeats among them; {c.through} removes them, by {c.identity}: once there, and "
        "nowhere before it",
    )


def what_the_contract_lacks(f: Facts) -> Finding | None:
    """A label is not trusted: a contract whose parts cannot carry it is lowered to what they carry."""
    return None if f.contract is None else lowered(f.contract)


def lowered(c: Contract) -> Finding | None:
    """None: the fields carry the label. The contract kit refuses any other contract."""
    if c.guarantee.rank < G.AT_LEAST_ONCE.rank:
        return None
    if not c.durability:
        return Finding(
            G.UNKNOWN,
            f"{c.name} claims {c.guarantee}, but nothing says when what it acknowledged survives its own crash: "
            "what it forgets there is lost",
            "a sink that says under which setting an acknowledged write is durable",
        )
    if c.guarantee is G.AT_LEAST_ONCE:
        return None
    if lacks := _lacks(c):
        return Finding(G.AT_LEAST_ONCE, f"{c.name} claims {c.guarantee}, but {'; '.join(lacks)}", "another sink")
    if c.guarantee is G.EXACTLY_ONCE and not c.remembers_position and c.settlement is not Settlement.DECIDED:
        return Finding(
            G.EFFECTIVELY_ONCE,
            f"{c.name} claims {c.guarantee}, but rows and position are not decided together: effects are tried again, "
            "and then change nothing",
            "rows and position in one transaction of the sink, or a decision record",
        )
    return None


def _lacks(c: Contract) -> list[str]:
    """What keeps this contract from being more than at-least-once."""
    lacks = []
    appends = c.identity is Identity.EVENT_ID  # fenced by nobody: a zombie's rows are repeats like any other
    if c.identity is Identity.NONE:
        lacks.append("nothing recognises a repeated write")
    if appends and not c.through:
        lacks.append("no view and no step removes the repeats")
    if c.identity is Identity.TOKEN and c.window is None:
        lacks.append("a token is forgotten some time, and the window is not told")
    if c.guarantee is G.ONCE_IN_WINDOW and c.window is None:
        lacks.append("the window is not told")
    # A sample is told by its own time; what else a sink forgets must not be sent again past its window.
    timed = c.window is not None and c.window != Window() and c.identity is not Identity.SAMPLE
    if timed and c.position is PositionIn.GROUP_OFFSETS:
        lacks.append("when a cut was first sent is written down nowhere, so it may be sent again past the window")
    if c.atomicity is Atomicity.NONE:
        lacks.append("a part of a record can be visible")
    if c.remembers_position and c.atomicity is not Atomicity.BATCH:
        lacks.append("rows and position are not visible together")
    if c.remembers_position and c.position is not PositionIn.SINK:
        lacks.append(f"the position is in {c.position}, so not in the transaction of the rows")
    if c.fence is Fence.NONE and not appends:
        lacks.append("nothing stops a superseded owner")
    if c.resolution is Resolution.NONE:
        lacks.append("an unknown outcome stays unknown")
    if c.settlement is Settlement.NONE:
        lacks.append("nobody settles what a former owner left in doubt")
    if c.identity is Identity.CUT and c.position is PositionIn.GROUP_OFFSETS:
        lacks.append("a cut is written down nowhere: after a crash other cuts are made")
    return lacks


def what_was_accepted(f: Facts) -> Finding | None:
    accept = f.write.accept
    if accept is None:
        return None
    allows = G.AT_MOST_ONCE if isinstance(accept, AtMostOnce) else G.AT_LEAST_ONCE
    return Finding(allows, f'accepted at {f.write.place}: {allows}, "{accept.reason}"', "")


def behind_an_outbox(f: Facts) -> Finding | None:
    if f.contract is None:
        return None
    sink = f.write.sink
    key = sink.key if sink is not None else None
    how = f"partitioned by {listed(key)}" if key else "in the order of its partitions"
    if f.mode is not Mode.EXACTLY_ONCE:
        return Finding(None, f"the sink is fed from {f.write.outbox}, {how}: it holds what came in there, once")
    return Finding(None, f"the sink sees committed records only: it is fed from {f.write.outbox}, {how}")


def at_the_sinks_own_crash(f: Facts) -> Finding | None:
    if f.contract is None or not f.contract.durability:
        return None
    return Finding(None, f"what it acknowledged survives its own crash under: {f.contract.durability}")


def where_the_sink_is_a_log(f: Facts) -> Finding | None:
    """A topic of another cluster: the transaction there ends at its readers, and is one of Kafka's."""
    topic = topic_elsewhere(f.write)
    if not topic:
        return None
    return Finding(None, f"who reads {topic} must read committed, or sees aborted and open records. {KAFKA_V1}")


def topic_elsewhere(write: Write) -> str:
    """The topic of another log that this write ends in; "" where it ends elsewhere."""
    return str(getattr(write.sink, "read_by_others", ""))


# --- the log -----------------------------------------------------------------------------------------------------


def durability_os(f: Facts) -> Finding | None:
    if f.durability != "os":
        return None
    behind = (
        "; the delivery then finds its position beyond the log, stops and says so"
        if f.contract is not None and f.contract.position is not PositionIn.GROUP_OFFSETS
        else ""
    )
    return Finding(
        None,
        f"durability=os: a power cut can lose or tear what was acknowledged (kill -9 cannot){behind}",
        "durability=fsync",
    )


def dead_letters(f: Facts) -> Finding | None:
    if f.read.topic.on_error != "dead-letter":
        return None
    return Finding(None, f"records of {f.read.topic.name} that cannot be decoded go to the dead letters instead")


def refused_by_the_sink(f: Facts) -> Finding | None:
    if f.write.on_error != "dead-letter":
        return None
    return Finding(None, f"records that {f.write.target} refuses go to the dead letters instead, each once")


RULES = (
    Rule("mode: exactly-once", exactly_once_mode, "KIP-98, KIP-447"),
    Rule("mode: at-least-once", at_least_once_mode, "DESIGN §5"),
    Rule("mode: at-most-once", at_most_once_mode, "DESIGN §5"),
    Rule("folds do not forget", folds_do_not_forget, "DESIGN §2, law 6"),
    Rule("distinct", distinct_takes_for_seen, "DESIGN §2, law 6"),
    Rule("repartition", through_a_repartition, "DESIGN §5"),
    Rule("source", what_the_source_says, "docs/sources.md"),
    Rule("source without its parts", what_the_source_lacks, "docs/sources.md; FAULTS S10, S1"),
    Rule("what the source does not see", what_the_source_does_not_see, "docs/sources.md"),
    Rule("refused rows", refused_rows, "FAULTS S11"),
    Rule("contract", what_the_contract_says, "DESIGN, Leaving Kafka"),
    Rule("where the sink forgets", what_the_sink_forgets, "FAULTS S7"),
    Rule("a view or step removes repeats", behind_a_view, "DESIGN, Leaving Kafka"),
    Rule("contract without its parts", what_the_contract_lacks, "FAULTS S1, S3, S4, S8, S10, S13"),
    Rule("accepted", what_was_accepted, "DESIGN §5"),
    Rule("outbox", behind_an_outbox, "FAULTS P5, S15"),
    Rule("the sink's own crash", at_the_sinks_own_crash, "FAULTS S13"),
    Rule("the sink is a log", where_the_sink_is_a_log, "FAULTS B1; guarantees/readers.py"),
    Rule("durability=os", durability_os, "DESIGN §4; FAULTS B25, S12"),
    Rule("dead letters", dead_letters, "FAULTS S11"),
    Rule("dead letters of the sink", refused_by_the_sink, "FAULTS S11; docs/sinks.md"),
)


# --- boundaries and notes of the whole app -----------------------------------------------------------------------

# What no transaction can take back. Always named, whatever the guarantee.
BOUNDARIES = (
    "resetting the group's offsets, or deleting them (Kafka expires those of a group that was away for 7 days)",
    "restoring the log or a sink from a backup: one then knows less than the other",
    "editing a sink's rows, or semel's position beside them",
    "what your functions do besides returning a value (calls, files, prints): it happens again with every retry",
)

ON_KAFKA = (
    "retention or compaction of a source topic before it was read",
    "a Kafka restored from a backup may use its epochs again: a position could then name other records",
)

WITH_SOURCES = (
    "restoring a source from a backup, or changing what was read of it",
    "deleting or shortening the topic that a source feeds, or the positions beside it",
)

# To the word in DESIGN §5; FAULTS B1, P14, P12.
KAFKA_V1 = (
    "Kafka, transaction V1: a late EndTxn is fenced after every connection loss that librdkafka reports; one it does "
    "not report could tear a transaction silently; V2 removes this. `semel broker` closes it by itself."
)
KAFKA_SYNC = (
    "Apache Kafka does not sync what it acknowledges: one broker keeps it over kill -9, not over a power cut; "
    "replicas (acks=all, min.insync.replicas=2) or log.flush.interval.messages=1 do."
)
EMBEDDED_NOTE = (
    "embedded: the folder is locked, so the log has one owner; no other process reads or writes it meanwhile."
)
UNTOLD_NOTE = "No log was named: give --on URL to hear what its kind adds."
