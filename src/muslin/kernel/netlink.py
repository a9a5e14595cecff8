"""rtnetlink's transport: requests out, acknowledgements and dumps in.  Knows nothing of objects.

A netlink socket belongs to the network namespace of the thread that made it,
for life; any thread may use it afterwards.  So a namespace is entered for the
socket's creation only (`netns.inside`), 15 µs, and never across a wait.

Why not pyroute2: the agent's main path (one pod's ADD) is 1.3 ms with packed
messages and 4 to 6 ms with pyroute2's encoder, so a packed codec has to exist
anyway, and one codec for everything is one truth to test.  pyroute2 is the
oracle of its tests.

Facts relied upon (include/uapi/linux/netlink.h, net/netlink/af_netlink.c,
Documentation/userspace-api/netlink):

*  The kernel works through everything in one sendmsg() before that returns,
   and goes on after a message it refused: a batch is for requests that do not
   depend on each other, or whose failure makes the later ones fail too.
*  A dump that something changed meanwhile has NLM_F_DUMP_INTR set and may lack
   entries; it is taken again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from errno import EINTR, ENOBUFS, ENODEV

from muslin.errors import KernelError

NLMSG_ERROR, NLMSG_DONE = 2, 3
REQUEST, ACK, DUMP_INTR, DUMP = 0x1, 0x4, 0x10, 0x300
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400
_CAPPED, _ACK_TLVS = 0x100, 0x200  # of an acknowledgement: no payload echoed; attributes follow

_SOL_NETLINK, _SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 270, 32, 33
_ADD_MEMBERSHIP, _CAP_ACK, _EXT_ACK, _STRICT_CHECK = 1, 10, 11, 12
_MESSAGE = 1 << 16  # one read; the kernel's dump messages are at most 32 KiB
# All answers to a batch wait in the receive buffer, 208 KiB by default: an acknowledgement
# takes 0.8 KiB of it, one that describes a device 5.
_BATCH = 32
_ANSWERS = 200  # refusals that fit
_SEND_BUFFER = 100_000  # net.core.wmem_default is 208 KiB, less the kernel's own account
_EVENTS_BUFFER = 4 << 20  # of a subscribed socket: some thousand events while nobody reads
_DUMP_TRIES = 50  # of some milliseconds each; pods come and go meanwhile

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_NESTED = 0x8000
_SIOCGIFINDEX = 0x8933  # linux/sockios.h
_IFREQ = struct.Struct("=16si20x")  # linux/if.h: the name, the index, the rest of the union


@dataclass(frozen=True, slots=True)
class Request:
    """One message: its type, flags beside REQUEST and ACK, and body."""

    type: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What the kernel said to one request: 0 or an errno, its own words, what it echoed."""

    errno: int = 0
    detail: str = ""
    echo: tuple[bytes, ...] = ()


Attributes = dict[int, bytes]


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    size = len(value) + 4
    return _ATTRIBUTE.pack(size, kind) + value + b"\0" * (-size & 3)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def number(kind: int, value: int) -> bytes:
    """A u32 attribute in host order, the usual kind of number in rtnetlink."""
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes) -> Attributes:
    """The attributes in `data`; the last of a kind wins."""
    found: Attributes = {}
    at, last = 0, len(data) - 4
    while at <= last:
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + size]
        at += size + 3 & ~3
    return found


class Socket:
    """A netlink socket in the namespace of the calling thread.  One thread at a time."""

    def __init__(self, groups: Iterable[int] = (), protocol: int = socket.NETLINK_ROUTE) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, protocol)
        for option in (_CAP_ACK, _EXT_ACK, _STRICT_CHECK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.bind((0, 0))
        for group in groups:
            with contextlib.suppress(PermissionError):  # beyond rmem_max: only for the real root
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _EVENTS_BUFFER)
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        self._sequence = 0

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def index(self, name: str) -> int | None:
        """The index of the device with that name, None if there is none (netdevice(7)).

        Any socket answers for its namespace, without RTNL; RTM_GETLINK waits for it.
        """
        try:
            answer = fcntl.ioctl(self._socket, _SIOCGIFINDEX, _IFREQ.pack(name.encode(), 0))
        except OSError as e:
            if e.errno == ENODEV:
                return None
            raise KernelError("find", f"device {name}", e.errno or 0) from e
        found: int = _IFREQ.unpack(answer)[1]
        return found

    def send(self, requests: Sequence[Request]) -> list[Answer]:
        """Send all, in as few batches as fit, and return one answer for each, in order.

        Only a batch's last request asks for an acknowledgement: the kernel
        works in order and tells of a refusal without being asked.
        """
        answers: list[Answer] = []
        for at in range(0, len(requests), _BATCH):
            batch = requests[at : at + _BATCH]
            first = self._sequence + 1
            out = bytearray()
            for request in batch[:-1]:
                self._sequence += 1
                out += _pack(request, REQUEST, self._sequence)
            self._sequence += 1
            out += _pack(batch[-1], REQUEST | ACK, self._sequence)
            self._socket.send(out)
            answers += self._collect(first, len(batch))
        return answers

    def _collect(self, first: int, count: int) -> list[Answer]:
        errors: dict[int, Answer] = {}
        echoes: dict[int, tuple[bytes, ...]] = {}
        while count - 1 not in errors:
            for kind, flags, sequence, body in self._answers():
                at = sequence - first
                if not 0 <= at < count:
                    continue  # of an earlier batch that was given up
                if kind == NLMSG_ERROR:
                    errors[at] = _answer(flags, body, echoes.get(at, ()))
                else:
                    echoes[at] = (*echoes.get(at, ()), body)
        return [errors.get(at) or Answer(echo=echoes.get(at, ())) for at in range(count)]

    def transact(
        self, begin: Request, requests: Sequence[Request], end: Request
    ) -> dict[int, Answer]:
        """Send one nfnetlink batch, all or nothing; the refusals by the requests' numbers.

        -1 stands for the batch as a whole.  Empty means that all is in place:
        the last request's acknowledgement comes after the commit.
        KernelError with EMSGSIZE or ENOBUFS: too many for this socket, and
        nothing is known.
        """
        first = self._sequence + 2
        out = bytearray(_pack(begin, REQUEST, first - 1))
        for at, request in enumerate(requests):
            ack = ACK if at == len(requests) - 1 else 0
            out += _pack(request, REQUEST | ack, first + at)
        self._sequence = first + len(requests)
        out += _pack(end, REQUEST, self._sequence)
        if len(out) > _SEND_BUFFER or len(requests) > _ANSWERS:
            with contextlib.suppress(PermissionError):  # only for the real root
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * len(out))
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1024 * len(requests))
        try:
            self._socket.send(out)
        except OSError as e:
            raise KernelError("ask the kernel", "by netlink", e.errno or 0) from e
        refused: dict[int, Answer] = {}
        while True:
            for kind, flags, sequence, body in self._answers():
                at = sequence - first
                if kind != NLMSG_ERROR or not -1 <= at < len(requests):
                    continue
                answer = _answer(flags, body)
                if answer.errno:
                    refused[at] = answer
                if at in {-1, len(requests) - 1}:
                    return refused

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Every message of a multi-part answer; taken again if it was disturbed."""
        for _ in range(_DUMP_TRIES):
            self._sequence += 1
            self._socket.send(_pack(Request(kind, DUMP, body), REQUEST, self._sequence))
            with contextlib.suppress(_Disturbed):
                return self._collect_dump(self._sequence)
        raise KernelError("list", f"netlink type {kind}", EINTR, "the table never held still")

    def _collect_dump(self, wanted: int) -> list[bytes]:
        bodies: list[bytes] = []
        disturbed = False
        while True:
            for kind, flags, sequence, body in self._answers():
                if sequence != wanted:
                    continue
                disturbed |= bool(flags & DUMP_INTR)
                if kind in {NLMSG_DONE, NLMSG_ERROR}:
                    answer = _answer(flags, body)
                    if answer.errno:
                        raise KernelError("list", "by netlink", answer.errno, answer.detail)
                    if disturbed:
                        raise _Disturbed
                    return bodies
                bodies.append(body)

    def _answers(self) -> Iterator[tuple[int, int, int, bytes]]:
        try:
            yield from self._receive()
        except OSError as e:
            detail = "its answers were lost" if e.errno == ENOBUFS else ""
            raise KernelError("ask the kernel", "by netlink", e.errno or 0, detail) from e

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """The messages of one read: type, flags, sequence, body."""
        data = self._socket.recv(_MESSAGE)
        at = 0
        while at + 16 <= len(data):
            size, kind, flags, sequence, _port = _HEADER.unpack_from(data, at)
            if size < 16:
                return
            yield kind, flags, sequence, data[at + 16 : at + size]
            at += size + 3 & ~3

    def drain(self) -> tuple[list[tuple[int, bytes]], bool]:
        """What has arrived at a subscribed socket, without waiting; and whether some was lost.

        Lost means ENOBUFS: more happened than the buffer holds, and only
        observing again tells what.
        """
        found: list[tuple[int, bytes]] = []
        lost = False
        self._socket.setblocking(False)
        while True:
            try:
                found += [(kind, body) for kind, _, _, body in self._receive()]
            except BlockingIOError:
                return found, lost
            except OSError as e:
                if e.errno != ENOBUFS:
                    raise
                lost = True


class _Disturbed(Exception):
    """A dump overlapped a change."""


def _pack(request: Request, flags: int, sequence: int) -> bytes:
    size = 16 + len(request.body)
    header = _HEADER.pack(size, request.type, request.flags | flags, sequence, 0)
    return header + request.body + b"\0" * (-size & 3)


def _answer(flags: int, body: bytes, echo: tuple[bytes, ...] = ()) -> Answer:
    """Read an acknowledgement (or the end of a dump), with the kernel's words if it has any."""
    code = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
    detail = ""
    if flags & _ACK_TLVS:
        # errno 4, then the request: its header alone (16) when capped or accepted
        skip = 20
        if code and not flags & _CAPPED and len(body) >= 8:
            skip = 4 + (struct.unpack_from("=I", body, 4)[0] + 3 & ~3)
        words = attributes(body[skip:]).get(1)  # NLMSGERR_ATTR_MSG
        if words:
            detail = words.rstrip(b"\0").decode(errors="replace")
    if code and not detail:
        detail = os.strerror(code)
    return Answer(code, detail, echo)
