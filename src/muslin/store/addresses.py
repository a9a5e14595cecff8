"""Which address of this node's blocks a pod gets: the next, or one that was asked for by name.

Works inside a transaction of node.db (store/ledger.py), which keeps its rules:
fresh ones first, then what has been free longest, none before its cool-down.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, collapse_addresses, ip_network

from muslin.errors import Exhausted, RequestError, Taken
from muslin.model import Address, Prefix
from muslin.store.ports import owner


def next_free(
    db: sqlite3.Connection, version: int, pools: tuple[str, ...], now: float
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
        # Adopted addresses, and those asked for by name, stand above `next`; step over them.
        while (
            address and db.execute("SELECT 1 FROM address WHERE address = ?", (address,)).fetchone()
        ):
            address = _after(_plus_one(address), last, [ip_network(s) for s in json.loads(skip)])
        if address:
            db.execute("UPDATE block SET next = ? WHERE cidr = ?", (_plus_one(address), cidr))
            return address, cidr
    row = db.execute(
        "SELECT a.address, a.block FROM address a JOIN block b ON b.cidr = a.block"  # noqa: S608
        f" WHERE a.dev IS NULL AND b.held = 1 AND b.version = ? AND b.pool IN ({marks})"
        " AND (a.freed <= ? - b.cooldown OR a.freed > ?) ORDER BY a.position LIMIT 1",
        # A time to come is a former boot's (`Ledger.new_boot`); such an address has rested enough.
        (version, *pools, now, now + 1),
    ).fetchone()
    if row is None:
        raise Exhausted(_full(db, version, pools))
    return row[0], row[1]


def this_one(
    db: sqlite3.Connection, address: Address, pools: tuple[str, ...], now: float
) -> tuple[bytes, str]:
    """Exactly this address, if it is in a held block of these pools and free.

    Raise RequestError when this node cannot give it, whoever has it, and
    Taken when it is another pod's or still rests: then it says until when.
    """
    marks = ",".join("?" * len(pools))
    blocks = db.execute(
        "SELECT cidr, skip, cooldown FROM block WHERE held = 1 AND version = ?"  # noqa: S608
        f" AND pool IN ({marks})",
        (address.version, *pools),
    ).fetchall()
    home = next(((b, s, c) for b, s, c in blocks if address in ip_network(b)), None)
    if home is None:
        known = ", ".join(cidr for cidr, _, _ in blocks) or "none"
        message = f"address {address} is in no block of this node (pool {', '.join(pools)})"
        raise RequestError(7, message, hint=f"ask for one in {known}, or schedule the pod there")
    block, skip, cooldown = home
    first, last = usable(ip_network(block))
    if not first.packed <= address.packed <= last.packed:
        raise RequestError(7, f"address {address} is no pod's: the first or last of {block}")
    excluded = next((p for p in json.loads(skip) if address in ip_network(p)), None)
    if excluded:
        raise RequestError(7, f"address {address} is excluded from its pool ({excluded})")
    row = db.execute(
        "SELECT dev, freed FROM address WHERE address = ?", (address.packed,)
    ).fetchone()
    if row is not None and row[0] is not None:
        raise Taken(f"address {address} belongs to {owner(db, row[0])}")
    if row is not None and row[1] is not None and now - cooldown < row[1] <= now + 1:
        left = row[1] + cooldown - now
        raise Taken(f"address {address} rests after use; it is free in {left:.0f} s")
    return address.packed, block


def _full(db: sqlite3.Connection, version: int, pools: tuple[str, ...]) -> str:
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


# ── arithmetic ──────────────────────────────────────────────────────────────────────────────────


def _after(fresh: bytes, last: bytes, skip: Sequence[Prefix]) -> bytes | None:
    """The lowest address from `fresh` to `last` outside `skip`."""
    address = fresh
    while address <= last:
        inside = next((p for p in skip if unpack(address) in p), None)
        if inside is None:
            return address
        address = _plus_one(inside.broadcast_address.packed)
    return None


def _plus_one(address: bytes) -> bytes:
    # The address after 255.255.255.255 compares lower; no pool reaches there (it is multicast up).
    return ((int.from_bytes(address) + 1) % (1 << 8 * len(address))).to_bytes(len(address))


def unpack(address: bytes) -> Address:
    """The address that a row holds."""
    return IPv4Address(address) if len(address) == 4 else IPv6Address(address)


def size_of(block: Prefix, skip: Sequence[Prefix]) -> int:
    """How many addresses of the block pods can have."""
    first, last = usable(block)
    size = int(last) - int(first) + 1
    for prefix in _disjoint(skip, block.version):
        low = max(int(prefix.network_address), int(first))
        high = min(int(prefix.broadcast_address), int(last))
        size -= max(high - low + 1, 0)
    return size


def usable(block: Prefix) -> tuple[Address, Address]:
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
