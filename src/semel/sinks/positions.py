"""The control table that lies beside a transactional sink's rows: who owns each delivery, and how far it is.

Invariant: its row changes only in the sink's own transactions, a batch together with its rows, and only under the
epoch that the writer claimed, from the position that the writer started at. `position` is the offset of the outbox
to deliver next. A row is never reset by us: what does not fit the log is Diverged.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from semel.contract import (
    Atomicity,
    Contract,
    DeliveryId,
    Fence,
    Guarantee,
    Identity,
    LogIdentity,
    PositionIn,
    Remembered,
    Resolution,
    Settlement,
)
from semel.sinks.sink import Diverged, SinkError, or_adopt

TABLE = "semel_positions"
OPERATOR = "semel sink"  # the holder of a row that a person has moved


def transactional(durability: str) -> Contract:
    """The contract of a sink whose position lies in the same transaction as its rows."""
    return Contract(
        name="Transactional",
        guarantee=Guarantee.EXACTLY_ONCE,
        identity=Identity.OFFSET,
        atomicity=Atomicity.BATCH,
        remembers_position=True,
        fence=Fence.EPOCH_IN_TRANSACTION,
        resolution=Resolution.READ_POSITION_AFTER_CLAIM,
        durability=durability,
        position=PositionIn.SINK,
        settlement=Settlement.ROLLED_BACK,
    )


@dataclass(frozen=True, slots=True)
class Stored:
    """What one row of the table says of the log that its position is a position in."""

    partition: int
    topic_id: str
    partitions: int


def same_log(delivery: DeliveryId, log: LogIdentity, stored: Iterable[Stored], where: str) -> None:
    """Raises Diverged when any partition's row of this delivery stands for another topic or partition count."""
    for row in stored:
        if row.topic_id != log.topic_id:
            what = (
                f"the outbox was re-created: its topic id is {log.topic_id or 'not told by this log'}, the positions "
                f"at the sink are of {row.topic_id or 'a log that told none'}"
            )
        elif row.partitions != log.partitions:
            what = f"the outbox has {log.partitions} partitions, the positions at the sink are of {row.partitions}"
        else:
            continue
        raise Diverged(
            f"{where}: {what} (partition {row.partition}). Offsets of the one mean nothing in the other, so nothing "
            f"was delivered. Either put the former log back, or {or_adopt(delivery.sink)}"
        )


def table_gone(
    delivery: DeliveryId, log: LogIdentity, found: Sequence[tuple[int, int]], where: str, table: str
) -> NoReturn:
    """The rows were dropped and their positions stayed: an empty table in its place would never get them again."""
    partition, position = found[0]
    raise SinkError(
        f"{where} is not there, and {table} says that it was delivered (partition {partition} up to offset "
        f"{position}): in a new table those rows would be missing for good, so none was created. Either put the table "
        "back from a backup together with its positions; or have it made anew and filled from the start of the outbox: "
        f"`semel sink rewind APP.py {delivery.sink} --to-start`; or, if the former rows are not wanted, create the "
        "table by hand: what comes next is written into it."
    )


def remembered(row: Sequence[Any]) -> Remembered:
    """A row of the table: partition, epoch, incarnation, position, run, topic_id, partitions, holder, updated."""
    partition, epoch, incarnation, position, run, topic_id, partitions, holder, updated = row
    log = LogIdentity(topic_id, partitions)
    return Remembered(partition, epoch, incarnation, position, run, log, holder, str(updated))


def changed(seen: Sequence[Remembered], now: Sequence[Remembered]) -> str:
    """What a person did not see when deciding to move positions; "" where everything is as it was."""
    before, after = ({one.partition: (one.epoch, one.position, one.run) for one in them} for them in (seen, now))
    if before == after:
        return ""
    partition = min(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    return meanwhile(f"the position of partition {partition}")


def meanwhile(what: str) -> str:
    return (
        f"{what} has changed meanwhile: a delivery is at work, or somebody else moves it. Nothing was changed here; "
        "look again"
    )


def interrupted(where: str, sink: str) -> str:
    """Why a delivery stops at a sink where a move is more than one step."""
    return (
        f"{where}: a move of its position was interrupted (semel sink adopt or rewind): some partitions were moved, "
        "others were not. Nothing was delivered. Make the same move again: `semel sink adopt` or `semel sink rewind "
        f"APP.py {sink}`, which shows where each partition stands."
    )


def here() -> str:
    """This process, for whoever waits for it."""
    return f"pid {os.getpid()} on {socket.gethostname()}"
