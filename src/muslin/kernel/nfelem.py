"""Pods' elements and limits as hand-packed nfnetlink: 50 µs where libnftables takes 0.5 to 5 ms.

One batch is one transaction.  Each element is a message of its own, so that a
refusal names one.  What the kernel does with them (6.18, by experiment, and
net/netfilter/nf_tables_api.c):

*  The same key with the same data again is success, with other data EEXIST;
   a deletion and an addition in one batch replace it.
*  To delete what is absent is ENOENT and undoes the whole batch.  All refusals
   of a batch are reported, so it is sent once more without those.
   (DESTROYSETELEM would do, from Linux 6.3 on.)
*  A key of several parts has each part padded to four bytes.

Which sets: `plan.objects.PODS_SETS`.  None has intervals, whose elements are
pairs and need the set's whole content to be placed.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from errno import ENOENT, EOPNOTSUPP
from ipaddress import ip_address

from muslin.errors import KernelError
from muslin.kernel.netlink import CREATE, EXCL, Answer, Request, Socket, nested, text
from muslin.kernel.netlink import attribute as attr
from muslin.plan.diff import Change
from muslin.plan.objects import NFT_TABLE, PODS_SETS, SENDERS, Element, Object, Police
from muslin.plan.render import words

NETFILTER = socket.NETLINK_NETFILTER if hasattr(socket, "NETLINK_NETFILTER") else 12
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}

_TABLES = 10  # NFNL_SUBSYS_NFTABLES; linux/netfilter/nfnetlink.h
_BEGIN, _END = 16, 17  # NFNL_MSG_BATCH_*
_NEW, _DELETE = _TABLES << 8 | 12, _TABLES << 8 | 14  # NFT_MSG_NEWSETELEM, _DELSETELEM
_INET = 1  # NFPROTO_INET
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _ELEMENT = 1, 2, 3, 1
_KEY, _DATA, _OBJECT, _VALUE = 1, 2, 9, 1
_NEW_OBJECT, _DELETE_OBJECT = _TABLES << 8 | 18, _TABLES << 8 | 20  # NFT_MSG_NEWOBJ, _DELOBJ
_OBJECT_TABLE, _OBJECT_NAME, _OBJECT_TYPE, _OBJECT_DATA, _IS_LIMIT = 1, 2, 3, 4, 4
_LIMIT_RATE, _LIMIT_UNIT, _LIMIT_BURST, _LIMIT_TYPE, _LIMIT_FLAGS = 1, 2, 3, 4, 5
_TRIES = 3  # sends of one batch: what is absent may become so meanwhile


def packs(obj: Object) -> bool:
    """Whether `apply` can make changes of this object."""
    return isinstance(obj, Police) or (isinstance(obj, Element) and obj.set in PODS_SETS)


def apply(changes: Iterable[Change]) -> None:
    """Make all changes in one transaction, in the namespace of the calling thread."""
    left = [part for change in changes for part in _parts(change)]
    with Socket(protocol=NETFILTER) as sock:
        for _ in range(_TRIES):
            if not left:
                return
            refused = sock.transact(_edge(_BEGIN), [r for _, r in left], _edge(_END))
            for at, answer in sorted(refused.items()):
                if at < 0 or not _is_absent(left[at][1], answer):
                    raise _refused(left[max(at, 0)][0], answer)
            if not refused:
                return
            left = [part for at, part in enumerate(left) if at not in refused]
    raise KernelError("change", f"elements of nft table {NFT_TABLE}", ENOENT)


def pack(item: str) -> bytes:
    """A key or the data of an element, from its text."""
    return b"".join(_padded(_part(p)) for p in item.split(" . "))


def _parts(change: Change) -> list[tuple[Change, Request]]:
    obj = change.obj
    if isinstance(obj, Police):
        return _police(change, obj)
    assert isinstance(obj, Element)
    parts = []
    if change.verb != "add":
        parts.append((change, Request(_DELETE, 0, _message(obj, data=False))))
    if change.verb != "remove":
        parts.append((change, Request(_NEW, CREATE, _message(obj, data=True))))
    return parts


def _police(change: Change, obj: Police) -> list[tuple[Change, Request]]:
    """The limit before the element that points to it; both go the other way round."""
    name = text(_OBJECT_TABLE, NFT_TABLE) + text(_OBJECT_NAME, obj.name)
    name += attr(_OBJECT_TYPE, struct.pack("!I", _IS_LIMIT))
    head, device = struct.pack("!BBH", _INET, 0, 0), obj.name.encode().ljust(16, b"\0")
    parts = []
    if change.verb != "add":
        parts.append(Request(_DELETE, 0, _in_set(SENDERS, _key(device))))
        parts.append(Request(_DELETE_OBJECT, 0, head + name))
    if change.verb != "remove":
        limit = nested(
            _OBJECT_DATA,
            attr(_LIMIT_RATE, struct.pack("!Q", obj.rate)),
            attr(_LIMIT_UNIT, struct.pack("!Q", 1)),  # a second
            attr(_LIMIT_BURST, struct.pack("!I", obj.burst)),
            attr(_LIMIT_TYPE, struct.pack("!I", 1)),  # bytes
            attr(_LIMIT_FLAGS, struct.pack("!I", 1)),  # over, not until
        )
        parts.append(Request(_NEW_OBJECT, CREATE | EXCL, head + name + limit))
        pointer = _key(device) + text(_OBJECT, obj.name)
        parts.append(Request(_NEW, CREATE, _in_set(SENDERS, pointer)))
    return [(change, part) for part in parts]


def _message(element: Element, *, data: bool) -> bytes:
    inner = _key(pack(element.item))
    if data and element.data is not None:
        inner += nested(_DATA, attr(_VALUE, pack(element.data)))
    return _in_set(element.set, inner)


def _key(packed: bytes) -> bytes:
    return nested(_KEY, attr(_VALUE, packed))


def _in_set(name: str, inner: bytes) -> bytes:
    return (
        struct.pack("!BBH", _INET, 0, 0)
        + text(_LIST_TABLE, NFT_TABLE)
        + text(_LIST_SET, name)
        + nested(_LIST_ELEMENTS, nested(_ELEMENT, inner))
    )


def _part(word: str) -> bytes:
    if word in PROTOCOLS:
        return bytes([PROTOCOLS[word]])
    if word.isdigit():
        return struct.pack("!H", int(word))  # inet_service
    return ip_address(word).packed


def _padded(part: bytes) -> bytes:
    return part + b"\0" * (-len(part) & 3)


def _edge(kind: int) -> Request:
    return Request(kind, 0, struct.pack("!BBH", 0, 0, _TABLES))


def _is_absent(request: Request, answer: Answer) -> bool:
    return request.type in {_DELETE, _DELETE_OBJECT} and answer.errno == ENOENT


def _refused(change: Change, answer: Answer) -> KernelError:
    hint = ""
    if answer.errno == ENOENT and not isinstance(change.obj, Police):
        hint = "the node's nft table is not there yet: ask again, and see `muslin status`"
    elif answer.errno in {ENOENT, EOPNOTSUPP}:
        hint = "the node's nft table is not there yet, or try `modprobe nft_limit`"
    return KernelError(change.verb, words(change.obj), answer.errno, answer.detail, hint=hint)
