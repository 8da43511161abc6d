"""Whether a sink and the delivery topic say the same of a delivery by cuts: pure comparison, before anything is sent.

Invariant: nothing here repairs. What does not fit is Diverged, with what was found and what was expected.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from semel.contract import LogIdentity
from semel.ports import Log, Sink, TopicPartition
from semel.sinks import cuts, positions
from semel.sinks.cuts import Progress
from semel.sinks.group_position import Stands
from semel.sinks.sink import Ahead, Diverged, SinkError

CHOICE = (
    "Records would be delivered twice or skipped, so nothing was delivered. Put back the log and the sink that belong "
    "together, or say which position stands: `semel sink adopt APP.py SINK` tells what each choice would skip or "
    "repeat."
)


def agreed(
    log: Log,
    sink: Sink[Any, Any],
    at: TopicPartition,
    incarnation: int,
    position: int,
    found: Progress | None,
    here: LogIdentity,
) -> Progress:
    """What the delivery topic says, if the sink and the log do not say otherwise. `incarnation` and `position` are the
    sink's; the position is -1 where it cannot tell."""
    place = f"{sink.where}, partition {at.partition}"
    outbox, topic, form = at.topic, cuts.delivery_topic(at.topic), getattr(sink, "form", "")
    if found is not None and found.incarnation > incarnation:
        raise Diverged(
            f"{place}: the sink stands at incarnation {incarnation}, {topic} at {found.incarnation}: "
            "the sink was put back from a backup, its control object was removed, or a move of its "
            f"position was interrupted. {CHOICE}"
        )
    if found is None or found.incarnation < incarnation:
        if position > 0:
            raise Ahead(
                f"{place}: it holds what was delivered up to offset {position} of {outbox}, and "
                f"{topic} knows of no delivery: the log was put back, or that topic was made anew. {CHOICE}"
            )
        return Progress(incarnation, here.topic_id, here.partitions, 0, "", refused=cuts.refused_in(found, here))
    same_topic(place, outbox, found, here)
    bound = _bound(found)
    if position > bound:
        raise Ahead(
            f"{place}: it holds what was delivered up to offset {position} of {outbox}, and "
            f"{topic} decided cuts up to {bound} only: the log went back behind the sink (a backup put back, "
            f"a tail lost in a power cut), or a copy of it is in use. {CHOICE}"
        )
    if 0 <= position < found.position:
        raise Diverged(
            f"{place}: it knows of what was delivered up to offset {position} of {outbox}, and "
            f"{topic} says {found.position}: the sink was put back from a backup. {CHOICE}"
        )
    if found.cut is not None and found.cut.form != form and position != found.position:
        raise SinkError(
            f"{place}: the cut [{found.cut.start}, {found.cut.end}) was begun as {found.cut.form}, the sink is "
            f"declared as {form} now: its records could be there twice. Start the app once as it was, until "
            "the cut is done, then change it."
        )
    not_past_the_end(place, log, at, found)
    # Of a cut that the sink knows nothing of, no byte has left: a record that it refused in the former form, say.
    return found if found.cut is None else replace(found, cut=replace(found.cut, form=form))


def alone(
    sink: Sink[Any, Any],
    at: TopicPartition,
    said: Iterable[Progress | None],
    told: Stands | None,
    found: Progress | None,
    here: LogIdentity,
) -> None:
    """Where the sink keeps nothing, it cannot contradict the delivery topic. What still can is asked here: the topic's
    other partitions (`said`: all of them), and what the group's offset says that the delivery once stood at (`told`,
    read after `found`, and after whoever delivered was fenced: it never tells of more than was decided)."""
    if half_moved(said, here):
        raise Diverged(positions.interrupted(sink.where, sink.name))
    if gone_back(told, found):
        assert told is not None
        says = "knows of no delivery" if found is None else f"says {_bound(found)} in {found.incarnation}"
        raise Diverged(
            f"{sink.where}, partition {at.partition}: its group was at offset {told.position} of {at.topic} in "
            f"incarnation {told.incarnation}, and {cuts.delivery_topic(at.topic)} {says}: the log went back (a backup "
            f"put back, a tail lost in a power cut), or that topic was made anew. {CHOICE}"
        )


def half_moved(said: Iterable[Progress | None], here: LogIdentity) -> bool:
    """A person's move writes one record per partition, all of one incarnation. A partition without a record, or with
    one of a topic before this one, stands at the first."""
    ours = (one for one in said if one is not None)
    known = [one.incarnation for one in ours if (one.topic_id, one.partitions) == (here.topic_id, here.partitions)]
    return len({*known, *([1] if len(known) < here.partitions else [])}) > 1


def gone_back(told: Stands | None, found: Progress | None) -> bool:
    """Only what a delivery or a move has told counts: it has a mark, or an incarnation above the first."""
    if told is None or (not told.mark and told.incarnation == 1):
        return False
    return found is None or (told.incarnation, told.position) > (found.incarnation, _bound(found))


def _bound(found: Progress) -> int:
    return found.position if found.cut is None else found.cut.end


def same_topic(place: str, outbox: str, found: Progress, here: LogIdentity) -> None:
    if (found.topic_id, found.partitions) != (here.topic_id, here.partitions):
        raise Diverged(
            f"{place}: its positions are of another topic {outbox} (id {found.topic_id or 'unknown'}, "
            f"{found.partitions} partitions; now {here.topic_id or 'unknown'}, {here.partitions}): it was "
            f"re-created. {CHOICE}"
        )


def not_past_the_end(place: str, log: Log, at: TopicPartition, found: Progress) -> None:
    if found.cut is not None and log.ends([at])[at] < found.cut.end:
        raise Diverged(
            f"{place}: the cut [{found.cut.start}, {found.cut.end}) of {at.topic} is under way, and the log "
            f"ends before it: it went back (a backup put back, a tail lost in a power cut). {CHOICE}"
        )
