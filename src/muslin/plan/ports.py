"""A pod's ports on its node: elements of maps that every node has, and no rule per pod.

    tcp . 8080                      10.244.0.5 . 80     in ports4, ports6
    192.0.2.1 . tcp . 8080          10.244.0.5 . 80     in ipports4, ipports6
    10.244.0.5 . 10.244.0.5                             in hairpins4, hairpins6

The rules are in plan/node.py.  Who asks for one of the node's own addresses is
sent to the pod with the source it has, except where no answer would come back:

    the pod itself      would answer itself: masqueraded, if source and destination
                        are one of the hairpins
    127.0.0.1           is nobody's address in the pod: masqueraded.  That such a
                        packet may leave by the pod's device at all takes
                        route_localnet on it; the guard drops 127/8 from any wire
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from muslin.model import Address, PortMapping
from muslin.plan.objects import Element, Object, Plan, Sysctl


def elements(mappings: Iterable[PortMapping], addresses: Iterable[Address]) -> Plan:
    """What leads from the node's ports to the pod with these addresses."""
    found: set[Object] = set()
    wanted = list(mappings)
    for address in addresses:
        suits = [m for m in wanted if m.ip is None or m.ip.version == address.version]
        found |= {_element(m, address) for m in suits}
        if suits:
            pair = f"{address} . {address}"
            found.add(Element(set=f"hairpins{address.version}", item=pair))
    return frozenset(found)


def localnet(mappings: Iterable[PortMapping], dev: str) -> Plan:
    """What lets 127.0.0.1 on the node lead to the pod; IPv6 needs nothing."""
    if not any(m.ip is None or (m.ip.version == 4 and _is_own(m.ip)) for m in mappings):
        return frozenset()
    return frozenset({Sysctl(name=f"net/ipv4/conf/{dev}/route_localnet", value="1")})


def target(element: Element) -> Address:
    """The pod's address that an element leads to."""
    return ip_address((element.data or element.item).partition(" ")[0])


def _element(mapping: PortMapping, address: Address) -> Element:
    item, name = f"{mapping.protocol} . {mapping.host}", "ports"
    if mapping.ip is not None and not mapping.ip.is_unspecified:
        item, name = f"{mapping.ip} . {item}", "ipports"
    return Element(set=f"{name}{address.version}", item=item, data=f"{address} . {mapping.pod}")


def _is_own(address: Address) -> bool:
    return address.is_unspecified or address.is_loopback
