"""The data folder's growth is said once per doubling, and a tight disk once until it is mended."""

from __future__ import annotations

from pathlib import Path

import pytest

from semel.host.size import FREE_BYTES_MIN, SizeWatch


def test_a_warning_per_doubling(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not one per look."""
    watch = SizeWatch(tmp_path, warn_bytes=1_000)
    (tmp_path / "folder").mkdir()
    for size, warnings in ((900, 0), (1_100, 1), (1_200, 1), (1_900, 1), (2_000, 2), (70_000, 3), (100_000, 3)):
        (tmp_path / "folder" / "file").write_bytes(bytes(size))
        watch.look(free_bytes=1 << 40)
        assert len(caplog.records) == warnings, size
    assert "retention" in caplog.text


def test_a_tight_disk_is_said_when_it_becomes_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And again after it was mended and is tight again."""
    watch = SizeWatch(tmp_path)
    for free, warnings in ((FREE_BYTES_MIN, 0), (FREE_BYTES_MIN - 1, 1), (0, 1), (1 << 40, 1), (5, 2)):
        watch.look(free_bytes=free)
        assert len(caplog.records) == warnings
