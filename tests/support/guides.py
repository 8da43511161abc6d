"""The guides of docs/sinks and docs/sources: read, held against the code, and played again.

A guide has an example (its `python` block), a table between `<!-- contract -->` marks, which is the contract's data and
nothing else, and a console block between `<!-- see -->` marks, which is what its commands print. `python -m
tests.support.guides NAME …` writes both anew, on the real server.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from semel import App
from semel.contract import Contract, PositionIn, SourceContract
from semel.guarantees import Circumstances, LogKind, analyse
from semel.steps import NoSteps
from semel.streams.graph import Read

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"sinks": ROOT / "docs" / "sinks", "sources": ROOT / "docs" / "sources"}
SEMEL = f"{sys.executable} -m semel.cli.main"
ROWS = '{"customer":"ann","total":3}\n{"customer":"bob","total":5}\n{"customer":"ann","total":8}\n'
RUNS_S = 0.7  # what it has not delivered by then, `semel sink drain` does
WAIT_S = 60.0


class Guide(NamedTuple):
    path: Path
    text: str

    @property
    def name(self) -> str:
        """What it is a guide of: the title is its name in backticks."""
        found = re.match(r"# `(\w+)`", self.text)
        assert found, f"{self.path.name}: the title is no name in backticks"
        return found[1]

    @property
    def example(self) -> str:
        (found,) = re.findall(r"```python\n(.*?)```", self.text, re.S)
        return str(found)

    def between(self, mark: str) -> str:
        found = re.search(rf"<!-- {mark} -->\n(.*?)\n<!-- /{mark} -->", self.text, re.S)
        assert found, f"{self.path.name} has no {mark}"
        return found[1]

    def commands(self) -> list[str]:
        return [line[2:] for line in self.between("see").splitlines() if line.startswith("$ ")]

    def written(self, mark: str, text: str) -> None:
        whole = self.path.read_text()
        found = re.search(rf"(<!-- {mark} -->\n)(.*?)(\n<!-- /{mark} -->)", whole, re.S)
        assert found
        self.path.write_text(whole[: found.start()] + found[1] + text + found[3] + whole[found.end() :])


def guides(kind: str) -> list[Guide]:
    return [Guide(path, path.read_text()) for path in sorted(PLACES[kind].glob("*.md"))]


def loaded(guide: Guide, folder: Path, replaced: Mapping[str, str] = {}) -> App:
    """The example's App, from a file as a user has it."""
    (folder / "app.py").write_text(_with(guide.example, replaced))
    made = runpy.run_path(str(folder / "app.py"))["app"]
    assert isinstance(made, App)
    return made


# --- the contract as a table -----------------------------------------------------------------------------------------


def told(contract: Contract, boundary: str) -> str:
    """Every field of a sink's contract, in the words of the data. `boundary`: as `semel check` has it."""
    step = "in one step with the rows" if contract.remembers_position else "apart from the rows"
    rows = [
        ("contract, `name`", f"{contract.name}: a path that ends here is **{contract.guarantee}** at most"),
        ("boundary, by `semel check`", boundary),
        ("a repeat is known by, `identity`", contract.identity),
        ("visible together, `atomicity`", contract.atomicity),
        ("who remembers the `position`", f"{contract.position}, {step}"),
        ("a superseded owner, `fence`", contract.fence),
        ("an unknown outcome, `resolution`", contract.resolution),
        ("work left in doubt, `settlement`", contract.settlement),
        ("acknowledged is kept, `durability`", contract.durability),
    ]
    if contract.window is not None:
        rows.append(("it forgets after, `window`", str(contract.window)))
    if contract.through:
        rows.append(("repeats are removed by, `through`", contract.through))
    return _table(rows)


def source_told(contract: SourceContract) -> str:
    return _table(
        [
            ("contract, `name`", f"{contract.name}: a path that begins here is **{contract.guarantee}** at most"),
            ("a record is named by, `identity`", contract.identity),
            ("read again it is the same, `replay`", contract.replay),
            ("where it was read up to, `position`", contract.position),
            ("a superseded ingest, `fence`", contract.fence),
            ("not seen, `boundary`", contract.boundary),
        ]
    )


def _table(rows: list[tuple[str, Any]]) -> str:
    return "\n".join(["| field | value |", "|---|---|", *(f"| {field} | {said} |" for field, said in rows)])


# --- what its commands print -----------------------------------------------------------------------------------------


class Played:
    """The example in a folder of its own, fed, run, and left; then the commands of the page.

    `replaced`: the placeholders of the page, with what stands for them here; they are put back into what is printed.
    """

    def __init__(
        self, guide: Guide, folder: Path, replaced: Mapping[str, str], env: Mapping[str, str], hidden: Mapping[str, str]
    ) -> None:
        self.guide, self.folder, self.replaced, self.hidden = guide, folder, dict(replaced), dict(hidden)
        folder.mkdir(parents=True, exist_ok=True)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env = {**os.environ, **env, "PATH": path, "SEMEL_ON": "embedded:./data", "COLUMNS": "110"}
        (folder / "app.py").write_text(_with(guide.example, self.replaced))

    def ran(self, command: str, *, fails: bool = False) -> str:
        command = re.sub(r"^semel\b", SEMEL, _with(command, self.replaced))
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=WAIT_S,
        )  # fmt: skip
        assert done.returncode == 0 or fails, f"{command}\n{done.stdout}{done.stderr}"
        # What an ingest has to tell, it tells there.
        return done.stdout + (done.stderr if done.returncode or " ingest " in command else "")

    def fed(self, rows: str) -> None:
        (self.folder / "totals.jsonl").write_text(rows)
        self.ran(f"semel write totals totals.jsonl --key {'customer' if 'customer' in rows else 'id'}")

    def delivered(self, sink: str) -> None:
        """`semel run`, Ctrl-C, and what was not due yet."""
        self.left()
        self.ran(f"semel sink drain app.py {sink}")

    def left(self) -> None:
        running = subprocess.Popen(
            [sys.executable, "-m", "semel.cli.main", "run", "app.py"],
            cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert running.stdout is not None
        said = running.stdout.readline()  # it runs
        time.sleep(RUNS_S)
        running.send_signal(signal.SIGINT)
        said += running.communicate(timeout=WAIT_S)[0]
        assert running.returncode == 0, said

    def console(self) -> str:
        lines = ["```console"]
        for command in self.guide.commands():
            lines += [f"$ {command}", *self.shown(self.ran(command))]
        return "\n".join([*lines, "```"])

    def shown(self, text: str) -> list[str]:
        """Without what differs from run to run, and without what is of this place."""
        for placeholder, real in {**self.replaced, **self.hidden}.items():
            text = text.replace(real, placeholder)
        text = text.replace(f"{self.folder}/", "")
        text = re.sub(r"^\w+: [\d,]+ records\n", "", text, flags=re.MULTILINE)  # how far it is, said now and then
        text = re.sub(r"\bpid \d+ on [\w.-]+", "pid 4711 on worker-1", text)
        text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "2026-11-23 17:00:00", text)
        return _aligned(text.rstrip("\n").split("\n")) if text.strip() else []


def _aligned(lines: list[str]) -> list[str]:
    """The table of `semel sink show`, whose columns are as wide as its process ids."""
    rows = [number for number, line in enumerate(lines) if re.match(r"PARTITION  |\d+  ", line)]
    cells = [re.split(r" {2,}", lines[number]) for number in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, row in zip(rows, cells, strict=True):
        lines[number] = "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    return lines


def _with(text: str, replaced: Mapping[str, str]) -> str:
    for placeholder, real in replaced.items():
        text = text.replace(placeholder, real)
    return text


def contract_told(guide: Guide, folder: Path) -> str:
    """The table that its page must have."""
    graph = loaded(guide, folder).graph()
    if guide.path.parent == PLACES["sources"]:
        (source,) = [node.topic.source for node in graph.nodes if isinstance(node, Read)]
        return source_told(source.contract)
    (sink,) = [write.sink for write in graph.writes() if write.sink is not None]
    (path,) = analyse(graph, Circumstances(log=LogKind.EMBEDDED)).paths
    return told(sink.contract, path.boundary)


NOT_OPERATED = (
    "`semel sink drain` works; `semel sink list`, `show`, `rewind` and `adopt` do not know this sink's positions yet. "
    "Its own client does:\n\n"
)


def shows_its_positions(guide: Guide) -> Guide:
    """Of a sink that `semel sink` can operate since: the page no longer says that it cannot, and shows it."""
    if NOT_OPERATED not in guide.text:
        return guide
    text = guide.text.replace(NOT_OPERATED, "")
    guide.path.write_text(text.replace("```console\n", "```console\n$ semel sink show app.py totals\n", 1))
    return Guide(guide.path, guide.path.read_text())


def operated(guide: Guide, folder: Path) -> bool:
    """Whether `semel sink show` knows where its deliveries are: at the sink, by its connection, or in the group."""
    (sink,) = [write.sink for write in loaded(guide, folder).graph().writes() if write.sink is not None]
    if sink.contract.position is PositionIn.GROUP_OFFSETS:
        return True
    connection = sink.open(NoSteps())
    connection.close()
    return hasattr(connection, "remembered")


if __name__ == "__main__":
    import tempfile

    os.environ.setdefault("AWS_ACCESS_KEY_ID", "x")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "x")

    from tests.servers.test_guides import played

    for guide in [*guides("sinks"), *guides("sources")]:
        if guide.name in sys.argv[1:] or len(sys.argv) == 1:
            with ExitStack() as stack:
                scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                if guide.path.parent == PLACES["sinks"] and operated(guide, scratch):
                    guide = shows_its_positions(guide)
                guide.written("contract", contract_told(guide, scratch))
                if "--contracts" not in sys.argv:
                    play = stack.enter_context(played(guide, scratch / "guide"))
                    guide.written("see", play.console())
                print(guide.path.relative_to(ROOT))
