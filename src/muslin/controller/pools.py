"""Status of Pools and Networks: how full, how far, and what is wrong with them, in words.

    kubectl wait --for=condition=Ready network/default
    kubectl get mpool -o wide

A Pool is Ready when a network uses it and nothing is wrong with it, and Full
when nobody could claim another block of it.  A Network is Ready when nothing
is wrong with it; how many of its nodes are up stands beside that, since one
node that is down is no fault of the network.

Nothing is written per pod: blocks come and go with nodes and bursts, and a
status is written at most once a second, only if it differs, and only over the
version that it was computed from.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from ipaddress import collapse_addresses
from typing import Any, Literal, NamedTuple

import msgspec

from muslin.controller import networks
from muslin.controller.events import Events
from muslin.controller.metrics import Metrics
from muslin.controller.rounds import rounds
from muslin.controller.seen import Found, Seen
from muslin.controller.writes import Fenced, Writer
from muslin.ipam import pools as ipam
from muslin.kube import Kind
from muslin.kube.status import MOST, Condition, NetworkStatus, PoolStatus, Status
from muslin.kube.values import KINDS
from muslin.log import log
from muslin.model import Block, Network, Node, Pool, Prefix

LONGEST = 1000  # characters of a message: a thousand faults help nobody

FoundPool = Found[Pool, PoolStatus]
FoundNetwork = Found[Network, NetworkStatus]


class Said(NamedTuple):
    """A condition before it is known since when it holds."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str


class World(NamedTuple):
    """What statuses are computed from: all of it, from one moment."""

    networks: Mapping[str, FoundNetwork]
    pools: Mapping[str, FoundPool]
    agents: Mapping[str, Found[Node, Any]]
    blocks: Collection[Block]


def pool_statuses(world: World, now: datetime) -> dict[str, PoolStatus]:
    """The status that each Pool should have; conditions turn at `now`."""
    nodes = [a.value for a in world.agents.values() if a.value]
    everyone = [p.value for p in world.pools.values() if p.value]
    users: dict[str, list[str]] = {}
    for network in _values(world.networks):
        for name in network.pools:
            users.setdefault(name, []).append(network.name)
    held: dict[str, list[Block]] = {}
    for block in world.blocks:
        held.setdefault(block.pool, []).append(block)
    found = {}
    for name, pool in world.pools.items():
        counts: dict[str, int] = {}
        if pool.value is None:
            said = [_ready([pool.fault]), Said("Full", "Unknown", "Invalid", "it is not a pool")]
        else:
            faults = _pool_faults(pool.value, everyone, nodes, sorted(users.get(name, ())))
            full, counts = _usage(pool.value, held.get(name, ()))
            said = [_ready(faults) if faults or users.get(name) else _unused(name), full]
        found[name] = PoolStatus(conditions=_since(pool, said, now), **counts)
    return found


def network_statuses(world: World, now: datetime) -> dict[str, NetworkStatus]:
    """The status that each Network should have."""
    nodes = [a.value for a in world.agents.values() if a.value]
    up = sum(_is_up(a) for a in world.agents.values())
    everyone = list(_values(world.pools))
    every = list(_values(world.networks))
    found = {}
    for name, network in world.networks.items():
        faults = [network.fault]
        if network.value is not None:
            mine = [world.pools[p] for p in network.value.pools if p in world.pools]
            # A pool that is there and cannot be read must not be said to be missing.
            faults = [p.fault for p in mine if p.value is None] or networks.faults(
                network.value,
                [p.value for p in mine if p.value],
                others=[p for p in everyone if p.name not in network.value.pools],
                networks=every,
                nodes=nodes,
            )
        conditions = _since(network, [_ready(faults)], now)
        found[name] = NetworkStatus(conditions=conditions, nodes=len(nodes), ready=up)
    return found


def _usage(pool: Pool, blocks: Iterable[Block]) -> tuple[Said, dict[str, int]]:
    """How full a pool is, and whether that is full."""
    total = ipam.count(pool)
    excluded = _excluded(pool)
    held = [b for b in blocks if _is_piece(pool, b.cidr)]
    barred = sum(e.num_addresses for e in excluded) >> (pool.cidr.max_prefixlen - pool.block_length)
    apart = sum(not any(b.cidr.subnet_of(e) for e in excluded) for b in held)  # type: ignore[arg-type]
    free = total - barred - apart
    counts = {
        "block": pool.block_length,
        "size": pool.cidr.num_addresses,
        "blocks": total,
        "held": len(held),
        "free": free,
    }
    if free > 0:
        full = Said("Full", "False", "Free", "there are free blocks")
    else:
        words = f"pool {pool.name} is full: {len(held)} of {total} blocks held"
        words += f", {barred} excluded" if barred else ""
        if held:
            node, most = max(Counter(b.node for b in held).items(), key=lambda n: (n[1], n[0]))
            words += f", most by {node} ({most})"
        full = Said("Full", "True", "AllHeld", words)
    return full, {name: min(count, MOST) for name, count in counts.items()}


def _excluded(pool: Pool) -> Sequence[Prefix]:
    """What of the pool no block is claimed from: excludes that hold whole blocks, joined."""
    whole = [e for e in pool.exclude if e.version == pool.cidr.version]
    if any(pool.cidr.subnet_of(e) for e in whole):  # type: ignore[arg-type]
        return [pool.cidr]
    inside = [
        e
        for e in whole
        if e.prefixlen <= pool.block_length and e.subnet_of(pool.cidr)  # type: ignore[arg-type]
    ]
    return list(collapse_addresses(inside))  # type: ignore[type-var]


def _is_piece(pool: Pool, cidr: Prefix) -> bool:
    return (
        cidr.version == pool.cidr.version
        and cidr.prefixlen == pool.block_length
        and cidr.network_address in pool.cidr
    )


def _pool_faults(
    pool: Pool, everyone: Iterable[Pool], nodes: Iterable[Node], users: Sequence[str]
) -> list[str]:
    alone = Network(name="", backend="", pools=(pool.name,))
    faults = ipam.faults(alone, [pool], (p for p in everyone if p.name != pool.name), nodes)
    if len(users) > 1:
        faults.append(f"pool {pool.name}: belongs to more than one network: {', '.join(users)}")
    return faults


def _ready(faults: Sequence[str]) -> Said:
    if not faults:
        return Said("Ready", "True", "Valid", "nothing is wrong with it")
    words = "; ".join(faults)
    words = words if len(words) <= LONGEST else words[: LONGEST - 4] + " ..."
    return Said("Ready", "False", "Invalid", words)


def _unused(name: str) -> Said:
    return Said(
        "Ready", "False", "Unused", f"pool {name}: no network has it; name it in one's pools"
    )


def _since(found: Found[Any, Any], said: Iterable[Said], now: datetime) -> tuple[Condition, ...]:
    """Conditions with the time of their last turn; those of others stay as they are."""
    before: dict[str, Condition] = {}
    if isinstance(found.status, Status):
        before = {c.type: c for c in found.status.conditions}
    made = []
    for one in said:
        last = before.pop(one.type, None)
        turned = now if last is None or last.status != one.status else last.last_transition_time
        made.append(
            Condition(
                **one._asdict(), observed_generation=found.generation, last_transition_time=turned
            )
        )
    return (*made, *before.values())


def _values(found: Mapping[str, Found[Any, Any]]) -> Iterable[Any]:
    return (f.value for f in found.values() if f.value is not None)


def _is_up(agent: Found[Node, Any]) -> bool:
    said = agent.status.conditions if agent.value and agent.status else ()
    return any(c.type == "Ready" and c.status == "True" for c in said)


def _condition(status: Any, kind: str) -> Condition | None:
    said = status.conditions if isinstance(status, Status) else ()
    return next((c for c in said if c.type == kind), None)


class Pools:
    """The loop of one term."""

    def __init__(
        self,
        api: Fenced,
        seen: Seen,
        events: Events,
        metrics: Metrics,
        now: Callable[[], float],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._api, self._seen, self._events, self._metrics = api, seen, events, metrics
        self._now, self._wall = now, wall
        self._bell, self._writer = seen.bell(), Writer("status", now)

    async def run(self) -> None:
        """Until cancelled."""
        await rounds(self._bell, self._turn)

    async def _turn(self, since: float | None) -> float | None:
        if not self._seen.synced:
            return None
        seen = self._seen
        world = World(seen.networks, seen.pools, seen.agents, tuple(seen.blocks.values()))
        now = datetime.fromtimestamp(int(self._wall()), UTC)
        pools, nets = pool_statuses(world, now), network_statuses(world, now)
        self._measure(pools, nets)
        wants = {}
        for kind, found, made in ((Pool, world.pools, pools), (Network, world.networks, nets)):
            for name, status in made.items():
                if found[name].status != status:
                    write = partial(self._write, KINDS[kind], found[name], status, since)
                    wants[f"{KINDS[kind].plural} {name}"] = write
        return await self._writer.bring(wants)

    async def _write(
        self, kind: Kind, found: Found[Any, Any], status: Status, since: float | None
    ) -> None:
        body = {
            "metadata": {"resourceVersion": found.version},
            "status": msgspec.to_builtins(status),
        }
        await self._api.patch(kind, found.name, body, subresource="status")
        if since is not None:
            self._metrics.lag.observe(self._now() - since)
        log.debug("status.written", kind=kind.resource, name=found.name)
        await self._tell(kind, found, status)

    async def _tell(self, kind: Kind, found: Found[Any, Any], status: Status) -> None:
        """Events for the conditions that turned, or say something else than before."""
        full, was_full = _condition(status, "Full"), _condition(found.status, "Full")
        if full and full.status == "True" and not (was_full and was_full.status == "True"):
            await self._events.tell(kind, found, "Warning", "PoolFull", full.message)
        ready, was = _condition(status, "Ready"), _condition(found.status, "Ready")
        if kind is not KINDS[Network] or ready is None:
            return
        if ready.status == "False" and not (was and was.message == ready.message):
            await self._events.tell(kind, found, "Warning", "NetworkInvalid", ready.message)
        elif ready.status == "True" and was and was.status == "False":
            note = f"network {found.name} is in order again"
            await self._events.tell(kind, found, "Normal", "NetworkValid", note)

    def _measure(self, pools: Mapping[str, PoolStatus], nets: Mapping[str, NetworkStatus]) -> None:
        self._metrics.forget()
        for name, pool in pools.items():
            self._metrics.addresses.labels(name).set(pool.size)
            for state, count in (("all", pool.blocks), ("held", pool.held), ("free", pool.free)):
                self._metrics.blocks.labels(name, state).set(count)
        for name, net in nets.items():
            ready = _condition(net, "Ready")
            self._metrics.ready.labels(name).set(bool(ready and ready.status == "True"))
