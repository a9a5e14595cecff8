"""Sockets in namespaces, all from this process: who hears whom, and under which address."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address

from muslin.kernel import netns
from muslin.model import Address

PATIENCE = 3.0  # seconds until silence counts; nothing that works comes near it
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_DO = 2  # IP_PMTUDISC_DO and IPV6_PMTUDISC_DO: DF set, and no larger than the path
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23


def seen_by(server: str, at: Address, client: str) -> Address:
    """Connect from `client` to `at` in `server`: the source address that `server` sees."""
    with contextlib.ExitStack() as stack:
        with netns.inside(server):
            listener = stack.enter_context(socket.socket(FAMILY[at.version]))
            listener.bind((str(at), 0))
            listener.listen()
        listener.settimeout(PATIENCE)
        stack.enter_context(connected(client, at, listener.getsockname()[1]))
        accepted, source = listener.accept()
        accepted.close()
        return ip_address(source[0])


@contextlib.contextmanager
def connected(client: str, to: Address, port: int) -> Iterator[socket.socket]:
    with netns.inside(client):
        sock = socket.socket(FAMILY[to.version])
    with sock:
        sock.settimeout(PATIENCE)
        sock.connect((str(to), port))
        yield sock


class Mailbox:
    """A UDP socket in a namespace; `take` returns what came, in order."""

    def __init__(self, ns: str, at: Address) -> None:
        with netns.inside(ns):
            self._socket = socket.socket(FAMILY[at.version], socket.SOCK_DGRAM)
            self._socket.bind((str(at), 0))
        self._socket.settimeout(PATIENCE)
        self.at = at
        self.port = self._socket.getsockname()[1]

    def __enter__(self) -> Mailbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def take(self) -> bytes:
        return self._socket.recv(65535)


def post(ns: str, source: Address | None, to: Mailbox, data: bytes) -> None:
    """Send one datagram that may not be fragmented, from `source`."""
    version = to.at.version
    with netns.inside(ns), socket.socket(FAMILY[version], socket.SOCK_DGRAM) as sock:
        if version == 4:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DO)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _DO)
        if source is not None:
            sock.bind(_sockaddr(source))
        sock.sendto(data, (str(to.at), to.port))


def _sockaddr(source: Address) -> tuple[object, ...]:
    """A link-local address is bound by its device's index, in the namespace of the moment."""
    text, _, dev = str(source).partition("%")
    return (text, 0, 0, socket.if_nametoindex(dev)) if dev else (text, 0)
