"""Into WAL mode while somebody else has the file to himself."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from muslin.store import wal


def test_it_waits_for_an_exclusive_holder(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.2, holder.execute, ("COMMIT",)).start()
    db = sqlite3.connect(path, timeout=0)
    wal.enter(db, 10)
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()
    holder.close()


def test_it_does_not_wait_for_ever_nor_for_what_waiting_does_not_mend(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    db = sqlite3.connect(path, timeout=0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        wal.enter(db, 0.05)
    db.close()
    holder.close()
    (tmp_path / "y.db").write_bytes(b"no database" * 100)
    other = sqlite3.connect(tmp_path / "y.db")
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        wal.enter(other, 10)
    other.close()
