"""A verification as one page of HTML that can be shown to somebody who was not there.

It needs nothing but itself: no script, no font, no picture, no address is loaded (its Content-Security-Policy forbids
it, too). It leads with the verdict, then says what was tried, what was compared, what was *not* tried, what the program
promises at all, and how to do it again.

Invariants: every text that comes from a program, a record or a message is escaped here, in `text`, after passwords
were taken out of it; and the page says no more than the report: what is unknown there is unknown here.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence

from semel.guarantees import Report as Promised
from semel.guarantees.report import without_secrets
from semel.ports import Step
from semel.proof.occasion import Occasion
from semel.proof.page_style import CSS
from semel.verify.verdict import Output, Report, Verdict

# Who passes through a step, and what is true there. By the names of `ports.Step`, which has them with their reasons.
WHO = {
    **dict.fromkeys(("tasks", "output", "offsets", "commit"), "worker"),
    **dict.fromkeys(("decision", "markers", "sync"), "log"),
    **dict.fromkeys(
        ("claim", "batch", "cut", "object", "prepare", "decide", "settle", "refuse", "rows", "position", "sink"),
        "delivery",
    ),
    "ingest": "ingest",
    "move": "a person",  # in no run; the contract kit has it
    **dict.fromkeys(("fenced", "stale"), "refusal"),
}
STEPS = {
    "tasks.before": "partitions were assigned, nothing was asked of where they stand",
    "output.before": "before the first output of a transaction",
    "output.after": "all outputs handed over, offsets not yet sent",
    "offsets.before": "before the offsets are sent",
    "offsets.after": "offsets are in the transaction, it is not decided",
    "commit.before": "before the commit is asked for",
    "commit.after": "the log has said: committed",
    "decision.before": "the commit was received, nothing of it is in the journal",
    "decision.after": "the decision is in the journal, no marker is",
    "markers.before": "before the markers",
    "markers.after": "the markers are in the journal, the end of the transaction is not",
    "sync.before": "before the journal is synced",
    "sync.after": "durable, the reply has not left",
    "claim.after": "the sink has named this delivery as the owner of a partition",
    "batch.before": "a batch was read, the sink's transaction is not begun",
    "cut.before": "a cut is due, nobody else knows",
    "cut.after": "the cut is written down, no byte of it has left",
    "prepare.before": "before the sink prepares a cut",
    "prepare.after": "the sink can commit it whatever happens, nobody has said that it shall",
    "decide.before": "before the decision is written down",
    "decide.after": "it is committed in the log that the sink shall commit",
    "settle.before": "a new owner has read that a cut is in doubt",
    "settle.after": "what a former owner left at the sink is committed or gone",
    "refuse.before": "the sink has refused a record for good, nobody else knows",
    "refuse.after": "it is a dead letter and written off in the log, nothing is written without it yet",
    "object.before": "before an object is put",
    "object.after": "the object is there, no manifest tells of it",
    "rows.before": "in the sink's transaction, before its rows",
    "rows.after": "rows are written, not committed, and the position is not",
    "position.before": "before the position",
    "position.after": "after the position",
    "sink.before": "before the sink's commit",
    "sink.after": "the sink has committed, nobody else knows",
    "move.part": "a part of a move by a person is done, the rest is not",
    "ingest.claim": "the log has named this ingest as the owner of a lane, its positions are read",
    "ingest.read": "a portion was read from the source, nothing of it is written",
    "ingest.records": "its records are in the open transaction, its position is not",
    "ingest.position": "both are in the transaction, it is not decided",
    "ingest.commit": "the log has said: committed; the source has not heard of it",
    "fenced.log": "the log refused a superseded worker's transaction",
    "fenced.sink": "the sink refused a superseded owner's batch",
    "fenced.source": "the log refused a superseded ingest's transaction",
    "stale.sink": "rows as old as what the sink held, without effect",
}
KINDS = {
    "append": "each record once, with its value",
    "keyed": "the last value of each key; earlier ones in order",
    "state": "the state against the changelog, key by key",
    "offsets": "committed positions against the ends of the input",
    "monotonic": "positions seen during the run never went back",
    "sink, appended rows": "each committed record as a row, once",
    "sink, last row per key": "the last committed value of each key",
    "source rows, appended": "each row of the source in its topic, once, and in its order per key",
    "sink, one order per key": "all writes of one key in one order",
}
# What no run of `semel verify` does. (The simulator and the contract kit do some of it.)
NEVER = (
    "power cuts and lost or torn writes of the disk (here processes are killed, which the page cache survives)",
    "full disks, failing disks and slow ones",
    "connections cut or delayed between machines, clocks that differ: everything ran on one machine",
    "a crash of the sink itself, and backups put back",
    "programs, inputs and schedules other than this one: a run that holds shows the absence of a difference, not its "
    "impossibility",
)
SAYS = {
    Verdict.HOLDS: ("✓", "holds", "Nothing was lost, repeated or wrong in any of the {outputs} comparisons below."),
    Verdict.BROKEN: ("✗", "broken", "{lost} lost, {repeated} repeated, {wrong} wrong: see the counter-example."),
    Verdict.UNKNOWN: ("?", "unknown", "No difference was found, and the run proves too little to say more: {doubts}"),
}

Line = tuple[float, str]  # seconds since the start, what was said


def page(
    report: Report, promised: Promised, occasion: Occasion, said: Sequence[Line], shown: Callable[[str], str]
) -> str:
    """The whole page. `shown` turns a file's path into what a person would type."""
    parts = [
        *_head(report, occasion),
        "<main id=main>",
        *_counterexample(report),
        *_tried(report, said),
        *_compared(report),
        *_untried(report, promised),
        *_promised(report, promised, shown),
        *_again(report, occasion),
        "</main>",
        "<footer><p>Made by <code>semel verify --html</code>. This file loads nothing and runs nothing; it can be "
        "mailed, printed and kept.</p></footer>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def text(of: object) -> str:
    """Anything from outside this file, as text of the page."""
    clean = without_secrets(str(of))
    # What is no character of HTML (NUL, other controls) is shown as its escape: a record may hold any byte.
    clean = "".join(
        c if c in "\n\t" or (c >= " " and c != "\x7f" and not "\ud800" <= c <= "\udfff") else ascii(c)[1:-1]
        for c in clean
    )
    return html.escape(clean, quote=True)


# --- the parts -------------------------------------------------------------------------------------------------------


def _head(report: Report, occasion: Occasion) -> list[str]:
    verdict = report.verdict
    sign, word, sentence = SAYS[verdict]
    outputs = report.outputs
    numbers = {
        "outputs": _n(len(outputs)),
        "lost": _n(sum(o.lost for o in outputs)),
        "repeated": _n(sum(o.repeated for o in outputs)),
        "wrong": _n(sum(o.wrong for o in outputs)),
        "doubts": "the reasons stand under “What was not tried”.",
    }
    counted = [
        ("input records", report.input_records),
        ("workers killed", report.kills_worker),
        ("brokers killed", report.kills_broker),
        ("zombies resumed", report.zombies),
        ("… of them refused", report.refused),
        ("seconds", round(report.seconds)),
    ]
    return [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">',
        f"<title>{text(report.app)}: {word} (semel verify)</title>",
        f"<style>{CSS}</style></head>",
        '<body><a class="skip" href="#main">To the findings</a>',
        f"<header><h1>{text(report.app)}: is each record counted once?</h1>",
        f'<p class="quiet">semel verify on {text(report.on)}, {text(report.mode)}, seed {report.seed}, '
        f"{text(occasion.when)}</p>",
        f'<div class="verdict {verdict.value}"><strong><span aria-hidden="true">{sign} </span>Verdict: {word}</strong>',
        f"<p>{sentence.format(**numbers)}</p></div>",
        '<dl class="numbers">',
        *(f"<div><dt>{name}</dt><dd>{_n(count)}</dd></div>" for name, count in counted),
        "</dl></header>",
    ]


def _counterexample(report: Report) -> list[str]:
    found = next((o for o in report.outputs if o.lost or o.repeated or o.wrong), None)
    if found is None:
        return []
    return [
        "<h2>Counter-example</h2>",
        f"<p>The first difference is in <b>{text(found.name)}</b>, compared as: {text(_kind(found))}.</p>",
        *([f"<pre>{text(found.examples[0])}</pre>"] if found.examples else []),
        "<p>A record is named by the step that wrote it, the topic, partition and offset of the input that caused it "
        "and its number among what that input caused (<code>step|topic|partition|offset|number</code>), and by where "
        "it lies (<code>topic-partition@offset</code>).</p>",
    ]


def _tried(report: Report, said: Sequence[Line]) -> list[str]:
    passed = [step for step in Step if step.value in report.steps]
    refusals = [step for step in passed if WHO.get(_family(step), "") == "refusal"]
    rows = [_step(report, step) for step in passed if step not in refusals]
    parts = [
        "<h2>What was tried</h2>",
        f"<p>{_several(report.kills_worker, 'worker')} and {_several(report.kills_broker, 'broker')} were killed "
        "(<code>kill -9</code>), at the steps below and at random moments, while input flowed. "
        "Owners that were stopped, replaced, and resumed after their successor had committed: "
        f"{_n(report.zombies)}; of them seen to be refused: {_n(report.refused)}.</p>",
        *_table(
            "Each step of the path's protocols: how often it was reached, and how often a process was struck there.",
            (("step", ""), ("who", ""), ("what is true there", ""), ("reached", "n"), ("struck", "n")),
            rows,
        ),
    ]
    if refusals:
        cells = [(s.value, [("", STEPS.get(s.value, "")), ("n", _n(report.steps[s.value]))]) for s in refusals]
        parts += _table(
            "Refusals, counted where they happened.", (("refusal", ""), ("what it says", ""), ("times", "n")), cells
        )
    if said:
        parts += [
            f"<details><summary>The run, line by line ({_n(len(said))} lines)</summary>",
            *_table(
                "Seconds since the start.", (("at", "n"), ("what happened", "")),
                [(f"{at:.1f}", [("", f'<span class="id">{text(line)}</span>')]) for at, line in said],
            ),
            "</details>",
        ]  # fmt: skip
    return parts


def _step(report: Report, step: Step) -> tuple[str, list[tuple[str, str]]]:
    hits, struck = report.steps[step.value], report.struck.get(step.value, 0)
    reached = _n(hits) if hits else '<span class="open">never</span>'
    hit = _n(struck) if struck else '<span class="open">never</span>'
    return step.value, [("", WHO.get(_family(step), "")), ("", STEPS.get(step.value, "")), ("n", reached), ("n", hit)]


def _compared(report: Report) -> list[str]:
    rows = []
    for o in report.outputs:
        if o.unknown:
            finding = f'<span class="open">unknown</span>: {text(o.unknown)}'
        elif o.good:
            finding = '<span class="fine">equal</span>'
        else:
            finding = '<span class="found">different</span>'
        if o.examples:
            finding += '<ul class="examples">' + "".join(f"<li class=id>{text(e)}</li>" for e in o.examples) + "</ul>"
        counts = [("n", _n(n)) for n in (o.expected, o.present)]
        counts += [("n", f'<span class="found">{_n(n)}</span>' if n else "0") for n in (o.lost, o.repeated, o.wrong)]
        rows.append((text(o.name), [("", text(_kind(o))), *counts, ("", finding)]))
    head = ("output", ""), ("compared as", ""), ("expected", "n"), ("present", "n")
    found = ("lost", "n"), ("repeated", "n"), ("wrong", "n"), ("finding", "")
    parts = [
        "<h2>What was compared, and what was found</h2>",
        "<p>Every step was computed again, without faults, from the input that it has committed, and compared "
        "with what is there. What is expected is never taken from what is compared.</p>",
        *_table("Records, rows or keys of each output.", (*head, *found), rows),
    ]
    stored = report.extra.get("stored")
    if isinstance(stored, dict) and stored:
        parts.append(
            "<p>Sinks that store repeats and remove them behind a view were compared behind it. Before it they held "
            + ", ".join(f"{_n(int(n))} rows ({text(name)})" for name, n in stored.items())
            + ".</p>"
        )
    return parts


def _untried(report: Report, promised: Promised) -> list[str]:
    open_ = [f"{o.name}: {o.unknown}" for o in report.outputs if o.unknown]
    missed = [
        s
        for s, hits in report.steps.items()
        if hits and not report.struck.get(s) and WHO.get(s.partition(".")[0]) != "refusal"
    ]
    parts = ["<h2>What was not tried</h2>"]
    if report.doubts:
        parts += ["<h3>Why this run proves less than it could</h3>", *_list(report.doubts)]
    if open_:
        parts += ["<h3>What could not be compared</h3>", *_list(open_)]
    if missed:
        parts += ["<h3>Steps that were reached, and where nobody was struck</h3>", *_list([", ".join(missed)])]
    parts += [
        "<h3>What no such run tries</h3>", *_list(NEVER),
        "<h3>What lies outside every guarantee</h3>", *_list([*promised.boundaries, *promised.notes]),
    ]  # fmt: skip
    return parts


def _promised(report: Report, promised: Promised, shown: Callable[[str], str]) -> list[str]:
    rows = []
    for path in promised.paths:
        because = '<ul class="examples">' + "".join(f"<li>{text(r)}</li>" for r in path.reasons) + "</ul>"
        rows.append(
            (
                f"{text(path.source)} → {text(path.sink)}",
                [
                    ("", f"<b>{text(path.guarantee)}</b>"),
                    ("", text(path.boundary)),
                    ("", because),
                    ("", f'<span class="id">{text(shown(path.file))}:{path.line}</span>'),
                ],
            )
        )
    head = ("path", ""), ("guarantee", ""), ("where the atomic commit ends", ""), ("because", ""), ("written at", "")
    return [
        *_contracts(report),
        "<h2>What the program promises</h2>",
        "<p>By <code>semel check</code>, from the program alone. This is the promise that was put to the test; "
        f"the weakest path is <b>{text(promised.weakest)}</b>.</p>",
        *_table("Every path, from a source to an end.", head, rows),
    ]


def _contracts(report: Report) -> list[str]:
    """Field by field: what is not claimed stands there, too."""
    if not report.promises:
        return []
    rows = []
    for one in report.promises:
        times = '<span class="open">not here</span>' if one.untried else _n(one.times or 0)
        rows.append((text(f"{one.of}: {one.field}"), [("", text(one.says)), ("", text(one.tried)), ("n", times)]))
    return [
        "<h2>What the contracts say, and how it was tried</h2>",
        *_table(
            "Every field of the contract of each sink and source.",
            (("field", ""), ("it says", ""), ("tried by", ""), ("times", "n")),
            rows,
        ),
    ]


def _again(report: Report, occasion: Occasion) -> list[str]:
    facts = [("seed", str(report.seed)), ("when", occasion.when), ("machine", occasion.machine)]
    facts += [(f"commit of {what}", commit) for what, commit in occasion.commits]
    facts.append(("versions", ", ".join(f"{name} {version}" for name, version in occasion.versions)))
    return [
        "<h2>How to do it again</h2>",
        f"<pre>{text(occasion.command)}</pre>",
        "<p>In the app's folder, with the same environment: what the app reads from there (addresses, passwords) is "
        "not in this page. The seed decides the schedule of faults and generated input; real processes race, so the "
        "same seed is the same attempt, not the same history.</p>",
        '<dl class="facts">',
        *(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts),
        "</dl>",
    ]


# --- pieces ----------------------------------------------------------------------------------------------------------


def _table(
    caption: str, head: Iterable[tuple[str, str]], rows: Iterable[tuple[str, list[tuple[str, str]]]]
) -> list[str]:
    """`rows`: the row's heading and its cells, (class, content), both HTML already. It can be scrolled by keyboard."""
    columns = "".join(f'<th scope="col"{_class(kind)}>{name}</th>' for name, kind in head)
    lines = [
        f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>',
        f"<caption>{caption}</caption><thead><tr>{columns}</tr></thead><tbody>",
    ]
    for name, cells in rows:
        tds = "".join(f"<td{_class(kind)}>{content}</td>" for kind, content in cells)
        lines.append(f'<tr><th scope="row" class="id">{name}</th>{tds}</tr>')
    return [*lines, "</tbody></table></div>"]


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _list(items: Iterable[str]) -> list[str]:
    return ["<ul>", *(f"<li>{text(item)}</li>" for item in items), "</ul>"]


def _kind(output: Output) -> str:
    said = KINDS.get(output.kind)
    return f"{output.kind}: {said}" if said else output.kind


def _family(step: Step) -> str:
    return step.value.partition(".")[0]


def _several(count: int, what: str) -> str:
    return f"{_n(count)} {what}{'' if count == 1 else 's'}"


def _n(count: int) -> str:
    return f"{count:,}"
