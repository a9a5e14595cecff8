"""What the admission webhook says of a write to a Network, a Pool or an Address.  Pure.

Only what one object alone does not show; the rest the API server refuses by
itself (kube/rules.py).  Three kinds of words:

    faults      it cannot work like this              refused
    uses        nodes or pods have something of it    refused, unless the object is annotated
                                                      with muslin.io/force: "true"
    warnings    not yet, or not this object's doing   told, and let pass

The annotation is the only way to delete a network that has nodes: each holds
a block ahead of need, and only it knows which of its addresses pods use.

A network before its pools is a warning, so the order of `kubectl apply` does
not matter.  And a write is blamed for what it brings, never for what was so
before it: who changes one of two pools that overlap already is not refused.

The world is what a watch has told, a moment ago, and two writes at once are
both judged without the other.  So this spares people mistakes and guarantees
nothing; what slipped through stands in the objects' status (pools.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import collapse_addresses
from typing import Literal

from muslin.controller import networks
from muslin.ipam import pools as ipam
from muslin.model import Block, Network, Node, Pool, Reservation

Operation = Literal["CREATE", "UPDATE", "DELETE"]
Value = Network | Pool | Reservation

FORCE = "muslin.io/force"
SHOWN = 5  # names in a message; kubectl prints it on one line


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What there is, by `metadata.name`; of a kind's unreadable objects nothing."""

    networks: Mapping[str, Network] = field(default_factory=dict)
    pools: Mapping[str, Pool] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    blocks: Mapping[str, Block] = field(default_factory=dict)
    addresses: Mapping[str, Reservation] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A write is refused for its faults; warnings are told either way."""

    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


FINE = Verdict()


def judge(
    operation: Operation,
    old: Value | None,
    new: Value | None,
    world: World,
    *,
    forced: bool = False,
) -> Verdict:
    """The verdict on one write; `world` may or may not hold the object yet, or still.

    `old` is None for CREATE, `new` for DELETE.  `forced`: the object carries FORCE.
    """
    faults: list[str] = []
    warnings: list[str] = []
    if operation == "DELETE":
        uses = _in_use(old, world)
    elif old == new:  # labels, finalizers: nothing of ours
        return FINE
    else:
        before = [] if old is None else _of(old, world)[0]
        found, warnings = _of(new, world)
        faults = [f for f in found if f not in before]
        warnings += [f for f in found if f in before]
        uses = _taken_away(old, new, world)
    if forced:
        warnings += [f"{use} (forced)" for use in uses]
    elif isinstance(old, Network | Pool):
        what = f"{'mnet' if isinstance(old, Network) else 'mpool'} {old.name}"
        mend = f"kubectl annotate {what} {FORCE}=true"
        faults += [f"{use}; if no pod needs that any more: {mend}" for use in uses]
    return Verdict(faults=tuple(faults), warnings=tuple(warnings))


def _of(value: Value | None, world: World) -> tuple[list[str], list[str]]:
    """What is wrong with a value among all others, and what is not its doing."""
    match value:
        case Network():
            return _network(value, world)
        case Pool():
            return _pool(value, world), _shared(value, world)
        case Reservation():
            return _address(value, world)
    return [], []


def _network(network: Network, world: World) -> tuple[list[str], list[str]]:
    others = world.networks.values()
    mine = [world.pools[name] for name in network.pools if name in world.pools]
    rest = [pool for pool in world.pools.values() if pool.name not in network.pools]
    # Without its pools only what is the network's own is left, and that they are missing.
    missing = ipam.faults(network, ())
    found = networks.faults(network, (), others=(), networks=others, nodes=())
    faults = [_mended(f) for f in found if f not in missing]
    return faults, ipam.faults(network, mine, rest, world.nodes.values())


def _mended(fault: str) -> str:
    shared = "already belongs to network"  # of what `networks.faults` says, all but this has a mend
    return f"{fault}; make a pool of its own for this one" if shared in fault else fault


def _pool(pool: Pool, world: World) -> list[str]:
    alone = Network(name="", backend="", pools=(pool.name,))
    found = ipam.faults(alone, [pool], world.pools.values(), world.nodes.values())
    return [f"{fault}; choose another cidr" for fault in found]


def _shared(pool: Pool, world: World) -> list[str]:
    users = sorted(n.name for n in world.networks.values() if pool.name in n.pools)
    if len(users) < 2:
        return []
    return [f"pool {pool.name}: belongs to more than one network: {', '.join(users)}"]


def _address(one: Reservation, world: World) -> tuple[list[str], list[str]]:
    said = f"address {one.address}"
    faults = [
        f"{said}: {_owner(other)} has it already (Address {name});"
        " choose another, or delete that Address first"
        for name, other in world.addresses.items()
        if other.address == one.address and other.pool != one.pool
    ]
    pool = world.pools.get(one.pool)
    if pool is None:
        return faults, [f"{said}: no pool is called {one.pool!r}"]
    if one.address not in pool.cidr:
        faults.append(f"{said}: is not in {pool.cidr} of pool {pool.name}; choose one of it")
    faults += [
        f"{said}: is node {node.name}'s own; choose another"
        for node in world.nodes.values()
        if any(one.address == a.ip for a in node.addresses)
    ]
    return faults, []


# ── what nodes and pods have now ────────────────────────────────────────────────────────────────


def _in_use(value: object, world: World) -> list[str]:
    """Who would be cut off if it were gone: agents drop the routes of what no network has."""
    match value:
        case Network():
            return _holders(f"network {value.name}", value.pools, world)
        case Pool():
            return _holders(f"pool {value.name}", (value.name,), world)
    return []


def _taken_away(old: object, new: object, world: World) -> list[str]:
    """Who would be cut off by the change, or not follow it."""
    match old, new:
        case Network(), Network():
            return [
                use
                for name in sorted(set(old.pools) - set(new.pools))
                for use in _holders(f"network {new.name} without pool {name}", (name,), world)
            ]
        case Pool(), Pool():
            return _barred(old, new, world)
    return []


def _holders(what: str, pools: Collection[str], world: World) -> list[str]:
    blocks = [b for b in world.blocks.values() if b.pool in pools]
    fixed = [a for a in world.addresses.values() if a.pool in pools and a.state != "quarantined"]
    found = []
    if blocks:
        found.append(f"{what}: {_held(blocks)}, and their pods would be cut off")
    if fixed:
        owners = _some(_owner(a) for a in fixed)
        found.append(f"{what}: {_count(fixed, 'fixed address', 'es')} of {owners}")
    return found


def _barred(old: Pool, new: Pool, world: World) -> list[str]:
    """New excludes where nodes give out addresses already: these read them when they claim."""
    version = new.cidr.version
    known = list(collapse_addresses(e for e in old.exclude if e.version == version))  # type: ignore[type-var]
    found = []
    for barred in (e for e in new.exclude if e.version == version):
        if any(barred.subnet_of(e) for e in known):  # type: ignore[arg-type]
            continue
        blocks = [
            b for b in world.blocks.values() if b.pool == new.name and b.cidr.overlaps(barred)
        ]
        if blocks:
            why = "which go on giving out addresses of them until their agents start again"
            found.append(f"pool {new.name}: exclude {barred} lies in {_held(blocks)}, {why}")
    return found


def _held(blocks: Sequence[Block]) -> str:
    return f"{_count(blocks, 'block')} held by {_some(f'node {b.node}' for b in blocks)}"


def _count(found: Sequence[object], word: str, plural: str = "s") -> str:
    return f"{len(found)} {word}{plural if len(found) > 1 else ''}"


def _owner(address: Reservation) -> str:
    owner = address.owner
    return f"{owner.kind} {'/'.join(filter(None, (owner.namespace, owner.name)))}"


def _some(names: Iterable[str]) -> str:
    found = sorted(set(names))
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
