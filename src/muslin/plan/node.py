"""What every node has, whatever the backend: forwarding, masquerade, and no loops.

Masquerade is one static table with sets, not rules per pod: a packet from a
pod keeps its address inside the estate and takes the node's beyond it.

    estate = every pool + every node's and member's own address
             + the prefixes the network names (`estate = [...]`)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import collapse_addresses, ip_network

from muslin.model import Prefix, Site
from muslin.plan.objects import Element, Object, Plan, Route, Ruleset, Sysctl

# `mu*` are pods' host ends, `mu.*` backends' devices.  The guard is IPv6's
# strict reverse path filter; IPv4's is the rp_filter sysctl (plan/pod.py).
# nft 1.0 wants a statement separator after `masquerade`, which the newline is,
# and takes no chain of that name.
RULES = """\
	set pods4 { type ipv4_addr; flags interval; }
	set pods6 { type ipv6_addr; flags interval; }
	set estate4 { type ipv4_addr; flags interval; }
	set estate6 { type ipv6_addr; flags interval; }
	chain guard {
		type filter hook prerouting priority raw; policy accept;
		iifname "mu.*" accept
		iifname "mu*" meta nfproto ipv6 fib saddr . iif oif missing drop
	}
	chain leaving {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr @pods4 ip daddr != @estate4 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip6 saddr @pods6 ip6 daddr != @estate6 ip6 daddr != ff00::/8 masquerade fully-random
	}
"""


def base(sites: Sequence[Site]) -> Plan:
    """Forwarding on the uplink, one table, and an answer for addresses that no pod has.

    `sites` are this node's, one per network; the table is shared by all.
    """
    objects: set[Object] = set()
    for site in sites:
        objects |= _forwarding(site)
        # Without it a packet to a pod that is gone, or to a block that nobody holds, leaves by
        # the default route, and circles where a router sends the pool to a node.
        objects |= {Route(dst=pool.cidr) for pool in site.pools}
    return frozenset(objects) | _masquerade(sites)


def _forwarding(site: Site) -> set[Object]:
    uplink = f"conf/{site.host.uplink}"
    objects: set[Object] = {Sysctl(name=f"net/ipv4/{uplink}/forwarding", value="1")}
    if site.host.force_forwarding:
        objects.add(Sysctl(name=f"net/ipv6/{uplink}/force_forwarding", value="1"))
    elif site.host.global_forwarding:
        objects.add(Sysctl(name="net/ipv6/conf/all/forwarding", value="1"))
    return objects


def estate(sites: Sequence[Site]) -> tuple[Prefix, ...]:
    """Every prefix within which a pod's own address is seen."""
    prefixes: list[Prefix] = []
    for site in sites:
        nodes = (site.me, *(p.node for p in site.peers))
        prefixes += [p.cidr for p in site.pools]
        prefixes += site.network.estate
        prefixes += [ip_network(a.ip) for n in nodes for a in n.addresses]
    return _collapse(prefixes)


def _masquerade(sites: Sequence[Site]) -> Plan:
    pools = _collapse(p.cidr for s in sites if s.network.masquerade for p in s.pools)
    return frozenset(
        {
            Ruleset(body=RULES),
            *(Element(set=f"pods{p.version}", item=_item(p)) for p in pools),
            *(Element(set=f"estate{p.version}", item=_item(p)) for p in estate(sites)),
        }
    )


def _item(prefix: Prefix) -> str:
    """As nft prints it back: a lone address without its length."""
    return str(prefix) if prefix.prefixlen < prefix.max_prefixlen else str(prefix.network_address)


def _collapse(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """The fewest prefixes that cover the same: an interval set refuses overlaps."""
    found = list(prefixes)
    four = collapse_addresses(p for p in found if p.version == 4)
    six = collapse_addresses(p for p in found if p.version == 6)
    return (*four, *six)
