"""The `semel` command: finds the subcommand, and turns errors meant for a person into one line and an exit code.

Each subcommand is a function (or a Typer of several) in a module of its own, imported when it is called: `semel
--help` and `semel broker` start without the stream processor. Invariant: whatever a user does wrong ends with
`error: …` on stderr, exit code 2 (asked wrongly) or 1 (went wrong), and never with a traceback.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import typer
import typer.core
import typer.main

from semel.errors import SemelError
from semel.ports import LogLost


class Entry(NamedTuple):
    module: str
    name: str  # of the function or Typer in it
    summary: str


# In the order of `semel --help`.
COMMANDS = {
    "run": Entry("semel.cli.run", "run", "Run an app on the embedded log or on Kafka."),
    "ingest": Entry("semel.cli.ingest", "ingest", "Read the sources of an app into their topics, once."),
    "check": Entry("semel.cli.check", "check", "Say what every path of an app guarantees."),
    "verify": Entry("semel.cli.verify", "verify", "Crash an app at every step and compare input with output."),
    "dedup": Entry("semel.cli.dedup", "dedup", "Read appended rows once each: a view, or a batch step."),
    "app": Entry("semel.cli.app", "app", "Reset an app, begin one of its states, or give up what one has left."),
    "sink": Entry("semel.cli.sink", "app", "See how far an app's sinks are; move or finish a delivery."),
    "broker": Entry("semel.cli.broker", "broker", "Serve a folder as a log that speaks Kafka's protocol."),
    "topics": Entry("semel.cli.topics", "topics", "List the topics of a log."),
    "read": Entry("semel.cli.read", "read", "Print the records of a topic."),
    "write": Entry("semel.cli.write", "write", "Write the lines of a file as records."),
    "receiver": Entry("semel.cli.receiver", "receiver", "Try a receiver of Idempotency-Keys, in any language."),
    "sim": Entry("semel.cli.sim", "sim", "Run the simulated cluster on a seed."),
    "console": Entry("semel.cli.console", "console", "Show a running app in the browser."),
}


class Commands(typer.core.TyperGroup):
    """Subcommands by name, loaded when one is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name, entry in COMMANDS.items() if find_spec(entry.module) is not None]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = COMMANDS.get(cmd_name)
        if entry is None or find_spec(entry.module) is None:
            return None
        found = getattr(import_module(entry.module), entry.name)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
            single.command(cmd_name, help=found.__doc__)(found)
            found = single
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].summary) for name in self.list_commands(ctx)])


application = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("semel"))
        raise typer.Exit()


@application.callback()
def semel(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    """Stream processing whose exactly-once holds end to end, says where it stops, and can be put to the proof."""


def main() -> None:
    """The entry point. Ends the process."""
    try:
        application()
    except SemelError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except LogLost as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except BrokenPipeError:
        # The reader of our output has gone (`semel read … | head`): nothing is left to say, also not at exit.
        sys.stdout = None
        code = 0
    except KeyboardInterrupt:
        code = 130
    else:
        code = 0
    sys.exit(code)


if __name__ == "__main__":
    main()
