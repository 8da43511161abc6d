"""State on disk: a store and its mark are one, also after kill -9."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from semel.host.store import StoreError, Stores


def test_what_is_written_is_read_back_in_key_order_after_a_restart(tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    store = stores.store("totals", 3)
    store.write({b"b": b"2", b"a": b"1", b"gone": b"x"}, b"mark-1")
    store.write({b"gone": None, b"b": b"3"}, b"mark-2")
    stores.close()
    again = Stores(tmp_path).store("totals", 3)
    assert list(again.items()) == [(b"a", b"1"), (b"b", b"3")]
    assert (again.mark(), again.get(b"a"), again.get(b"gone")) == (b"mark-2", b"1", None)


def test_stores_of_one_worker_do_not_see_each_other(tmp_path: Path) -> None:
    """Names that begin alike, other partitions, and keys of any bytes stay apart; clearing one leaves the others."""
    stores = Stores(tmp_path)
    a, b, c = stores.store("t", 1), stores.store("t", 256), stores.store("tt", 1)
    for mark, store in ((b"a", a), (b"b", b), (b"c", c)):
        store.write({b"": mark, b"\xff\xff": mark, b"\0m": mark}, mark)
    a.clear()
    assert (list(a.items()), a.mark()) == ([], None)
    assert b.mark() == b"b" and c.mark() == b"c"
    assert dict(b.items()) == {b"": b"b", b"\xff\xff": b"b", b"\0m": b"b"}
    assert dict(c.items()) == {b"": b"c", b"\xff\xff": b"c", b"\0m": b"c"}


def test_kill_9_loses_no_batch_and_parts_none_from_its_mark(tmp_path: Path) -> None:
    """A process writes batch n with mark n and dies without closing: the state read back is that of its last mark."""
    pid = os.fork()
    if pid == 0:
        store = Stores(tmp_path).store("s", 0)
        for n in range(300):
            store.write({b"k%d" % (n % 7): b"%d" % n, b"k%d" % ((n + 3) % 7): None}, b"%d" % n)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    store = Stores(tmp_path).store("s", 0)
    expected: dict[bytes, bytes] = {}
    for n in range(300):
        expected[b"k%d" % (n % 7)] = b"%d" % n
        expected.pop(b"k%d" % ((n + 3) % 7), None)
    assert (store.mark(), dict(store.items())) == (b"299", expected)


def test_a_folder_in_use_says_so(tmp_path: Path) -> None:
    held = Stores(tmp_path)
    with pytest.raises(StoreError, match="cannot be opened"):
        Stores(tmp_path)
    held.close()
