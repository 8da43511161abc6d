"""`semel dedup`: the view that has each event once, and the batch step that takes repeats out for good.

Exit code 0 when it is done, 1 when the data refuse it (rows of one id differ), 2 when it was asked wrongly.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semel.contract import Identity
from semel.errors import UsageError
from semel.sinks.columns import columns_of
from semel.sinks.dedup import EVENT, TRIED, SqlDialect
from semel.sinks.dedup import view as view_of

if TYPE_CHECKING:
    from semel.sinks.dedup import Removed

dedup = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Read rows that were appended with an event id once each: by a view, or by a batch step.",
)


@dedup.command()
def view(
    app: Annotated[str, typer.Argument(metavar="APP.py", help="The file that makes an App; FILE.py:NAME of several.")],
    sink: Annotated[str, typer.Argument(help="The name of a sink that appends rows with their event id.")],
    dialect: Annotated[SqlDialect, typer.Option(help="Whose SQL.")] = SqlDialect.POSTGRES,
    table: Annotated[str, typer.Option(help="The table there, PART.PART.TABLE, where it has another name.")] = "",
) -> None:
    """Print the statement of a view that has each event once. Nothing is opened or asked."""
    declared, value = _sink(app, sink)
    path = tuple((table or declared.table).split("."))
    columns = columns_of(getattr(declared, "value_type", None) or value, declared.where)
    names = None if columns is None else [*(column.name for column in columns), EVENT]
    print(f"-- {dialect.value}: {TRIED[dialect]}.")
    print(view_of(dialect, path, names) + ";")


@dedup.command()
def run(
    target: Annotated[
        str,
        typer.Argument(
            metavar="APP.py | postgresql://… | FILE.duckdb | FOLDER",
            help="An app, whose SINK it is; a database; or a folder of Parquet files.",
        ),
    ],
    sink: Annotated[str, typer.Argument(help="Of an app: the name of the sink.")] = "",
    table: Annotated[str, typer.Option(help="Of a database: TABLE or SCHEMA.TABLE.")] = "",
    id: Annotated[str, typer.Option(help="The columns of the id, separated by commas.")] = EVENT,
    ignore: Annotated[
        str, typer.Option(help="Columns in which repeats may differ (when a row arrived), separated by commas.")
    ] = "",
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Keep one row per event id, for good.

    It can be ended at any moment and run again; rows that are appended meanwhile stay. Rows of one id that differ are
    refused: they are no repeats.
    """
    ids, ignored = _listed(id), _listed(ignore)
    if not ids:
        raise UsageError("--id: name one column at least.")
    began = time.monotonic()
    where, done = _run(target, sink, table, ids, ignored)
    seconds = time.monotonic() - began
    if json_:
        told = {"rows": done.rows, "removed": done.removed, "left": done.left, "seconds": round(seconds, 2)}
        print(json.dumps({"where": where, **told, "notes": list(done.notes)}))
        return
    for note in done.notes:
        print(f"note: {note}")
    print(f"{where}: removed {done.removed:,} of {done.rows:,} rows as repeats, {done.left:,} left, {seconds:.1f} s")


def _run(target: str, sink: str, table: str, ids: tuple[str, ...], ignore: tuple[str, ...]) -> tuple[str, Removed]:
    if target.startswith(("postgresql://", "postgres://")):
        return _postgres(target, _path(table, "a database"), ids, ignore)
    file, _, _ = target.partition(":")
    if file.endswith(".py"):
        if not sink:
            raise UsageError(f"{target}: of which sink? semel dedup run {target} SINK.")
        declared, _ = _sink(target, sink)
        if not hasattr(declared, "dsn"):
            raise UsageError(f"{declared.where}: this step knows Postgres, DuckDB and folders of Parquet files.")
        return _postgres(declared.dsn, _path(table or declared.table, ""), ids, ignore)
    if Path(target).is_dir():
        if table:
            raise UsageError(f"{target}: --table is of a database, and this is a folder.")
        parquet = _module("dedup_parquet", "pyarrow", "parquet")
        return target, parquet.deduplicate(target, ids, ignore)
    if Path(target).is_file():
        duckdb = _module("dedup_duckdb", "duckdb", "duckdb")
        path = _path(table, "a database")
        return f"{target}, table {'.'.join(path)}", duckdb.deduplicate(target, path, ids, ignore)
    raise UsageError(f"{target}: no app, no postgresql://…, no DuckDB file and no folder that is there.")


def _postgres(dsn: str, table: tuple[str, ...], ids: tuple[str, ...], ignore: tuple[str, ...]) -> tuple[str, Removed]:
    from semel.sinks.postgres import place

    postgres = _module("dedup_postgres", "psycopg", "postgres")
    return f"table {'.'.join(table)} at {place(dsn)}", postgres.deduplicate(dsn, table, ids, ignore)


def _module(name: str, library: str, extra: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"semel.sinks.{name}")
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] != library:
            raise
        raise UsageError(f"this needs {library}: pip install 'semel[{extra}]'") from None


def _sink(app: str, name: str) -> tuple[Any, Any]:
    """The sink as it is declared, and the type of the values that reach it."""
    from semel.host.load import load_app

    graph = load_app(app).graph()
    for write in graph.writes():
        if write.sink is not None and write.sink.name == name:
            if write.sink.contract.identity is not Identity.EVENT_ID or not hasattr(write.sink, "table"):
                raise UsageError(
                    f"{write.sink.where}: its rows carry no event id (its contract is {write.sink.contract.name}); a "
                    "repeat is kept out where it is written."
                )
            return write.sink, write.value
    raise UsageError(f"{app} has no sink {name!r}; it has {', '.join(sorted(graph.sinks)) or 'none'}.")


def _path(table: str, of: str) -> tuple[str, ...]:
    path = tuple(table.split(".")) if table else ()
    if not path or not all(path) or len(path) > 2:
        raise UsageError(f"--table {table}: {of or 'it'} wants TABLE or SCHEMA.TABLE.")
    return path


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
