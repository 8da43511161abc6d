"""`semel sink`: where each delivery of an app stands, and how a person moves it.

Invariant: list and show change nothing; adopt and rewind say what they will skip and repeat, and do it only with --yes,
if nothing has moved since they looked. While the app runs all but list and show refuse: it delivers by itself.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from semel.cli.app import App, On, Yes, many
from semel.cli.topics import table
from semel.errors import SemelError, UsageError

if TYPE_CHECKING:
    from semel.host.groups import Tended
    from semel.ports import TopicPartition
    from semel.sinks.operate import Delivery, Place, Standing
    from semel.streams.graph import Graph, Write

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

Sink = Annotated[str, typer.Argument(metavar="SINK", help="Its name, as `semel sink list` shows it.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]


@app.callback()
def _sink() -> None:
    """See how far the sinks of an app are, and move or finish a delivery."""


@app.command("list")
def list_(app: App, on: On = None, json_lines: Json = False) -> None:
    """Every sink of an app, one line each: how much waits for it, and whether its delivery would go on."""
    from semel.streams.layout import left_behind

    rows: list[tuple[str, ...]] = [("SINK", "CONTRACT", "PARTITIONS", "WAITING", "STATE", "")]
    with _opened(app, on) as at:
        for name, write in at.sinks.items():
            found, row = _listed(at, name, write)
            if json_lines:
                print(json.dumps({"sink": name, **found}))
            rows.append(row)
        left = left_behind(at.graph, at.tended.session(at.name), at.prefix, list(at.sinks), at.delivered)
        for outbox, sink in left:
            rows.append((sink, "-", "-", "some", "left behind", f"no sink of the program: topic {outbox}"))
            if json_lines:
                print(json.dumps({"sink": sink, "outbox": outbox, "state": "left behind"}))
    if not json_lines:
        print(table(rows) if len(rows) > 1 else "This app has no sinks.")


def _listed(at: _At, name: str, write: Write) -> tuple[dict[str, Any], tuple[str, ...]]:
    """One sink for JSON and for the table; one that cannot be asked says why, and keeps no other from being listed."""
    declared: Any = write.sink
    contract, where = declared.contract.name, declared.where
    if at.prefix + write.outbox not in at.tended.session(f"{at.name}.{name}").topics():
        return {"contract": contract, "state": "never run"}, (name, contract, "-", "-", "never run", where)
    try:
        with _delivery(at, name, write) as one:
            standing = one.standing
            waiting = many_of(sum(place.waiting for place in standing.places))
            refused = sum(place.refused for place in standing.places)
            told = f"; {many_of(refused)} refused, in {at.name}.dlq" if refused else ""
            row = (name, contract, f"{len(standing.places)}", waiting, _state(standing), one.where + told)
            return {"contract": contract, **_as_json(standing)}, row
    except SemelError as why:
        said = {"contract": contract, "state": "refused", "problem": str(why)}
        return said, (name, contract, "-", "-", "refused", f"{why}")


@app.command()
def show(app: App, sink: Sink, on: On = None, json_lines: Json = False) -> None:
    """One sink by partition: positions, what waits, who owns it; and why its delivery would stop."""
    from semel.ports import NotDone

    with _one(app, sink, on) as (at, one):
        standing = one.standing
        if json_lines:
            for place in standing.places:
                print(json.dumps({"sink": sink, **_place_as_json(place)}))
            return
        print(f"sink {sink} of {at.name} on {at.url}: {one.where}")
        print(f"contract {one.contract}, incarnation {standing.incarnation}, the position is in {one.kind}")
        rows: list[tuple[str, ...]] = [("PARTITION", "START", "POSITION", "END", "LAG", "WAITING", "OWNER", "SINCE")]
        for place in standing.places:
            stands = "none" if place.position is None else f"{place.position}"
            rows.append(
                (
                    f"{place.at.partition}", f"{place.start}", stands, f"{place.end}", f"{place.lag}",
                    many_of(place.waiting), place.owner or "-", place.updated or "-",
                )
            )  # fmt: skip
        print(table(rows))
        print("WAITING: committed records that were not delivered. LAG counts offsets, also those of markers.")
        for partition in one.under_way:
            print(f"partition {partition}: a cut is under way; the next start, or `semel sink drain`, finishes it.")
        for place in standing.places:
            if place.refused:
                letters = f"{many(place.refused)} of this outbox refused: in {at.name}.dlq, and left out"
                print(f"partition {place.at.partition}: {letters}.")
        left = one.delivery.prepared()
        for name in () if isinstance(left, NotDone) else left:
            print(f"prepared, and not settled: {name}; the next start, or `semel sink drain`, settles it.")
        if standing.away:
            print(f"The sink could not be asked: {standing.away}")
        for place in standing.places:
            if place.problem:
                print(f"partition {place.at.partition} is diverged: {place.problem}")
        if standing.problem:
            print(f"Which position shall stand: {_command('adopt', at, sink)} tells what each choice does.")


@app.command()
def adopt(
    app: App,
    sink: Sink,
    on: On = None,
    stands: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="WHICH",
            help="sink, log, start, end, or PARTITION:OFFSET (several between commas). Without it: what each does.",
        ),
    ] = None,
    yes: Yes = False,
) -> None:
    """Say which position stands after a log or a sink was put back, re-created or changed behind semel's back."""
    from semel.contract import PositionIn

    with _one(app, sink, on) as (at, one):
        _alone(at, sink)
        _answers(one)
        if one.delivery.kind is PositionIn.SINK and not one.standing.seen:
            raise UsageError(
                f"{one.where}: it knows of no delivery of {at.name} (none was made, or its positions were removed). "
                "Start the app, which claims it; if that stops, look again."
            )
        choices = one.choices()
        if stands is None:
            print(one.standing.problem or f"sink {sink}: its position fits the log; nothing has to be adopted.")
            _runs(one)
            for name, to in choices.items():
                print(f"--at {name}:")
                _consequences(one, to, again=False)
            print("Nothing has been done. Say which: --at WHICH; then --yes")
            return
        to = choices[stands] if stands in choices else _written_out(one, stands, list(choices))
        _move(at, one, sink, to, again=False, yes=yes, what=f"adopt --at {stands}")


@app.command()
def rewind(
    app: App,
    sink: Sink,
    on: On = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="OFFSET", help="OFFSET, or PARTITION:OFFSET (several between commas)."),
    ] = None,
    by_time: Annotated[
        str | None,
        typer.Option("--by-time", metavar="TIME", help="The first record of that time: ISO 8601 (UTC without a zone)."),
    ] = None,
    to_start: Annotated[bool, typer.Option("--to-start", help="All that the outbox still holds.")] = False,
    yes: Yes = False,
) -> None:
    """Deliver records again that the outbox still holds. Their effects come once more."""
    if sum((to is not None, by_time is not None, to_start)) != 1:
        raise UsageError("Say how far: one of --to OFFSET, --by-time TIME, --to-start.")
    with _one(app, sink, on) as (at, one):
        _alone(at, sink)
        _answers(one)
        standing = one.standing
        if standing.problem:
            raise SemelError(
                f"{standing.problem} A rewind goes back from a position that stands; which one does, says "
                f"{_command('adopt', at, sink)}."
            )
        if one.under_way:
            raise SemelError(
                f"{one.where}: a cut of partition {one.under_way[0]} is under way: its records would be there twice. "
                f"Finish it first: {_command('drain', at, sink)}."
            )
        now = {place.at: place.position for place in standing.places}
        if all(position is None for position in now.values()):
            raise UsageError(f"sink {sink}: nothing was delivered yet.")
        if to_start:
            target = {place.at: place.start for place in standing.places}
        elif by_time is not None:
            found = at.tended.since(list(now), _milliseconds(by_time))
            target = {place.at: _known(found[place.at], place) for place in standing.places}
        else:
            assert to is not None
            target = _written_out(one, to, [])
        for place in standing.places:
            position = place.start if place.position is None else place.position
            if to is not None and target[place.at] > position:
                raise UsageError(
                    f"partition {place.at.partition} was delivered up to {position}: a rewind goes back, and "
                    f"{target[place.at]} lies ahead. What shall never be delivered is skipped by `semel sink adopt`."
                )
            target[place.at] = min(target[place.at], position)
        if all(target[place.at] == (place.position or place.start) for place in standing.places):
            print(f"sink {sink} stands there already: nothing would be delivered again.")
            return
        _move(at, one, sink, target, again=True, yes=yes, what="rewind")


@app.command()
def drain(app: App, sink: Sink, on: On = None) -> None:
    """Deliver what is left in a sink's outbox, without processing; before the sink is removed or renamed."""
    from semel.host.draining import drain as draining
    from semel.host.load import load_app

    made = load_app(app)
    with _opened(app, on) as at:
        write = _named(at, sink)
        _alone(at, sink, processing=True)
        if at.prefix + write.outbox not in at.tended.session("").topics():
            print(f"sink {sink}: it has no outbox yet, so nothing is left.")
            return
        url, prefix = at.url, at.prefix
    # The folder of an embedded log is opened by one at a time.
    done = draining(made, url, write, prefix=prefix, say=lambda text: print(f"sink {sink}: {text}", flush=True))
    if not done.finished:
        print(f"sink {sink}: left before the end; {many(done.records)} delivered. Run it again to go on.")
        raise typer.Exit(130)
    print(f"sink {sink}: {many(done.records)} delivered, nothing is left in {prefix}{write.outbox}.")


# --- one app on one log ----------------------------------------------------------------------------------------------


class _At(NamedTuple):
    graph: Graph
    prefix: str
    name: str
    url: str
    file: str
    tended: Tended
    delivered: Any
    sinks: Mapping[str, Write]


class _Seen:
    """One delivery, as it was when it was looked at."""

    def __init__(self, delivery: Delivery, sink: Any) -> None:
        self.delivery, self.sink, self.where = delivery, sink, sink.where
        self.contract: str = sink.contract.name
        self.kind: str = sink.contract.position.value
        self.standing: Standing = delivery.standing()
        self.under_way = delivery.under_way(self.standing)

    def choices(self) -> dict[str, dict[TopicPartition, int]]:
        """The positions that could stand, by the word for them."""
        places = self.standing.places
        whole = {one.partition: one.position if one.whole is None else one.whole for one in self.standing.seen}
        decided = {p: said.position for p, said in self.standing.progress.items() if said is not None}
        found: dict[str, dict[TopicPartition, int]] = {}
        if self.standing.same_log:
            if whole:
                found["sink"] = {p.at: _within(whole.get(p.at.partition, p.start), p) for p in places}
            if decided and whole != decided:
                found["log"] = {p.at: _within(decided.get(p.at.partition, p.start), p) for p in places}
            if not whole and not decided:
                found["group"] = {p.at: _within(p.position or p.start, p) for p in places}
        found["start"] = {p.at: p.start for p in places}
        found["end"] = {p.at: p.end for p in places}
        return found


@contextmanager
def _opened(app: str, on: str | None) -> Iterator[_At]:
    from semel.host.groups import delivered, tend
    from semel.host.load import load_app

    graph = load_app(app).graph()
    prefix = os.environ.get("SEMEL_PREFIX", "")  # as `semel run` has it
    url = on or os.environ.get("SEMEL_ON") or "embedded:./data"
    sinks = {write.sink.name: write for write in graph.writes() if write.sink is not None}
    with tend(url) as tended:
        name = prefix + graph.app
        yield _At(graph, prefix, name, url, app, tended, delivered(tended, name), sinks)


def _named(at: _At, sink: str) -> Write:
    if sink not in at.sinks:
        have = f"It has {', '.join(at.sinks)}." if at.sinks else "It has none."
        raise UsageError(f"app {at.graph.app} has no sink {sink!r}. {have}")
    return at.sinks[sink]


@contextmanager
def _delivery(at: _At, name: str, write: Write) -> Iterator[_Seen]:
    from semel.ports import NoSteps
    from semel.sinks.operate import Delivery

    declared: Any = write.sink
    sink = declared.renamed(at.prefix) if at.prefix else declared
    connection = sink.open(NoSteps())
    try:
        delivery = Delivery(
            at.tended.session(f"{at.name}.{name}"),
            sink,
            app=at.name,
            outbox=at.prefix + write.outbox,
            owners=at.tended.owner,
            connection=connection,
        )
        yield _Seen(delivery, sink)
    finally:
        connection.close()


@contextmanager
def _one(app: str, sink: str, on: str | None) -> Iterator[tuple[_At, _Seen]]:
    with _opened(app, on) as at, _delivery(at, sink, _named(at, sink)) as one:
        yield at, one


def _command(what: str, at: _At, sink: str) -> str:
    return f"`semel sink {what} {at.file} {sink} --on {at.url}`"


def _alone(at: _At, sink: str, processing: bool = False) -> None:
    """A delivery that runs would go on under what it has read, or deliver beside us."""
    for group in (f"{at.name}.{sink}", *((at.name,) if processing else ())):
        if members := at.tended.members(group):
            raise SemelError(
                f"{at.url}: group {group} has {len(members)} member{'s' * (len(members) > 1)}: {', '.join(members)}. "
                "The app runs, and delivers by itself. End its workers first. One that has ended counts until its "
                "session times out (10 s, if --session-timeout-ms did not say otherwise): then try again."
            )


def _answers(one: _Seen) -> None:
    if one.standing.away:
        raise SemelError(f"{one.standing.away}. Nothing was moved: the sink must be asked first.")


# --- moving ----------------------------------------------------------------------------------------------------------


def _move(
    at: _At, one: _Seen, sink: str, to: Mapping[TopicPartition, int], *, again: bool, yes: bool, what: str
) -> None:
    if one.standing.problem:
        print(one.standing.problem)
    print(f"{what} of sink {sink} of {at.name} on {at.url}:")
    _consequences(one, to, again=again)
    if not yes:
        print("Nothing has been done. To do it: --yes")
        return
    now_ms = int(time.time() * 1000)
    renew = one.delivery.renewed(one.standing, again=again)
    incarnation = one.delivery.move(one.standing, to, renew=renew, now_ms=now_ms, delete=at.tended.delete)
    print(f"Done: the next start delivers from there{f', as incarnation {incarnation}' if renew else ''}.")


def _runs(one: _Seen) -> None:
    """Where the runs of a log begin that went another way: what came after it was put back is in the last ones."""
    newest = []
    for place in one.standing.places:
        runs = one.delivery.runs(place.at) if one.delivery.log_went_another_way(one.standing, place) else []
        if runs:
            newest.append(f"{place.at.partition}:{runs[-1][1]}")
            begins = ", ".join(f"run {epoch} at offset {offset}" for epoch, offset in runs)
            print(f"partition {place.at.partition} of this log: {begins}")
    if newest:
        print(f"A log that is put back goes on in a new run. To deliver all of the newest: --at {','.join(newest)}")


def _consequences(one: _Seen, to: Mapping[TopicPartition, int], *, again: bool) -> None:
    standing, delivery = one.standing, one.delivery
    renew = delivery.renewed(standing, again=again)
    whole = {one.partition: one.position if one.whole is None else one.whole for one in standing.seen}
    again_too = not standing.same_log
    for place in standing.places:
        at, target = place.at, to[place.at]
        held = whole.get(at.partition, place.position) if standing.same_log else None
        told = f"  partition {at.partition}: "
        told += "from the start of the log" if held is None else f"{held} -> {target}"
        if held is None:
            told = f"  partition {at.partition}: at {target} of this log ({place.start} to {place.end})"
            if below := delivery.count(at, place.start, target):
                told += f"; {many(below)} below it taken for delivered, and never delivered"
        else:
            another = delivery.log_went_another_way(standing, place)
            if repeated := delivery.count(at, target, min(held, place.end)):
                told += f"; {many(repeated)} delivered {'once more, or for the first time' if another else 'again'}"
                again_too = True
            if skipped := delivery.count(at, max(held, place.start), target):
                told += f"; {many(skipped)} never delivered"
            if held < place.start:
                told += f"; offsets {held} to {place.start - 1} were deleted and are never delivered"
            if held > place.end:
                told += f"; offsets {place.end} to {held - 1}, which the log lost, are given to new records"
            if another and (below := delivery.count(at, place.start, target)):
                told += f"; {many(below)} below {target} taken for delivered, also what came after the log went back"
        print(f"{told}; {many(delivery.count(at, target, place.end))} to deliver.")
    if again_too or renew:
        print(f"  {_effects(one, renew, standing.incarnation + renew)}")


def _effects(one: _Seen, renew: bool, incarnation: int) -> str:
    """What a record that comes again does at this sink, by how it recognises one."""
    from semel.contract import Identity, Settlement

    sink = one.sink
    match sink.contract.identity:
        case Identity.OFFSET if hasattr(sink, "read_by_others"):
            return "A record that comes again is appended once more: the readers of the topic see it again."
        case Identity.OFFSET if sink.key:
            return "A record that comes again writes its row again; rows may show older values until it is through."
        case Identity.OFFSET:
            return "A record that comes again is inserted once more: without key= nothing recognises it."
        case Identity.VERSION if renew:
            return (
                f"A record that comes again writes its row again, as incarnation {incarnation}: rows may show older "
                "values until it is through."
            )
        case Identity.VERSION:
            return "A record that comes again has no effect where its row is as new (the incarnation stays)."
        case Identity.CUT if sink.contract.settlement is Settlement.DECIDED:
            return (
                f"Cuts are written as incarnation {incarnation}, beside what is there: a row with a key is written "
                "again and may show older values until it is through; any other row, file or object is there once more."
            )
        case Identity.EVENT_ID:
            return (
                f"Rows carry new event ids (incarnation {incarnation}): {sink.contract.through} shows what comes again "
                "once more."
            )
        case Identity.CUT:
            return (
                f"Objects are written as incarnation {incarnation}, beside those of before, which stay: tell their "
                "readers from which offset on it counts."
            )
        case Identity.REQUEST_KEY if renew:
            return f"Requests carry new keys (incarnation {incarnation}): the receiver does each of them once more."
        case Identity.REQUEST_KEY:
            return (
                "Requests carry the keys that they had: what the receiver knows, and all below its floor, is answered "
                "without effect."
            )
    return "A record that comes again is there once more."


def _written_out(one: _Seen, text: str, words: list[str]) -> dict[TopicPartition, int]:
    """OFFSET where there is one partition, or P:OFFSET,…; partitions that are not named stay."""
    places = {place.at.partition: place for place in one.standing.places}
    to = {place.at: _within(place.position or place.start, place) for place in places.values()}
    for part in text.split(","):
        partition, colon, offset = part.strip().partition(":")
        if not colon and len(places) == 1:
            partition, offset = "0", partition
        if not (partition.isdigit() and offset.isdigit()) or int(partition) not in places:
            known = f"{', '.join(words)}, or " if words else ""
            raise UsageError(f"{text!r}: write {known}PARTITION:OFFSET (partitions 0 to {len(places) - 1}).")
        place = places[int(partition)]
        if not place.start <= int(offset) <= place.end:
            raise UsageError(
                f"partition {partition} of the outbox holds offsets {place.start} to {place.end}; {offset} is none of "
                "them. What was older has been delivered and deleted."
            )
        to[place.at] = int(offset)
    return to


def _within(position: int, place: Place) -> int:
    return min(max(position, place.start), place.end)


def _known(offset: int, place: Place) -> int:
    """-1: no record is of that time or later."""
    return place.end if offset < 0 else offset


def _milliseconds(text: str) -> int:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--by-time {text}: write a time like 2026-11-23T12:00:00Z.") from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def _state(standing: Standing) -> str:
    if standing.away:
        return "away"
    if standing.problem:
        return "diverged"
    return "new" if all(place.position is None for place in standing.places) else "ok"


def many_of(count: int) -> str:
    from semel.sinks.operate import COUNT_MAX

    return f">{COUNT_MAX:,}" if count > COUNT_MAX else f"{count:,}"


def _as_json(standing: Standing) -> dict[str, Any]:
    return {
        "state": _state(standing),
        "incarnation": standing.incarnation,
        "waiting": sum(place.waiting for place in standing.places),
        "lag": sum(place.lag for place in standing.places),
        "refused": sum(place.refused for place in standing.places),
        "problem": standing.problem or standing.away or None,
    }


def _place_as_json(place: Place) -> dict[str, Any]:
    return {
        "partition": place.at.partition,
        "start": place.start,
        "position": place.position,
        "end": place.end,
        "lag": place.lag,
        "waiting": place.waiting,
        "refused": place.refused,
        "incarnation": place.incarnation,
        "owner": place.owner or None,
        "problem": place.problem or None,
    }
