"""What a verification says: holds, broken with a counter-example, or unknown with its reasons.

Invariant: `holds` is said only when every output was compared and the run could have shown a failure (DESIGN §7: a
step never hit, fewer kills than asked, a zombie never refused, no input between two kills: unknown).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    HOLDS = "holds"
    BROKEN = "broken"
    UNKNOWN = "unknown"

    @property
    def exit_code(self) -> int:
        return {Verdict.HOLDS: 0, Verdict.BROKEN: 1, Verdict.UNKNOWN: 2}[self]


@dataclass(frozen=True, slots=True)
class Output:
    """The reckoning of one output: a topic, a changelog, a sink, or the committed offsets.

    `kind` says how it was compared: `append` (a multiset), `keyed` (the last value per key, each earlier value one
    that a run without faults also has), `state`, `offsets`. Counts are records, rows or keys.
    """

    name: str
    kind: str
    expected: int
    present: int
    lost: int
    repeated: int
    wrong: int
    examples: tuple[str, ...] = ()
    unknown: str = ""  # why this output could not be compared; "" when it was

    @property
    def good(self) -> bool:
        return not (self.lost or self.repeated or self.wrong or self.unknown)


@dataclass(frozen=True, slots=True)
class Promise:
    """One field of the contract of one sink or source: what it says, and how the run put it to the test."""

    of: str  # "sink totals", "source of orders"
    field: str
    says: str
    tried: str  # by what; or why no run of this kind tries it
    times: int | None  # how often; None: not tried here

    @property
    def untried(self) -> bool:
        return not self.times


@dataclass(frozen=True, slots=True)
class Report:
    """One run of `semel verify`."""

    app: str
    on: str
    mode: str
    seed: int
    kills_worker: int
    kills_broker: int
    zombies: int
    refused: int
    steps: dict[str, int]  # by the name of a step: how often it was reached
    outputs: tuple[Output, ...]
    doubts: tuple[str, ...] = ()  # why a run without a failure still proves little
    seconds: float = 0.0
    input_records: int = 0
    struck: dict[str, int] = field(default_factory=dict)  # … and how often a process was killed or stopped there
    extra: dict[str, object] = field(default_factory=dict)
    promises: tuple[Promise, ...] = ()  # of every sink and source, field by field

    @property
    def verdict(self) -> Verdict:
        if any(o.lost or o.repeated or o.wrong for o in self.outputs):
            return Verdict.BROKEN
        if self.doubts or not self.outputs or any(o.unknown for o in self.outputs):
            return Verdict.UNKNOWN
        return Verdict.HOLDS

    @property
    def counterexample(self) -> str | None:
        """The first difference found, in words."""
        for output in self.outputs:
            if output.lost or output.repeated or output.wrong:
                return f"{output.name}: " + "; ".join(output.examples[:3])
        return None

    def _contracts(self) -> dict[str, dict[str, object]]:
        found: dict[str, dict[str, object]] = {}
        for one in self.promises:
            found.setdefault(one.of, {})[one.field] = {"says": one.says, "tried": one.tried, "times": one.times}
        return found

    def as_json(self) -> dict[str, object]:
        return {
            "verdict": self.verdict.value,
            "app": self.app,
            "seed": self.seed,
            "on": self.on,
            "mode": self.mode,
            "input": self.input_records,
            "kills": {"worker": self.kills_worker, "broker": self.kills_broker},
            "zombies": self.zombies,
            "refused": self.refused,
            "steps": dict(self.steps),
            "struck": dict(self.struck),
            "outputs": {
                o.name: {k: v for k, v in asdict(o).items() if k != "name" and (v or k not in ("examples", "unknown"))}
                for o in self.outputs
            },
            "counterexample": self.counterexample,
            "doubts": list(self.doubts),
            "contracts": self._contracts(),
            "seconds": round(self.seconds, 1),
            **self.extra,
        }
