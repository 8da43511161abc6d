"""`semel write`: however it ends, it says how many lines are in, and `--skip` goes on behind them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from semel.cli import write as command
from semel.cli.logs import look
from semel.cli.topics import topics
from semel.errors import SemelError, UsageError
from semel.host.looking import START
from semel.ports import TopicPartition


def values(url: str, topic: str = "t") -> list[bytes | None]:
    with look(url) as log:
        starts = {TopicPartition(topic, n): START for n in range(log.partitions(topic))}
        return [value for records in log.records(starts) for value in records.values]


def test_an_interrupted_write_says_what_is_in_and_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """A Ctrl-C in a long write left nobody knowing where it was: to call it again wrote the first part twice."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    url = f"embedded:{tmp_path / 'data'}"
    lines = [b"%d\n" % n for n in range(2_000)]
    whole = tmp_path / "lines"
    whole.write_bytes(b"".join(lines))

    @contextmanager
    def interrupted(file: str) -> Iterator[Iterator[bytes]]:
        def some() -> Iterator[bytes]:
            yield from lines[:1_200]
            os.kill(os.getpid(), signal.SIGINT)
            yield from lines[1_200:]

        yield some()

    with monkeypatch.context() as patched:
        patched.setattr(command, "_opened", interrupted)
        with pytest.raises(KeyboardInterrupt):
            command.write("t", str(whole), url)
    assert capsys.readouterr().err == "The first 1,200 lines are in. To go on behind them: --skip 1200\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    command.write("t", str(whole), url, skip=1_200)
    assert capsys.readouterr().err.startswith("800 records written to t in ")
    assert values(url) == [line.strip() for line in lines]


def test_a_bad_line_says_what_is_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, file = f"embedded:{tmp_path / 'data'}", tmp_path / "orders"
    file.write_text('{"id": 1}\n{"id": 2}\n{"no": 3}\n{"id": 4}\n')
    with pytest.raises(SemelError, match=r"orders, line 3 has no field 'id'"):
        command.write("t", str(file), url, key="id")
    assert capsys.readouterr().err == "The first 2 lines are in. To go on behind them: --skip 2\n"
    command.write("t", str(file), url, key="id", skip=3)
    assert values(url) == [b'{"id": 1}', b'{"id": 2}', b'{"id": 4}']


def test_the_topic_is_made_with_partitions_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another number than it has is refused; an app's own topics are told from the user's."""
    url, file = f"embedded:{tmp_path / 'data'}", tmp_path / "lines"
    file.write_text("1\n2\n")
    command.write("t", str(file), url, partitions=3)
    command.write("shop-sums-changelog", str(file), url)
    with pytest.raises(UsageError, match="t has 3 partitions, not 2"):
        command.write("t", str(file), url, partitions=2)
    capsys.readouterr()
    topics(None, url)
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert shown["t"].split()[1] == "3" and not shown["t"].endswith("internal")
    assert shown["shop-sums-changelog"].endswith("an app's changelog")
    assert "markers of transactions" in shown["END"]
