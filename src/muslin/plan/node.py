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
# Every packet passes it, so the uplink's leave it first.
# 127/8 is nobody's on a wire.  A pod with host ports has route_localnet on its host
# end (plan/ports.py): without the guard it would reach what listens on our loopback.
# On other devices the kernel drops it; where somebody set route_localnet there, it
# is theirs to guard, and we map nothing for it.
# IPv6 has no such switch: an answer to ::1 never arrives, so a port of ::1 is not
# mapped, and who tries it is refused at once.
# nft 1.0 wants a statement separator after `masquerade`, which the newline is,
# and takes no chain of that name.
# What answers a connection whose destination was translated (a host port, a service) has the
# pod's source still when its way is chosen, and the node's only after it.  A bit of its mark
# tells it from what the pod sends as itself, for rules about packets from pods (backend/vxlan.py).
# The question has it too: a strict rp_filter looks for the answer's way, with the pod's source and,
# by src_valid_mark, the question's mark.  But not what pods ask: that goes as themselves.
# None of kube-proxy, Cilium, Tailscale and the reference portmap uses this bit.
ANSWER = 0x01000000
RULES = """\
	set pods4 { type ipv4_addr; flags interval; }
	set pods6 { type ipv6_addr; flags interval; }
	set estate4 { type ipv4_addr; flags interval; }
	set estate6 { type ipv6_addr; flags interval; }
	map ports4 { type inet_proto . inet_service : ipv4_addr . inet_service; }
	map ports6 { type inet_proto . inet_service : ipv6_addr . inet_service; }
	map ipports4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
	map ipports6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }
	map senders { type ifname : limit; }
	set hairpins4 { type ipv4_addr . ipv4_addr; }
	set hairpins6 { type ipv6_addr . ipv6_addr; }
	chain guard {
		type filter hook prerouting priority raw; policy accept;
		iifname != "mu*" accept
		iifname "mu.*" accept
		ip daddr 127.0.0.0/8 drop
		meta nfproto ipv6 fib saddr . iif oif missing drop
		limit name iifname map @senders drop
	}
	chain arriving {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr 127.0.0.0/8 return
		fib daddr type local jump mapped
	}
	chain answering {
		type filter hook prerouting priority dstnat + 10; policy accept;
		ct status dnat ct direction reply meta mark set meta mark | 0x01000000
		ct status dnat iifname != "mu*" meta mark set meta mark | 0x01000000
	}
	chain starting {
		type nat hook output priority -100; policy accept;
		ip6 daddr ::1 return
		fib daddr type local jump mapped
	}
	chain mapped {
		dnat ip to ip daddr . meta l4proto . th dport map @ipports4
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @ipports6
		dnat ip to meta l4proto . th dport map @ports4
		dnat ip6 to meta l4proto . th dport map @ports6
	}
	chain leaving {
		type nat hook postrouting priority srcnat; policy accept;
		ct status dnat ip saddr . ip daddr @hairpins4 masquerade fully-random
		ct status dnat ip6 saddr . ip6 daddr @hairpins6 masquerade fully-random
		ct status dnat ip saddr 127.0.0.0/8 masquerade fully-random
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
        # As flannel's nodes do it: they answer pods through the tunnel, and a strict rp_filter of
        # theirs would drop what comes plain with a pod's address.
        plain = site.network.backend != "flannel"
        nodes = (site.me, *(p.node for p in site.peers)) if plain else ()
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
