"""Fewer faults, the same law broken: decisions of a failing seed are left out, one after the other.

Invariant: what is returned was run, and broke a law that the whole world broke.
"""

from __future__ import annotations

from .faults import Dice
from .simulate import Result, simulate


def shrink(found: Result, dice: Dice, *, tries_max: int = 400) -> tuple[frozenset[int], Result]:
    """Numbers of the decisions to leave out, and the world without them. First halves, then ever smaller pieces."""
    laws = {broken.law for broken in found.broken}
    left_out: frozenset[int] = frozenset()
    piece = max(1, len(found.faults) // 2)
    tries = 0
    while tries < tries_max:
        numbers = [number for number, _ in found.faults]
        helped = False
        for start in range(0, len(numbers), piece):
            tries += 1
            trial = left_out | set(numbers[start : start + piece])
            result = simulate(found.seed, dice, left_out=trial)
            if laws & {broken.law for broken in result.broken} and len(result.faults) < len(found.faults):
                left_out, found, helped = trial, result, True
                break
        if not helped:
            if piece == 1:
                break
            piece = max(1, piece // 2)
    return left_out, found
