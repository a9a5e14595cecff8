"""Pools: what is wrong with one, how it is cut, and which block to try next.

Blocks are claimed by creating a key (store contract), so two nodes never hold
one block however they choose.  Choosing well only saves collisions: each node
starts at a place derived from its name, so a thousand nodes that join at once
rarely try the same block, and a node that lost its memory tends to ask for
the block it had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network

from muslin.model import Network, Node, Pool, Prefix

SMALLEST = {4: 30, 6: 126}  # a block's first address is the tunnel's, so fewer than 4 serve nobody
SPREAD = 1024  # first choices lie among so many blocks: few collisions, addresses people can read
LARGEST = 64  # an IPv6 block wider than a /64 holds more than any counter of ours


def faults(
    network: Network, pools: Sequence[Pool], others: Iterable[Pool] = (), nodes: Iterable[Node] = ()
) -> list[str]:
    """Everything wrong with a network and its pools, in words that name them; empty when fit.

    `others` are the pools that other networks already have, `nodes` those
    whose own addresses no pool may contain.
    """
    found = [fault for pool in pools for fault in _of_pool(pool)]
    named = {p.name for p in pools}
    if not network.pools:
        found.append(f"network {network.name}: names no pool")
    found += [
        f"network {network.name}: no pool is called {n!r}" for n in network.pools if n not in named
    ]
    for i, pool in enumerate(pools):
        found += [
            f"pool {pool.name}: {pool.cidr} overlaps {other.cidr} of pool {other.name}"
            for other in (*pools[i + 1 :], *others)
            if other.name != pool.name and pool.cidr.overlaps(other.cidr)
        ]
        found += [
            f"pool {pool.name}: {pool.cidr} contains {a.ip}, the address of node {node.name}"
            for node in nodes
            for a in node.addresses
            if a.ip in pool.cidr
        ]
    return found


def _of_pool(pool: Pool) -> Iterator[str]:
    length, smallest = pool.block_length, SMALLEST[pool.cidr.version]
    if length > smallest:
        yield f"pool {pool.name}: blocks of /{length} are too small; at most /{smallest}"
    if length < pool.cidr.prefixlen:
        size = pool.cidr.num_addresses
        yield (
            f"pool {pool.name}: a block of /{length} does not fit in {pool.cidr}"
            f" ({size} addresses); widen the cidr or set a longer block"
        )
    if pool.cidr.version == 6 and length < LARGEST:
        yield f"pool {pool.name}: IPv6 blocks are /{LARGEST} or longer, not /{length}"
    if pool.cidr.is_multicast or pool.cidr.is_loopback or pool.cidr.is_link_local:
        yield f"pool {pool.name}: {pool.cidr} is not a range for hosts"
    if pool.cooldown < 0:
        yield f"pool {pool.name}: cooldown {pool.cooldown} is negative"
    for prefix in pool.exclude:
        if prefix.version != pool.cidr.version or not prefix.overlaps(pool.cidr):
            yield f"pool {pool.name}: exclude {prefix} is outside {pool.cidr}"


def count(pool: Pool) -> int:
    """How many blocks the pool is cut into."""
    return 1 << max(pool.block_length - pool.cidr.prefixlen, 0)


def candidates(pool: Pool, node: str, taken: Collection[Prefix]) -> Iterator[Prefix]:
    """Blocks of `pool` that nobody holds, in the order in which `node` should try them."""
    total, held = count(pool), set(taken)
    digest = hashlib.blake2b(f"{pool.name}/{node}".encode(), digest_size=8).digest()
    start = int.from_bytes(digest) % min(total, SPREAD)
    for step in range(total):
        block = _block(pool, (start + step) % total)
        if block not in held and not any(_covers(e, block) for e in pool.exclude):
            yield block


def _block(pool: Pool, index: int) -> Prefix:
    length = pool.block_length
    base = int(pool.cidr.network_address) + (index << (pool.cidr.max_prefixlen - length))
    return IPv4Network((base, length)) if pool.cidr.version == 4 else IPv6Network((base, length))


def _covers(outer: Prefix, inner: Prefix) -> bool:
    return (
        outer.version == inner.version
        and outer.prefixlen <= inner.prefixlen
        and inner.network_address in outer
    )
