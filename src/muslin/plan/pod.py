"""What every routed pod has, whatever the backend: a veth pair and no bridge.

    pod namespace                         node
    eth0  10.244.0.5/32            ────   mu1f3c…  ee:ee:ee:ee:ee:ee
          default via 169.254.1.1         10.244.0.5 dev mu1f3c…   (one route)
          169.254.1.1 → ee:ee:…           10.244.0.5 → 0a:58:…     (one neighbour)

The gateway addresses belong to nobody: permanent neighbours on both sides
mean that nothing is ever asked, so there is no ARP, no ND and no proxy_arp.
The pod needs no address of the node and every pod on every node looks alike.
The host end has none either, not even a link-local one (kernel/links.py).

A pod cannot send from an address it does not own: for IPv4 the kernel's
strict reverse path filter on the host end drops it, for IPv6 (which has no
such sysctl) the node's nft table does (plan/node.py).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network

from muslin.model import Address, Nic, Prefix
from muslin.plan import limits, ports
from muslin.plan.objects import Addr, Link, Neigh, Object, Plan, Present, Route, Sysctl, Veth

GATEWAY: dict[int, Address] = {4: IPv4Address("169.254.1.1"), 6: IPv6Address("fe80::1")}
ANYWHERE: dict[int, Prefix] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
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
    for version in sorted({a.version for a in nic.addresses}):
        gateway = GATEWAY[version]
        objects |= {
            Neigh(ns=ns, dev=pod, address=gateway, mac=HOST_MAC),
            Route(ns=ns, dst=ANYWHERE[version], via=gateway, dev=pod, onlink=True),
        }
    objects |= limits.limits(nic.wants, dev)
    objects |= ports.elements(nic.wants.ports, nic.addresses)
    if any(a.version == 4 for a in nic.addresses):
        objects |= ports.localnet(nic.wants.ports, dev)
    return frozenset(objects)


def host_side(plan: Plan) -> Plan:
    """The part of a pod's plan that stands on the node."""
    return frozenset(o for o in plan if o.ns is None)


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
