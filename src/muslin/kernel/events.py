"""Learn that somebody changed links, addresses or routes, so as to observe again soon.

Events say *that* something happened, never what to do: completeness is not
promised, and when more happens than the socket holds the kernel drops them
(ENOBUFS).  The answer to an event is one observation and one diff, unless it
says of a route of ours what its reader knows: our own changes come back here.

IPv4 routes that vanish because a device went down or lost its address are not
announced (net/ipv4/fib_trie.c: fib_table_flush() is silent), hence the
subscription to links and addresses too.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from muslin.kernel import codec, links
from muslin.kernel.netlink import Socket
from muslin.plan.objects import PROTOCOL, Route, Veth

# RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE of linux/rtnetlink.h
_GROUPS = (1, 5, 7, 9, 11)


@dataclass(slots=True)
class News:
    """What matters of what happened; nothing is false."""

    other: bool = False  # something beside the routes
    routes: dict[tuple[object, ...], tuple[Route, bool]] = field(default_factory=dict)
    """Of our mark, by slot: what was said of it last, and whether it is there."""

    def add(self, later: News) -> None:
        """Take in what happened after it."""
        self.other |= later.other
        self.routes |= later.routes

    def __bool__(self) -> bool:
        return self.other or bool(self.routes)


class Events:
    """A subscription in the namespace of the thread that makes it; for `loop.add_reader`.

    Our own changes are reported as well.
    """

    def __init__(self) -> None:
        self._socket = Socket(_GROUPS)
        self._names: dict[int, str] = {}  # of devices, until one comes, goes or is renamed

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> News:
        """Take everything that has arrived, without waiting.  In the thread that made it."""
        messages, lost = self._socket.drain()
        news = News(other=lost)
        if lost or any(kind in {links.NEWLINK, links.DELLINK} for kind, _ in messages):
            self._names = {}
        for kind, body in messages:
            if kind in {codec.NEWROUTE, codec.DELROUTE}:
                self._names = self._names or dict(socket.if_nameindex())
                _hear_route(news, kind, body, self._names)
            else:
                news.other |= _matters(kind, body)
        return news


def _hear_route(news: News, kind: int, body: bytes, names: Mapping[int, str]) -> None:
    route = codec.read_route(None, body, names, PROTOCOL)
    if route is not None:
        news.routes[route.key] = (route, kind == codec.NEWROUTE)
        return
    anyones = codec.read_route(None, body, names, protocol=0)
    # A new default route may mean a new uplink.
    news.other |= anyones is not None and anyones.dst.prefixlen == 0


def _matters(kind: int, body: bytes) -> bool:
    if kind in {links.NEWLINK, links.DELLINK}:
        device = links.read(body)
        # Other people's pairs come and go with their containers.
        return device.is_ours or device.kind != Veth()
    return kind in {codec.NEWADDR, codec.DELADDR}
