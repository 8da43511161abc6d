"""Reports of each verdict with hostile texts in them, for the tests of the page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from semel import App, Builder, Topic
from semel.guarantees import Circumstances, analyse
from semel.ports import Step
from semel.proof.occasion import Occasion
from semel.proof.page import page
from semel.sinks import Postgres
from semel.verify.verdict import Output, Report, Verdict

EVIL = "<script>alert('x')</script><img src=//evil.example/x onerror=alert(1)>\"'&amp;\x00\x1b[31m\ud800"
SECRET = "hunter2-of-the-test"
DSN = f"postgresql://me:{SECRET}@db.example/shop"

OCCASION = Occasion(
    command=f"semel verify app.py --on=kafka://me:{SECRET}@host:9092 --seed=7",
    when="2026-11-23 14:00:00 UTC",
    machine="Linux 6.1, x86_64, 2 cores, 24 GiB",
    versions=(("Python", "3.11.2"), ("semel", "0.1.0")),
    commits=(("the app", "0123456789abcdef0123456789abcdef01234567"), ("semel", "89abcdef, with changes")),
)
SAID = ((0.4, "   0.4 s  worker-1: killed at a step (rows.after)"), (9.25, f"password={SECRET} {EVIL}"))

orders = Topic("orders", key=str, value=dict)


def promised() -> Any:
    def build(b: Builder) -> None:
        b.read(orders).write(Postgres(DSN, "orders"))

    return analyse(App("billing", build).graph(), Circumstances())


HOLDS = Report(
    app="billing", on="broker", mode="exactly-once", seed=7, kills_worker=19, kills_broker=4, zombies=3, refused=3,
    steps={step.value: 3 + n for n, step in enumerate(Step) if not step.value.startswith(("cut.", "object."))},
    struck={step.value: 1 for step in Step if step.value.startswith(("commit.", "rows.", "sink."))},
    outputs=(
        Output("input orders", "append", 12_000, 12_000, 0, 0, 0),
        Output("billing-orders-outbox", "append", 12_000, 12_000, 0, 0, 0),
        Output("sink orders", "sink, appended rows", 12_000, 12_000, 0, 0, 0),
        Output("positions", "offsets", 4, 4, 0, 0, 0),
    ),
    seconds=83.2, input_records=12_000,
)  # fmt: skip
BROKEN = replace(
    HOLDS,
    app=f"billing {EVIL}",
    outputs=(
        *HOLDS.outputs[:2],
        Output(
            f"sink {EVIL}", "sink, appended rows", 12_000, 12_003, 1, 4, 0,
            (f'repeated: {{"customer":"{EVIL}","password":"{SECRET}"}}, there 2 times (committed once as '
             "billing-orders-outbox-0@17, written by 3:orders|orders|0|17|0)",),
        ),
    ),
)  # fmt: skip
UNKNOWN = replace(
    HOLDS,
    steps={**HOLDS.steps, "claim.after": 0},
    outputs=(*HOLDS.outputs, Output("state sums", "state", 5, 5, 0, 0, 0, (), f"it depends on commits {EVIL}")),
    doubts=(f"steps of the path that were never reached: claim.after {EVIL}", f"{DSN} was away: password={SECRET}"),
    extra={"stored": {"orders": 12_345}},
)
EACH = {Verdict.HOLDS: HOLDS, Verdict.BROKEN: BROKEN, Verdict.UNKNOWN: UNKNOWN}


def made(report: Report) -> str:
    return page(report, promised(), OCCASION, SAID, lambda file: file.rpartition("/")[2])
