"""Two real cores back to back: clients against a broker node, over a network and a disk that fail.

Laws 1 to 5 of the design, as far as one program can see them: every input is in the committed output once, whatever
was lost, repeated, late, killed or cut.
"""

from __future__ import annotations

from collections import Counter

import pytest

from semel.broker import messages
from semel.broker.config import Config
from semel.client.caller import Caller, ask_committed, ask_metadata, ask_offsets, committed_of
from semel.client.codes import END_TXN, TXN_OFFSET_COMMIT
from semel.client.consumer import EARLIEST, LATEST, Consumer, ConsumerConfig, Reset
from semel.client.effects import Died, Effect, Ended, Fetched, Initialised, Settled, Told
from semel.client.flights import Call
from semel.client.producer import Producer, ProducerConfig
from semel.client.steps import GroupMetadata
from semel.ports import Done, Fenced, Position, TopicPartition

from .copier import Copier
from .world import Faults, World

INPUTS = 60
CONFIG = Config(num_partitions=2, group_min_session_timeout_ms=100)


def ask(world: World, question: tuple[Call, object]) -> object:
    """Asks until it is answered."""
    call, again = question
    told: list[Effect] = []
    caller = Caller(request_timeout_ms=200)
    end = world.endpoint(caller, told.append, "ask")
    assert callable(again)
    _, effects = caller.ask(call, world.now_ms, again)
    world.perform(end, effects)
    world.run_until(lambda: bool(told))
    world.perform(end, caller.close())
    (answer,) = told
    assert isinstance(answer, Told) and answer.message is not None, answer
    return answer.message


def create(world: World, *topics: str) -> None:
    for _ in range(10):
        message = ask(world, ask_metadata(topics))
        assert isinstance(message, messages.MetadataResponse)
        if all(topic.error_code == 0 for topic in message.topics):
            return
    raise AssertionError(message)


def fill(world: World, topic: str, count: int) -> None:
    """`count` records, alternating over two partitions, by an idempotent producer."""
    told: list[Effect] = []
    producer = Producer(ProducerConfig(request_timeout_ms=200))
    end = world.endpoint(producer, told.append, "fill")
    world.perform(end, producer.init(world.now_ms))
    world.run_until(lambda: bool(told))
    for index in range(count):
        at = TopicPartition(topic, index % 2)
        _, effects = producer.send(at, [str(index).encode()], now_ms=world.now_ms)
        world.perform(end, effects)
    world.run_until(lambda: producer.pending == 0)
    assert all(isinstance(effect.outcome, Done) for effect in told if isinstance(effect, Settled))
    world.kill(end)


def ends(world: World, partitions: list[TopicPartition], *, committed: bool) -> dict[TopicPartition, int]:
    message = ask(world, ask_offsets(partitions, LATEST, committed=committed))
    assert isinstance(message, messages.ListOffsetsResponse)
    return {
        TopicPartition(topic.name, found.partition_index): found.offset
        for topic in message.topics
        for found in topic.partitions
    }


def read(world: World, topic: str, *, committed: bool = True) -> list[bytes | None]:
    """Everything in both partitions, as a reader of that isolation level sees it."""
    partitions = [TopicPartition(topic, 0), TopicPartition(topic, 1)]
    limits = ends(world, partitions, committed=committed)
    seen: list[bytes | None] = []
    config = ConsumerConfig(
        committed=committed, reset=Reset.EARLIEST, max_wait_ms=50, request_timeout_ms=200, partition_max_bytes=200
    )
    consumer = Consumer(config)

    def told(effect: Effect) -> None:
        assert isinstance(effect, Fetched), effect
        seen.extend(effect.records.values)
        world.at(0, lambda: world.perform(end, consumer.poll(world.now_ms)))

    end = world.endpoint(consumer, told, "read")
    world.perform(end, consumer.assign(dict.fromkeys(partitions), world.now_ms))
    world.perform(end, consumer.poll(world.now_ms))
    world.run_until(
        lambda: all((position or 0) >= limits[at] for at, position in consumer.positions.items()), limit_ms=60_000
    )
    world.kill(end)
    return seen


def committed(world: World, group: str, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
    message = ask(world, ask_committed(group, partitions))
    assert isinstance(message, messages.OffsetFetchResponse)
    return {at: 0 if found is None else found.offset for at, found in committed_of(message).items()}


INS = [TopicPartition("in", 0), TopicPartition("in", 1)]
EXPECTED = Counter(f"{index % 2}:{index // 2}".encode() for index in range(INPUTS))


def wait(world: World, after_ms: int) -> None:
    moment = world.now_ms + after_ms
    world.at(after_ms, lambda: None)
    world.run_until(lambda: world.now_ms >= moment)


def copied(world: World, *, limit_ms: int = 600_000) -> None:
    """Runs until the group's offsets are at the end of the input."""
    deadline = world.now_ms + limit_ms
    while committed(world, "g", INS) != dict.fromkeys(INS, INPUTS // 2):
        assert world.now_ms < deadline, "\n".join(world.history[-60:])
        wait(world, 500)


def check(world: World) -> None:
    """Every input in the committed output once; nothing else."""
    world.faults = Faults()
    wait(world, 3_000)  # what the dead have left open is aborted by its timeout, and the reader's way is free
    found = Counter(read(world, "out"))
    lost, repeated = EXPECTED - found, found - EXPECTED
    assert not lost and not repeated, f"lost {lost}, repeated {repeated}; `world.history` tells how"
    assert not (EXPECTED - Counter(read(world, "out", committed=False)))


def test_a_transaction_is_committed_and_seen() -> None:
    """Without faults: one transaction, its batches, its offsets; visible once it is committed."""
    world = World(1, CONFIG)
    create(world, "in", "out")
    fill(world, "in", INPUTS)
    copier = Copier(world, "c", sources=INS)
    copied(world)
    check(world)
    assert copier.commits > 2 and copier.aborts == 0 and copier.successor is None
    assert world.closed_by_broker == 0, "in a run without faults the rule of accept numbers closes nothing"


def test_one_seed_is_one_history() -> None:
    """Twice the same seed: every event the same, to the byte."""

    def history() -> list[str]:
        world = World(7, CONFIG, Faults(cut=0.05, silence=0.02))
        create(world, "in", "out")
        fill(world, "in", INPUTS)
        Copier(world, "c", sources=INS, abort=0.2)
        copied(world)
        return world.history

    assert history() == history()


@pytest.mark.parametrize("seed", range(12))
def test_copying_over_a_bad_network(seed: int) -> None:
    """Requests lost, repeated and late, aborts in between: every input is in the committed output once."""
    world = World(seed, CONFIG, Faults(cut=0.08, silence=0.04))
    create(world, "in", "out")
    fill(world, "in", INPUTS)
    copier = Copier(world, "c", sources=INS, abort=0.2)
    copied(world)
    copier.newest().kill()
    check(world)


@pytest.mark.parametrize("seed", range(12))
def test_copying_while_everything_dies(seed: int) -> None:
    """Power cuts of the broker and kills of the program, over a bad network: still once each (laws 1 to 4)."""
    world = World(seed, CONFIG, Faults(cut=0.04, silence=0.02))
    create(world, "in", "out")
    fill(world, "in", INPUTS)
    copier = Copier(world, "c", sources=INS, abort=0.1)
    for _ in range(6):
        world.at(world.dice.randrange(20, 6_000), lambda: world.crash(world.dice.randrange(1, 500)))
        world.at(world.dice.randrange(20, 6_000), lambda: copier.newest().restart(world.dice.randrange(1, 300)))
    copied(world)
    copier.newest().kill()
    check(world)


@pytest.mark.parametrize("seed", range(8))
def test_two_with_one_transactional_id(seed: int) -> None:
    """A zombie and its successor at the same time: what the zombie still writes never becomes committed (law 5)."""
    world = World(seed, CONFIG, Faults(cut=0.03, silence=0.03))
    create(world, "in", "out")
    fill(world, "in", INPUTS)
    zombie = Copier(world, "c", sources=INS, returns=False)
    started: list[Copier] = []
    world.at(world.dice.randrange(5, 60), lambda: started.append(Copier(world, "c", sources=INS)))
    copied(world)
    assert started
    started[0].newest().kill()
    check(world)
    assert zombie.fenced or zombie.commits


@pytest.mark.parametrize("seed", range(8))
def test_a_group_that_rebalances(seed: int) -> None:
    """Members come, die and return, over a bad network: partitions move, and each input is copied once (B14, P11)."""
    world = World(seed, CONFIG, Faults(cut=0.02, silence=0.01))
    create(world, "in", "out")
    fill(world, "in", INPUTS)
    copiers = [Copier(world, f"c{i}", topics={"in": 2}, abort=0.1) for i in range(2)]
    world.at(700, lambda: copiers.append(Copier(world, "c2", topics={"in": 2})))
    for _ in range(4):
        after_ms = world.dice.randrange(100, 4_000)
        world.at(after_ms, lambda: copiers[world.dice.randrange(0, 2)].newest().restart(world.dice.randrange(1, 3_000)))
    copied(world)
    for copier in copiers:
        copier.newest().kill()
    check(world)


def test_a_superseded_producer_is_told() -> None:
    """InitProducerId by another fences the first: its commit is Fenced, certainly not done."""
    world = World(3, CONFIG)
    create(world, "out")
    first: list[Effect] = []
    second: list[Effect] = []
    one, two = Producer(ProducerConfig("t")), Producer(ProducerConfig("t"))
    end_one = world.endpoint(one, first.append, "one")
    end_two = world.endpoint(two, second.append, "two")
    world.perform(end_one, one.init(world.now_ms))
    world.run_until(lambda: bool(first))
    one.begin()
    _, effects = one.send(TopicPartition("out", 0), [b"x"], now_ms=world.now_ms)
    world.perform(end_one, effects)
    world.run_until(lambda: one.pending == 0)
    world.perform(end_two, two.init(world.now_ms))
    world.run_until(lambda: bool(second))
    assert isinstance(second[0], Initialised)
    world.perform(end_one, one.commit(world.now_ms))
    world.run_until(lambda: any(isinstance(effect, Died) for effect in first))
    ended = next(effect for effect in first if isinstance(effect, Ended))
    assert isinstance(ended.outcome, Fenced)
    assert read(world, "out") == [] and read(world, "out", committed=False) == [b"x"]


def test_offsets_and_outputs_are_one() -> None:
    """Aborted: neither. Committed: both, and the offsets are stable only then."""
    world = World(4, CONFIG)
    create(world, "in", "out")
    told: list[Effect] = []
    producer = Producer(ProducerConfig("t"))
    end = world.endpoint(producer, told.append, "p")
    world.perform(end, producer.init(world.now_ms))
    world.run_until(lambda: bool(told))
    for commit, expected in ((False, 0), (True, 9)):
        producer.begin()
        _, effects = producer.send(TopicPartition("out", 0), [b"x"], now_ms=world.now_ms)
        world.perform(end, effects)
        producer.send_offsets(GroupMetadata("g"), {INS[0]: Position(9)})
        told.clear()
        world.perform(end, producer.commit(world.now_ms) if commit else producer.abort(world.now_ms))
        world.run_until(lambda: any(isinstance(effect, Ended) for effect in told))
        assert committed(world, "g", INS)[INS[0]] == expected
    assert read(world, "out") == [b"x"]
    assert ask(world, ask_offsets(INS, EARLIEST))


# --- FAULTS B1 and B26, step by step ------------------------------------------------------------------------------


class Actor:
    """One producer, driven step by step."""

    def __init__(self, world: World, one_connection: bool) -> None:
        self.world = world
        self.told: list[Effect] = []
        config = ProducerConfig("t", request_timeout_ms=100, one_connection=one_connection)
        self.producer = Producer(config)
        self.end = world.endpoint(self.producer, self.told.append, "p")
        world.perform(self.end, self.producer.init(world.now_ms))
        world.run_until(lambda: bool(self.told))

    def begin(self, value: bytes) -> None:
        """A transaction whose one batch is in the log."""
        self.producer.begin()
        _, effects = self.producer.send(TopicPartition("out", 0), [value], now_ms=self.world.now_ms)
        self.world.perform(self.end, effects)
        self.world.run_until(lambda: self.producer.pending == 0)

    def finish(self, commit: bool) -> None:
        self.told.clear()
        ending = self.producer.commit if commit else self.producer.abort
        self.world.perform(self.end, ending(self.world.now_ms))
        self.world.run_until(lambda: any(isinstance(effect, Ended) for effect in self.told))
        assert [effect for effect in self.told if isinstance(effect, Ended)] == [Ended(commit, Done())]


def hold_one(world: World, api_key: int) -> None:
    world.hold = lambda send: send.call.api_key == api_key and not world.held


def release(world: World) -> None:
    (arrive,) = world.held
    world.hold = None
    arrive()
    wait(world, 50)


def delayed_end(first: bool, second: bool, one_connection: bool) -> list[bytes | None]:
    """EndTxn of the first transaction is late, repeated on another connection, and arrives within the second."""
    world = World(1, CONFIG)
    create(world, "out")
    actor = Actor(world, one_connection)
    hold_one(world, END_TXN)
    actor.begin(b"first")
    actor.finish(first)
    actor.begin(b"second")
    release(world)
    assert actor.producer.state.value == "ongoing"
    actor.finish(second)
    wait(world, 100)
    return read(world, "out")


@pytest.mark.parametrize("one_connection", [False, True])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_a_late_end_ends_nothing(first: bool, second: bool, one_connection: bool) -> None:
    """FAULTS B1: whatever the first and the second transaction decide, each comes out as its owner was told."""
    expected = [value for value, commit in ((b"first", first), (b"second", second)) if commit]
    assert delayed_end(first, second, one_connection) == expected


@pytest.mark.parametrize("second", [False, True])
def test_a_late_end_would_tear(second: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the broker's rule of accept numbers the same steps tear the second transaction: the test can see it."""
    monkeypatch.setattr("semel.broker.transactions.overtaken", lambda *_: False)
    expected = [b"first"] * (not second) + [b"second"] * second
    assert delayed_end(not second, second, False) != expected


def late_offsets(after_the_second: bool) -> int:
    """The offsets of the first transaction are late, repeated on another connection, and arrive within the second:
    before its own offsets or after them. What is committed in the end."""
    world = World(2, CONFIG)
    create(world, "in", "out")
    actor = Actor(world, one_connection=False)
    hold_one(world, TXN_OFFSET_COMMIT)
    actor.begin(b"first")
    actor.producer.send_offsets(GroupMetadata("g"), {INS[0]: Position(5)})
    actor.finish(True)
    assert committed(world, "g", INS)[INS[0]] == 5
    actor.begin(b"second")
    actor.producer.send_offsets(GroupMetadata("g"), {INS[0]: Position(9)})
    if after_the_second:
        # Between the second transaction's offsets and its end.
        world.perform(actor.end, actor.producer.commit(world.now_ms))
        world.run_until(lambda: any("TxnOffsetCommitResponse" in line for line in world.history[-1:]))
        release(world)
        world.run_until(lambda: any(isinstance(effect, Ended) for effect in actor.told[1:]))
    else:
        release(world)
        actor.finish(True)
    return committed(world, "g", INS)[INS[0]]


@pytest.mark.parametrize("after_the_second", [False, True])
def test_late_offsets_move_nothing_back(after_the_second: bool) -> None:
    """FAULTS B26: a TxnOffsetCommit that was repeated arrives once more, in a later transaction: it changes nothing."""
    assert late_offsets(after_the_second) == 9


def test_late_offsets_would_move_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rule the same steps commit the older offset: the test can see it."""
    monkeypatch.setattr("semel.broker.offsets.overtaken", lambda *_: False)
    assert late_offsets(True) == 5
