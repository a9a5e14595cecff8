"""Networks and pools into the store, or a list of everything that is wrong with them.

Idempotent: applying the same file twice changes nothing the second time.
Nodes hold blocks of a pool by its address range and their kernels hold a
backend's devices, so what cannot change under them is refused, not guessed at.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from muslin import backend
from muslin.errors import ConfigError
from muslin.ipam import pools as ipam
from muslin.model import Block, Network, Node, Pool, convert
from muslin.store import Store
from muslin.store.objects import Objects

T = TypeVar("T", Network, Pool)
V = TypeVar("V", Network, Pool, Node, Block)


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A network file: one [network] and its [[pools]]."""

    network: Network
    pools: tuple[Pool, ...]


def read(path: Path) -> File:
    """The file's network and pools; ConfigError names the file and what is wrong in it."""
    try:
        raw = tomllib.loads(path.read_text())
    except OSError as e:
        raise ConfigError(str(path), [e.strerror or str(e)]) from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(str(path), [f"not TOML: {e}"]) from e
    return convert(File, raw, subject=str(path))


async def apply(store: Store, network: Network, pools: Sequence[Pool]) -> list[str]:
    """Write a network and its pools; say what changed, in words.

    Raise ConfigError listing every fault, and write nothing then.  Pools go
    first, so that no node ever sees a network whose pools are missing.
    """
    objects = Objects(store)
    faults = await _faults(objects, network, pools)
    if faults:
        raise ConfigError(f"network {network.name}", faults)
    changed = []
    for pool in pools:
        if await _set(objects, Pool, pool):
            changed.append(f"pool {pool.name} {pool.cidr}")
    if await _set(objects, Network, network):
        changed.append(f"network {network.name}")
    return changed


async def _set(objects: Objects, kind: type[T], value: T) -> bool:
    """Write `value` unless the store has just that; say whether it was written."""
    found = await objects.get(kind, value.name)
    if found is None:
        await objects.create(value)
        return True
    if found.value == value:
        return False
    await objects.put(value, if_revision=found.revision)
    return True


async def _all(objects: Objects, kind: type[V]) -> list[V]:
    return [f.value for f in (await objects.list(kind)).found]


def faults(
    network: Network,
    pools: Sequence[Pool],
    *,
    others: Iterable[Pool],
    networks: Iterable[Network],
    nodes: Iterable[Node],
) -> list[str]:
    """Everything wrong with a network among what else there is; empty when it can work.  Pure.

    `pools` are its own that exist, `others` those that are not, `networks`
    may contain it.
    """
    found = ipam.faults(network, pools, others, nodes)
    try:
        backend.load(network)
    except ConfigError as e:
        found += e.faults
    for other in networks:
        if other.name != network.name:
            shared = sorted(set(other.pools) & set(network.pools))
            found += [f"pool {name}: already belongs to network {other.name}" for name in shared]
    return found


async def _faults(objects: Objects, network: Network, pools: Sequence[Pool]) -> list[str]:
    nodes, blocks = await _all(objects, Node), await _all(objects, Block)
    known = {p.name: p for p in await _all(objects, Pool)}
    mine = {p.name for p in pools}
    others = [p for p in known.values() if p.name not in mine]
    networks = await _all(objects, Network)
    found = faults(network, pools, others=others, networks=networks, nodes=nodes)
    for pool in pools:
        before = known.get(pool.name)
        held = sorted({b.node for b in blocks if b.pool == pool.name})
        moved = before and (before.cidr, before.block_length) != (pool.cidr, pool.block_length)
        if moved and held:
            found.append(
                f"pool {pool.name}: cidr and block cannot change while {', '.join(held)} hold"
                " blocks of it; make a new pool beside it"
            )
    return found
