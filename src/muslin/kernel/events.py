"""Learn that somebody changed links, addresses or routes, so as to observe again soon.

Events say *that* something happened, never what to do: order and completeness
are not promised, and when more happens than the socket holds the kernel drops
them (ENOBUFS).  The answer to every event is one observation and one diff.

IPv4 routes that vanish because a device went down or lost its address are not
announced (net/ipv4/fib_trie.c: fib_table_flush() is silent), hence the
subscription to links and addresses too.
"""

from __future__ import annotations

from muslin.kernel import codec, links
from muslin.kernel.netlink import Socket
from muslin.plan.objects import PROTOCOL, Veth

# RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE of linux/rtnetlink.h
_GROUPS = (1, 5, 7, 9, 11)


class Events:
    """A subscription in the namespace of the thread that makes it; for `loop.add_reader`.

    Our own changes are reported as well: the pass they cause changes nothing.
    """

    def __init__(self) -> None:
        self._socket = Socket(_GROUPS)

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> bool:
        """Take everything that has arrived, without waiting: is there a reason to look again?"""
        messages, lost = self._socket.drain()
        return lost or any(_matters(kind, body) for kind, body in messages)


def _matters(kind: int, body: bytes) -> bool:
    if kind in {links.NEWLINK, links.DELLINK}:
        device = links.read(body)
        # Other people's pairs come and go with their containers.
        return device.is_ours or device.kind != Veth()
    if kind in {codec.NEWROUTE, codec.DELROUTE}:
        ours = codec.read_route(None, body, {}, PROTOCOL) is not None
        anyones = codec.read_route(None, body, {}, protocol=0)
        # A new default route may mean a new uplink.
        return ours or (anyones is not None and anyones.dst.prefixlen == 0)
    return kind in {codec.NEWADDR, codec.DELADDR}
