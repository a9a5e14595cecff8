"""flannel: flannel's vxlan, on its wire and in its devices, beside nodes that run flanneld.

For moving a cluster from flannel node by node ([kubernetes.md](kubernetes.md#coming-from-flannel)):
its network comes from flannel's ConfigMap, and peers are nodes of both kinds.  A new estate wants
`vxlan`.

Needs: UDP (port 8472 unless set) between all nodes; a range per node whose first address no pod
has, as podCIDRs are.  Costs: as vxlan's; and pods see nodes, and nodes pods, by the node's
address.

Where it differs from `vxlan`, it is because flannel does:

    flannel.<VNI>       IPv4 pods in IPv4 packets     MAC `mac`
    flannel-v6.<VNI>    IPv6 pods in IPv6 packets     MAC `mac6`

A device for each IP version, called so that a node that was flanneld's keeps
its own (kernel/takeover.py): same MAC, same address, so no other node's kernel
has anything to change.  Plain routes only where flannel is told to
(DirectRouting), since the other end must do the same: a strict rp_filter drops
what comes by another way than it would go.  Without it pods reach *nodes* by
masquerade (plan/node.py), for the same reason.

Members without pods are not reached through the tunnel: flannel has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from typing import Annotated

import msgspec

from muslin.backend import Backend
from muslin.backend.hostgw import next_hop, route
from muslin.backend.vxlan import OVERHEAD, hop_of, vtep_mac
from muslin.errors import Unreachable
from muslin.model import Peer, Prefix, Site
from muslin.plan.objects import Addr, Fdb, Link, Neigh, Object, Plan, Route, Sysctl, Vxlan

MAC = {4: "mac", 6: "mac6"}  # in a node's data
_NAMES = {4: "flannel", 6: "flannel-v6"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FlannelBackend(Backend):
    """Options, with what they default to."""

    vni: Annotated[int, msgspec.Meta(ge=1, lt=1 << 24)] = 1  # the same on all nodes
    port: Annotated[int, msgspec.Meta(ge=1, lt=1 << 16)] = 8472  # Linux's own, and flannel's
    mtu: Annotated[int, msgspec.Meta(ge=1330, le=65535)] | None = (
        None  # underlay; None: the uplink's
    )
    direct: bool = False  # DirectRouting: plain routes to peers on the same link

    def dev(self, version: int) -> str:
        """The VTEP for pods of that IP version."""
        return f"{_NAMES[version]}.{self.vni}"

    def overhead(self, site: Site) -> int:
        """The tunnel's headers; the larger ones where pods have both versions."""
        given = site.me.mtu - (self.mtu or site.me.mtu)
        return max(given, 0) + max(OVERHEAD[v] for v in _versions(site))

    def announce(self, site: Site, before: Mapping[str, str]) -> dict[str, str]:
        """The VTEPs' MACs: those that peers have already, else of our own making."""
        own = vtep_mac(site.network.name, site.me.name)
        return {MAC[v]: before.get(MAC[v]) or own for v in _versions(site)}

    def node(self, site: Site) -> Plan:
        """The VTEPs, each with the first address of our range as its own."""
        objects: set[Object] = set()
        for version in _versions(site):
            local = site.me.address(version)
            hop = hop_of(site.blocks, version)
            if local is None or hop is None:
                continue  # without an address of that version it has no such pods either
            dev = self.dev(version)
            objects |= {
                Link(
                    name=dev,
                    kind=Vxlan(vni=self.vni, port=self.port, local=local.ip),
                    mtu=min(self.mtu or site.me.mtu, site.me.mtu) - OVERHEAD[version],
                    mac=_own_mac(site, version),
                    purpose=f"network {site.network.name}",
                ),
                Addr(dev=dev, address=ip_interface(hop)),
            }
            if version == 4:
                # Loose: a peer's path may move between tunnel and plain route one way first.
                loose = Sysctl(name=f"net/ipv4/conf/{dev}/rp_filter", value="2")
                objects |= {Sysctl(name=f"net/ipv4/conf/{dev}/forwarding", value="1"), loose}
            elif site.host.force_forwarding:
                objects.add(Sysctl(name=f"net/ipv6/conf/{dev}/force_forwarding", value="1"))
        return frozenset(objects)

    def peer(self, site: Site, peer: Peer) -> Plan:
        """As flannel: a route, a neighbour and an FDB entry for each of the peer's ranges."""
        objects: set[Object] = set()
        for block in peer.blocks:
            direct = self.direct and next_hop(site.me, peer.node, block.version) is not None
            objects |= {route(site, peer, block)} if direct else self._tunnel_to(site, peer, block)
        return frozenset(objects)

    def _tunnel_to(self, site: Site, peer: Peer, block: Prefix) -> set[Object]:
        version = block.version
        outer = peer.node.address(version)
        if outer is None or site.me.address(version) is None:
            lacks = site.me.name if outer else peer.node.name
            why = f"{lacks} has no IPv{version} underlay address, which IPv{version} pods travel by"
            raise Unreachable(peer.node.name, why)
        mac = peer.node.data.get(site.network.name, {}).get(MAC[version])
        if not mac:
            raise Unreachable(
                peer.node.name, f"it has not announced an IPv{version} VTEP's MAC yet"
            )
        if mac == _own_mac(site, version):
            raise Unreachable(peer.node.name, f"it announces our own VTEP's MAC, {mac}")
        hop = hop_of(peer.blocks, version)
        assert hop is not None  # `block` itself is one of them
        dev = self.dev(version)
        objects: set[Object] = {
            Route(dst=block, via=hop, dev=dev, onlink=True),
            Neigh(dev=dev, address=hop, mac=mac),
            Fdb(dev=dev, mac=mac, dst=outer.ip),
        }
        if version == 6:
            # As in vxlan.py: IPv6's `onlink` is refused while the block is reached elsewhere.
            objects.add(Route(dst=ip_network(hop), dev=dev))
        return objects


def _versions(site: Site) -> list[int]:
    return sorted({p.cidr.version for p in site.pools}) or [4]


def _own_mac(site: Site, version: int) -> str:
    own = site.me.data.get(site.network.name, {})
    return own.get(MAC[version]) or vtep_mac(site.network.name, site.me.name)
