"""`semel app`: what an app leaves on a log, started anew or given up, once a person has said so.

Invariant: without --yes nothing changes, and what would is said; with it the same is said first. A group with members
is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from semel.errors import SemelError, UsageError
from semel.streams.layout import UNFINISHED
from semel.streams.reset import COUNT_MAX, To

if TYPE_CHECKING:
    from semel.host.groups import Tended
    from semel.ports import Log
    from semel.streams.graph import Graph
    from semel.streams.layout import Delivered
    from semel.streams.reset import Plan

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

App = Annotated[str, typer.Argument(metavar="APP.py[:NAME]", help="The file that makes the App.")]
On = Annotated[
    str | None,
    typer.Option(
        "--on", metavar="URL", help="embedded:DIR or kafka://HOST:PORT. Default: SEMEL_ON, else embedded:./data."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do it. Without this it only says what it would do.")]


@app.callback()
def _app() -> None:
    """Reset an app, begin one of its states, or give up what a removed one has left."""


@app.command()
def reset(
    app: App,
    on: On = None,
    to: Annotated[To, typer.Option(help="Where the app goes on reading its topics.")] = To.EARLIEST,
    yes: Yes = False,
) -> None:
    """Start an app anew: empty state, positions at the start or at the end of its topics."""
    from semel.streams import reset as resetting

    with _opened(app, on) as at:
        sinks = at.graph.sinks.values()
        _nobody_runs(at, [at.name, *(f"{at.name}.{sink.name}" for sink in sinks)])
        plan = resetting.plan(at.graph, at.log, to, prefix=at.prefix, delivered=at.delivered)
        for line in _told(at, plan, to):
            print(line)
        if not yes:
            print("Nothing has been done. To do it: --yes")
            return
        resetting.perform(at.graph, at.log, plan, prefix=at.prefix, delete=at.tended.delete)
        for line in _demanded(at, plan):
            print(line)
        print(f"Done: {at.name} on {at.log.name} starts anew.")


@app.command()
def begin(
    app: App,
    state: Annotated[str, typer.Argument(metavar="STATE", help="The name= of a state that has no topic yet.")],
    on: On = None,
    yes: Yes = False,
) -> None:
    """Let a new state begin empty in an app that goes on where it is."""
    from semel.streams import reset as resetting

    with _opened(app, on) as at:
        made, positions = resetting.beginning(at.graph, at.log, state, prefix=at.prefix)
        _nobody_runs(at, [at.name])
        print(f"topic {made.name} on {at.log.name}: created, empty, for the state {state!r} of {at.name}.")
        for topic in sorted({partition.topic for partition in positions}):
            stood = (f"{p.partition} at {positions[p].offset}" for p in sorted(positions) if p.topic == topic)
            print(f"  It holds nothing of what the app has read of {topic} (partition {', '.join(stood)}),")
            print("  only what comes behind. To have all of it in: `semel app reset`, or the state's former name.")
        # Of a state that was renamed: its former topics would stop the next start, one after the other.
        for line in resetting.left_by_others(at.graph, at.log, prefix=at.prefix, delivered=at.delivered):
            print(f"  {line}")
        if not yes:
            print("Nothing has been done. To do it: --yes")
            return
        at.log.create([made])
        print(f"Done: {state} begins empty at the next start.")


@app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def drain() -> None:
    """What it was is two commands now."""
    raise UsageError(
        "`semel app drain` is two commands now: `semel sink drain` delivers what is left for a sink, `semel app "
        "discard` gives up what a removed operator, state or sink has left."
    )


@app.command()
def discard(
    app: App,
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Its internal topic, as `run` named it.")],
    on: On = None,
    yes: Yes = False,
) -> None:
    """Give up what a removed operator, state or sink left: the topic and the records in it that nobody has taken."""
    from semel.streams import reset as resetting
    from semel.streams.graph import InternalKind

    with _opened(app, on) as at:
        found = resetting.leftover(at.graph, at.log, topic, prefix=at.prefix, delivered=at.delivered)
        sink = topic[len(at.graph.app) + 1 : -len(found.kind) - 1]
        outbox = found.kind is InternalKind.OUTBOX
        _nobody_runs(at, [f"{at.name}.{sink}" if outbox else at.name])
        taken = "delivered" if outbox else "read"
        held = f"the state {sink!r}" if found.kind is InternalKind.CHANGELOG else f"{many(found.records)} not {taken}"
        print(f"topic {at.prefix}{topic} on {at.log.name}: to be deleted, with {held}.")
        if found.records and outbox:
            print(
                "  To deliver them instead, with the program as it was: `semel sink drain FORMER.py "
                f"{sink} --on {at.log.name}`."
            )
        if found.records:
            print(f"  To see them first: `semel read {at.prefix}{topic} --on {at.log.name}`.")
        if outbox:
            print(
                f"  The sink keeps its rows, and its position. Should {sink} come back, its delivery stops there until "
                "`semel sink adopt` has said where it goes on."
            )
        if not yes:
            print("Nothing has been done. To do it: --yes")
            return
        at.tended.delete([at.prefix + topic])
        print(f"Done: {at.prefix}{topic} is deleted.")


class _At(NamedTuple):
    """One app on one log."""

    graph: Graph
    prefix: str
    name: str  # with the prefix: the app's group
    tended: Tended
    log: Log  # in the app's group
    delivered: Delivered


@contextmanager
def _opened(app: str, on: str | None) -> Iterator[_At]:
    from semel.host.groups import delivered, tend
    from semel.host.load import load_app

    graph = load_app(app).graph()
    prefix = os.environ.get("SEMEL_PREFIX", "")  # as `semel run` has it
    with tend(on or os.environ.get("SEMEL_ON") or "embedded:./data") as tended:
        name = prefix + graph.app
        yield _At(graph, prefix, name, tended, tended.session(name), delivered(tended, name))


def _nobody_runs(at: _At, groups: Sequence[str]) -> None:
    for group in groups:
        if members := at.tended.members(group):
            raise SemelError(
                f"{at.log.name}: group {group} has {len(members)} member{'s' * (len(members) > 1)}: "
                f"{', '.join(members)}. End the workers first. One that has ended counts until its session times out "
                "(10 s, if --session-timeout-ms did not say otherwise): then try again."
            )


def _told(at: _At, plan: Plan, to: To) -> Iterator[str]:
    yield f"reset of {at.name} on {at.log.name}, to the {to.value} records:"
    for topic in sorted({partition.topic for partition in plan.then}):
        moved = []
        for partition in sorted(one for one in plan.then if one.topic == topic):
            now = plan.now.get(partition)
            said = "none" if now is None else "unfinished reset" if now == UNFINISHED else f"{now.offset}"
            moved.append(f"{said} -> {plan.then[partition]}")
        yield f"  positions in {topic}, by partition: {', '.join(moved)}"
    for waiting in plan.emptied:
        also = f", {many(waiting.records)} in it given up" if waiting.records else ""
        yield f"  emptied: {at.prefix}{waiting.name} (made anew{also})"
    if any(waiting.kind == "changelog" for waiting in plan.emptied):
        yield "  emptied: the state of every key; copies on the workers' disks follow at their next start"
    for waiting in plan.kept:
        also = f"{many(waiting.records)} not known to be delivered" if waiting.records else "all of it was delivered"
        yield f"  kept: {at.prefix}{waiting.name} ({also}); the sink goes on where it is"
    again = "computed again and written once more" if to is To.EARLIEST else "written"
    outputs = sorted(write.topic.name for write in at.graph.writes() if write.topic is not None)
    for name in dict.fromkeys(outputs):
        yield f"  not undone: records in topic {at.prefix}{name} stay; what is {again} comes behind them"
    for sink in at.graph.sinks.values():
        rows = "are overwritten key by key" if sink.key else "stay, and the new ones are added to them"
        yield f"  not undone: rows in {sink.where} {rows}. Empty it first if it shall hold the new run alone"


def _demanded(at: _At, plan: Plan) -> Iterator[str]:
    """What must be said before a sink takes from an outbox that was made anew: a person says where it goes on."""
    from semel.contract import PositionIn
    from semel.streams.layout import sink_command

    emptied = {waiting.name for waiting in plan.emptied}
    for write in at.graph.writes():
        sink: Any = write.sink
        if sink is None or write.outbox not in emptied or sink.contract.position is PositionIn.GROUP_OFFSETS:
            continue
        emptied.discard(write.outbox)  # one outbox per sink, however many writes
        yield f"{sink.where} still has its position in the former outbox, and takes nothing until you run"
        yield f"  {sink_command('adopt', at.graph, at.log.name, sink.name)} --at start --yes".replace("`", "")


def many(records: int) -> str:
    if records > COUNT_MAX:
        return f"more than {COUNT_MAX:,} records"
    return f"{records:,} record" + ("" if records == 1 else "s")
