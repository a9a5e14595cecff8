"""Switching a SQLite file to its write-ahead log while others open or close the same file."""

from __future__ import annotations

import sqlite3
import time

PAUSE = 0.005  # seconds between two tries


def enter(db: sqlite3.Connection, seconds: float) -> None:
    """Be in WAL mode; wait at most `seconds` for whoever has the file to himself just now.

    The first and the last connection to a file hold it exclusively for a
    moment, and SQLite's busy timeout does not cover that lock
    (sqlite.org/wal.html, "Sometimes Queries Return SQLITE_BUSY In WAL Mode").
    """
    until = time.monotonic() + seconds
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as e:
            busy = e.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > until:
                raise
            time.sleep(PAUSE)
        else:
            return
