"""How semel starts, before anything else: without the checks it does not."""

import subprocess
import sys


def test_semel_refuses_to_start_without_its_assertions() -> None:
    """Under `python -O` the invariants are not checked, so nothing may be promised: exit code 2, and why."""
    done = subprocess.run([sys.executable, "-O", "-c", "import semel"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "without -O" in done.stderr and "Traceback" not in done.stderr
