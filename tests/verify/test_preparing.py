"""The run's own tables are made before anything else, and go with the run however far that came."""

from __future__ import annotations

from typing import Any, cast

import pytest

from semel import App, Builder, Topic
from semel.ports import Done, NotDone
from semel.proof import campaign
from semel.proof.processes import ProofError
from semel.sinks import SQLite

orders = Topic("orders", key=str, value=dict)


def graph() -> Any:
    def build(b: Builder) -> None:
        b.read(orders).write(SQLite("orders.db", "orders", name="each"))

    return App("shop", build).graph()


class Sometimes:
    """A sink that goes away in the middle of `prepare`."""

    def __init__(self, away: int) -> None:
        self.away, self.asked, self.dropped, self.closed = away, 0, 0, 0

    def prepare(self, value_type: object) -> Done | NotDone:
        self.asked += 1
        return NotDone("the server closed the connection") if self.asked <= self.away else Done()

    def drop(self) -> None:
        self.dropped += 1

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "PREPARE_AGAIN_S", (0.0, 0.0, 0.0))


def test_one_lost_connection_is_no_sink_that_is_away() -> None:
    connection = Sometimes(away=2)
    campaign._prepare(graph(), {"each": (None, connection)})
    assert connection.asked == 3


def test_a_sink_that_is_away_is_named() -> None:
    with pytest.raises(ProofError, match=r"sink each: the server closed the connection\. Start it"):
        campaign._prepare(graph(), {"each": (None, Sometimes(away=9))})


def test_what_was_made_is_removed_when_the_sink_went_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to CREATE TABLE was lost: verify ended with an error, and left the tables that it had made."""
    connection = Sometimes(away=9)
    monkeypatch.setattr(campaign, "sink_connections", lambda graph, prefix: {"each": (None, connection)})
    app = cast(App, type("A", (), {"graph": staticmethod(graph), "name": "shop", "sample": None}))
    with pytest.raises(ProofError):
        campaign.verify(app, campaign.Asked("app.py", on="embedded"), lambda line: None)
    assert (connection.dropped, connection.closed) == (1, 1)
