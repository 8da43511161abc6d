"""The page of a verification in a real browser: nothing of a record becomes part of it, it fits a telephone and paper,
and both schemes are drawn."""

from __future__ import annotations

import html
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from semel.proof import page_style
from semel.verify.verdict import Report
from tests.proof.pages import BROKEN, SECRET, UNKNOWN, made
from tests.support.chromium import browse

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        file = tmp_path / "page.html"
        file.write_text(text, encoding="utf-8")
        return file

    return written


def elements(dom: str) -> set[str]:
    return {found.lower() for found in re.findall(r"<([a-zA-Z][a-zA-Z0-9]*)", dom)}


def planted(dom: str) -> set[str]:
    """What values brought into the page."""
    return elements(dom) & {"script", "img"}


def test_a_value_stays_a_text(write: Write, tmp_path: Path) -> None:
    """What the browser has made of the page has no element that a value brought."""
    dom = browse(write(made(BROKEN)), tmp_path / "profile", "--dump-dom")
    assert not planted(dom) and "table" in elements(dom)
    assert SECRET not in dom
    assert "Verdict: broken" in re.sub(r"<[^>]*>", "", dom)


def test_an_escape_that_is_forgotten_is_found(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: values go into the page as they are. The check above sees it."""
    monkeypatch.setattr(html, "escape", lambda text, quote=True: text)
    assert planted(browse(write(made(BROKEN)), tmp_path / "profile", "--dump-dom"))


# Put into a copy of the page by the test alone: a browser tells its widths only to a script.
PROBE = """<script>
document.title = [document.documentElement.scrollWidth, window.innerWidth,
  getComputedStyle(document.body).backgroundColor].join("|");
</script></body>"""


@pytest.mark.parametrize(
    ("report", "width"),
    [(BROKEN, 500), (BROKEN, 1280), (UNKNOWN, 500)],
    ids=["broken-500", "broken-1280", "unknown-500"],
)
def test_it_is_never_wider_than_the_window(report: Report, width: int, write: Write, tmp_path: Path) -> None:
    """Tables are moved within themselves; long names break."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", made(report))
    dom = browse(
        write(page.replace("</body>", PROBE)), tmp_path / "profile", "--dump-dom", f"--window-size={width},900"
    )
    found = re.search(r"<title>(\d+)\|(\d+)\|", dom)
    assert found is not None, dom[:500]
    page_width, window = map(int, found.groups())
    assert window <= width and page_width <= window, (page_width, window)


@pytest.mark.parametrize(
    ("words", "colours"), [((), page_style.LIGHT), (("--blink-settings=preferredColorScheme=0",), page_style.DARK)]
)
def test_both_schemes_are_drawn(words: tuple[str, ...], colours: dict[str, str], write: Write, tmp_path: Path) -> None:
    """As the reader's system asks."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", made(UNKNOWN))
    dom = browse(write(page.replace("</body>", PROBE)), tmp_path / "profile", "--dump-dom", *words)
    rgb = ", ".join(str(int(colours["ground"][at : at + 2], 16)) for at in (1, 3, 5))
    assert f"rgb({rgb})</title>" in dom


def test_it_prints(write: Write, tmp_path: Path) -> None:
    """On paper, too; the PDF's own text streams are there."""
    paper = tmp_path / "page.pdf"
    browse(write(made(BROKEN)), tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={paper}")
    data = paper.read_bytes()
    assert data.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", data)) >= 2
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, re.S)
    assert any(b"Tj" in zlib.decompress(one) or b"TJ" in zlib.decompress(one) for one in streams if one[:1] == b"x")
