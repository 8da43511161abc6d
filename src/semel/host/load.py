"""From `app.py` or `app.py:name` to the user's App.

Invariant: whatever is wrong in the user's file is reported with that file and its line, never with a traceback.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path

from semel.app import App
from semel.errors import SemelError, UsageError

# Our own name for the user's module: it must not shadow a module that the file itself imports.
MODULE = "semel_user_app"


def load_app(spec: str) -> App:
    """The App in a file; `file.py:name` where it has several. UsageError (exit code 2) when there is none."""
    text, colon, name = spec.rpartition(":")
    if not colon or not text.endswith(".py"):
        text, name = spec, ""
    path = Path(text)
    if not path.is_file():
        raise UsageError(f"{text}: there is no such file. Give the Python file that makes an App.")
    module_spec = importlib.util.spec_from_file_location(f"{MODULE}_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"{text}: not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # msgspec and dataclasses look their module up
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python app.py` has it
    try:
        module_spec.loader.exec_module(module)
    except SemelError as refused:
        raise UsageError(str(refused)) from refused
    except SyntaxError as wrong:
        raise UsageError(f"{wrong.filename or text}:{wrong.lineno}: {wrong.msg}") from wrong
    except SystemExit as left:
        raise UsageError(f"{text}: it ended itself ({left.code}) while it was loaded: guard with __main__") from left
    except Exception as wrong:
        raise UsageError(f"{place(wrong, path)}: {type(wrong).__name__}: {wrong}") from wrong
    apps = {key: value for key, value in vars(module).items() if isinstance(value, App)}
    if name:
        if name not in apps:
            have = f" It has {', '.join(sorted(apps))}." if apps else ""
            raise UsageError(f"{text}: no App is called {name}.{have}")
        return apps[name]
    found = list({id(app): app for app in apps.values()}.values())
    if not found:
        raise UsageError(f"{text}: makes no App. Add: app = App('name', build)")
    if len(found) > 1:
        choice = " or ".join(f"{text}:{key}" for key in sorted(apps))
        raise UsageError(f"{text}: makes {len(found)} Apps. Say which one: {choice}")
    return found[0]


def place(raised: BaseException, path: Path) -> str:
    """file:line of the innermost frame in the user's file, else of the innermost frame at all."""
    frames = traceback.extract_tb(raised.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    for frame in reversed(own or frames):
        return f"{path if own else frame.filename}:{frame.lineno}"
    return str(path)
