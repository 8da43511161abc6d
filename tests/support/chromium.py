"""A real browser for the tests: Debian's Chromium without a window, each time with a profile of its own.

`apt-get install chromium` is tried once where it is missing; where that cannot be, the tests fail and say so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

WAIT_S = 60.0


def installed() -> str:
    def found() -> str | None:
        return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

    if found() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
        for words in (["apt-get", "update", "-q"], install):
            subprocess.run(words, env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    there = found()
    if there is None:
        raise RuntimeError(
            "no Chromium is installed here and none could be: as root on Debian or Ubuntu, `apt-get install chromium`."
        )
    return there


def browse(page: Path, profile: Path, *words: str) -> str:
    """Opens the file; what the browser prints. Ends by itself."""
    command = [installed(), "--headless", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
    if os.geteuid() == 0:
        command.append("--no-sandbox")
    done = subprocess.run(
        [*command, *words, page.as_uri()], capture_output=True, text=True, timeout=WAIT_S, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
