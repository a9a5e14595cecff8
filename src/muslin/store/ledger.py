"""This node's own memory: its blocks, who has which address, what every pod was given.

One SQLite file (`node.db`) that survives a reboot, shared by the CNI server
and the sync loop and by nothing else.  The rules it keeps:

*  Durable before visible.  `claim` commits before the kernel is touched and
   `release` after, so a crash anywhere may keep an address too long and never
   gives it out twice.  The primary key of `address` is the last guard.
*  Fresh addresses first, then the one that has been free longest, and none
   before its pool's cool-down: neighbour caches and firewalls have forgotten
   the former owner by then.
*  `synchronous=NORMAL`: every commit survives the death of the process.  A
   power cut may lose the last ones, but it ends the pods as well
   (`new_boot`).

An attachment is `adding` from claim until the kernel holds it, then `ready`,
then `deleting` until nothing answers to its addresses.  What is found in the
first or last state at start was interrupted, and is undone.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, collapse_addresses, ip_network
from pathlib import Path
from typing import Literal

from muslin.errors import ConfigError, Conflict, Exhausted, NotReady
from muslin.model import Address, Pool, Prefix, device_name

LAYOUT = 1
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
    UNIQUE (container, ifname)
) STRICT;
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

State = Literal["adding", "ready", "deleting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One row of the ledger with its addresses, IPv4 before IPv6."""

    dev: str
    container: str
    ifname: str
    netns: str
    conf: str
    network: str
    mtu: int
    state: State
    since: float
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """How full this node's blocks of one pool are, in addresses."""

    pool: str
    size: int
    used: int
    resting: int

    @property
    def free(self) -> int:
        """What can be given out now or after its rest."""
        return self.size - self.used


class Ledger:
    """Open `node.db`, making it where it is missing.  Safe to use from many threads.

    Raise ConfigError for a file that is not ours, is newer than this program,
    or cannot be written.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._path = path
        self._lock = threading.Lock()  # one connection; SQLite would make us wait anyway
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(
                path, timeout=5, isolation_level=None, check_same_thread=False
            )
            path.chmod(0o600)
            self._open()
        except (OSError, sqlite3.Error) as e:
            hint = "give the agent a writable state_dir; a damaged node.db may be moved away"
            raise ConfigError(str(path), [str(e)], hint=hint) from e

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA foreign_keys=ON")
        with self._transaction() as db:
            layout = db.execute("PRAGMA user_version").fetchone()[0]
            if layout > LAYOUT:
                hint = (
                    "install that version of muslin again, or drain the node and move the file away"
                )
                why = f"written by a newer version (layout {layout}, this is {LAYOUT})"
                raise ConfigError(str(self._path), [why], hint=hint)
            if layout == 0:
                for statement in SCHEMA.split(";\n"):
                    if statement.strip():
                        db.execute(statement)
                db.execute(f"PRAGMA user_version={LAYOUT}")

    def close(self) -> None:
        """Let go of the file.  Repeating it is success."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; NotReady when the disk is full or the file cannot be written."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                finally:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
            except sqlite3.IntegrityError as e:
                raise Conflict(str(self._path), f"{self._path}: {e}") from e
            except sqlite3.OperationalError as e:
                raise NotReady(f"{self._path}: {e}", hint="free disk space or mend the disk") from e

    # ── blocks ──────────────────────────────────────────────────────────────────────────────

    def hold(self, block: Prefix, pool: Pool) -> None:
        """This node holds `block`: addresses may be given out from it.  Idempotent."""
        first, last = _usable(block)
        skip = json.dumps([str(e) for e in pool.exclude if e.overlaps(block)])
        with self._transaction() as db:
            db.execute(
                "INSERT INTO block VALUES (?, ?, ?, 1, ?, ?, ?, ?) ON CONFLICT (cidr) DO UPDATE"
                " SET held = 1, pool = excluded.pool, skip = excluded.skip,"
                " cooldown = excluded.cooldown",
                (
                    str(block),
                    pool.name,
                    block.version,
                    first.packed,
                    last.packed,
                    skip,
                    pool.cooldown,
                ),
            )
            adopted = [a for (a,) in db.execute("SELECT address FROM address WHERE block IS NULL")]
            db.executemany(
                "UPDATE address SET block = ? WHERE address = ?",
                [(str(block), a) for a in adopted if _unpack(a) in block],
            )

    def let_go(self, block: Prefix) -> None:
        """This node no longer holds `block`; what pods have of it stays known until they go."""
        with self._transaction() as db:
            db.execute("UPDATE block SET held = 0 WHERE cidr = ?", (str(block),))

    def let_go_if_empty(self, block: Prefix) -> bool:
        """Let go of a block of which no address is in use or resting; say whether it was so.

        One transaction: no ADD can take an address in between.
        """
        with self._transaction() as db:
            busy = db.execute(
                "SELECT 1 FROM address a JOIN block b ON b.cidr = a.block WHERE b.cidr = ?"
                " AND (a.dev IS NOT NULL OR a.freed > ? - b.cooldown)",
                (str(block), self._clock()),
            ).fetchone()
            if busy is None:
                db.execute("UPDATE block SET held = 0 WHERE cidr = ?", (str(block),))
            return busy is None

    def blocks(self, *, held: bool = True) -> list[tuple[str, Prefix]]:
        """(pool, block) of what is held now; with `held=False`, of what once was."""
        with self._lock:
            rows = self._db.execute(
                "SELECT pool, cidr FROM block WHERE held = ?", (held,)
            ).fetchall()
        return [(pool, ip_network(cidr)) for pool, cidr in rows]

    def usage(self) -> list[Usage]:
        """How full the held blocks are, per pool."""
        with self._lock:
            rows = self._db.execute(
                "SELECT pool, cidr, skip,"
                " (SELECT count(*) FROM address a WHERE a.block = cidr AND dev IS NOT NULL),"
                " (SELECT count(*) FROM address a WHERE a.block = cidr AND dev IS NULL"
                "  AND freed > ? - cooldown) FROM block WHERE held = 1",
                (self._clock(),),
            ).fetchall()
        found: dict[str, Usage] = {}
        for pool, cidr, skip, used, resting in rows:
            before = found.get(pool, Usage(pool, 0, 0, 0))
            size = _size(ip_network(cidr), [ip_network(s) for s in json.loads(skip)])
            found[pool] = Usage(
                pool, before.size + size, before.used + used, before.resting + resting
            )
        return list(found.values())

    # ── attachments ─────────────────────────────────────────────────────────────────────────

    def claim(
        self, container: str, ifname: str, *, netns: str, conf: str, network: str, mtu: int,
        pools: Sequence[Pool],
    ) -> Attachment:  # fmt: skip
        """Give a new attachment one address of each IP version its pools have, durably.

        Raise Exhausted, naming the pool and how full it is, and change
        nothing, when one version has none left.  The attachment must be new.
        """
        now, dev = self._clock(), device_name(container, ifname)
        with self._transaction() as db:
            db.execute(
                "INSERT INTO attachment VALUES (?, ?, ?, ?, ?, ?, ?, 'adding', ?)",
                (dev, container, ifname, netns, conf, network, mtu, now),
            )
            versions = sorted({p.cidr.version for p in pools})
            for position, version in enumerate(versions):
                names = tuple(p.name for p in pools if p.cidr.version == version)
                address, block = self._next(db, version, names, now)
                db.execute(
                    "INSERT INTO address VALUES (?, ?, ?, ?, NULL) ON CONFLICT (address) DO UPDATE"
                    " SET dev = excluded.dev, position = excluded.position, freed = NULL"
                    " WHERE dev IS NULL",
                    (address, block, dev, position),
                )
        found = self.find(container, ifname)
        assert found is not None
        return found

    def _next(
        self, db: sqlite3.Connection, version: int, pools: tuple[str, ...], now: float
    ) -> tuple[bytes, str]:
        """A fresh address if there is one, else the one that was freed first and has rested."""
        marks = ",".join("?" * len(pools))
        blocks = db.execute(
            "SELECT cidr, next, last, skip FROM block WHERE held = 1 AND version = ?"  # noqa: S608
            f" AND pool IN ({marks}) ORDER BY pool, cidr",
            (version, *pools),
        ).fetchall()
        for cidr, fresh, last, skip in blocks:
            address = _after(fresh, last, [ip_network(s) for s in json.loads(skip)])
            # Adopted addresses stand above `next`; step over them.
            while (
                address
                and db.execute("SELECT 1 FROM address WHERE address = ?", (address,)).fetchone()
            ):
                address = _after(
                    _plus_one(address), last, [ip_network(s) for s in json.loads(skip)]
                )
            if address:
                db.execute("UPDATE block SET next = ? WHERE cidr = ?", (_plus_one(address), cidr))
                return address, cidr
        row = db.execute(
            "SELECT a.address, a.block FROM address a JOIN block b ON b.cidr = a.block"  # noqa: S608
            f" WHERE a.dev IS NULL AND b.held = 1 AND b.version = ? AND b.pool IN ({marks})"
            " AND (a.freed <= ? - b.cooldown OR a.freed > ?) ORDER BY a.position LIMIT 1",
            # A clock set back leaves `freed` in the future; such an address has rested enough.
            (version, *pools, now, now + 1),
        ).fetchone()
        if row is None:
            raise Exhausted(self._full(db, version, pools))
        return row[0], row[1]

    def _full(self, db: sqlite3.Connection, version: int, pools: tuple[str, ...]) -> str:
        marks = ",".join("?" * len(pools))
        used, resting = db.execute(
            "SELECT count(dev), count(*) - count(dev) FROM address JOIN block ON cidr = block"  # noqa: S608
            f" WHERE held = 1 AND version = ? AND pool IN ({marks})",
            (version, *pools),
        ).fetchone()
        names = ", ".join(pools)
        return (
            f"pool {names}: no free IPv{version} address on this node"
            f" ({used} of {used + resting} in use, {resting} resting after use)"
        )

    def ready(self, container: str, ifname: str) -> None:
        """The kernel holds the attachment."""
        self._set_state(container, ifname, "ready")

    def deleting(self, container: str, ifname: str) -> None:
        """The attachment is being undone; its addresses are still taken."""
        self._set_state(container, ifname, "deleting")

    def _set_state(self, container: str, ifname: str, state: State) -> None:
        with self._transaction() as db:
            db.execute(
                "UPDATE attachment SET state = ? WHERE container = ? AND ifname = ?",
                (state, container, ifname),
            )

    def release(self, container: str, ifname: str) -> None:
        """Forget the attachment; its addresses start their rest.  Absence is success."""
        self._release([device_name(container, ifname)])

    def _release(self, devs: Iterable[str]) -> None:
        now = self._clock()
        with self._transaction() as db:
            for dev in devs:
                db.execute("DELETE FROM attachment WHERE dev = ?", (dev,))
                db.execute(
                    "UPDATE address SET dev = NULL, freed = ?, position ="
                    " (SELECT coalesce(max(position), 0) + 1 FROM address WHERE dev IS NULL)"
                    " WHERE dev = ?",
                    (now, dev),
                )
            db.execute(  # a block that was lost is forgotten with its last address
                "DELETE FROM address WHERE dev IS NULL AND freed <= ? - 86400"
                " AND block IN (SELECT cidr FROM block WHERE held = 0)",
                (now,),
            )

    def adopt(self, dev: str, address: Address) -> bool:
        """Take note that `dev` answers to `address` although no attachment says so.

        That is a live pod whose record was lost with a former node.db.  False
        when the address is already known.
        """
        with self._transaction() as db:
            held = [c for (c,) in db.execute("SELECT cidr FROM block")]
            block = next((c for c in held if address in ip_network(c)), None)
            done = db.execute(
                "INSERT INTO address VALUES (?, ?, ?, 0, NULL) ON CONFLICT (address) DO UPDATE"
                " SET dev = excluded.dev, freed = NULL WHERE dev IS NULL",
                (address.packed, block, dev),
            )
            return done.rowcount > 0

    def find(self, container: str, ifname: str) -> Attachment | None:
        """The attachment, in whatever state, or None."""
        return next(
            iter(self._select("WHERE container = ? AND ifname = ?", container, ifname)), None
        )

    def attachments(self) -> list[Attachment]:
        """Every attachment, oldest first."""
        return self._select("ORDER BY since, dev")

    def devices(self) -> set[str]:
        """Every device that holds an address, adopted ones included."""
        with self._lock:
            return {d for (d,) in self._db.execute("SELECT dev FROM address WHERE dev IS NOT NULL")}

    def _select(self, where: str, *arguments: str) -> list[Attachment]:
        columns = "dev, container, ifname, netns, conf, network, mtu, state, since"
        with self._lock:
            query = f"SELECT {columns} FROM attachment {where}"  # noqa: S608 - fixed words
            rows = self._db.execute(query, arguments).fetchall()
            found = [
                (row, self._db.execute(
                    "SELECT address FROM address WHERE dev = ? ORDER BY position", (row[0],)
                ).fetchall())
                for row in rows
            ]  # fmt: skip
        names = [c.strip() for c in columns.split(",")]
        return [
            Attachment(
                **dict(zip(names, row, strict=True)),
                addresses=tuple(_unpack(a) for (a,) in addresses),
            )
            for row, addresses in found
        ]

    # ── boots and facts ─────────────────────────────────────────────────────────────────────

    def new_boot(self, boot_id: str) -> list[Attachment]:
        """Release everything a former boot left: no namespace and no device outlives its kernel.

        Say what was released; the first call ever only takes note.
        """
        known = self.fact("boot_id")
        if known == boot_id:
            return []
        gone = self.attachments() if known is not None else []
        if known is not None:
            self._release([*(a.dev for a in gone), *self.devices()])
        self.set_fact("boot_id", boot_id)
        return gone

    def fact(self, name: str) -> str | None:
        """What the sync loop last said of `name`, also in a former life of this node."""
        with self._lock:
            row = self._db.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def facts(self, prefix: str) -> dict[str, str]:
        """Every fact whose name starts with `prefix`, without the prefix."""
        with self._lock:
            rows = self._db.execute(
                "SELECT name, value FROM fact WHERE substr(name, 1, ?) = ?", (len(prefix), prefix)
            ).fetchall()
        return {name[len(prefix) :]: value for name, value in rows}

    def set_fact(self, name: str, value: str | None) -> None:
        """Remember `value` under `name`; None forgets it."""
        if self.fact(name) == value:
            return
        with self._transaction() as db:
            if value is None:
                db.execute("DELETE FROM fact WHERE name = ?", (name,))
            else:
                db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))


def _after(fresh: bytes, last: bytes, skip: Sequence[Prefix]) -> bytes | None:
    """The lowest address from `fresh` to `last` outside `skip`."""
    address = fresh
    while address <= last:
        inside = next((p for p in skip if _unpack(address) in p), None)
        if inside is None:
            return address
        address = _plus_one(inside.broadcast_address.packed)
    return None


def _plus_one(address: bytes) -> bytes:
    # The address after 255.255.255.255 compares lower; no pool reaches there (it is multicast up).
    return ((int.from_bytes(address) + 1) % (1 << 8 * len(address))).to_bytes(len(address))


def _unpack(address: bytes) -> Address:
    return IPv4Address(address) if len(address) == 4 else IPv6Address(address)


def _size(block: Prefix, skip: Sequence[Prefix]) -> int:
    """How many addresses of the block pods can have."""
    first, last = _usable(block)
    size = int(last) - int(first) + 1
    for prefix in _disjoint(skip, block.version):
        low = max(int(prefix.network_address), int(first))
        high = min(int(prefix.broadcast_address), int(last))
        size -= max(high - low + 1, 0)
    return size


def _usable(block: Prefix) -> tuple[Address, Address]:
    """The lowest and highest address for pods.

    The block's first is the tunnel's, and an IPv4 block's last is left alone,
    since a peer may take it for a broadcast address.
    """
    last = block.broadcast_address - 1 if block.version == 4 else block.broadcast_address
    return block.network_address + 1, last


def _disjoint(prefixes: Sequence[Prefix], version: int) -> Iterator[Prefix]:
    if version == 4:
        yield from collapse_addresses(p for p in prefixes if p.version == 4)
    else:
        yield from collapse_addresses(p for p in prefixes if p.version == 6)
