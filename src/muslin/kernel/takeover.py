"""What flanneld left in this node's kernel, made ours where it is what we want anyway.

Nothing is removed here, and no packet is lost: the device stays, with its MAC
and address, and gets our mark; routes are replaced in place by themselves,
with our protocol number.  From then on they are ours to compare and to prune,
like all the rest.  Only

*  a VXLAN device of a planned one's name, VNI, port and local address; any
   other is a stranger in its place, which the kernel's refusal tells of;
*  routes by a next hop into a range of pods of which the plan speaks, of the
   protocol that flanneld's have (vishvananda/netlink: RTPROT_BOOT).

The bridge that flannel's pods hang on, cni0, is left as it is.  Its pods take
the node's whole range to be on their link, and ask there for pods of ours:
with proxy_arp the bridge answers (after up to 0.8 s, neigh/cni0/proxy_delay,
once for each).  IPv6 has nothing of the kind for a whole range.
"""

from __future__ import annotations

from collections.abc import Iterator
from errno import EAFNOSUPPORT

from muslin.errors import KernelError
from muslin.kernel import codec, links, sysctl
from muslin.kernel.netlink import Request, Socket
from muslin.plan.objects import TABLE_MAIN, Link, Plan, Route, Vxlan

BRIDGE = "cni0"  # of the plugin `flannel`, unless its delegate is told otherwise
_BOOT = 3  # RTPROT_BOOT, linux/rtnetlink.h
_PROXY_ARP = f"net/ipv4/conf/{BRIDGE}/proxy_arp"


def take_over(plan: Plan) -> list[str]:
    """Mark what is to be ours, in the namespace of the calling thread; say what that was.

    Idempotent, and nothing on a machine that flannel never was on.  A refusal
    is a KernelError.
    """
    with Socket() as socket:
        devices = [links.read(body) for body in socket.dump(links.GETLINK, links.everything())]
        wanted = {o.name: o for o in plan if isinstance(o, Link) and isinstance(o.kind, Vxlan)}
        done = []
        for device in devices:
            link = wanted.get(device.name)
            if link is not None and not device.is_ours and device.kind == link.kind:
                _send(socket, device.name, links.configure(link, device))
                done.append(f"device {device.name}")
        names = {d.index: d.name for d in devices}
        indices = {d.name: d.index for d in devices}
        for route in _routes(socket, names, plan):
            again = codec.put(route, indices.__getitem__, replace=True)
            _send(socket, f"route {route.dst}", [again])
            done.append(f"route {route.dst} via {route.via}")
    if any(d.name == BRIDGE for d in devices) and sysctl.read(_PROXY_ARP) == "0":
        sysctl.write(_PROXY_ARP, "1")
        done.append(f"{BRIDGE}: proxy_arp")
    return done


def _routes(socket: Socket, names: codec.Names, plan: Plan) -> Iterator[Route]:
    """flanneld's routes to other nodes' pods."""
    ranges = [o.dst for o in plan if isinstance(o, Route) and o.dev is None]  # plan/node.py: base
    for version in (4, 6):
        for body in socket.dump(codec.GETROUTE, codec.routes_of(version, _BOOT)):
            route = codec.read_route(None, body, names, _BOOT)
            if route is None or route.via is None or route.dev not in names.values():
                continue
            if route.table == TABLE_MAIN and any(
                r.version == version
                and route.dst.prefixlen >= r.prefixlen
                and route.dst.network_address in r
                for r in ranges
            ):
                yield route


def _send(socket: Socket, what: str, requests: list[Request]) -> None:
    for answer in socket.send(requests):
        if answer.errno and answer.errno != EAFNOSUPPORT:  # no IPv6 (kernel/links.py)
            raise KernelError("take over", what, answer.errno, answer.detail)
