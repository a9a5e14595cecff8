"""What is known of this node's pods beside their attachments: rows of node.db.

`pod` is what Kubernetes says of them (agent/pods.py writes it, an ADD reads),
`failure` how their ADDs failed (an ADD writes it, agent/events.py reads).
Works inside transactions of node.db (store/ledger.py).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import NamedTuple

WATCH = "pods"  # the fact: how the watch of pods is (agent/known.py)
# The reason of no failure: an ADD that took the defaults, since nobody knew what the pod asks for.
MISSED = "NetworkRequestMissed"
MOST = 100  # failures; the oldest go


class PodKey(NamedTuple):
    """Which pod."""

    namespace: str
    name: str


class PodRow(NamedTuple):
    """What is known of one pod; `wishes` is "" for none."""

    uid: str
    wishes: str


class Failure(NamedTuple):
    """How a pod's ADDs fail: the last one's words, and how many there were."""

    pod: PodKey
    uid: str
    reason: str
    message: str
    times: int
    last: float


def find(db: sqlite3.Connection, key: PodKey) -> tuple[PodRow | None, str | None]:
    """The pod's row and how the watch is, in one read: every ADD of a pod asks."""
    watch, uid, wishes = db.execute(
        "SELECT (SELECT value FROM fact WHERE name = ?), uid, wishes"
        " FROM (SELECT 1) LEFT JOIN pod ON namespace = ? AND name = ?",
        (WATCH, *key),
    ).fetchone()
    return (None if uid is None else PodRow(uid, wishes)), watch


def everything(db: sqlite3.Connection) -> dict[PodKey, PodRow]:
    """Every pod that is known."""
    rows = db.execute("SELECT namespace, name, uid, wishes FROM pod").fetchall()
    return {PodKey(*row[:2]): PodRow(*row[2:]) for row in rows}


def learn(db: sqlite3.Connection, news: Mapping[PodKey, PodRow | None]) -> None:
    """Take in what changed; None: the pod is gone, and how it failed is of no interest."""
    gone = [key for key, row in news.items() if row is None]
    db.executemany("DELETE FROM pod WHERE namespace = ? AND name = ?", gone)
    db.executemany("DELETE FROM failure WHERE namespace = ? AND name = ?", gone)
    db.executemany(
        "INSERT OR REPLACE INTO pod VALUES (?, ?, ?, ?)",
        [(*key, *row) for key, row in news.items() if row is not None],
    )


def failed(
    db: sqlite3.Connection, key: PodKey, uid: str, *, reason: str, message: str, now: float
) -> None:
    """Count one more failure of a pod; one under another uid is another pod, counted anew."""
    db.execute(
        "INSERT INTO failure VALUES (?, ?, ?, ?, ?, 1, ?) ON CONFLICT (namespace, name) DO UPDATE"
        " SET times = iif(uid = excluded.uid, times + 1, 1), uid = excluded.uid,"
        " reason = excluded.reason, message = excluded.message, last = excluded.last",
        (*key, uid, reason, message, now),
    )
    db.execute(
        "DELETE FROM failure WHERE rowid IN"
        " (SELECT rowid FROM failure ORDER BY last DESC LIMIT -1 OFFSET ?)",
        (MOST,),
    )


def failures(db: sqlite3.Connection) -> list[Failure]:
    """Every failure that is remembered, oldest first."""
    columns = "namespace, name, uid, reason, message, times, last"
    rows = db.execute(f"SELECT {columns} FROM failure ORDER BY last").fetchall()  # noqa: S608
    return [Failure(PodKey(*row[:2]), *row[2:]) for row in rows]
