"""What a person sees of the demo, and that the README shows what is really printed."""

import io
from dataclasses import replace
from pathlib import Path

from examples.demo import readme
from examples.demo.reckon import Line
from examples.demo.screen import Screen, result
from rich.console import Console

from semel.contract import Mode

ROOT = Path(__file__).parents[2]
CLEAN = Line("exactly-once", "topic totals", "last per key, prefix folds", 336_776, 5_432, 5_432, 0, 0, 0, 0)
HURT = replace(CLEAN, mode="at-least-once", output="Postgres totals", repeated=13_768, wrong=1_030, counted=-12)


def printed(*what: object, width: int = 110, terminal: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=terminal, color_system=None).print(*what)
    return out.getvalue()


def test_the_table_fits_a_page_and_says_what_a_wrong_value_means() -> None:
    """On a terminal of 80 columns nothing is cut off; a repeat or a loss inside a fold is given in flights."""
    text = printed(result([HURT, CLEAN]), width=80)
    assert "…" not in text and "336,776" in text and "5,432" in text
    assert "at-least-once counts 12 too few" in " ".join(text.split())


def test_without_a_terminal_happenings_are_plain_lines() -> None:
    """A line each, with seconds, mode and input position; a line per quarter of the input."""
    out = io.StringIO()
    with Screen(Console(file=out, width=110), list(Mode), 1_000) as screen:
        run = screen.runs[Mode.EXACTLY_ONCE]
        run.fed = 600
        screen.say(run, "worker 1 killed at offsets.before", "red")
        run.done = 500
        screen.moved(run)
        screen.moved(run)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2 and "\x1b" not in out.getvalue()
    assert "exactly-once" in lines[0] and "600" in lines[0] and lines[0].endswith("worker 1 killed at offsets.before")
    assert "500 of 1,000 done" in lines[1]


def test_the_live_screen_draws_every_mode() -> None:
    """Before, while and after it runs."""
    screen = Screen(Console(file=io.StringIO(), width=110), list(Mode), 1_000)
    running, over = screen.runs[Mode.AT_LEAST_ONCE], screen.runs[Mode.AT_MOST_ONCE]
    over.began, over.ended, over.done = 1.0, 2.0, 1_000
    running.began, running.worker_kills, running.doing = 1.0, 3, "killing worker 2"
    assert "…" not in printed(Screen(Console(width=80), list(Mode), 336_776).render(), width=80)
    text = printed(screen.render())
    assert all(mode in text for mode in Mode) and "† † †" in text and "killing worker 2" in text and "1,000/s" in text


def test_the_readme_shows_what_check_prints() -> None:
    """The golden text, between its marks; and a table where exactly-once is clean."""
    text = (ROOT / "README.md").read_text()
    assert readme.GOLDEN.read_text().strip() in text
    shown = text[text.index("<!-- demo -->") : text.index("<!-- /demo -->")]
    assert shown.count("336,776") == 9
    clean = [line for line in shown[shown.index("exactly-once") :].splitlines() if "336,776" in line]
    assert len(clean) == 3 and all(line.split()[-3:] == ["0", "0", "0"] for line in clean)
