"""What the benchmarks of all sinks share: the rows, a sink driven as a delivery drives it, and the turns.

Invariant: both sides begin with the same committed records (key and value as they lie in the outbox), end each batch
with a commit, PUT or answer of their own under the same settings of durability, and leave the same rows, which are read
back and compared after the last turn. Both decode what they need: a plain writer that stores JSON as it is decodes
nothing.
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from bench.table import ratios, spread
from semel.contract import Attempt, Claim, DeliveryId, LogIdentity, Rows
from semel.ports import Done, NoSteps

ROWS = int(os.environ.get("ROWS", "100000"))
BATCH = 5_000
CUT = 10_000  # of sinks to which each batch is a file: their own default
KEYS = 20_000
SEED = 1
RUN = "0 1 - 00000000"


class Order(msgspec.Struct, frozen=True):
    """What a row is: a key, three texts, two numbers; about 140 bytes as JSON."""

    order_id: str
    customer: str
    product: str
    amount: int
    price: int
    note: str


FIELDS = Order.__struct_fields__
Decoded = list[tuple[Any, ...]]
Peer = Callable[[list[bytes]], None]  # one batch, committed


class Made(NamedTuple):
    """A sink beside its plain writer. `rows`: of a turn, where 100,000 would take minutes; ROWS scales it."""

    sink: Any
    peer: Callable[[], Peer]  # makes what the plain writer writes to, and returns it
    shown: Callable[[bool], list[Any]]  # the rows of (ours)
    batch: int = BATCH
    rows: int = 100_000


def values(count: int) -> list[bytes]:
    dice, encode = random.Random(SEED), msgspec.json.Encoder().encode
    return [
        encode(
            Order(
                f"o-{dice.randrange(KEYS):07}", f"customer {dice.randrange(1000)}", dice.choice("abcdefgh") * 8, n,
                dice.randrange(100_000), "a note of some length, as they are",
            )
        )
        for n in range(count)
    ]  # fmt: skip


decode = msgspec.json.Decoder(Order).decode


def decoded(batch: Sequence[bytes]) -> Decoded:
    return [(o.order_id, o.customer, o.product, o.amount, o.price, o.note) for o in map(decode, batch)]


def last_per_key(rows: Decoded) -> Decoded:
    return list({row[0]: row for row in rows}.values())


def arrow_table(batch: Sequence[bytes], key: bool = False) -> Any:
    """What a plain writer through Arrow hands over."""
    import pyarrow as pa

    schema = pa.schema([(f, pa.int64() if f in ("amount", "price") else pa.string()) for f in FIELDS])
    columns = list(zip(*(last_per_key(decoded(batch)) if key else decoded(batch)), strict=True))
    return pa.table([pa.array(c, t) for c, t in zip(columns, schema.types)], schema=schema)


class Ours:
    """A sink's connection, driven as a delivery drives it; one that prepares, without the decisions in the log."""

    def __init__(self, sink: Any) -> None:
        self.sink = sink
        self.connection = sink.open(NoSteps())
        assert self.connection.prepare(Order) == Done(), "the sink is not ready"
        delivery, log = DeliveryId("bench", sink.name, 0), LogIdentity("bench-topic", 1)
        self.prepares = hasattr(self.connection, "prepare_cut")
        if self.prepares:
            claim = self.connection.take_over(delivery, log, Attempt(0, 0, 0), False)
        else:
            claim = self.connection.claim(delivery, log)
        assert isinstance(claim, Claim), claim
        self.claim, self.at = claim, max(claim.position, 0)

    def write(self, batch: tuple[list[bytes | None], list[bytes | None]]) -> None:
        """Keys and values, in columns: as a log's poll gives them to a delivery."""
        keys, values = batch
        start, end = self.at, self.at + len(keys)
        rows = Rows(range(start, end), [1_000] * len(keys), keys, values)
        if self.prepares:
            attempt = Attempt(start, 1, end)
            outcome = self.connection.prepare_cut(self.claim, attempt, RUN, rows)
            assert outcome == Done(), outcome
            outcome = self.connection.commit_cut(self.claim, attempt)
        else:
            if hasattr(self.connection, "seen"):  # of a sink with a window, before each cut
                self.connection.remind(None, self.connection.seen())
            outcome = self.connection.write(self.claim, start, end, RUN, rows)
        assert outcome == Done(), outcome
        self.at = end


class Figures(NamedTuple):
    """Of one side, a figure a turn."""

    rate: list[float]  # rows/s
    cpu: list[float]  # seconds of this process per million rows; a server's are not in it


def measure(made: Made, rounds: int) -> tuple[Figures, Figures]:
    """Ours and the plain writer's, in turns; the first round is not counted."""
    ours, theirs = Ours(made.sink), made.peer()
    count = max(made.batch, made.rows * ROWS // 100_000 // made.batch * made.batch)
    encoded = values(count)
    keys = [made.sink.encode_key(decode(value)) for value in encoded]  # as they lie in the outbox
    starts = range(0, count, made.batch)
    batches: Mapping[bool, list[Any]] = {
        True: [(keys[at : at + made.batch], encoded[at : at + made.batch]) for at in starts],
        False: [encoded[at : at + made.batch] for at in starts],
    }
    found: dict[bool, Figures] = defaultdict(lambda: Figures([], []))
    for turn in range(rounds + 1):
        for mine in (True, False) if turn % 2 else (False, True):
            write: Any = ours.write if mine else theirs
            gc.collect()
            began, cpu = time.perf_counter(), time.process_time()
            for batch in batches[mine]:
                write(batch)
            took, used = time.perf_counter() - began, time.process_time() - cpu
            if turn:
                found[mine].rate.append(count / took)
                found[mine].cpu.append(used / count * 1e6)
    ours.connection.close()
    mine, other = made.shown(True), made.shown(False)
    assert mine == other, f"{made.sink.where}: {len(mine)} rows, which differ from the plain writer's {len(other)}"
    assert mine, f"{made.sink.where}: no rows are shown"
    return found[True], found[False]


COLUMNS = (
    "semel, rows/s", "plain writer, rows/s", "plain / semel (the bar: 1.25)", "semel, CPU s per million",
    "plain writer, CPU s per million",
)  # fmt: skip


def cells(ours: Figures, theirs: Figures) -> Sequence[str]:
    return [
        spread(ours.rate), spread(theirs.rate), ratios(theirs.rate, ours.rate), spread(ours.cpu), spread(theirs.cpu)
    ]  # fmt: skip
