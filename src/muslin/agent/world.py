"""From what the store says to what this node should hold.  Pure.

`World` is the store's content as values; `sites` is one node's view of it,
`desired` the plan that follows.  The sync loop calls them on every change,
and `muslin plan --node` for a node it is not on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def _sorted(blocks: Sequence[Prefix]) -> tuple[Prefix, ...]:
    """Each once, lowest first, IPv4 before IPv6."""
    if len(blocks) < 2:  # nearly all nodes, and each is asked for at every change
        return tuple(blocks)
    return tuple(sorted(set(blocks), key=lambda c: (c.version, int(c.network_address))))


def desired(sites: Iterable[Site]) -> Desired:
    """The node's own part of the kernel; one peer or network that fails leaves the rest whole."""
    return Planner().desired(sites)


class Planner:
    """`desired`, remembering what each peer took last time: of a thousand, one has changed."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._base: tuple[list[tuple[object, ...]], Plan] = ([], frozenset())

    def desired(self, sites: Iterable[Site]) -> Desired:
        """The plan of these sites, as the function of that name says."""
        fit, parts, faults = [], [], []
        known, self._known = self._known, {}
        for site in sites:
            name = site.network.name
            before = known.get(name)
            now = _Known(site, before.peers if before and before.is_of(site) else {})
            try:
                here, missing = now.plan()
            except MuslinError as e:
                faults.append(f"network {name}: {e}")
                continue
            self._known[name] = now
            fit.append(site)
            parts.append(here)
            faults += missing
        if fit:
            parts.append(self._base_of(fit))
        return Desired(frozenset().union(*parts), tuple(faults))

    def _base_of(self, sites: Sequence[Site]) -> Plan:
        """What every node has, whatever the backend: no peer's blocks are in it."""
        frames = [_frame(site) for site in sites]
        if self._base[0] != frames:
            self._base = (frames, plan_node.base(sites))
        return self._base[1]


class _Known:
    """One network's plan in the making: `peers` has what each took, by its name."""

    def __init__(self, site: Site, peers: Mapping[str, tuple[Peer, Plan | Unreachable]]) -> None:
        self._site, self._before = site, peers
        self.peers: dict[str, tuple[Peer, Plan | Unreachable]] = {}

    def is_of(self, site: Site) -> bool:
        """Whether nothing has changed but which peer holds which blocks."""
        return _frame(self._site) == _frame(site)

    def plan(self) -> tuple[Plan, list[str]]:
        """The network's objects, and who is left out and why."""
        site, carrier = self._site, backend.load(self._site.network)
        if not site.me.addresses:
            raise ConfigError(f"node {site.me.name}", ["has no underlay address"])
        parts, faults = [carrier.node(site)], []
        for peer in site.peers:
            before = self._before.get(peer.node.name)
            made = before[1] if before and before[0] == peer else _peer(carrier, site, peer)
            self.peers[peer.node.name] = (peer, made)
            if isinstance(made, Unreachable):
                faults.append(f"network {site.network.name}: {made}")
            else:
                parts.append(made)
        return frozenset().union(*parts), faults


def _frame(site: Site) -> tuple[object, ...]:
    nodes = tuple(p.node for p in site.peers)
    return site.me, site.host, site.network, site.pools, site.blocks, nodes


def _peer(carrier: backend.Backend, site: Site, peer: Peer) -> Plan | Unreachable:
    try:
        return carrier.peer(site, peer)
    except Unreachable as e:
        return e


def nodes_part(observed: Plan) -> Plan:
    """What is the node's of everything that carries our mark: all but the pods' own objects."""
    return frozenset(o for o in observed if not is_pods(o))
