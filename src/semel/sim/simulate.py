"""One world from one seed: made, run while things go wrong, brought to rest, and asked.

While faults last, two producers fill `in`, two copiers of one group copy it to `out`, one producer writes pairs, and
two readers read everything at either isolation level. Then the world is calm: what was begun is finished, whatever was
left open times out, the broker loses power once more, and the readers read to the end. Invariant: the same seed, with
the same decisions left out, gives the same history.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from semel.log.errors import CorruptJournal, CorruptSegment, FolderError

from . import history as h
from .checkers import Broken, check
from .cluster import PARTITIONS, TOPICS, Cluster
from .copier import Copier
from .faults import PROFILES, Dice, Rolls
from .network import Network
from .process import TRANSACTION_TIMEOUT_MS, Counts, Line, World
from .programs import Feeder, Pairs, Reader, create_topics
from .scheduler import Scheduler, Stuck

TROUBLE_MS: Final = 10_000  # at most, of faults
CALM_MS: Final = 60_000  # at most, until everything is copied
SLACK_MS: Final = 100  # a timeout is noticed, its abort synced, a reader told


@dataclass(slots=True)
class Result:
    seed: int
    profile: str
    broken: list[Broken]
    history: h.History
    faults: list[tuple[int, str]]
    crashes: int
    counts: Counts
    checkpoints: int
    released: int
    closed_by_broker: int
    ms: int  # simulated


def simulate(seed: int, dice: Dice, *, left_out: Collection[int] = ()) -> Result:
    """`dice` gives one stream per name, made of the seed. `left_out`: numbers of decisions for a fault that are not
    carried out."""
    profile = PROFILES[seed % len(PROFILES)]
    scheduler, history, rolls = Scheduler(), h.History(), Rolls(dice("faults"), left_out)
    rolls.calm = True
    broken: list[Broken] = []
    cluster = Cluster(scheduler, history, profile, rolls, dice("cluster"), dice("disk"))
    network = Network(scheduler, history, cluster, profile, rolls, dice("network"))
    world = World(scheduler, history, profile, rolls, dice("programs"), cluster, network, Counts())
    try:
        _run(world)
    except Stuck as reason:
        broken.append(Broken(0, str(reason), f"at {scheduler.now_ms}"))
    except (CorruptJournal, CorruptSegment, FolderError) as error:
        # No crash may leave a folder that the next start refuses: everything acknowledged in it would be gone.
        broken.append(Broken(1, f"{type(error).__name__}: {error}", f"at {scheduler.now_ms}"))
    except Exception as error:
        broken.append(Broken(0, f"{type(error).__name__}: {error}", f"at {scheduler.now_ms}, {_place(error)}"))
    # A clock that is put back while a transaction is open lets it live that much longer.
    timeout_ms = TRANSACTION_TIMEOUT_MS + SLACK_MS + 2 * profile.jump_ms
    broken += check(history.events, timeout_ms=timeout_ms)
    return Result(
        seed,
        profile.name,
        broken,
        history,
        rolls.done,
        cluster.crashes,
        world.counts,
        cluster.checkpoints,
        network.released,
        network.closed_by_broker,
        scheduler.now_ms,
    )


def _run(world: World) -> None:
    scheduler, cluster, rolls = world.scheduler, world.cluster, world.rolls
    create_topics(world, TOPICS)
    rolls.calm = False
    feeders = [Line(world, name, Feeder) for name in ("f0", "f1")]
    pairs = Line(world, "p", Pairs)
    copiers = [Line(world, name, Copier) for name in ("c0", "c1")]
    readers = [Reader(world, "rc", committed=True), Reader(world, "ru", committed=False)]
    cluster.died = lambda: _die_too(world, copiers, pairs)
    cluster.crash("the world begins")
    end_ms = scheduler.now_ms + TROUBLE_MS
    scheduler.after(TROUBLE_MS, lambda: None)
    scheduler.run_until(
        lambda: cluster.crashes >= world.profile.crashes or scheduler.now_ms >= end_ms, 2 * TROUBLE_MS, "crashes"
    )

    world.note("calm")
    rolls.calm = True
    cluster.calm()
    pairs.stopped = True
    for feeder in feeders:
        feeder.stopped = True
    for program in _programs(feeders, pairs):
        program.stop()  # one that was taken for dead may be alive
    scheduler.run_until(lambda: _finished(world, feeders, pairs), CALM_MS, "everything is written and copied")
    for line in copiers:
        line.stopped = True
        for copier in line.instances:
            copier.process.kill("its work is done")
    scheduler.wait(
        TRANSACTION_TIMEOUT_MS + 2 * SLACK_MS + 2 * world.profile.jump_ms
    )  # what the dead have left open is aborted
    cluster.crash("the world ends")
    scheduler.run_until(lambda: cluster.node is not None, CALM_MS, "the broker is back")
    ends = cluster.ends()
    scheduler.run_until(lambda: all(r.positions == ends for r in readers), CALM_MS, "the readers reach the end")
    for reader in readers:
        reader.process.kill("its work is done")
    world.add(cluster.final())


def _finished(world: World, feeders: list[Line[Feeder]], pairs: Line[Pairs]) -> bool:
    cluster = world.cluster
    if cluster.node is None or not all(program.done for program in _programs(feeders, pairs)):
        return False
    source = [at for at in PARTITIONS if at.topic == "in"]
    ends, offsets = cluster.ends(), cluster.offsets()
    return all(offsets.get(at, 0) == ends[at] for at in source)


def _programs(feeders: list[Line[Feeder]], pairs: Line[Pairs]) -> list[Feeder | Pairs]:
    return [*pairs.instances, *(feeder for line in feeders for feeder in line.instances)]


def _die_too(world: World, copiers: list[Line[Copier]], pairs: Line[Pairs]) -> None:
    """A power cut takes clients along."""
    for line in copiers:
        if world.rolls.happens(world.profile.both, f"{line.name} dies with the broker"):
            line.newest.die("dies with the broker")
    if world.rolls.happens(world.profile.both, "p dies with the broker"):
        pairs.newest.die("dies with the broker")


def _place(error: BaseException) -> str:
    """Where in semel it was raised."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename.rpartition('semel/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
