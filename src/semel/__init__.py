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
