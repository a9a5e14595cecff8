"""hostgw: each peer is the next hop to its own pods.

Full MTU and no encapsulation, in exchange for one L2 segment: the kernel
refuses a next hop that is not on the link.

Needs: all nodes on one L2 segment, and an underlay address of each IP version
that pods use.  Costs: nothing per packet beyond the kernel's forwarding.
"""

from __future__ import annotations

from dataclasses import dataclass

from muslin.backend import Backend
from muslin.errors import Unreachable
from muslin.model import Address, Node, Peer, Prefix, Site
from muslin.plan.objects import Plan, Route


@dataclass(frozen=True, slots=True, kw_only=True)
class HostGw(Backend):
    """No options."""

    def peer(self, site: Site, peer: Peer) -> Plan:
        """One plain route per block."""
        return frozenset(route(site, peer, block) for block in peer.blocks)


def route(site: Site, peer: Peer, block: Prefix) -> Route:
    """A plain route to one block of a peer on our link; Unreachable names one that is not."""
    hop = next_hop(site.me, peer.node, block.version)
    if hop is None:
        mine = site.me.address(block.version)
        theirs = peer.node.address(block.version)
        if mine and theirs:
            why = f"{theirs.ip} is not on the link of {mine}, so it cannot be a next hop"
        else:
            lacks = site.me.name if mine is None else peer.node.name
            why = f"{lacks} has no IPv{block.version} underlay address to reach {block}"
        raise Unreachable(peer.node.name, why, hint="use the vxlan backend across routers")
    return Route(dst=block, via=hop, dev=site.host.uplink)


def next_hop(me: Node, peer: Node, version: int) -> Address | None:
    """The peer's underlay address of that version, if it is on one of our own links."""
    mine, theirs = me.address(version), peer.address(version)
    if mine is None or theirs is None or theirs.ip not in mine.network:
        return None
    return theirs.ip
