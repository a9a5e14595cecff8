"""From what the store says to what this node should hold.  Pure.

`World` is the store's content as values; `sites` is one node's view of it,
`desired` the plan that follows.  The sync loop calls them on every change,
and `muslin plan --node` for a node it is not on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from muslin import backend
from muslin.errors import ConfigError, MuslinError, Unreachable
from muslin.model import Block, Host, Network, Node, Peer, Pool, Prefix, Site
from muslin.plan import node as plan_node
from muslin.plan.objects import Plan, is_pods


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything the store holds that concerns the network."""

    networks: Mapping[str, Network] = field(default_factory=dict)
    pools: Mapping[str, Pool] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()

    def pools_of(self, network: Network) -> tuple[Pool, ...]:
        """The network's pools that exist, in its own order."""
        return tuple(self.pools[name] for name in network.pools if name in self.pools)

    def holders(self, network: Network) -> dict[str, list[Prefix]]:
        """All of a network's blocks by the node that holds them, in no order."""
        found: dict[str, list[Prefix]] = {}
        pools = set(network.pools)
        for block in self.blocks:
            if block.pool in pools:
                found.setdefault(block.node, []).append(block.cidr)
        return found

    def holding(self, node: str, blocks: Iterable[Block]) -> World:
        """The same world with `node` holding exactly `blocks`: it knows before the store's echo."""
        others = (b for b in self.blocks if b.node != node)
        return replace(self, blocks=(*others, *blocks))


@dataclass(frozen=True, slots=True)
class Desired:
    """A plan, and what could not be planned: who is left out, and why."""

    plan: Plan
    faults: tuple[str, ...] = ()


def sites(world: World, me: Node, host: Host) -> tuple[Site, ...]:
    """`me` in each network, by the network's name; every other node is a peer."""
    return tuple(_site(world, me, host, world.networks[n]) for n in sorted(world.networks))


def _site(world: World, me: Node, host: Host, network: Network) -> Site:
    others = (n for name, n in sorted(world.nodes.items()) if name != me.name)
    held = world.holders(network)
    return Site(
        me=me,
        host=host,
        network=network,
        pools=world.pools_of(network),
        blocks=_sorted(held.get(me.name, ())),
        peers=tuple(Peer(node=n, blocks=_sorted(held.get(n.name, ()))) for n in others),
    )


def _sorted(blocks: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """Each once, lowest first, IPv4 before IPv6."""
    return tuple(sorted(set(blocks), key=lambda c: (c.version, int(c.network_address))))


def desired(sites: Iterable[Site]) -> Desired:
    """The node's own part of the kernel; one peer or network that fails leaves the rest whole."""
    fit, parts, faults = [], [], []
    for site in sites:
        try:
            here, missing = _network(site)
        except MuslinError as e:
            faults.append(f"network {site.network.name}: {e}")
            continue
        fit.append(site)
        parts.append(here)
        faults += missing
    if fit:
        parts.append(plan_node.base(fit))
    return Desired(frozenset().union(*parts), tuple(faults))


def _network(site: Site) -> tuple[Plan, list[str]]:
    carrier = backend.load(site.network)
    if not site.me.addresses:
        raise ConfigError(f"node {site.me.name}", ["has no underlay address"])
    objects, faults = set(carrier.node(site)), []
    for peer in site.peers:
        try:
            objects |= carrier.peer(site, peer)
        except Unreachable as e:
            faults.append(f"network {site.network.name}: {e}")
    return frozenset(objects), faults


def nodes_part(observed: Plan) -> Plan:
    """What is the node's of everything that carries our mark: all but the pods' own objects."""
    return frozenset(o for o in observed if not is_pods(o))
