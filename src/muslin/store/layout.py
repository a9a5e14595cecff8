"""The tables of node.db, and how an older file comes to have them.

A file of a newer layout is refused: what that version wrote into it would be
lost on the way back.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from muslin.errors import ConfigError

LAYOUT = 3  # PRAGMA user_version; a change of SCHEMA counts it up and brings its own migration
# What Kubernetes said of this node's pods, and what became of their ADDs (store/pods.py).
PODS = """
CREATE TABLE IF NOT EXISTS pod (
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    uid       TEXT NOT NULL,              -- as a runtime says it
    wishes    TEXT NOT NULL,              -- JSON of agent.wishes.Wishes; empty: none
    PRIMARY KEY (namespace, name)
) STRICT;
CREATE TABLE IF NOT EXISTS failure (      -- ADDs that failed, for an event on the pod
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    uid       TEXT NOT NULL,
    reason    TEXT NOT NULL,
    message   TEXT NOT NULL,
    times     INTEGER NOT NULL,
    last      REAL NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT;
"""
SCHEMA = """
CREATE TABLE block (
    cidr     TEXT PRIMARY KEY,
    pool     TEXT NOT NULL,
    version  INTEGER NOT NULL CHECK (version IN (4, 6)),
    held     INTEGER NOT NULL,            -- 0: lost or given back, no new address comes from it
    next     BLOB NOT NULL,               -- the lowest address never given out
    last     BLOB NOT NULL,               -- the highest that may be
    skip     TEXT NOT NULL,               -- JSON: prefixes excluded from it
    cooldown REAL NOT NULL
) STRICT;
CREATE TABLE attachment (
    dev       TEXT PRIMARY KEY,           -- the host end; derived from the next two
    container TEXT NOT NULL,
    ifname    TEXT NOT NULL,
    netns     TEXT NOT NULL,
    conf      TEXT NOT NULL,              -- the name in the runtime's configuration: GC's scope
    network   TEXT NOT NULL,
    mtu       INTEGER NOT NULL,
    state     TEXT NOT NULL CHECK (state IN ('adding', 'ready', 'deleting')),
    since     REAL NOT NULL,
    wants     TEXT NOT NULL,              -- JSON of model.Wants: {} for nothing
    netns_id  TEXT NOT NULL,              -- which namespace `netns` was; empty: an older row
    UNIQUE (container, ifname)
) STRICT;
CREATE TABLE port (                       -- of the node, each leading to one pod
    version  INTEGER NOT NULL,
    protocol TEXT NOT NULL,
    number   INTEGER NOT NULL,
    ip       BLOB NOT NULL,               -- packed, of the node; empty: any
    dev      TEXT NOT NULL REFERENCES attachment (dev) ON DELETE CASCADE,
    PRIMARY KEY (version, protocol, number, ip)
) STRICT;
CREATE INDEX port_by_dev ON port (dev);
CREATE TABLE address (
    address  BLOB PRIMARY KEY,            -- packed: 4 or 16 bytes
    block    TEXT REFERENCES block (cidr),  -- NULL: adopted before its block was held again
    dev      TEXT,                        -- NULL: free and resting
    position INTEGER NOT NULL,            -- of the pod's addresses; when free, the order of freeing
    freed    REAL
) STRICT;
CREATE INDEX address_by_dev ON address (dev) WHERE dev IS NOT NULL;
CREATE INDEX address_free ON address (block, position) WHERE dev IS NULL;
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""
# From layout 1, whose times were the wall clock's; `ahead` is by how much that is the larger.
FROM_1 = """
ALTER TABLE attachment ADD COLUMN netns_id TEXT NOT NULL DEFAULT '';
UPDATE attachment SET since = since - :ahead;
UPDATE address SET freed = freed - :ahead;
"""


def bring_up(db: sqlite3.Connection, path: Path, *, ahead: float) -> None:
    """Make the tables, or make them today's; within a transaction of the caller's.

    `ahead` is by how much the wall clock's times are larger than the ledger's.
    ConfigError for a newer layout.
    """
    layout = db.execute("PRAGMA user_version").fetchone()[0]
    if layout > LAYOUT:
        hint = "install that version of muslin again, or drain the node and move the file away"
        why = f"written by a newer version (layout {layout}, this is {LAYOUT})"
        raise ConfigError(str(path), [why], hint=hint)
    if layout == LAYOUT:
        return
    steps = {0: SCHEMA + PODS, 1: FROM_1 + PODS, 2: PODS}
    for statement in steps[layout].split(";\n"):
        if statement.strip():
            db.execute(statement, {"ahead": ahead})
    db.execute(f"PRAGMA user_version={LAYOUT}")
