"""When, where and of what a verification was: what somebody needs who wants to repeat it.

Invariant: nothing here fails a run; what cannot be found out is left out.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import semel

LIBRARIES = ("confluent-kafka", "rocksdict", "kio", "psycopg", "PyMySQL", "obstore", "duckdb")


@dataclass(frozen=True, slots=True)
class Occasion:
    command: str  # as a person types it
    when: str  # ISO 8601, UTC
    machine: str
    versions: tuple[tuple[str, str], ...]  # of what, which
    commits: tuple[tuple[str, str], ...]  # of what, which; "…, with changes that are not committed"


def occasion(app_file: str, arguments: Sequence[str]) -> Occasion:
    """Of now and here. `arguments`: those of `semel`, without secrets as far as the caller knows."""
    commits = [
        (what, commit)
        for what, folder in (("the app", Path(app_file).parent), ("semel", Path(semel.__file__).parent))
        if (commit := commit_of(folder))
    ]
    return Occasion(
        command=shlex.join(["semel", *arguments]),
        when=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        machine=machine(),
        versions=tuple(versions()),
        commits=tuple(commits),
    )


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores, {memory} GiB"


def versions() -> list[tuple[str, str]]:
    found = [("Python", platform.python_version())]
    for name in ("semel", *LIBRARIES):
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found


def commit_of(folder: Path) -> str:
    """The commit that a folder's files are of; "" outside a repository, or where git cannot say."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "HEAD")
        if not commit or not git("ls-files", "."):  # another project's repository that it happens to lie in
            return ""
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + (", with changes that are not committed" if changed else "")
