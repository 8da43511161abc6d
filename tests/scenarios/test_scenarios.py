"""Runs the transcripts `*.txt` of this folder against the real broker core on the simulated disk.

A transcript reads as what happened: one line per act, `->` and what came of it. Without `->` an act must succeed.

    # comment; the first ones tell the story
    topic orders 2                        a topic with two partitions
    a: init t [resume] [timeout=10s]      InitProducerId            -> producer=0 epoch=0
    a: produce t orders-0 "x" "y"         AddPartitionsToTxn where needed, then Produce    -> offset=0
    a: produce t orders-0 "x" bare [seq=0]   Produce alone, perhaps under a sequence used before
    a: produce - orders-0 "x" [seq=0]     without a transaction; with a sequence: idempotent
    a: add t orders-0                     AddPartitionsToTxn alone
    a: offsets t g orders-0=5 [bare] [v0] [as m]  AddOffsetsToTxn unless bare, then TxnOffsetCommit; as a group's member
    a: commit t    a: abort t             EndTxn
    a@2: commit t                         the same over a's connection 2 (accepted after 1, which is the usual one)
    hold NAME a: commit t                 the request is made but kept back, on its connection
    release NAME                          it arrives now            -> NONE, an error, or: connection ended
    commit-offsets g orders-0=5           OffsetCommit of a consumer without a group
    offset g orders-0 [stable]            OffsetFetch               -> 5, none, or an error
    read orders-0 [committed] [limit=N]   what a consumer shows     -> ["x", "y"]
    poll NAME orders-0 [committed]        a fetch that waits; `polled NAME` -> what it left with, or: waiting
    lso orders-0    hw orders-0           what a fetch tells of them
    m: join g [instance=i] [session=6s]   a whole rebalance alone   -> generation=1
    m: heartbeat    m: commit orders-0=5  as that member
    wait 10s                              time passes
    no sync / sync                        from here on nothing is synced / everything again
    crash / kill / checkpoint             power cut / kill -9, then the next start; a checkpoint
    === power cut at any operation above  what follows is run once for every operation of the disk above, after a cut
                                          there; answers above count as far as they came

After `->`: alternatives are joined by ` or `; `?name` stands for anything, and for the same wherever it comes again.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from semel.broker.errors import Error
from semel.broker.requests import InitProducerIdRequest
from semel.ports import Step
from semel.sim.disk import PowerCut
from tests.broker.member import Member
from tests.broker.world import (
    Txn,
    World,
    batch,
    commit_request,
    committed_request,
    fetch_request,
    produce_request,
    visible,
)

SCENARIOS = sorted(Path(__file__).parent.glob("*.txt"))
CUT = "=== power cut at any operation above"
CUTS_MAX = 2_000


class EveryAppend:
    """Makes the node write each record of a commit for itself, so that there is an operation between any two."""

    def reached(self, step: Step) -> None:
        return


@dataclass(slots=True)
class Held:
    message: Any
    connection: int
    version: int | None
    shown: Callable[[Any], str]


@dataclass
class Stage:
    world: World
    txns: dict[tuple[str, str], Txn] = field(default_factory=dict)  # actor, transactional id
    added: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    members: dict[str, Member] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    polls: dict[str, tuple[int, int, bool]] = field(default_factory=dict)
    connections: dict[str, int] = field(default_factory=dict)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    # --- Acts

    def act(self, line: str) -> str:
        holding = None
        if line.startswith("hold "):
            _, holding, line = line.split(maxsplit=2)
        head, colon, rest = line.partition(": ")
        if colon and " " not in head:
            name, _, connection = head.partition("@")
            words = shlex.split(rest, posix=False)
            if words[0] in ("join", "heartbeat", "commit") and not (
                words[0] == "commit" and len(words) == 2 and "=" not in words[1]
            ):
                return self.member(name, words)
            return self.producer(name, int(connection or 1), words, holding)
        words = shlex.split(line, posix=False)
        return str(getattr(self, words[0].replace("-", "_"))(*words[1:]))

    def ask(self, message: Any, connection: int, version: int | None = None) -> Any:
        token = self.world.post(message, connection, version)
        if token not in self.world.replies:
            self.world.settle()
        if connection in self.world.closed:
            return None
        return self.world.answer(token) if token in self.world.replies else ...

    def tell(self, held: Held, holding: str | None) -> str:
        if holding is not None:
            self.held[holding] = held
            return "NONE"
        reply = self.ask(held.message, held.connection, held.version)
        if reply is None:
            return "connection ended"
        return "no answer yet" if reply is ... else held.shown(reply)

    def producer(self, actor: str, number: int, words: list[str], holding: str | None) -> str:
        connection = self.connection(actor, number)
        command, name, *rest = words
        txn = self.txns.get((actor, name)) or Txn(self.world, name, connection=connection)
        self.txns[actor, name] = txn
        txn.connection = connection
        added = self.added.setdefault((actor, name), set())
        options = dict(word.split("=") for word in rest if word.startswith(("timeout=", "seq=")))
        match command:
            case "init":
                named = (txn.producer_id, txn.epoch) if "resume" in rest else (-1, -1)
                timeout = timedelta(milliseconds=duration_ms(options.get("timeout", "60s")))

                def initialised(reply: Any) -> str:
                    if reply.error_code:
                        return name_of(reply.error_code)
                    txn.producer_id, txn.epoch = reply.producer_id, reply.producer_epoch
                    txn.sequences = {}
                    added.clear()
                    return f"producer={txn.producer_id} epoch={txn.epoch}"

                held = Held(InitProducerIdRequest(name, timeout, *named), connection, 5, initialised)
            case "add":
                places = [place(word) for word in rest]
                added.update(rest)
                held = Held(txn.add_request(*places), connection, 3, added_shown)
            case "produce":
                where, values = rest[0], [word.strip('"') for word in rest[1:] if word.startswith('"')]
                if name != "-" and "bare" not in rest and where not in added and holding is None:
                    result = self.tell(Held(txn.add_request(place(where)), connection, 3, added_shown), None)
                    if result != "NONE":
                        return result
                    added.add(where)
                held = self.produced(txn, place(where), values, options.get("seq"), connection)
            case "offsets":
                group = rest[0]
                if "bare" not in rest and holding is None and f"group {group}" not in added:
                    error = txn.add_offsets(group)
                    if error:
                        return name_of(error)
                    added.add(f"group {group}")
                member = self.members[rest[rest.index("as") + 1]] if "as" in rest else None
                who: tuple[Any, ...] = (member.generation, member.id) if member else ()
                request = txn.offsets_request(group, places_of(rest), *who)
                held = Held(request, connection, 0 if "v0" in rest else 4, rows_shown)
            case "commit" | "abort":
                if holding is None:
                    added.clear()
                held = Held(txn.end_request(command == "commit"), connection, 4, lambda r: name_of(r.error_code))
            case _:
                raise AssertionError(f"no such act: {command}")
        return self.tell(held, holding)

    def produced(
        self, txn: Txn, where: tuple[str, int], values: list[str], sequence: str | None, connection: int
    ) -> Held:
        if txn.id != "-":
            data = txn.batch(*where, *values, sequence=None if sequence is None else int(sequence))
        elif sequence is not None:
            data = batch(*values, producer_id=1000, producer_epoch=0, base_sequence=int(sequence))
        else:
            data = batch(*values)

        def shown(reply: Any) -> str:
            row = reply.responses[0].partition_responses[0]
            if row.error_code:
                return name_of(row.error_code)
            if sequence is None and txn.sequences is not None:
                txn.sequences[where] = txn.sequences.get(where, 0) + len(values)
            return f"offset={row.base_offset}"

        return Held(produce_request(where[0], data, where[1]), connection, None, shown)

    def connection(self, actor: str, number: int) -> int:
        """Connections of one actor are accepted in the order of their numbers."""
        for lower in range(1, number + 1):
            key = f"{actor}@{lower}"
            if key not in self.connections:
                self.connections[key] = next(self.numbers)
        return self.connections[f"{actor}@{number}"]

    def release(self, name: str) -> str:
        return self.tell(self.held.pop(name), None)

    def member(self, actor: str, words: list[str]) -> str:
        command, *rest = words
        if command == "join":
            options = dict(word.split("=") for word in rest[1:])
            member = self.members[actor] = Member(
                self.world,
                rest[0],
                options.get("instance"),
                session_ms=duration_ms(options.get("session", "10s")),
            )
            error = member.join()
            if error:
                return name_of(error)
            if error is None:
                return "waiting"
            found = member.sync({member.id: b"all"})
            return f"generation={member.generation}" if found == (0, b"all") else str(found)
        member = self.members[actor]
        if command == "heartbeat":
            return name_of(member.heartbeat())
        ((topic, partition), offset), *_ = places_of(rest).items()
        return name_of(member.commit(topic, offset, partition))

    # --- Acts without an actor

    def topic(self, name: str, partitions: str = "1") -> str:
        self.world.topic(name, int(partitions))
        return "NONE"

    def commit_offsets(self, group: str, *rest: str) -> str:
        reply = self.ask(commit_request(group, places_of(list(rest))), self.connection("offsets", 1))
        return "no answer yet" if reply is ... else rows_shown(reply)

    def offset(self, group: str, where: str, stable: str = "") -> str:
        request = committed_request(group, [place(where)], stable=bool(stable))
        reply = self.ask(request, next(self.numbers))
        if reply is ...:
            return "no answer yet"
        row = reply.groups[0].topics[0].partitions[0]
        if row.error_code:
            return name_of(row.error_code)
        return "none" if row.committed_offset < 0 else str(row.committed_offset)

    def read(self, where: str, *options: str) -> str:
        committed = "committed" in options
        limit = next((int(word[6:]) for word in options if word.startswith("limit=")), 1 << 20)
        values: list[str] = []
        offset = 0
        while True:
            topic, partition = place(where)
            row = self.world.fetch(topic, offset, partition, committed=committed, max_bytes=limit)
            if row.error_code:
                return name_of(row.error_code)
            found, moved = visible(row, offset, committed=committed)
            if not row.records:
                return json.dumps(values + found)
            assert moved > offset, "the reader does not move"
            values += found
            offset = moved

    def poll(self, name: str, where: str, *options: str) -> str:
        committed = "committed" in options
        topic, partition = place(where)
        request = fetch_request(topic, 0, partition, committed=committed, max_wait_ms=60_000)
        token = self.world.post(request, next(self.numbers))
        self.polls[name] = (token, 0, committed)
        return "NONE"

    def polled(self, name: str) -> str:
        token, offset, committed = self.polls[name]
        reply = self.world.answer(token)
        if reply is None:
            return "waiting"
        return json.dumps(visible(reply.responses[0].partitions[0], offset, committed=committed)[0])

    def lso(self, where: str) -> str:
        topic, partition = place(where)
        return str(self.world.fetch(topic, 0, partition).last_stable_offset)

    def hw(self, where: str) -> str:
        topic, partition = place(where)
        return str(self.world.fetch(topic, 0, partition).high_watermark)

    def wait(self, time: str) -> str:
        self.world.wait(duration_ms(time))
        return "NONE"

    def no(self, what: str) -> str:
        assert what == "sync", what
        self.world.syncing = False
        return "NONE"

    def sync(self) -> str:
        self.world.syncing = True
        self.world.settle()
        return "NONE"

    def crash(self) -> str:
        self.world.crash()
        return "NONE"

    def kill(self) -> str:
        self.world.kill()
        return "NONE"

    def checkpoint(self) -> str:
        self.world.node.checkpoint()
        self.world.settle()
        return "NONE"


def place(word: str) -> tuple[str, int]:
    topic, _, partition = word.rpartition("-")
    return topic, int(partition)


def places_of(words: list[str]) -> dict[tuple[str, int], int]:
    pairs = [word.split("=") for word in words if "=" in word and "-" in word.split("=")[0]]
    return {place(where): int(offset) for where, offset in pairs}


def duration_ms(text: str) -> int:
    return int(text[:-2]) if text.endswith("ms") else int(float(text.rstrip("s")) * 1000)


def name_of(code: int) -> str:
    return Error(code).name


def rows_shown(reply: Any) -> str:
    return name_of(max(row.error_code for topic in reply.topics for row in topic.partitions))


def added_shown(reply: Any) -> str:
    rows = [row for topic in reply.results_by_topic_v3_and_below for row in topic.results_by_partition]
    return name_of(max(row.partition_error_code for row in rows))


# --- Running --------------------------------------------------------------------------------------------------------


def lines(text: str) -> list[tuple[int, str, str | None]]:
    found: list[tuple[int, str, str | None]] = []
    for number, line in enumerate(text.splitlines(), 1):
        act, arrow, expected = line.partition("->")
        act = act.partition("#")[0].strip() if not line.startswith("#") else ""
        if act:
            found.append((number, " ".join(act.split()), expected.strip() if arrow else None))
    return found


def play(stage: Stage, acts: list[tuple[int, str, str | None]], known: dict[str, str]) -> None:
    for number, act, expected in acts:
        got = stage.act(act)
        if expected is None:
            assert got == "NONE" or "=" in got or got.startswith("["), f"line {number}: {act}: {got}"
            continue
        alternatives = [known.get(one, one) for one in expected.split(" or ")]
        unbound = [one for one in alternatives if one.startswith("?")]
        if unbound and got not in alternatives:
            known[unbound[0]] = got
            continue
        assert got in alternatives, f"line {number}: {act}: expected {' or '.join(alternatives)}, got {got}"


def run(text: str) -> None:
    before, cut, after = text.partition(CUT)
    acts, then = lines(before), lines(after)
    then = [(number + before.count("\n"), act, expected) for number, act, expected in then]
    if not cut:
        play(Stage(World()), acts, {})
        return
    for cut_at in range(1, CUTS_MAX):
        stage = Stage(World(cut_at, steps=EveryAppend()))
        disk = stage.world.disk
        disk.operations, disk.cut_at = 0, cut_at
        try:
            play(stage, acts, {})
            over = True
        except PowerCut:
            over = False
        disk.cut_at = None
        stage.world.crash()
        play(stage, then, {})
        if over:
            assert cut_at > 5, "nothing was cut"
            return
    raise AssertionError(f"more than {CUTS_MAX} operations: make the scenario shorter")


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    """What the transcript says happened, happens."""
    run(path.read_text())


def test_a_wrong_transcript_fails() -> None:
    """The runner notices what is not so."""
    with pytest.raises(AssertionError, match="line 2"):
        run('topic a\na: produce - a-0 "x"   -> offset=7\n')
    with pytest.raises(AssertionError, match="line 2"):
        run("topic a\na: commit t\n")
