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
*  Times are seconds since the machine started (kernel/boot.py): rows of one
   boot compare whatever happens to the wall clock, and `new_boot` sees to
   those of a former one.

An attachment is `adding` from claim until the kernel holds it, then `ready`,
then `deleting` until nothing answers to its addresses.  What is found in the
first or last state at start was interrupted, and is undone.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal

from muslin.errors import ConfigError, Conflict, NotReady, RequestError
from muslin.model import (
    NOTHING,
    Address,
    Pool,
    Prefix,
    Wants,
    decode,
    device_name,
    encode,
)
from muslin.store import addresses, layout, pods, ports, wal
from muslin.store.addresses import size_of, unpack, usable
from muslin.store.pods import Failure, PodKey, PodRow

BUSY = 5.0  # seconds to wait for the other process

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
    wants: Wants
    addresses: tuple[Address, ...]
    netns_id: str = ""  # `netns.identity` of it when it was claimed; empty: not known

    @property
    def of(self) -> str:
        """The interface whose ADD made it: itself, unless it is one of a list."""
        return self.wants.apart.of if self.wants.apart else self.ifname


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
        self._lock = threading.RLock()  # one connection; SQLite would make us wait anyway
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(
                path, timeout=BUSY, isolation_level=None, check_same_thread=False
            )
            path.chmod(0o600)
            with _alone_in(path.parent):
                self._open()
        except (OSError, sqlite3.Error) as e:
            hint = "give the agent a writable state_dir; a damaged node.db may be moved away"
            raise ConfigError(str(path), [str(e)], hint=hint) from e

    def _open(self) -> None:
        wal.enter(self._db, BUSY)
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA foreign_keys=ON")
        with self._transaction() as db:
            layout.bring_up(db, self._path, ahead=time.time() - self._clock())

    def ring(self) -> None:
        """Let whoever watches the file know that something is wanted of it."""
        os.utime(self._path)

    def close(self) -> None:
        """Let go of the file.  Repeating it is success."""
        with self._lock:  # closing it under a thread that is in the middle of a call is a crash
            self._db.close()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Nobody claims or releases anything meanwhile, in any process: to compare and mend."""
        with self._transaction():
            yield

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written meanwhile, by this thread, is written at once or not at all."""
        with self._transaction():
            yield

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; NotReady when the disk is full or the file cannot be written.

        Within another it is a part of that one.
        """
        with self._lock:
            if self._db.in_transaction:  # of this thread: the lock is ours
                yield self._db
                return
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
        first, last = usable(block)
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
                [(str(block), a) for a in adopted if unpack(a) in block],
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
            empty = self.is_empty(block)
            if empty:
                db.execute("UPDATE block SET held = 0 WHERE cidr = ?", (str(block),))
            return empty

    def is_empty(self, block: Prefix) -> bool:
        """Whether no address of the block is in use or resting."""
        with self._lock:
            busy = self._db.execute(
                "SELECT 1 FROM address a JOIN block b ON b.cidr = a.block WHERE b.cidr = ?"
                " AND (a.dev IS NOT NULL OR a.freed > ? - b.cooldown)",
                (str(block), self._clock()),
            ).fetchone()
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
                "  AND freed > :now - cooldown AND freed <= :now + 1)"  # as addresses.next_free
                " FROM block WHERE held = 1",
                {"now": self._clock()},
            ).fetchall()
        found: dict[str, Usage] = {}
        for pool, cidr, skip, used, resting in rows:
            before = found.get(pool, Usage(pool, 0, 0, 0))
            size = size_of(ip_network(cidr), [ip_network(s) for s in json.loads(skip)])
            found[pool] = Usage(
                pool, before.size + size, before.used + used, before.resting + resting
            )
        return list(found.values())

    # ── attachments ─────────────────────────────────────────────────────────────────────────

    def claim(
        self, container: str, ifname: str, *, netns: str, conf: str, network: str, mtu: int,
        pools: Sequence[Pool], wants: Wants = NOTHING, netns_id: str = "",
    ) -> Attachment:  # fmt: skip
        """Give a new attachment one address of each IP version its pools have, durably.

        Raise Exhausted, naming the pool and how full it is, when one version
        has none left; Taken when a port or an address in `wants` is another
        pod's; RequestError when such an address cannot be had on this node.
        Nothing is changed then.  The attachment must be new.
        """
        now, dev = self._clock(), device_name(container, ifname)
        wished = encode(wants).decode()
        with self._transaction() as db:
            db.execute(
                "INSERT INTO attachment VALUES (?, ?, ?, ?, ?, ?, ?, 'adding', ?, ?, ?)",
                (dev, container, ifname, netns, conf, network, mtu, now, wished, netns_id),
            )
            versions = sorted({p.cidr.version for p in pools})
            given: list[Address] = []
            ports.take(db, dev, wants.ports, versions)
            for strange in (a for a in wants.ips if a.version not in versions):
                why = f"address {strange}: network {network} has no IPv{strange.version} pool"
                raise RequestError(7, why)
            for position, version in enumerate(versions):
                names = tuple(p.name for p in pools if p.cidr.version == version)
                named = next((a for a in wants.ips if a.version == version), None)
                if named is None:
                    address, block = addresses.next_free(db, version, names, now)
                else:
                    address, block = addresses.this_one(db, named, names, now)
                db.execute(
                    "INSERT INTO address VALUES (?, ?, ?, ?, NULL) ON CONFLICT (address) DO UPDATE"
                    " SET dev = excluded.dev, position = excluded.position, freed = NULL"
                    " WHERE dev IS NULL",
                    (address, block, dev, position),
                )
                given.append(unpack(address))
        return Attachment(
            dev=dev,
            container=container,
            ifname=ifname,
            netns=netns,
            conf=conf,
            network=network,
            mtu=mtu,
            state="adding",
            since=now,
            wants=wants,
            addresses=tuple(given),
            netns_id=netns_id,
        )

    def ready(self, container: str, *ifnames: str) -> None:
        """The kernel holds these attachments, and their runtime wants them as of now."""
        self._set_state(container, ifnames, "ready")

    def deleting(self, container: str, *ifnames: str) -> None:
        """These attachments are being undone; their addresses are still taken."""
        self._set_state(container, ifnames, "deleting")

    def _set_state(self, container: str, ifnames: Sequence[str], state: State) -> None:
        since = self._clock() if state == "ready" else None
        with self._transaction() as db:
            db.executemany(
                "UPDATE attachment SET state = ?, since = coalesce(?, since) WHERE dev = ?",
                [(state, since, device_name(container, i)) for i in ifnames],
            )

    def release(self, container: str, ifname: str) -> None:
        """Forget the attachment; its addresses start their rest.  Absence is success."""
        self.release_all([device_name(container, ifname)])

    def in_state(self, state: State) -> list[Attachment]:
        """All attachments in one state."""
        return self._select("WHERE state = ?", state)

    def release_all(self, devs: Sequence[str]) -> None:
        """Forget the attachments of these devices, in one transaction."""
        if not devs:
            return
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

    def of(self, container: str) -> dict[str, Attachment]:
        """Every attachment of one container, in whatever state, by its interface."""
        return {a.ifname: a for a in self._select("WHERE container = ?", container)}

    def attachments(self) -> list[Attachment]:
        """Every attachment, oldest first."""
        return self._select("")

    def wanting(self) -> list[Attachment]:
        """The attachments that asked for anything beyond an address: few, and found fast."""
        return self._select("WHERE wants != ?", encode(NOTHING).decode())

    def devices(self) -> set[str]:
        """Every device that holds an address, adopted ones included."""
        with self._lock:
            return {d for (d,) in self._db.execute("SELECT dev FROM address WHERE dev IS NOT NULL")}

    def _select(self, where: str, *arguments: str) -> list[Attachment]:
        # One statement: each lets another thread of ours run, and it has the lock all the while.
        columns = "dev, container, ifname, netns, conf, network, mtu, state, since, netns_id, wants"
        query = (
            f"SELECT {columns}, address FROM attachment LEFT JOIN address USING (dev)"  # noqa: S608
            f" {where} ORDER BY since, dev, position"
        )
        with self._lock:
            rows = self._db.execute(query, arguments).fetchall()
        names = columns.split(", ")
        found: list[Attachment] = []
        for _, parts in groupby(rows, key=itemgetter(0)):
            same = list(parts)
            *values, wants, _ = same[0]
            found.append(
                Attachment(
                    **dict(zip(names, values, strict=False)),
                    wants=decode(Wants, wants.encode(), subject="node.db: wants"),
                    addresses=tuple(unpack(row[-1]) for row in same if row[-1] is not None),
                )
            )
        return found

    # ── pods, as Kubernetes has them ────────────────────────────────────────────────────────

    def pod(self, key: PodKey) -> tuple[PodRow | None, str | None]:
        """What is known of a pod, and how the watch of pods is."""
        with self._lock:
            return pods.find(self._db, key)

    def pods(self) -> dict[PodKey, PodRow]:
        """Every pod that is known."""
        with self._lock:
            return pods.everything(self._db)

    def learn(self, news: Mapping[PodKey, PodRow | None]) -> None:
        """Take in what changed of pods, all of it or nothing; None: gone."""
        with self._transaction() as db:
            pods.learn(db, news)

    def failed(self, key: PodKey, uid: str, *, reason: str, message: str) -> None:
        """An ADD of this pod failed, and a person should hear of it."""
        with self._transaction() as db:
            pods.failed(db, key, uid, reason=reason, message=message, now=self._clock())

    def failures(self) -> list[Failure]:
        """How ADDs failed, oldest first; only of pods that are still there, and a bounded list."""
        with self._lock:
            return pods.failures(self._db)

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
            self._rest_from_now()
            self.release_all([*(a.dev for a in gone), *self.devices()])
        self.set_fact("boot_id", boot_id)
        return gone

    def _rest_from_now(self) -> None:
        """Times of a former boot become this one's, as if its last address had been freed now."""
        with self._transaction() as db:
            (last,) = db.execute("SELECT max(freed) FROM address").fetchone()
            db.execute("UPDATE address SET freed = freed + ?", (self._clock() - (last or 0.0),))

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


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Both of a node's processes may open a new file at once: SQLite does not wait then."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
