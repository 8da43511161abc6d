"""Delivering what is left in one sink's outbox, without processing: before the sink is removed or renamed.

Invariant: it delivers as a worker does, through the same delivery, claims and group, so it may be killed at any moment;
and it owns every partition or ends: beside a running app, which delivers by itself, it does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from semel.app import App
from semel.contract import Mode
from semel.errors import SemelError
from semel.host.clock import clock
from semel.host.leaving import Leaving, LeftEarly
from semel.host.steps import steps_from
from semel.host.worker import POLL_S, Run, delivery_of, sessions
from semel.ports import LogLost
from semel.sinks.cut_delivery import DRAINING_MS
from semel.sinks.cuts import Rule
from semel.streams import graph as g

LOOK_MS = 300  # how often it is asked whether anything is left
SAY_MS = 10_000


@dataclass(frozen=True, slots=True)
class Drained:
    records: int
    finished: bool  # False: it was asked to leave before


def drain(app: App, url: str, write: g.Write, *, prefix: str, say: Callable[[str], None]) -> Drained:
    """Returns when nothing that was committed is left in the outbox, or when asked to leave. Raises what a delivery
    raises, and SemelError when another member comes into the group."""
    assert write.sink is not None
    run = Run(app, url, Mode.EXACTLY_ONCE, prefix, False, Path(), None, None)
    now_ms = clock()
    leaving = Leaving(ignore_keyboard=False)
    delivered = 0
    try:
        with leaving, ExitStack() as stack:
            steps = steps_from(os.environ)
            source, owners = stack.enter_context(sessions(run, steps, leaving))
            log = source(f"{run.name}.{write.sink.name}", None, None)
            stack.callback(log.close)
            delivery = delivery_of(run, write.sink.name, write, log, owners, steps, Rule(ms=DRAINING_MS))
            stack.callback(delivery.close)
            outbox = prefix + write.outbox
            count = log.topics()[outbox].partitions
            delivery.join()
            leaving.later()
            looked_ms = said_ms = now_ms()
            had_all = False
            while not leaving.asked:
                delivered += delivery.step(now_ms(), POLL_S)
                mine = delivery.partitions
                if had_all and mine < count:
                    raise SemelError(
                        f"{log.name}: another member has come into the group {run.name}.{write.sink.name}: the app has "
                        "been started, and delivers by itself. What was delivered here stands."
                    )
                had_all = had_all or mine == count
                now = now_ms()
                if now - looked_ms < LOOK_MS or not had_all:
                    continue
                looked_ms = now
                left = delivery.lag()
                if not left:
                    return Drained(delivered, True)
                if now - said_ms >= SAY_MS:
                    said_ms = now
                    say(f"{left:,} offsets are left; an open transaction of a worker that died ends after its time")
    except LeftEarly:
        pass
    except LogLost as lost:
        raise SemelError(str(lost)) from lost
    return Drained(delivered, False)
