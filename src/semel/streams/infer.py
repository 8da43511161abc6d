"""The type of what a user's function returns, found when the topology is built.

The type checker infers lambdas, the running program cannot: but a repartition topic and a store need to know how to
read their bytes back. In this order: what the user said (`key=`, `value=`, `state=`), a class called as a function, the
return annotation; and for a lambda a field or tuple of fields (`lambda o: o.customer`, found by handing in a probe) or
its answer to a made-up value, taken only if that is a plain scalar or of a class of the user's. Whatever remains is
refused with a request to say it. A wrong guess is never silent: a value of another type is refused when it is written.

Invariant: only lambdas are called here, with made-up values, and only when their type is needed; a `def` never is.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec

from semel.streams.serde import SCALARS

_MADE_UP: dict[type, Any] = {
    str: "x",
    bytes: b"x",
    int: 1,
    float: 1.0,
    bool: True,
    Decimal: Decimal(1),
    datetime: datetime(2020, 1, 1, tzinfo=UTC),
    date: date(2020, 1, 1),
    time: time(0),
    timedelta: timedelta(1),
    UUID: UUID(int=1),
}


class _Untold(Exception):
    """The probe was used for more than looking at fields."""


class _Probe:
    """Stands for a value of a type: looking at a field gives a probe of the field's type."""

    __slots__ = ("_probed",)

    def __init__(self, of: Any) -> None:
        object.__setattr__(self, "_probed", of)

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            raise _Untold
        of = object.__getattribute__(self, "_probed")
        return _Probe(_field(of, name))

    def __getitem__(self, at: Any) -> Any:
        return _Probe(_item(object.__getattribute__(self, "_probed"), at))

    def __bool__(self) -> bool:
        raise _Untold

    def __eq__(self, other: object) -> bool:
        raise _Untold

    def __hash__(self) -> int:
        raise _Untold


def _hints(of: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(typing.get_origin(of) or of)
    except (NameError, TypeError, AttributeError):
        raise _Untold from None


def _field(of: Any, name: str) -> Any:
    if not (dataclasses.is_dataclass(of) or (isinstance(of, type) and issubclass(of, msgspec.Struct | tuple))):
        raise _Untold
    hints = _hints(of)
    if name not in hints:
        raise _Untold
    return hints[name]


def _item(of: Any, at: Any) -> Any:
    origin, args = typing.get_origin(of) or of, typing.get_args(of)
    if typing.is_typeddict(of):
        hints = _hints(of)
        if at in hints:
            return hints[at]
    elif isinstance(origin, type) and issubclass(origin, tuple) and isinstance(at, int) and args:
        if len(args) == 2 and args[1] is Ellipsis:
            return args[0]
        if -len(args) <= at < len(args):
            return args[at]
    elif origin in (list, dict) and args and not isinstance(at, slice):
        return args[-1]
    raise _Untold


def _probed(result: Any) -> Any:
    """The type of a result that consists of probes, constants and tuples of them."""
    if type(result) is _Probe:
        return object.__getattribute__(result, "_probed")
    if type(result) is tuple and result:
        return tuple[tuple(_probed(part) for part in result)]  # type: ignore[misc]
    if type(result) in SCALARS:
        return type(result)
    raise _Untold


def make_up(of: Any, depth: int = 0) -> Any:
    """Some value of a type: small numbers, one-letter strings, the first of an Enum."""
    origin: Any = typing.get_origin(of) or of
    args = typing.get_args(of)
    if of in _MADE_UP:
        return _MADE_UP[of]
    if depth > 8:
        raise _Untold
    if origin is typing.Annotated:
        return make_up(args[0], depth)
    if origin is typing.Literal:
        return args[0]
    if args and type(None) in args and origin not in (tuple, list, dict):
        return make_up(next(a for a in args if a is not type(None)), depth + 1)
    if isinstance(origin, type):
        if issubclass(origin, Enum):
            return next(iter(origin))
        if typing.is_typeddict(origin) or issubclass(origin, dict):
            hints = _hints(origin) if typing.is_typeddict(origin) else {}
            return {name: make_up(hint, depth + 1) for name, hint in hints.items()}
        if dataclasses.is_dataclass(origin):
            hints = _hints(origin)
            return origin(**{f.name: make_up(hints[f.name], depth + 1) for f in dataclasses.fields(origin) if f.init})
        if issubclass(origin, msgspec.Struct) or (issubclass(origin, tuple) and hasattr(origin, "_fields")):
            names: Any = getattr(origin, "__struct_fields__", None) or getattr(origin, "_fields", ())
            hints = _hints(origin)
            return origin(**{name: make_up(hints[name], depth + 1) for name in names})
        if issubclass(origin, tuple):
            return tuple(make_up(a, depth + 1) for a in args if a is not Ellipsis)
        if issubclass(origin, list | set | frozenset):
            return origin([make_up(args[0], depth + 1)] if args else [])
    raise _Untold


def _sampled(result: Any) -> Any:
    if type(result) is tuple and result and not hasattr(result, "_fields"):
        return tuple[tuple(_sampled(part) for part in result)]  # type: ignore[misc]
    of = type(result)
    if of in SCALARS or issubclass(of, Enum | msgspec.Struct) or dataclasses.is_dataclass(of) or hasattr(of, "_fields"):
        return of
    raise _Untold


def is_lambda(function: Any) -> bool:
    return getattr(function, "__name__", "") == "<lambda>"


def result_type(function: Callable[..., Any], arguments: Sequence[Any], *, call: bool) -> Any | None:
    """The type that `function` returns for arguments of the given types; None when only the user can say."""
    if isinstance(function, type):
        return function
    try:
        told = typing.get_type_hints(function).get("return")
    except (NameError, TypeError, AttributeError):
        told = None
    if told is not None and not isinstance(told, typing.TypeVar) and told is not type(None):
        return without_none(told)
    if not call or not is_lambda(function) or any(of is None for of in arguments):
        return None
    try:
        return without_none(_probed(function(*map(_Probe, arguments))))
    except Exception:  # whatever a probe provokes in a user's function only means: not told
        pass
    try:
        return _sampled(function(*(make_up(of) for of in arguments)))
    except Exception:
        return None


def element_type(function: Callable[..., Any], arguments: Sequence[Any], *, call: bool) -> Any | None:
    """The type of the elements of the iterable that `function` returns."""
    try:
        told = typing.get_type_hints(function).get("return")
    except (NameError, TypeError, AttributeError):
        told = None
    if told is not None:
        args = typing.get_args(told)
        return without_none(args[0]) if args else None
    if not call or not is_lambda(function) or any(of is None for of in arguments):
        return None
    try:
        parts: list[Any] = list(function(*(make_up(of) for of in arguments)))
        return _sampled(parts[0]) if parts else None
    except Exception:
        return None
    return None


def why_untold(function: Callable[..., Any], arguments: Sequence[Any]) -> str:
    """What came of calling a lambda with made-up values; "" when it was not called."""
    if not is_lambda(function) or any(of is None for of in arguments):
        return ""
    try:
        given = [make_up(of) for of in arguments]
    except Exception:
        return ""
    called = f"called with {', '.join(f'{value!r:.100}' for value in given)}, made up, the lambda"
    try:
        result = function(*given)
    except Exception as why:
        return f"{called} raised {type(why).__name__}: {why}"
    return f"{called} gave {type(result).__name__}, which does not say enough"


def state_type(zero: Any) -> Any | None:
    """The type of a fold's state, told from where it starts; None when only the user can say."""
    try:
        return _sampled(zero)
    except _Untold:
        return None


def without_none(of: Any) -> Any:
    """`X | None` as X: None travels as a null, whatever the type."""
    args = typing.get_args(of)
    origin = typing.get_origin(of)
    if type(None) in args and origin not in (tuple, list, dict):
        rest = [a for a in args if a is not type(None)]
        return rest[0] if len(rest) == 1 else typing.Union[tuple(rest)]  # noqa: UP007
    return of
