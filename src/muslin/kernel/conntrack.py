"""Connections that the kernel remembers the way they went before a host port was mapped.

NAT is decided by a connection's first packet.  TCP makes a new connection each
time, but a UDP client that keeps sending from one port keeps its connection
alive, and would go on talking to where the port led before: to nobody, or to
a pod that is gone.  So what is remembered of a mapped UDP port is forgotten
when the mapping comes, changes or goes.

Only connections to the node's own addresses are: others to the same port
number (every pod's DNS queries, for a host port 53) are none of ours.

The kernel walks its whole table for one dump, 10 ms for 262 144 buckets
whatever is in them (6.18), so there is one dump of an IP version per batch of
changes (a filter with both versions is refused).  It filters by port if there
is only one (CTA_FILTER, Linux 5.8; 8476 entries: 15 ms instead of 77); an
older kernel sends all, which does no harm.  It cannot delete by filter: each
entry takes a message of its own.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from errno import EINVAL, ENOENT, EOPNOTSUPP
from ipaddress import ip_address

from muslin.errors import KernelError
from muslin.kernel import codec
from muslin.kernel.netlink import Request, Socket, attribute, attributes, nested, number
from muslin.model import Address
from muslin.plan.diff import Change
from muslin.plan.objects import PODS_SETS, Element

_NETFILTER = 12  # NETLINK_NETFILTER
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*
# linux/netfilter/nfnetlink_conntrack.h
_TUPLE_ORIG, _ID, _FILTER = 1, 12, 25
_IP, _PROTO = 1, 2  # of a tuple
_V4_DST, _V6_DST = 2, 4
_PROTO_NUM, _PROTO_DST_PORT = 1, 3
_FILTER_ORIG, _FILTER_REPLY = 1, 2
_BY_PROTO, _BY_DST_PORT = 1 << 3, 1 << 5  # net/netfilter/nf_conntrack_netlink.c: CTA_FILTER_F_*
_UDP = 17
_FAMILY = {4: 2, 6: 10}

Ports = dict[int, set[Address | None]]  # port → of these addresses of the node; None: of any


def forget(changes: Iterable[Change]) -> None:
    """Forget the UDP connections to every host port among the changes.

    In the namespace of the calling thread.  A kernel that cannot list its
    connections keeps them: they end half a minute after their last packet.
    """
    by_version: dict[int, Ports] = defaultdict(lambda: defaultdict(set))
    for change in changes:
        if isinstance(change.obj, Element):
            for version, port, address in _mapped(change.obj):
                by_version[version][port].add(address)
    if not by_version:
        return
    own = _own_addresses()
    with Socket(protocol=_NETFILTER) as socket:
        doomed: list[Request] = []
        for version, ports in by_version.items():
            try:
                doomed += _remembered(socket, version, ports, own)
            except KernelError as e:
                if e.errno not in {EINVAL, EOPNOTSUPP}:
                    raise
                return
        for answer in socket.send(doomed):
            if answer.errno not in {0, ENOENT}:  # ENOENT: it ended meanwhile
                raise KernelError("delete", "a conntrack entry", answer.errno, answer.detail)


def probe() -> None:
    """Raise KernelError if this kernel cannot list its connections."""
    with Socket(protocol=_NETFILTER) as socket:
        socket.dump(_GET, _header(4) + _filter([1]))


def _mapped(element: Element) -> Iterator[tuple[int, int, Address | None]]:
    """The UDP port that an element maps: IP version, number, address (None: any)."""
    parts = element.item.split(" . ")
    if element.set not in PODS_SETS or "udp" not in parts:
        return
    address = ip_address(parts[0]) if len(parts) == 3 else None
    yield int(element.set[-1]), int(parts[-1]), address


def _own_addresses() -> frozenset[Address]:
    with Socket() as socket:
        raw = (attributes(b[8:]) for b in socket.dump(codec.GETADDR, codec.all_addresses()))
        return frozenset(ip_address(a.get(2) or a[1]) for a in raw if 1 in a or 2 in a)


def _remembered(
    socket: Socket, version: int, ports: Ports, own: frozenset[Address]
) -> Iterator[Request]:
    """The deletions of what goes to one of the ports."""
    header = _header(version)
    for body in socket.dump(_GET, header + _filter(list(ports))):
        found = attributes(body[4:])
        origin = attributes(found[_TUPLE_ORIG])
        proto, ip = attributes(origin[_PROTO]), attributes(origin[_IP])
        raw = ip.get(_V4_DST) or ip.get(_V6_DST)
        if proto.get(_PROTO_NUM) != bytes([_UDP]) or raw is None:
            continue
        port, address = int.from_bytes(proto[_PROTO_DST_PORT]), ip_address(raw)
        wanted = ports.get(port, set())
        if address in wanted or (None in wanted and (address in own or address.is_loopback)):
            name = nested(_TUPLE_ORIG, found[_TUPLE_ORIG]) + attribute(_ID, found[_ID])
            yield Request(_DELETE, 0, header + name)


def _header(version: int) -> bytes:
    return struct.pack("!BBH", _FAMILY[version], 0, 0)  # struct nfgenmsg


def _filter(ports: list[int]) -> bytes:
    proto, flags = attribute(_PROTO_NUM, bytes([_UDP])), _BY_PROTO
    if len(ports) == 1:
        proto += attribute(_PROTO_DST_PORT, struct.pack("!H", ports[0]))
        flags |= _BY_DST_PORT
    chosen = number(_FILTER_ORIG, flags) + number(_FILTER_REPLY, 0)
    return nested(_TUPLE_ORIG, nested(_PROTO, proto)) + nested(_FILTER, chosen)
