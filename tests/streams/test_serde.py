"""Serdes: what goes in comes out, for every type that is taken; everything else is refused by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semel.streams.infer import make_up, without_none
from semel.streams.serde import NoSerde, NotFinite, hashable, immutable, serde_of


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    at: datetime
    amount: Decimal


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner | None
    tags: tuple[str, ...]
    by_day: dict[str, list[int]]


class Point(NamedTuple):
    x: int
    y: int


class Row(TypedDict):
    a: int
    b: str | None


class Counted(msgspec.Struct, frozen=True):
    colour: Colour
    n: int = 0


VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(),
    bytes: st.binary(),
    int: st.integers(-(2**63), 2**64 - 1),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    date: st.dates(),
    datetime: st.datetimes(timezones=st.just(UTC)),
    UUID: st.uuids(),
    Colour: st.sampled_from(Colour),
    Point: st.builds(Point, st.integers(-9, 9), st.integers(-9, 9)),
    Row: st.fixed_dictionaries({"a": st.integers(-9, 9), "b": st.none() | st.text()}),
    Counted: st.builds(Counted, st.sampled_from(Colour), st.integers(0, 9)),
    tuple[str, int]: st.tuples(st.text(), st.integers(-9, 9)),
    list[Decimal]: st.lists(st.decimals(allow_nan=False, allow_infinity=False), max_size=4),
    dict[str, int]: st.dictionaries(st.text(), st.integers(-9, 9), max_size=4),
    Outer: st.builds(
        Outer,
        st.text(),
        st.none() | st.builds(Inner, st.datetimes(timezones=st.just(UTC)), st.decimals(allow_nan=False)),
        st.lists(st.text(), max_size=3).map(tuple),
        st.dictionaries(st.text(), st.lists(st.integers(-9, 9), max_size=3), max_size=3),
    ),
}


@pytest.mark.parametrize("of", VALUES, ids=str)
def test_what_goes_in_comes_out(of: Any) -> None:
    """decode(encode(x)) == x, and equal values have equal bytes where they are keys."""
    serde = serde_of(of)

    @given(VALUES[of])
    def check(value: Any) -> None:
        if value == value and "Infinity" not in repr(value):
            data = serde.encode(value)
            assert serde.decode(data) == value
            assert serde.encode(serde.decode(data)) == data

    check()


@pytest.mark.parametrize("of", [*VALUES, Literal["a", "b"], int | None, dict], ids=str)
def test_a_value_can_be_made_up_for_every_type(of: Any) -> None:
    """What lambdas are tried with at build time is a value of the type."""
    serde = serde_of(without_none(of))
    made = make_up(of)
    assert serde.decode(serde.encode(made)) == made


class Opaque:
    pass


@pytest.mark.parametrize("of", [Opaque, list[Opaque], Opaque | None, object, Any, None, "str", 5, type(None)], ids=str)
def test_other_types_are_refused(of: Any) -> None:
    """Before anything runs, not at the first record."""
    with pytest.raises(NoSerde):
        serde_of(of)


def test_text_and_numbers_are_what_other_clients_and_people_can_read() -> None:
    """str is UTF-8 without quotes, int is its digits."""
    assert serde_of(str).encode("é") == "é".encode()
    assert serde_of(int).encode(42) == b"42"
    assert serde_of(Decimal).encode(Decimal("1.50")) == b'"1.50"'
    with pytest.raises(UnicodeDecodeError):
        serde_of(str).decode(b"\xff")


def test_what_may_be_shared_and_what_may_be_a_key() -> None:
    """Mutable zeros are copied per key; unhashable keys are refused."""
    assert immutable(Counted(Colour.RED)) and immutable((1, "a")) and immutable(Inner(datetime.now(UTC), Decimal(1)))
    assert not immutable([]) and not immutable(([],)) and not immutable(Outer("a", None, (), {}))
    assert hashable(str) and hashable(tuple[str, ...]) and hashable(Point) and hashable(Outer)
    assert not hashable(list[str]) and not hashable(tuple[list[str], int])


class Measured(msgspec.Struct, frozen=True):
    worst: float | None
    all: tuple[float, ...] = ()


@pytest.mark.parametrize(
    ("of", "value"),
    [
        (float, math.inf),
        (float, math.nan),
        (Measured, Measured(math.inf)),
        (Measured, Measured(1.0, (0.5, -math.inf))),
        (dict[str, float], {"a": math.nan}),
        (tuple[str, float | None], ("a", math.nan)),
        (dict, {"a": [1, math.inf]}),
    ],
    ids=str,
)
def test_what_json_cannot_hold_is_refused(of: Any, value: Any) -> None:
    """msgspec writes NaN and the infinities as null: a state would come back as another one (law 6), or not at all."""
    with pytest.raises(NotFinite, match=r"nan|inf"):
        serde_of(of).encode(value)


def test_a_null_that_was_meant_travels() -> None:
    assert serde_of(Measured).decode(serde_of(Measured).encode(Measured(None))) == Measured(None)
