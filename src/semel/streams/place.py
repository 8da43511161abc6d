"""Where in the user's program something was written: each node, topic and refusal names it.

Invariant: a Place is in the user's code, never in semel's own.
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from semel.errors import UsageError

_HOME = str(PurePath(__file__).parent.parent)  # src/semel


@dataclass(frozen=True, slots=True)
class Place:
    """A line of the user's program."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{PurePath(self.file).name}:{self.line}"


NOWHERE = Place("?", 0)


class GraphError(UsageError):
    """The topology is refused before anything runs; the message opens with the place in the user's code."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(f"{place.file}:{place.line}: {message}")
        self.place = place


def caller() -> Place:
    """The innermost line outside semel that led here."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_HOME):
            return Place(file, frame.f_lineno)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return NOWHERE


def raised(error: BaseException, otherwise: Place) -> Place:
    """The innermost line of the user's program that an error came through: in the file of `otherwise`, where it did."""
    frames = [Place(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    frames = [place for place in frames if not place.file.startswith(_HOME)]
    own = [place for place in frames if place.file == otherwise.file]
    return (own or frames or [otherwise])[-1]


def describe(function: Any) -> str:
    """What a person calls this function: its name, or `lambda`."""
    name = getattr(function, "__name__", None) or type(function).__name__
    return "lambda" if name == "<lambda>" else str(name)
