"""Input for a verification: from a file, from the app, or made up; the same seed, the same records."""

from __future__ import annotations

import random
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal

import pytest
from msgspec import Struct

from semel import Topic
from semel.errors import UsageError
from semel.verify.workload import from_lines, generated, workload


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Item(Struct, frozen=True):
    name: str
    count: int


class Everything(Struct, frozen=True):
    a: int
    b: str
    c: Decimal
    d: datetime
    e: date
    f: list[Item]
    g: dict[str, int]
    h: Colour
    i: Literal["x", "y"]
    j: float | None
    k: bool
    l: bytes  # noqa: E741


things = Topic("things", key=str, value=Everything)
items = Topic("items", key=str, value=Item)


def test_the_same_seed_gives_the_same_records() -> None:
    """Deterministic; another seed gives others."""
    one, same, other = (generated(things, random.Random(seed), 200) for seed in (1, 1, 2))
    assert one == same != other


def test_what_is_made_up_decodes_under_the_topics_types() -> None:
    """Every record; and keys come again, so that they meet in state."""
    given = generated(things, random.Random(3), 300)
    for record in given:
        assert record.value is not None and record.key is not None
        assert isinstance(things.value_serde.decode(record.value), Everything)
        assert isinstance(things.key_serde.decode(record.key), str)
    assert len({record.key for record in given}) < 30


def test_lines_of_a_file() -> None:
    """Values alone, or with key and timestamp; blank lines are nothing."""
    lines = [b'{"key":"k","value":{"name":"a","count":1},"timestamp":5}\n', b"\n", b'{"name":"b","count":2}\n']
    first, second = from_lines(items, lines, "f.jsonl")
    assert (first.key, first.timestamp) == (b"k", 5)
    assert second.key is None and items.value_serde.decode(second.value or b"") == Item("b", 2)


@pytest.mark.parametrize("lines", [[b"not json\n"], [b'{"name":1}\n'], [b"\n"]])
def test_a_file_that_is_no_input_is_refused(lines: list[bytes]) -> None:
    """Naming the file, and the line where there is one."""
    with pytest.raises(UsageError, match=r"f\.jsonl"):
        from_lines(items, lines, "f.jsonl")


def test_a_file_goes_before_the_sample_goes_before_chance() -> None:
    """And a file for a topic that nobody reads is refused."""
    topics: dict[str, Topic[Any, Any]] = {"items": items, "things": things}
    sample = {items: [("k", Item("sampled", 1))]}
    line = b'{"name":"filed","count":1}\n'
    found = workload(topics, sample, {}, random.Random(1))
    assert len(found["items"]) == 1 and len(found["things"]) > 1000
    found = workload(topics, sample, {"items": ("f", lambda: iter([line]))}, random.Random(1))
    assert b"filed" in (found["items"][0].value or b"")
    with pytest.raises(UsageError, match="reads no such topic"):
        workload(topics, sample, {"other": ("f", lambda: iter([line]))}, random.Random(1))
