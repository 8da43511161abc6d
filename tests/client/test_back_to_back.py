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


def copied(world: World, *, limit_ms: int = 600_000) -> None:
    """Runs until the group's offsets are at the end of the input."""
    deadline = world.now_ms + limit_ms
    while committed(world, "g", INS) != dict.fromkeys(INS, INPUTS // 2):
        assert world.now_ms < deadline, "\n".join(world.history[-60:])
        moment = world.now_ms + 500
        world.at(500, lambda: None)
        world.run_until(lambda moment=moment: world.now_ms >= moment)  # type: ignore[misc]


def check(world: World) -> None:
    """Every input in the committed output once; nothing else."""
    world.faults = Faults()
    found = Counter(read(world, "out"))
    lost, repeated = EXPECTED - found, found - EXPECTED
    assert not lost and not repeated, (lost, repeated, *world.history[-200:])
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
