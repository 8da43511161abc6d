"""What each sink was put through, from the tests themselves: the page docs/proof/sinks.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    return "\n".join(f"{name}: {told['verdict']}" for name, told in results.items()) + "\n"
