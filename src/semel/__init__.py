"""semel: stream processing whose exactly-once holds end to end, says where it stops, and can be put to the proof."""

import sys

# A broken invariant of ours must stop the process before it answers; `python -O` removes those checks, and the promise.
if not __debug__:
    print(
        "error: semel does not run under python -O (or PYTHONOPTIMIZE): it would skip the checks that keep a broken\n"
        "invariant from being answered or committed. Start it without -O.",
        file=sys.stderr,
    )
    raise SystemExit(2)

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semel.app import App
    from semel.contract import AtLeastOnce, AtMostOnce, Mode
    from semel.streams.builder import Builder, Stream, Table
    from semel.streams.driver import TestDriver
    from semel.streams.topic import Topic

# Loaded when first asked for: the command line starts without the stream processor.
_HOMES = {
    "App": "semel.app",
    "AtLeastOnce": "semel.contract",
    "AtMostOnce": "semel.contract",
    "Builder": "semel.streams.builder",
    "Mode": "semel.contract",
    "Stream": "semel.streams.builder",
    "Table": "semel.streams.builder",
    "TestDriver": "semel.streams.driver",
    "Topic": "semel.streams.topic",
}

__all__ = ["App", "AtLeastOnce", "AtMostOnce", "Builder", "Mode", "Stream", "Table", "TestDriver", "Topic"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'semel' has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(home), name)
    globals()[name] = found
    return found
