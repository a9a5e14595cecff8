"""vxlan: one kernel VTEP; plain routes to peers on the same link, the tunnel to the others.

Needs: UDP (port 8472 unless set) between all nodes.  Costs: 50 bytes of every
packet over IPv4, 70 over IPv6, and about 1.6 times the latency of a plain
route on the peers that need the tunnel (docs/datapath.md).

Nothing is learnt and nothing is asked.  A tunnelled peer is three kinds of
entry, all written from the store:

    route      <block>   via <hop> dev mu.vx1 onlink     (one per block)
    neighbour  <hop>     → VTEP MAC of the peer          (one per IP version)
    FDB        VTEP MAC  → underlay address of the peer  (one)

`hop` is the first address of the peer's lowest block.  No pod ever gets it,
and the peer carries it on its own mu.vx1, so that packets from the node
itself have a source that comes back through the tunnel.  In IPv6 it is the
block's subnet-router anycast address (RFC 4291, 2.6.1) in name only: on the
VTEP it is a /128, and works as any other (6.18); there the hop has a route of
its own as well.  One device carries both IP versions.

The VTEP MAC is derived from the node's name when the node first joins, then
kept in the store: a restarted, reinstalled or readdressed node answers to the
MAC its peers already hold (a new one would be a black hole until every peer
had followed).

A member without blocks behind a router is reached through the tunnel too, by
a rule that only packets *from pods* match: pods and member then see each
other's own addresses without the routers between them knowing any pod, while
the nodes' own traffic to the member stays plain.  So does a pod's answer to a
member that asked a port of the node: it came plain, goes as the node's, and a
member drops what comes by the tunnel from a node (rp_filter; so would a
firewall that sees one half of a connection).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import Annotated, Literal

import msgspec

from muslin.backend import Backend
from muslin.backend.hostgw import next_hop, route
from muslin.errors import Unreachable
from muslin.model import Address, Peer, Prefix, Site, of_family
from muslin.plan.node import ANSWER
from muslin.plan.objects import (
    PROTOCOL,
    Addr,
    Fdb,
    Link,
    Neigh,
    Object,
    Plan,
    Route,
    Rule,
    Sysctl,
    Vxlan,
)

# outer IP 20 or 40 + UDP 8 + VXLAN 8 + inner Ethernet 14 (RFC 7348, section 5)
OVERHEAD = {4: 50, 6: 70}
MEMBERS = PROTOCOL  # the table of routes to members, looked up for packets from pods
PRIORITY = 1090  # of the rule: before main (32766), after local (0)


@dataclass(frozen=True, slots=True, kw_only=True)
class VxlanBackend(Backend):
    """Options, with what they default to."""

    vni: Annotated[int, msgspec.Meta(ge=1, lt=1 << 24)] = 1  # the same on all nodes
    port: Annotated[int, msgspec.Meta(ge=1, lt=1 << 16)] = 8472  # Linux's own; IANA's is 4789
    mtu: Annotated[int, msgspec.Meta(ge=1280, le=65485)] | None = None  # None: uplink − overhead
    direct: Literal["auto", "never"] = "auto"  # plain routes to peers on the same link

    @property
    def dev(self) -> str:
        """The VTEP's name: at most 13 of the kernel's 15 characters."""
        return f"mu.vx{self.vni}"

    def overhead(self, site: Site) -> int:
        """The tunnel's headers; a configured MTU is met by claiming the difference."""
        if self.mtu is not None:
            return max(site.me.mtu - self.mtu, 0)
        return OVERHEAD[self._local(site).version]

    def announce(self, site: Site, before: Mapping[str, str]) -> dict[str, str]:
        """The VTEP MAC, once chosen never changed."""
        return {"mac": before.get("mac") or vtep_mac(site.network.name, site.me.name)}

    def node(self, site: Site) -> Plan:
        """The VTEP, and the addresses its own packets come from."""
        # Loose: a peer's path may move between tunnel and plain route one way before the other.
        loose = Sysctl(name=f"net/ipv4/conf/{self.dev}/rp_filter", value="2")
        objects: set[Object] = {
            Link(
                name=self.dev,
                kind=Vxlan(vni=self.vni, port=self.port, local=self._local(site)),
                mtu=site.me.mtu - self.overhead(site),
                mac=_own_mac(site),
                purpose=f"network {site.network.name}",
            ),
            Sysctl(name=f"net/ipv4/conf/{self.dev}/forwarding", value="1"),
            loose,
        }
        if site.host.force_forwarding:
            name = f"net/ipv6/conf/{self.dev}/force_forwarding"
            objects.add(Sysctl(name=name, value="1"))
        hops = (hop_of(site.blocks, version) for version in (4, 6))
        objects |= {Addr(dev=self.dev, address=ip_interface(h)) for h in hops if h}
        return frozenset(objects)

    def peer(self, site: Site, peer: Peer) -> Plan:
        """A plain route per block where that works, else the tunnel's three kinds of entry."""
        objects: set[Object] = set()
        for block in peer.blocks:
            if self._is_direct(site, peer, block.version):
                objects.add(route(site, peer, block))
            else:
                objects |= self._tunnel_to(site, peer, block)
        if not peer.node.pods:
            objects |= self._member(site, peer)
        return frozenset(objects)

    def _tunnel_to(self, site: Site, peer: Peer, block: Prefix) -> set[Object]:
        hop = hop_of(peer.blocks, block.version)
        assert hop is not None  # `block` itself is one of them
        # A member has no address on the VTEP: name its own, or the kernel picks any.
        mine = site.me.address(block.version) if not site.me.pods else None
        src = mine.ip if mine else None
        objects: set[Object] = {
            Route(dst=block, via=hop, dev=self.dev, onlink=True, src=src),
            Neigh(dev=self.dev, address=hop, mac=self._peer_mac(site, peer)),
            self._fdb(site, peer),
        }
        if block.version == 6:
            # IPv6's `onlink` is refused while a route for the block leaves by another device
            # (net/ipv6/route.c: ip6_route_check_nh_onlink), as when a peer moves behind a router.
            objects.add(Route(dst=ip_network(hop), dev=self.dev))
        return objects

    def _member(self, site: Site, peer: Peer) -> set[Object]:
        """Pods → a member across routers; nodes that run no pods need nothing."""
        objects: set[Object] = set()
        for address in peer.node.addresses:
            version = address.version
            pools = of_family((p.cidr for p in site.pools), version)
            if not pools or not site.me.pods or self._is_direct(site, peer, version):
                continue
            objects |= {
                Route(dst=ip_network(address.ip), dev=self.dev, table=MEMBERS),
                Neigh(dev=self.dev, address=address.ip, mac=self._peer_mac(site, peer)),
                self._fdb(site, peer),
                *(_from_pods(pool) for pool in pools),
            }
            if version == 4:  # for a strict rp_filter, see `ANSWER`; IPv6 has none
                mark = f"net/ipv4/conf/{site.host.uplink}/src_valid_mark"
                objects.add(Sysctl(name=mark, value="1"))
        return objects

    def _is_direct(self, site: Site, peer: Peer, version: int) -> bool:
        return self.direct == "auto" and next_hop(site.me, peer.node, version) is not None

    def _local(self, site: Site) -> Address:
        """The outer source: IPv4 if the node has it, for its 20 bytes less."""
        return site.me.addresses[0].ip if len(site.me.addresses) == 1 else _prefer4(site)

    def _fdb(self, site: Site, peer: Peer) -> Fdb:
        version = self._local(site).version
        outer = peer.node.address(version)
        if outer is None:
            why = f"it has no IPv{version} underlay address, and this node's tunnel is IPv{version}"
            raise Unreachable(peer.node.name, why, hint="give both an address of one version")
        return Fdb(dev=self.dev, mac=self._peer_mac(site, peer), dst=outer.ip)

    def _peer_mac(self, site: Site, peer: Peer) -> str:
        mac = peer.node.data.get(site.network.name, {}).get("mac")
        if not mac:
            raise Unreachable(peer.node.name, "it has not announced a VTEP MAC yet")
        if mac != vtep_mac(site.network.name, peer.node.name):
            self._refuse_borrowed(site, peer, mac)
        return mac

    def _refuse_borrowed(self, site: Site, peer: Peer, mac: str) -> None:
        """Whoever may write one node's record must not draw another node's packets to himself."""
        network = site.network.name
        for other in (site.me, *(p.node for p in site.peers)):
            theirs = {other.data.get(network, {}).get("mac"), vtep_mac(network, other.name)}
            if other.name != peer.node.name and mac in theirs:
                why = f"it announces the VTEP MAC of {other.name}, {mac}"
                hint = f"remove `mac` from the record of {peer.node.name}: its agent writes it anew"
                raise Unreachable(peer.node.name, why, hint=hint)


def _from_pods(pool: Prefix) -> Rule:
    return Rule(src=pool, table=MEMBERS, priority=PRIORITY, unless=ANSWER)


def _prefer4(site: Site) -> Address:
    address = site.me.address(4) or site.me.address(6)
    assert address is not None  # a node without underlay address is refused when it joins
    return address.ip


def _own_mac(site: Site) -> str:
    own = site.me.data.get(site.network.name, {})
    return own.get("mac") or vtep_mac(site.network.name, site.me.name)


def vtep_mac(network: str, node: str) -> str:
    """A locally administered unicast MAC (first octet x2) that only this node derives."""
    digest = hashlib.blake2b(f"vtep {network}/{node}".encode(), digest_size=5).digest()
    return "0e:" + ":".join(f"{b:02x}" for b in digest)


def hop_of(blocks: tuple[Prefix, ...], version: int) -> Address | None:
    """The first address of the lowest block of that version."""
    lowest = next(iter(of_family(blocks, version)), None)
    return ip_address(lowest.network_address) if lowest else None
