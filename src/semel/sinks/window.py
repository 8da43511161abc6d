"""Whether a sink with a window still knows a cut that may have been sent before: pure, over the contract and the cut.

A sink that forgets (contract Windowed) gives a repeat its effect again once its window is over. So a cut that may have
left, and whose end nobody here knows, is sent again only while the sink surely remembers it; past that nobody can tell
whether the sink holds it, and a person decides (law 9).

Invariant: doubt counts against sending. The age is taken from when the cut was written down, before its first byte;
inserts are counted from before it, everybody's; a clock that went back, or a count, ends the window.
"""

from __future__ import annotations

from typing import Any, Protocol

from semel.contract import Window
from semel.ports import NotDone
from semel.sinks.cuts import Cut
from semel.sinks.sink import SinkError

BACK_MS = 60_000  # clocks of two machines may differ by so much


class Forgetful(Protocol):
    """What a delivery by cuts asks of the connection of a sink with a window (contract Windowed), besides
    `ports.SinkConnection`. Its claim says incarnation 0 where the sink keeps none: then it is the delivery topic's."""

    def seen(self) -> str | NotDone:
        """Where the sink stands in what it counts its window by (inserts), before a cut is written down. Asked only
        where `Window.inserts` is a number, as is the next."""
        ...

    def inserts_since(self, seen: str) -> int | NotDone:
        """At least as many as the sink has counted since; below 0 when it went back."""
        ...

    def remind(self, until_ms: int | None, seen: str) -> None:
        """Before each `write`: nothing of that cut leaves at or after `until_ms` (by the clock; None: no limit), nor
        when the inserts since `seen` fill the window, however long this process was stopped meanwhile. Unknown then."""
        ...


class Forgotten(SinkError):
    """A cut may be at the sink, which no longer tells. A person looks."""


class Memory:
    """Of one sink, for one delivery. Without a window in its contract every question is answered at once."""

    def __init__(self, sink: Any, connection: Any) -> None:
        self._sink, self._connection = sink, connection

    @property
    def _window(self) -> Window | None:
        window: Window | None = self._sink.contract.window
        return window

    @property
    def _margin_ms(self) -> int:
        """How long a request may be on its way: it must arrive within the window, too."""
        return int(getattr(self._sink, "timeout_s", 0.0) * 1000)

    def begun(self, now_ms: int) -> tuple[int, str] | NotDone:
        """When a cut begins, and what the sink has counted until then; written down with it."""
        if self._window is None:
            return 0, ""
        seen: str | NotDone = self._connection.seen() if self._window.inserts is not None else ""
        return seen if isinstance(seen, NotDone) else (now_ms, seen)

    def remind(self, cut: Cut) -> None:
        """Before each sending: the connection does not send later than this, whenever it is woken."""
        if self._window is not None:
            self._connection.remind(self._until_ms(cut), cut.seen)

    def _until_ms(self, cut: Cut) -> int | None:
        window = self._window
        if window is None or window.seconds is None:
            return None
        return cut.at_ms + int(window.seconds * 1000) - self._margin_ms

    def check(self, cut: Cut, now_ms: int, partition: int, again: bool) -> NotDone | None:
        """Returns None while the sink surely knows what it has seen of this cut. Raises Forgotten. `again`: it was sent
        again just now, and may be there twice."""
        if self._window is None:
            return None
        why = self._over(cut, now_ms)
        if isinstance(why, NotDone):
            return why
        if not why:
            return None
        what = (
            f"the cut [{cut.start}, {cut.end}), {cut.records} records, may have been sent before, and {why}; "
            f"the sink tells a repeat for {self._window} only"
        )
        now = (
            "It was sent again while that passed, so its records may be there twice."
            if again
            else "Whether they are there is unknown, so they were not sent again."
        )
        raise Forgotten(
            f"{self._sink.where}, partition {partition}: {what}. {now} Look for its records in the sink, then say "
            f"where the delivery goes on: `semel sink adopt APP.py {self._sink.name} --at {partition}:{cut.end}` if "
            f"they are there, `--at {partition}:{cut.start}` if not."
        )

    def _over(self, cut: Cut, now_ms: int) -> str | NotDone:
        window = self._window
        assert window is not None
        if window.seconds is not None:
            age_ms = now_ms - cut.at_ms
            if age_ms < -BACK_MS:
                return f"by the clock it was written down {-age_ms / 1000:,.0f} s from now: a clock went back"
            until_ms = self._until_ms(cut)
            assert until_ms is not None
            if now_ms >= until_ms:
                return f"that is {age_ms / 1000:,.0f} s ago"
        if window.inserts is not None:
            since: int | NotDone = self._connection.inserts_since(cut.seen)
            if isinstance(since, NotDone):
                return since
            if since < 0:
                return "the sink has counted backwards since: it was put back, or emptied"
            if since > window.inserts:
                return f"{since:,} inserts came since"
        return ""
