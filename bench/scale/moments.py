"""When something was there: a route in the kernel, by its own notification; a row in node.db.

Both watch in a thread while their block runs; what they found is filled in by its end.
"""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from muslin.kernel import netns

_NEWROUTE, _DST, _GROUP = 24, 1, 1 << 6  # RTM_NEWROUTE, RTA_DST, RTMGRP_IPV4_ROUTE
_RCVBUFFORCE = 33  # SO_RCVBUFFORCE, which `socket` does not name
_HEADERS = 28  # struct nlmsghdr 16, struct rtmsg 12

Moments = dict[str, float]


@contextlib.contextmanager
def routes(namespace: str) -> Iterator[Moments]:
    """IPv4 routes that are added in a namespace: prefix → when first."""
    with netns.inside(namespace):
        listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    heard: list[tuple[bytes, float]] = []

    def listen(over: threading.Event) -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                data = listener.recv(1 << 16)
                heard.append((data, time.monotonic()))

    with listener:
        listener.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 16 << 20)
        listener.bind((0, _GROUP))
        listener.settimeout(0.2)
        found: Moments = {}
        with _beside(listen):
            yield found
    for data, at in heard:
        for prefix in _new_routes(data):
            found.setdefault(prefix, at)


def _new_routes(data: bytes) -> Iterator[str]:
    """The new IPv4 routes in what a netlink socket read."""
    while len(data) >= _HEADERS:
        length, kind = struct.unpack_from("=IH", data)
        family, bits = struct.unpack_from("=BB", data, 16)
        at = _HEADERS
        while kind == _NEWROUTE and family == socket.AF_INET and at + 4 <= length:
            size, name = struct.unpack_from("=HH", data, at)
            if name == _DST:
                yield f"{socket.inet_ntoa(data[at + 4 : at + 8])}/{bits}"
            at += max((size + 3) & ~3, 4)
        data = data[max((length + 3) & ~3, 16) :]


@contextlib.contextmanager
def rows(database: Path) -> Iterator[Moments]:
    """Pods with wishes that appear in node.db: name → when, to a millisecond."""
    found: Moments = {}

    def look(over: threading.Event) -> None:
        db = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        version = -1
        with contextlib.closing(db):
            while not over.wait(0.001):
                now = db.execute("PRAGMA data_version").fetchone()[0]
                if now != version:
                    version, at = now, time.monotonic()
                    for (name,) in db.execute("SELECT name FROM pod WHERE wishes != ''"):
                        found.setdefault(name, at)

    with _beside(look):
        yield found


@contextlib.contextmanager
def _beside(what: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run it in a thread until the block ends, which it is told by an event."""
    over = threading.Event()
    thread = threading.Thread(target=what, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
