"""What the agent has to know of this machine before it can plan.  Reads only.

All in the namespace of the calling thread.
"""

from __future__ import annotations

import struct
from pathlib import Path

from muslin.kernel import codec, links
from muslin.kernel.netlink import Socket, attributes
from muslin.model import Interface
from muslin.plan.objects import TABLE_MAIN

_PRIORITY = 6  # RTA_PRIORITY: the metric
_FORCE_FORWARDING = Path("/proc/sys/net/ipv6/conf/default/force_forwarding")


def uplink() -> str | None:
    """The device of the best default route: IPv4's if there is one, else IPv6's."""
    with Socket() as socket:
        names = {d.index: d.name for d in _devices(socket)}
        for version in (4, 6):
            found: list[tuple[int, str]] = []
            for body in socket.dump(codec.GETROUTE, codec.routes_of(version, protocol=0)):
                route = codec.read_route(None, body, names, protocol=0)
                if route is None or route.dst.prefixlen or route.table != TABLE_MAIN:
                    continue
                if route.dev in names.values():
                    found.append((_metric(body), str(route.dev)))
            if found:
                return min(found)[1]
    return None


def addresses_of(dev: str) -> tuple[Interface, ...]:
    """The addresses of a device that the estate can use, the one to prefer of each version first.

    IPv4 before IPv6; those without a lifetime before those from DHCP and
    router advertisements.  Link-local and temporary (privacy) ones are none.
    """
    with Socket() as socket:
        names = {d.index: d.name for d in _devices(socket) if d.name == dev}
        bodies = socket.dump(codec.GETADDR, codec.all_addresses())
    found: list[Interface] = []
    for lasting in (True, False):
        for body in bodies:
            addr = codec.read_addr(None, body, names, lasting=lasting)
            if addr and addr.address not in found and not addr.address.is_link_local:
                found.append(addr.address)
    return tuple(sorted(found, key=lambda a: a.version))


def mtu_of(dev: str) -> int | None:
    """The device's MTU in bytes, or None if there is no such device."""
    with Socket() as socket:
        return next((d.mtu for d in _devices(socket) if d.name == dev), None)


def has_force_forwarding() -> bool:
    """Whether IPv6 can be forwarded per device (Linux 6.17), without the global switch."""
    return _FORCE_FORWARDING.exists()


def _devices(socket: Socket) -> list[links.Device]:
    return [links.read(body) for body in socket.dump(links.GETLINK, links.everything())]


def _metric(body: bytes) -> int:
    raw = attributes(body[12:]).get(_PRIORITY, bytes(4))  # after the 12 bytes of struct rtmsg
    return int(struct.unpack("=I", raw)[0])
