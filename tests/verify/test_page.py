"""The page of a verification: what is on it, that nothing in it can do anything, and that everybody can read it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from semel.ports import Step
from semel.proof import page_style
from semel.proof.occasion import commit_of, occasion
from semel.proof.page import NEVER, STEPS, WHO, text
from semel.verify.verdict import Report, Verdict
from tests.proof.pages import BROKEN, EACH, EVIL, HOLDS, OCCASION, SECRET, UNKNOWN, made, promised

VOID = {"meta", "br", "hr", "img", "link", "input", "base", "source", "col", "wbr"}


class Read(HTMLParser):
    """The page as a strict reader sees it: a tag that is not closed where it should be is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td", "dt", "dd"):  # of its own, to whoever hears it
            self.texts.append((tuple(self.open), " "))
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))

    def said(self, inside: str = "body") -> str:
        return " ".join("".join(data for tags, data in self.texts if inside in tags and "style" not in tags).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(params=list(EACH.values()), ids=[verdict.value for verdict in EACH])
def report(request: pytest.FixtureRequest) -> Report:
    found: Report = request.param
    return found


def test_nothing_in_it_can_run_or_be_loaded(report: Report) -> None:
    """Values of records hold HTML; the page holds their text. It names no address and has no script, and says so."""
    page = made(report)
    read = Read(page)
    assert {tag for tag, _ in read.tags} <= {
        "html", "head", "meta", "title", "style", "body", "a", "header", "main", "footer", "h1", "h2", "h3", "p", "b",
        "div", "span", "strong", "dl", "dt", "dd", "ul", "li", "table", "caption", "thead", "tbody", "tr", "th", "td",
        "pre", "code", "details", "summary",
    }  # fmt: skip
    for tag, attrs in read.tags:
        assert not [name for name in attrs if name.startswith("on") or name in ("src", "srcset", "style", "data")], tag
    assert [attrs["href"] for attrs in read.of("a")] == ["#main"]
    assert not re.search(r"url\(|@import|https?:", page)
    (policy,) = [m["content"] for m in read.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    page.encode("utf-8")
    assert not set(page) & {chr(n) for n in (*range(9), 11, 12, *range(14, 32), 127)}


def test_no_secret_is_printed(report: Report) -> None:
    """Of a URL, of key=value pairs and of a JSON field; wherever they come from."""
    assert SECRET not in made(report)


def test_what_is_shown_is_what_was_there() -> None:
    """Escaped once, not twice, and what is no character of a page is seen as its escape."""
    said = Read(made(BROKEN)).said()
    assert "<script>alert('x')</script><img src=//evil.example/x onerror=alert(1)>\"'&amp;\\x00\\x1b[31m\\ud800" in said
    assert text(EVIL).count("&lt;") == 3
    assert text("a\tb\nc — é 日本") == "a\tb\nc — é 日本"


def test_headings_and_tables_can_be_heard(report: Report) -> None:
    """One h1, no level left out; each table has a caption, column headings with a scope, and a heading per row."""
    read = Read(made(report))
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), levels
    assert read.of("html") == [{"lang": "en"}]
    assert len(read.of("table")) == len(read.of("caption")) >= 4
    assert all(attrs.get("scope") in ("col", "row") for attrs in read.of("th"))
    assert sum(attrs["scope"] == "row" for attrs in read.of("th")) == len(read.of("tr")) - len(read.of("thead"))
    assert all(d.get("aria-label") for d in read.of("div") if d.get("tabindex") == "0")
    assert read.said("title").endswith(f": {report.verdict.value} (semel verify)")


def test_the_verdict_is_a_word_and_leads(report: Report) -> None:
    """Not a colour alone; before everything else; with what it rests on."""
    said = Read(made(report)).said()
    assert said.index(f"Verdict: {report.verdict.value}") < said.index("What was tried")
    assert report.verdict is Verdict.BROKEN or "Counter-example" not in said
    counted = {"holds": "in any of the 4 comparisons", "broken": "1 lost, 4 repeated, 0 wrong", "unknown": "too little"}
    assert counted[report.verdict.value] in said


TOLD = {
    Verdict.HOLDS: """billing: is each record counted once?
What was tried
What was compared, and what was found
What was not tried
- Steps that were reached, and where nobody was struck
- What no such run tries
- What lies outside every guarantee
What the program promises
How to do it again""",
    Verdict.UNKNOWN: """billing: is each record counted once?
What was tried
What was compared, and what was found
What was not tried
- Why this run proves less than it could
- What could not be compared
- Steps that were reached, and where nobody was struck
- What no such run tries
- What lies outside every guarantee
What the program promises
How to do it again""",
}


@pytest.mark.parametrize("verdict", TOLD, ids=str)
def test_it_is_told_in_this_order(verdict: Verdict) -> None:
    """What somebody reads who reads the headings only. A broken run has its counter-example before all that."""
    told = [
        ("- " if tags[-1] == "h3" else "") + data
        for tags, data in Read(made(EACH[verdict])).texts
        if tags and tags[-1] in ("h1", "h2", "h3")
    ]
    assert "\n".join(told) == TOLD[verdict]
    broken = [data for tags, data in Read(made(BROKEN)).texts if tags[-1:] == ("h2",)]
    assert broken == ["Counter-example", *(h for h in TOLD[Verdict.HOLDS].split("\n")[1:] if h[0] != "-")]


def test_a_counter_example_names_its_record() -> None:
    """Which input caused it, and where it lies."""
    said = Read(made(BROKEN)).said()
    assert "committed once as billing-orders-outbox-0@17, written by 3:orders|orders|0|17|0" in said


def test_what_was_not_tried_is_said(report: Report) -> None:
    """Doubts, outputs that could not be compared, steps where nobody was struck, the limits of any run, boundaries."""
    said = Read(made(report)).said()
    after = said[said.rindex("What was not tried") :]
    for sentence in (*NEVER, *promised().boundaries):
        assert " ".join(sentence.split()) in after
    for doubt in report.doubts:
        assert doubt.split(":")[0] in after
    for output in report.outputs:
        assert not output.unknown or output.unknown.split()[0] in after
    assert "tasks.before" in after and "commit.before" not in after.split("What no such run tries")[0]


def test_each_step_has_its_hits_and_its_meaning() -> None:
    """Every step of the enum can be on the page; one that was never reached stands out."""
    assert {step.value for step in Step} <= set(STEPS)
    assert {step.value.partition(".")[0] for step in Step} <= set(WHO)
    said = Read(made(UNKNOWN)).said()
    assert "claim.after delivery the sink has named this delivery as the owner of a partition never never" in said
    reached = f"{UNKNOWN.steps['rows.after']:,} {UNKNOWN.struck['rows.after']}"
    assert f"rows.after delivery rows are written, not committed, and the position is not {reached}" in said
    assert "12,345 rows (orders)" in said


def test_it_can_be_done_again() -> None:
    """Command, seed, commits, machine, versions."""
    said = Read(made(HOLDS)).said()
    after = said[said.index("How to do it again") :]
    for fact in ("semel verify app.py", "--seed=7", OCCASION.machine, "Python 3.11.2", OCCASION.commits[0][1]):
        assert fact in after
    now = occasion(__file__, ["verify", "a b.py"])
    assert now.command == "semel verify 'a b.py'" and ("Python" in dict(now.versions))


def test_a_commit_is_of_the_files_and_not_of_a_folder_around_them(tmp_path: Path) -> None:
    """Outside a repository there is none, and that fails nothing."""
    assert commit_of(tmp_path) == ""
    assert commit_of(tmp_path / "is not there") == ""


# --- colours ---------------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["LIGHT", "DARK"])
def test_every_text_stands_out_from_its_ground(scheme: str) -> None:
    """4.5 to 1 at least; each colour that the style uses is one of these."""
    colours = getattr(page_style, scheme)
    for of, on in page_style.PAIRS:
        assert contrast(colours[of], colours[on]) >= 4.5, (scheme, of, on, contrast(colours[of], colours[on]))
    used = set(re.findall(r"var\(--([a-z-]+)\)", page_style.CSS))
    assert used <= set(colours) and set(page_style.LIGHT) == set(page_style.DARK)
    assert not re.search(r"#[0-9a-f]{3,8}\b", re.sub(r"--[a-z-]+: #[0-9a-f]{6};", "", page_style.CSS))
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


# --- the command -----------------------------------------------------------------------------------------------------

APP = """
from semel import App, Topic
numbers = Topic("numbers", key=str, value=int)
def build(b):
    b.read(numbers).write(Topic("copies", key=str, value=int))
app = App("copy", build)
"""


@pytest.fixture
def verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """`semel verify` whose run is replaced: the page is about what a run has said."""
    import typer

    from semel.cli.verify import verify as command
    from semel.proof import campaign

    def run(app: object, asked: object, say: Callable[[str], None]) -> Report:
        say("worker-1: killed at a step (rows.after)")
        return HOLDS

    monkeypatch.setattr(campaign, "verify", run)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    (tmp_path / "app.py").write_text(APP)
    cli = typer.Typer()
    cli.command()(command)

    def call(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, [str(tmp_path / "app.py"), *words])
        return done.exit_code, f"{done.output}{done.exception or ''}"

    return call


def test_the_command_writes_it_whole(verify: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """Also over a former one; with what the run said, and the command that repeats it."""
    file = tmp_path / "report.html"
    file.write_text("of yesterday")
    code, said = verify(f"--html={file}", "--seed=9", "--crashes=3")
    assert (code, "page: " in said) == (0, True), said
    read = Read(file.read_text())
    assert "worker-1: killed at a step (rows.after)" in read.said("details")
    assert "Apache Kafka" not in read.said("main") and "No log was named" not in read.said("main")
    assert "--on=broker --crashes=3 --seed=9 --mode=exactly-once" in read.said("pre")
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".html", ".new")] == ["report.html"]


def test_a_folder_that_is_not_there_is_told_before_the_run(
    verify: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """Not after minutes."""
    code, said = verify(f"--html={tmp_path}/none/report.html")
    assert code and "name a file in a folder that is there" in said and "worker-1" not in said
