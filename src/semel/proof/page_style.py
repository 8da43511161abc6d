"""How the page of a verification looks: one style sheet, light and dark, on screen and on paper.

Invariant: every colour is a variable of `LIGHT` or `DARK`, and each text on its ground has a contrast of 4.5 at least
(WCAG 2.2, 1.4.3; `tests/verify/test_page.py` computes it).
"""

from __future__ import annotations

LIGHT = {
    "ground": "#ffffff", "raised": "#f5f6f8", "line": "#cfd4dc", "text": "#16191f", "quiet": "#4e5766",
    "link": "#0b57c4", "holds": "#0a5c36", "holds-ground": "#e3f4ea", "broken": "#9b1c1c", "broken-ground": "#fdeaea",
    "unknown": "#7a4b00", "unknown-ground": "#fdf2dc",
}  # fmt: skip
DARK = {
    "ground": "#12151b", "raised": "#1b2029", "line": "#3a4252", "text": "#e8ebf0", "quiet": "#a9b3c3",
    "link": "#8ab8ff", "holds": "#7fdcaa", "holds-ground": "#12301f", "broken": "#ff9d9d", "broken-ground": "#3a1717",
    "unknown": "#f3c573", "unknown-ground": "#362a10",
}  # fmt: skip
# Which text stands on which ground.
PAIRS = (
    ("text", "ground"), ("text", "raised"), ("quiet", "ground"), ("quiet", "raised"), ("link", "ground"),
    ("holds", "holds-ground"), ("broken", "broken-ground"), ("unknown", "unknown-ground"),
    ("broken", "ground"), ("broken", "raised"), ("text", "holds-ground"), ("text", "broken-ground"),
    ("text", "unknown-ground"), ("unknown", "ground"), ("unknown", "raised"), ("holds", "ground"), ("holds", "raised"),
)  # fmt: skip


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


CSS = (
    f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
"""
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.skip { position: absolute; left: -100vw; } .skip:focus { left: 1rem; top: 1rem; background: var(--ground); }
header, main, footer { max-width: 68rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p, ul, dl { margin: .4rem 0 .8rem; max-width: 50rem; }
li { margin: .25rem 0; }
a { color: var(--link); }
code, pre, .id { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .875em; }
code, .id { overflow-wrap: anywhere; }
pre { background: var(--raised); border: 1px solid var(--line); border-radius: .4rem; padding: .8rem 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: .6rem 0; }
.quiet { color: var(--quiet); }
.verdict { border-left: .5rem solid; border-radius: .4rem; padding: 1rem 1.25rem; margin: 1.25rem 0 1rem; }
.verdict strong { display: block; font-size: 1.5rem; line-height: 1.3; }
.verdict p { color: var(--text); margin: .25rem 0 0; }
.verdict.holds { background: var(--holds-ground); color: var(--holds); border-color: var(--holds); }
.verdict.broken { background: var(--broken-ground); color: var(--broken); border-color: var(--broken); }
.verdict.unknown { background: var(--unknown-ground); color: var(--unknown); border-color: var(--unknown); }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; max-width: none; }
.numbers div { background: var(--raised); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .9rem; }
.numbers dt { color: var(--quiet); font-size: .85rem; } .numbers dd { margin: 0; font-size: 1.3rem; }
.facts { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .25rem 1.25rem; }
.facts dt { color: var(--quiet); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; color: var(--quiet); padding: .2rem 0 .5rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--line); }
tbody th { font-weight: 600; min-width: 9.5rem; }
td.n, th.n { text-align: right; padding-right: 1rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.found { color: var(--broken); font-weight: 700; } .open { color: var(--unknown); font-weight: 600; }
.fine { color: var(--holds); font-weight: 600; }
.examples { margin: .3rem 0 0; padding-left: 1.1rem; }
details { margin: .6rem 0; } summary { cursor: pointer; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
footer { margin-top: 3rem; padding-bottom: 2.5rem; color: var(--quiet); font-size: .9rem; }
@media print {
  @page { margin: 16mm; }
  body { font-size: 10pt; } header, main, footer { max-width: none; padding: 0; }
  h2 { break-after: avoid; } tr, .verdict, .numbers div { break-inside: avoid; } thead { display: table-header-group; }
  .wide { overflow: visible; } tbody th { min-width: 0; } .skip { display: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
@media print { :root { color-scheme: light; """
    + _variables(LIGHT)
    + """ } }
"""
)
