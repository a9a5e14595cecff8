"""What every routed pod has, whatever the backend: a veth pair and no bridge.

    pod namespace                         node
    eth0  10.244.0.5/32            ────   mu1f3c…  ee:ee:ee:ee:ee:ee
          default via 169.254.1.1         10.244.0.5 dev mu1f3c…   (one route)
          169.254.1.1 → ee:ee:…           10.244.0.5 → 0a:58:…     (one neighbour)

The gateway addresses belong to nobody: permanent neighbours on both sides
mean that nothing is ever asked, so there is no ARP, no ND and no proxy_arp.
The pod needs no address of the node and every pod on every node looks alike.
The host end has none either, not even a link-local one (kernel/links.py).

A further NIC is the same on the node.  In the pod it leads to its own network
only, and what has a NIC's address leaves by that NIC, or the node would drop it:

    10.9.0.0/16 via 169.254.1.1 dev net1 src 10.9.0.7     each of its network's prefixes
    from 10.9.0.7 lookup 10901                            one rule for each address
    default via 169.254.1.1 dev net1 table 10901          answers to whoever is beyond it
    from 10.244.0.5 lookup 10900                          the first NIC's, if there are others
    10.9.0.0/16 via 169.254.1.1 dev eth0 table 10900      answers to whoever is on theirs

What has no address yet goes by the pod's main table, and gets the NIC's there.

A pod cannot send from an address it does not own: for IPv4 the kernel's
strict reverse path filter on the host end drops it, for IPv6 (which has no
such sysctl) the node's nft table does (plan/node.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network

from muslin.model import Address, Apart, Nic, Prefix
from muslin.plan import limits, ports
from muslin.plan.objects import Addr, Link, Neigh, Object, Plan, Present, Route, Rule, Sysctl, Veth

GATEWAY: dict[int, Address] = {4: IPv4Address("169.254.1.1"), 6: IPv6Address("fe80::1")}
ANYWHERE: dict[int, Prefix] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
# In the pod: 10900 for the first NIC, 10901 for the first of the list.  109 is our mark; a VPN in
# the pod has other numbers.  A table's is its rules' priority too: before main (32766).
TABLES = 10900
HOST_MAC = "ee:ee:ee:ee:ee:ee"  # locally administered; the same on every host end


def routed(nic: Nic) -> Plan:
    """Both ends of one pod's pair, its addresses, and the way in and out."""
    ns, dev, pod = nic.netns, nic.dev, nic.ifname
    objects: set[Object] = {
        Link(
            name=dev,
            kind=Veth(peer=pod, peer_ns=ns),
            mtu=nic.mtu,
            mac=HOST_MAC,
            purpose=f"pod {nic.container[:64]} {pod} {nic.wants.pod}".strip(),
        ),
        Link(ns=ns, name="lo", kind=Present()),
        Link(ns=ns, name=pod, kind=Present(), mtu=nic.mtu, mac=nic.mac),
    }
    for address in nic.addresses:
        objects |= _way(nic, address)
        objects.add(Neigh(ns=ns, dev=pod, address=GATEWAY[address.version], mac=HOST_MAC))
        objects |= _out(nic, address)
    objects |= rules(ns, nic.wants.apart, nic.addresses)
    objects |= limits.limits(nic.wants, dev)
    objects |= ports.elements(nic.wants.ports, nic.addresses)
    if any(a.version == 4 for a in nic.addresses):
        objects |= ports.localnet(nic.wants.ports, dev)
    return frozenset(objects)


def host_side(plan: Plan) -> Plan:
    """The part of a pod's plan that stands on the node."""
    return frozenset(o for o in plan if o.ns is None)


def rules(ns: str, apart: Apart | None, addresses: Iterable[Address]) -> frozenset[Rule]:
    """What of a NIC stands on no device: it would stay in a pod that goes on without the NIC."""
    if apart is None:
        return frozenset()
    at = apart.table
    return frozenset(Rule(ns=ns, src=ip_network(a), table=at, priority=at) for a in addresses)


def _out(nic: Nic, address: Address) -> set[Object]:
    """The pod's routes by this NIC, for one IP version."""
    version, apart = address.version, nic.wants.apart
    out = Route(
        ns=nic.netns, dst=ANYWHERE[version], via=GATEWAY[version], dev=nic.ifname, onlink=True
    )
    if apart is None:
        return {out}
    routes = [replace(out, dst=p) for p in apart.routes if p.version == version]
    if nic.is_further:
        return {replace(out, table=apart.table), *(replace(r, src=address) for r in routes)}
    return {out, *(replace(r, table=apart.table) for r in routes)}


def _way(nic: Nic, address: Address) -> set[Object]:
    """One address in the pod, and the node's route and neighbour for it."""
    alone = ip_interface(address)  # /32 or /128
    conf = f"net/ipv{address.version}/conf"
    objects: set[Object] = {
        Addr(ns=nic.netns, dev=nic.ifname, address=alone),
        Route(dst=alone.network, dev=nic.dev),
        Neigh(dev=nic.dev, address=address, mac=nic.mac),
    }
    if address.version == 4:
        objects |= {
            Sysctl(name=f"{conf}/{nic.dev}/forwarding", value="1"),
            Sysctl(name=f"{conf}/{nic.dev}/rp_filter", value="1"),
        }
    else:
        if nic.host.force_forwarding:
            objects.add(Sysctl(name=f"{conf}/{nic.dev}/force_forwarding", value="1"))
        # Some runtimes switch IPv6 off in a new namespace; an address then fails with EACCES.
        objects.add(Sysctl(ns=nic.netns, name=f"{conf}/{nic.ifname}/disable_ipv6", value="0"))
    return objects
