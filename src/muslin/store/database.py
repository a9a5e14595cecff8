"""One SQLite file with the records and leases in it: the blocking half of the SQLite store.

Several processes of one machine share the file.  WAL lets readers and one
writer work at a time; a writer takes the lock at BEGIN, so a compare and its
swap are one step.  synchronous=NORMAL survives every crash of a process; a
power cut may lose the last commits (never mix them up), and with it the pods.

Leases run by the machine's wall clock, the only clock all processes share.  A
record whose lease has run out is invisible from that instant; the next writer
removes it.  Nothing else has to run for a lease to end.

Deletions leave no trace but the counter: a trigger counts every one, whoever
does it, so a watcher that finds the counter unmoved has nothing to read.

Every failure is NotReady or ConfigError and names the file.  A transaction
that fails is rolled back, so nothing is ever half-written.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from muslin.errors import ConfigError, Conflict, MuslinError, NotReady
from muslin.store import Record, wal

LAYOUT = 1  # PRAGMA user_version; a change of _SCHEMA counts it up and brings its own migration

_SCHEMA = """
CREATE TABLE counter (                        -- one row: the store's last revision
    one       INTEGER PRIMARY KEY CHECK (one = 1),
    revision  INTEGER NOT NULL
) STRICT;
INSERT INTO counter VALUES (1, 0);

CREATE TABLE lease (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused: a revoked lease stays gone
    ttl       REAL NOT NULL CHECK (ttl >= 1),
    expires   REAL NOT NULL                   -- Unix time
) STRICT;

CREATE TABLE record (
    key       TEXT PRIMARY KEY,
    value     BLOB NOT NULL,
    revision  INTEGER NOT NULL UNIQUE,
    lease     INTEGER REFERENCES lease (id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX record_lease ON record (lease) WHERE lease IS NOT NULL;

CREATE TRIGGER record_gone AFTER DELETE ON record BEGIN
    UPDATE counter SET revision = revision + 1;
END;
"""

_LIVE = """
SELECT record.key, record.value, record.revision, lease.expires
FROM record LEFT JOIN lease ON lease.id = record.lease
WHERE (lease.expires IS NULL OR lease.expires > :now)
"""
_NEXT = "UPDATE counter SET revision = revision + 1 RETURNING revision"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One prefix at one instant: the store's revision then, and when the next record expires."""

    records: tuple[Record, ...]
    revision: int
    due: float  # Unix time, or infinity


class Database:
    """The contract's verbs on one file, blocking.  For one thread at a time.

    The file is made (mode 0600) or opened by the first call, and by the next
    one if that failed.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float],
        *,
        busy: float = 3.0,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.path = path
        self._clock = clock
        self._busy = busy  # seconds to wait for another process's transaction
        self._trace = trace
        self._db: sqlite3.Connection | None = None

    def open(self) -> None:
        """Make the file or check that it is ours; what every other call does first."""
        with self._faults():
            self._opened()

    def get(self, key: str) -> Record | None:
        """The live record, or None."""
        with self._faults():
            args = {"now": self._clock(), "key": key}
            row = self._opened().execute(_LIVE + "AND key = :key", args).fetchone()
            return Record(*row[:3]) if row else None

    def look(self, prefix: str, *, since: int = -1, due: float = math.inf) -> Snapshot | None:
        """Every live record under `prefix`, by key.

        None if nothing was written since revision `since` and it is not yet `due`.
        """
        with self._faults(), self._transaction("BEGIN") as db:
            now = self._clock()
            (revision,) = db.execute("SELECT revision FROM counter").fetchone()
            if revision == since and now < due:
                return None
            # U+10FFFF is the last code point and no character, so no key goes on with it.
            args = {"now": now, "from": prefix, "to": prefix + "\U0010ffff"}
            query = _LIVE + "AND key >= :from AND key < :to ORDER BY key"
            rows = db.execute(query, args).fetchall()
        expiries = (expires for *_, expires in rows if expires is not None)
        records = tuple(Record(key, value, number) for key, value, number, _ in rows)
        return Snapshot(records, revision, min(expiries, default=math.inf))

    def create(self, key: str, value: bytes, lease: int | None) -> Record:
        """Insert; Conflict if the key or not the lease is there."""
        with self._write(key) as db:
            (revision,) = db.execute(_NEXT).fetchone()
            insert = "INSERT INTO record VALUES (?, ?, ?, ?) ON CONFLICT (key) DO NOTHING"
            if not db.execute(insert, (key, value, revision, lease)).rowcount:
                raise Conflict(key, f"{key}: already exists")
        return Record(key, value, revision)

    def put(self, key: str, value: bytes, if_revision: int, lease: int | None) -> Record:
        """Replace the record of that revision; else Conflict."""
        with self._write(key) as db:
            (revision,) = db.execute(_NEXT).fetchone()
            update = "UPDATE record SET value=?, revision=?, lease=? WHERE key=? AND revision=?"
            if not db.execute(update, (value, revision, lease, key, if_revision)).rowcount:
                raise Conflict(key)
        return Record(key, value, revision)

    def delete(self, key: str, if_revision: int | None) -> bool:
        """Whether there was something to delete; Conflict if it has another revision."""
        with self._write(key) as db:
            row = db.execute("SELECT revision FROM record WHERE key = ?", (key,)).fetchone()
            if row is None:
                return False
            if if_revision not in (None, row[0]):
                raise Conflict(key)
            db.execute("DELETE FROM record WHERE key = ?", (key,))
        return True

    def grant(self, ttl: float) -> int:
        """The number of a new lease."""
        with self._write("lease") as db:
            insert = "INSERT INTO lease (ttl, expires) VALUES (?, ?) RETURNING id"
            (number,) = db.execute(insert, (ttl, self._clock() + ttl)).fetchone()
            return int(number)

    def keep(self, lease: int) -> None:
        """Start its time again; Conflict if it has run out."""
        with self._write("lease") as db:
            update = "UPDATE lease SET expires = ? + ttl WHERE id = ?"
            if not db.execute(update, (self._clock(), lease)).rowcount:
                raise Conflict("lease", "the lease is gone")

    def revoke(self, lease: int) -> None:
        """Remove it and its records."""
        with self._write("lease") as db:
            db.execute("DELETE FROM lease WHERE id = ?", (lease,))

    def close(self) -> None:
        """Let go of the file.  Repeating it is success."""
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextlib.contextmanager
    def _write(self, key: str) -> Iterator[sqlite3.Connection]:
        """One writing transaction, without what has run out; then whoever watches is told."""
        with self._faults(key), self._transaction("BEGIN IMMEDIATE") as db:
            db.execute("DELETE FROM lease WHERE expires <= ?", (self._clock(),))
            yield db
        with contextlib.suppress(OSError):  # unheard, watchers find it at their next slow look
            os.utime(self.path)

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        db = self._opened()
        db.execute(begin)
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # a full disk has rolled back by itself
                db.execute("ROLLBACK")
            raise

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            db = self._connect()
            try:
                self._prepare(db)
            except BaseException:
                db.close()
                raise
            self._db = db
        return self._db

    def _connect(self) -> sqlite3.Connection:
        # SQLite would make the file by umask, and its -wal and -shm take its mode.  Only a file
        # that was not there is opened here: see inotify.py on closing a database's descriptors.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return sqlite3.connect(
            self.path, timeout=self._busy, isolation_level=None, check_same_thread=False
        )

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.set_trace_callback(self._trace)
        wal.enter(db, self._busy)
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA foreign_keys = ON")
        (layout,) = db.execute("PRAGMA user_version").fetchone()
        if layout == 0:
            layout = self._create_layout(db)
        if layout != LAYOUT:
            fault = f"written by a newer Muslin (layout {layout}, this one knows {LAYOUT})"
            raise ConfigError(str(self.path), [fault], hint="upgrade Muslin on this machine")

    def _create_layout(self, db: sqlite3.Connection) -> int:
        db.execute("BEGIN IMMEDIATE")
        try:
            (layout,) = db.execute("PRAGMA user_version").fetchone()
            if layout == 0:  # else another process was faster
                (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
                if tables:
                    hint = "name another file in the store's URL"
                    raise ConfigError(str(self.path), ["another program's database"], hint=hint)
                for statement in _statements(_SCHEMA):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {LAYOUT}")
                layout = LAYOUT
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return int(layout)

    @contextlib.contextmanager
    def _faults(self, key: str = "") -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            raise explain(e, self.path, key) from e
        except OSError as e:
            why = f"cannot be made: {e.strerror}"
            if e.errno in _PASSING:
                raise NotReady(f"{self.path}: {why}", hint=_SPACE) from e
            raise ConfigError(str(self.path), [why], hint=_PLACE) from e


def _statements(script: str) -> Iterator[str]:
    """Each statement of `script`: executescript() would commit before it starts."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO)
_PLACE = "make its directory, writable by this user, or name another file in the store's URL"
_SPACE = "free space on its file system"
_RESTORE = "move it away with its -wal and -shm files, then restore a copy or start empty"


def explain(error: sqlite3.Error, path: Path, key: str = "") -> MuslinError:
    """What a SQLite error means to a person: which file, and what to do about it."""
    # The low byte is the kind; the rest says where in SQLite it was noticed.
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_CONSTRAINT:  # the one constraint that a caller can break
            return Conflict(key, f"{key}: its lease is gone")
        case sqlite3.SQLITE_FULL:
            return NotReady(f"{path}: the disk is full, nothing was written", hint=_SPACE)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return NotReady(f"{path}: locked by another process for too long")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            hint = "make the file and its directory writable by this user"
            return ConfigError(str(path), [f"cannot be written: {error}"], hint=hint)
        case sqlite3.SQLITE_CANTOPEN:
            return ConfigError(str(path), [f"cannot be opened: {error}"], hint=_PLACE)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return ConfigError(str(path), [f"not a sound database: {error}"], hint=_RESTORE)
        case _:
            return NotReady(f"{path}: {error}")
