"""Packets between endpoints of a lab, sent and received by this one process.

A socket belongs to the namespace it was made in for as long as it lives
(socket(2) notes it; setns(2) moves the thread, not its sockets).  So one
process enters every namespace once, makes its sockets there, and then serves
and asks from all of them at once in a single loop: hundreds of pairs in the
time of one, and not one process started.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Literal

from muslin.kernel import netns
from muslin.model import Address

PATIENCE = 5.0  # seconds for what should get through: a lost SYN is sent again after 1, 3
ANSWER = 4096  # bytes of a server's answer: full-sized packets, so that a wrong MTU shows
QUIET = 1.5  # seconds for what should not: the first SYN and its first repetition
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
Kind = Literal["pod", "node", "member", "static", "outside"]

# include/uapi/linux/in.h, in6.h: Python's socket module does not name these.
_TRANSPARENT = {4: (socket.IPPROTO_IP, 19), 6: (socket.IPPROTO_IPV6, 75)}
_RECVERR = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}
_EXTENDED_ERROR = struct.Struct(
    "=IBBBBII"
)  # linux/errqueue.h: errno origin type code pad info data
_ICMP_TYPES = {4: {3: "unreachable", 11: "loop"}, 6: {1: "unreachable", 3: "loop"}}
_PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}  # type and code: somebody is there after all


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Something with addresses in a namespace."""

    name: str
    kind: Kind
    netns: str  # path
    addresses: tuple[Address, ...]
    node: str = ""  # of a pod: the node it is on

    def address(self, version: int) -> Address | None:
        """The address of that IP version, if there is one."""
        return next((a for a in self.addresses if a.version == version), None)


@dataclass(frozen=True, slots=True)
class Pair:
    """One question: does `source` reach `target` over this IP version?"""

    source: Endpoint
    target: Endpoint
    version: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of it: the address the target saw and the one the source sent from, or an error."""

    seen: Address | None = None
    own: Address | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Datagram:
    """One UDP datagram with a source address that may not be the sender's own."""

    source: Endpoint
    claimed: Address
    target: Endpoint


# ── TCP: who am I? ──────────────────────────────────────────────────────────────────────────────


def connect_all(pairs: Sequence[Pair], *, hopeless: Iterable[Pair] = ()) -> dict[Pair, Reply]:
    """Connect every pair at the same time; what is `hopeless` is waited for only shortly."""
    unlikely = set(hopeless)
    asker = _Asker()
    with asker.sockets:
        ports = asker.serve({(p.target, p.version) for p in pairs})
        for pair in pairs:
            asker.connect(pair, ports[pair.target, pair.version])
        start = time.monotonic()
        while asker.open:
            waited = time.monotonic() - start
            if waited > PATIENCE or (waited > QUIET and asker.open.keys() <= unlikely):
                break
            asker.turn()
    late = {p: Reply(error=asker.so_far(p)) for p in asker.open}
    return asker.replies | late


class _Asker:
    """All sockets of one round, and what has come of them."""

    def __init__(self) -> None:
        self.sockets = ExitStack()
        self.selector = self.sockets.enter_context(selectors.DefaultSelector())
        self.open: dict[Pair, socket.socket] = {}
        self.heard: dict[Pair, bytes] = {}
        self.replies: dict[Pair, Reply] = {}

    def serve(self, wanted: Iterable[tuple[Endpoint, int]]) -> dict[tuple[Endpoint, int], int]:
        ports = {}
        for endpoint, version in wanted:
            server = self.sockets.enter_context(_tcp(endpoint, version))
            if version == 6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            server.bind(("", 0))
            server.listen(256)
            ports[endpoint, version] = server.getsockname()[1]
            self._on(server, selectors.EVENT_READ, partial(_say_who, server))
        return ports

    def connect(self, pair: Pair, port: int) -> None:
        client = self.sockets.enter_context(_tcp(pair.source, pair.version))
        self.open[pair] = client
        try:
            client.connect((str(pair.target.address(pair.version)), port))
        except BlockingIOError:
            pass
        except OSError as e:  # the source's own kernel knows no way
            self._close(pair, Reply(error=_why(e)))
            return
        self._on(client, selectors.EVENT_READ, partial(self._hear, pair))

    def turn(self) -> None:
        for key, _ in self.selector.select(0.05):
            call: Callable[[], None] = key.data
            call()

    def so_far(self, pair: Pair) -> str:
        """What is wrong with a pair that has not come to an end."""
        if heard := self.heard.get(pair):
            return f"connected, but {len(heard)} of {ANSWER} bytes arrived: is the MTU too large?"
        return "no answer"

    def _hear(self, pair: Pair) -> None:
        client = self.open[pair]
        try:
            own = client.getsockname()[0]
            part = client.recv(ANSWER)
        except OSError as e:
            reply = Reply(error=_why(e))
        else:
            heard = self.heard[pair] = self.heard.get(pair, b"") + part
            if part and len(heard) < ANSWER:
                return  # there is more to come
            whole = len(heard) == ANSWER
            seen = ip_address(heard.split()[0].decode()) if whole else None
            reply = Reply(seen=seen, own=ip_address(own), error="" if whole else "closed early")
        self.selector.unregister(client)
        self._close(pair, reply)

    def _close(self, pair: Pair, reply: Reply) -> None:
        self.replies[pair] = reply
        self.open.pop(pair).close()

    def _on(self, sock: socket.socket, event: int, call: Callable[[], None]) -> None:
        self.selector.register(sock, event, call)


def _say_who(server: socket.socket) -> None:
    """Tell one client which address it came from."""
    try:
        client, peer = server.accept()
    except BlockingIOError:  # it has gone away again
        return
    with client:
        client.sendall(peer[0].encode().ljust(ANSWER))


def _tcp(endpoint: Endpoint, version: int) -> socket.socket:
    with netns.inside(endpoint.netns):
        made = socket.socket(FAMILY[version], socket.SOCK_STREAM)
    made.setblocking(False)
    return made


# ── UDP: under a false name ─────────────────────────────────────────────────────────────────────


def send_all(datagrams: Sequence[Datagram], *, honest: Iterable[Datagram]) -> set[Datagram]:
    """Send each; return those that arrived.

    `honest` ones should arrive: they are repeated until they have, and only
    then is the silence of the others worth anything.
    """
    expected = set(honest)
    arrived: set[Datagram] = set()
    tokens = {os.urandom(8): d for d in datagrams}
    with ExitStack() as sockets:
        receivers = {
            (d.target, d.claimed.version): sockets.enter_context(_udp(d.target, d.claimed.version))
            for d in datagrams
        }
        senders = {
            token: sockets.enter_context(_udp(d.source, d.claimed.version, d.claimed))
            for token, d in tokens.items()
        }
        ends = {key: receiver.getsockname()[1] for key, receiver in receivers.items()}
        start = time.monotonic()
        while (waited := time.monotonic() - start) < PATIENCE:
            for token, datagram in tokens.items():
                if datagram not in arrived:
                    version = datagram.claimed.version
                    to = (str(datagram.target.address(version)), ends[datagram.target, version])
                    _try_send(senders[token], token, to)
            time.sleep(0.1)
            for receiver in receivers.values():
                arrived |= {tokens[t] for t in _drain(receiver) if t in tokens}
            # At least three rounds, so that one lost packet does not look like a refusal.
            if waited > 0.3 and expected <= arrived:
                break
    return arrived


def _try_send(sender: socket.socket, token: bytes, to: tuple[str, int]) -> None:
    try:
        sender.sendto(token, to)
    except OSError as e:
        # An ICMP error for the datagram before arrives here; a refusal is what is looked for.
        if e.errno not in {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNREFUSED,
                           errno.EACCES, errno.EPERM}:  # fmt: skip
            raise


def _drain(receiver: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(receiver.recv(64))
        except BlockingIOError:
            return found


def _udp(endpoint: Endpoint, version: int, source: Address | None = None) -> socket.socket:
    with netns.inside(endpoint.netns):
        made = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
    made.setblocking(False)
    if source is not None:
        # Not FREEBIND: with it bind() succeeds, but the route lookup of sendto() still refuses a
        # stranger's address (net/ipv4/route.c: ip_route_output_key_hash_rcu).
        made.setsockopt(*_TRANSPARENT[version], 1)
        made.bind((str(source), 0))
    else:
        made.bind(("", 0))
    return made


# ── UDP: is nobody there? ───────────────────────────────────────────────────────────────────────


def knock(targets: Mapping[Address, Endpoint]) -> dict[Address, str]:
    """What each address answers to a datagram from that endpoint.

    `unreachable` (nobody has it), `loop` (it went round until its TTL was used
    up), `somebody` (a host is there) or `silence`.
    """
    answers = dict.fromkeys(targets, "silence")
    with ExitStack() as sockets:
        knocking = {}
        for address, source in targets.items():
            sock = sockets.enter_context(_udp(source, address.version))
            sock.setsockopt(*_RECVERR[address.version], 1)
            sock.connect((str(address), 9))  # discard (RFC 863)
            knocking[address] = sock
        start = time.monotonic()
        while knocking and time.monotonic() - start < QUIET:
            for sock in knocking.values():
                _try_send(sock, b"", sock.getpeername()[:2])
            time.sleep(0.1)
            for address in [*knocking]:
                if heard := _error(knocking[address], address.version):
                    answers[address] = heard
                    del knocking[address]
    return answers


def _error(sock: socket.socket, version: int) -> str:
    """The ICMP error at the head of the socket's queue, in our words; "" if there is none."""
    try:
        _, controls, _, _ = sock.recvmsg(64, 256, socket.MSG_ERRQUEUE)
    except BlockingIOError:
        return ""
    for level, kind, data in controls:
        if (level, kind) == _RECVERR[version]:
            _, _, icmp, code, *_ = _EXTENDED_ERROR.unpack_from(data)
            if (icmp, code) == _PORT_UNREACHABLE[version]:
                return "somebody"
            return _ICMP_TYPES[version].get(icmp, "unreachable")
    return ""


def _why(e: OSError) -> str:
    return (e.strerror or str(e)).lower()
