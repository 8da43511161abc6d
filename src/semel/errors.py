"""Errors meant for a person: what, where, what to do next. The command line prints them without a traceback."""

from __future__ import annotations


class SemelError(Exception):
    """A message for the user. `exit_code`: 1 for what went wrong while running, 2 for what was asked wrongly."""

    exit_code = 1


class UsageError(SemelError):
    """The request cannot be carried out as it was put: a name, a type, a setting, an address."""

    exit_code = 2
