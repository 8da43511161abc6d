"""Whether a sink and the delivery topic say the same of a delivery by cuts: pure comparison, before anything is sent.

Invariant: nothing here repairs. What does not fit is Diverged, with what was found and what was expected.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from semel.contract import LogIdentity
from semel.ports import Log, Sink, TopicPartition
from semel.sinks import cuts
from semel.sinks.cuts import Progress
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
        return Progress(incarnation, here.topic_id, here.partitions, 0, "")
    same_topic(place, outbox, found, here)
    bound = found.position if found.cut is None else found.cut.end
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
