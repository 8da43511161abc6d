"""The steps of every protocol in a real process: killed, stopped or counted there, as the environment says.

`SEMEL_KILL=step:n` kills this process (SIGKILL) when it reaches `step` for the n-th time, `SEMEL_STOP=step:n` stops it
(SIGSTOP; the counting goes on after SIGCONT). `SEMEL_STEPS=FILE` counts every step in a shared memory map of one
unsigned 64-bit counter per step, in the order of `ports.Step`: it survives the kill, and processes that share the file
add to the same counters (each adds only while no other does: verify starts them with a file each). `SEMEL_ARM=FILE` is
a map of the same shape that another process writes while this one runs (`arm`): a signal number at a step sends this
process that signal there, once.

Invariant: the counter of a step is raised before the process dies there.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from struct import Struct

from semel.errors import UsageError
from semel.ports import NoSteps, Step, Steps

COUNTER = Struct("<Q")
SIZE = COUNTER.size * len(Step)
INDEX = {step: index for index, step in enumerate(Step)}


class RealSteps:
    def __init__(
        self,
        kill: tuple[Step, int] | None,
        stop: tuple[Step, int] | None,
        counters: Path | None,
        armed: Path | None = None,
    ) -> None:
        self._reached = dict.fromkeys(Step, 0)
        self._kill = kill
        self._stop = stop
        self._map = _map(counters) if counters is not None else None
        self._armed = _map(armed) if armed is not None else None

    def reached(self, step: Step) -> None:
        count = self._reached[step] + 1
        self._reached[step] = count
        if self._map is not None:
            position = INDEX[step] * COUNTER.size
            COUNTER.pack_into(self._map, position, COUNTER.unpack_from(self._map, position)[0] + 1)
        if (step, count) == self._kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if (step, count) == self._stop:
            _stop()
        if self._armed is not None and (armed := COUNTER.unpack_from(self._armed, INDEX[step] * COUNTER.size)[0]):
            COUNTER.pack_into(self._armed, INDEX[step] * COUNTER.size, 0)
            _stop() if armed == signal.SIGSTOP else os.kill(os.getpid(), armed)


def _stop() -> None:
    """Here and now. Sent to the process, the signal is the main thread's to take: a delivery's thread would run on for
    a while and finish the very write before which it was to stand (verify: zombies at batch.before, never refused)."""
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def steps_from(environ: Mapping[str, str]) -> Steps:
    """What SEMEL_KILL, SEMEL_STOP and SEMEL_STEPS ask for; nothing (and no cost) when none is set."""
    names = ("SEMEL_KILL", "SEMEL_STOP", "SEMEL_STEPS", "SEMEL_ARM")
    kill, stop, counters, armed = (environ.get(name) for name in names)
    if not (kill or stop or counters or armed):
        return NoSteps()
    return RealSteps(
        _parse("SEMEL_KILL", kill) if kill else None,
        _parse("SEMEL_STOP", stop) if stop else None,
        Path(counters) if counters else None,
        Path(armed) if armed else None,
    )


def arm(path: Path, step: Step, signal_number: int) -> None:
    """The process that runs with SEMEL_ARM=path gets the signal when it next reaches the step. 0 takes it back."""
    with contextlib.closing(_map(path)) as armed:
        COUNTER.pack_into(armed, INDEX[step] * COUNTER.size, signal_number)


def read_counters(path: Path) -> dict[Step, int]:
    """The counters of a process that has ended, however it did; zeros when it never reached a step."""
    data = path.read_bytes().ljust(SIZE, b"\0") if path.exists() else bytes(SIZE)
    return {step: COUNTER.unpack_from(data, index * COUNTER.size)[0] for step, index in INDEX.items()}


def _parse(name: str, text: str) -> tuple[Step, int]:
    step, _, count = text.partition(":")
    try:
        found = Step(step), int(count or "1")
    except ValueError:
        raise UsageError(
            f"{name}={text}: expected step:n, for example commit.before:3. Steps: {', '.join(Step)}."
        ) from None
    if found[1] < 1:
        raise UsageError(f"{name}={text}: n counts from 1.")
    return found


def _map(path: Path) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(descriptor).st_size < SIZE:
            os.ftruncate(descriptor, SIZE)
        return mmap.mmap(descriptor, SIZE)
    finally:
        os.close(descriptor)
