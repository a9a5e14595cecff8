"""Addresses, neighbours, FDB entries, routes and rules ↔ their rtnetlink messages.

Pure: an object and device indices in, one message out, and back.  Links have
a module of their own.  Numbers are those of linux/rtnetlink.h, if_addr.h,
neighbour.h and fib_rules.h.

What the kernel does with them (6.18, by experiment):

*  An IPv6 route is replaced in place whatever it was and becomes (unreachable,
   on-link, by a next hop), although IPv6 keeps several routes of one prefix.
*  A deletion that names the protocol only matches routes of that protocol, so
   a stranger's route for the same prefix cannot be hit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_interface, ip_network

from muslin.kernel import tc
from muslin.kernel.netlink import (
    CREATE,
    EXCL,
    REPLACE,
    Attributes,
    Request,
    attribute,
    attributes,
    number,
)
from muslin.model import Address, Prefix
from muslin.plan.objects import PROTOCOL, Addr, Fdb, Neigh, Object, Route, Rule, Shaper

NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWRULE, DELRULE, GETRULE = 32, 33, 34

_FAMILY = {4: 2, 6: 10}
_VERSION = {2: 4, 10: 6}
BRIDGE = 7  # AF_BRIDGE: what an FDB entry's family is

_ADDR = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_NEIGH = struct.Struct("=B3xiHBB")  # family, index, state, flags, type
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type, flags
_RULE = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, 0, 0, action, flags

_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_NODAD, _PERMANENT_ADDRESS = 0x02, 0x80
# IFA_F_DADFAILED, _DEPRECATED and, for IPv6 only (IPv4: _SECONDARY), _TEMPORARY
_UNFIT = {4: 0x08 | 0x20, 6: 0x08 | 0x20 | 0x01}
_NDA_DST, _NDA_LLADDR = 1, 2
_PERMANENT, _SELF = 0x80, 0x02  # NUD_PERMANENT, NTF_SELF
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 7, 9, 15
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_HOST, _SCOPE_NOWHERE = 0, 253, 254, 255
_UNICAST, _UNREACHABLE = 1, 7
_ONLINK, _CLONED = 0x4, 0x200  # RTNH_F_ONLINK; RTM_F_CLONED: the IPv6 route cache
_FRA_SRC, _FRA_PRIORITY, _FRA_TABLE, _FRA_FWMASK, _FRA_PROTOCOL = 2, 6, 15, 16, 21
_TO_TABLE = 1  # FR_ACT_TO_TBL

Index = Callable[[str], int]  # a device's index by its name; raises if there is none
Names = Mapping[int, str]


def put(obj: Object, index: Index, *, replace: bool) -> Request:
    """The message that makes `obj`, over what is in its slot only if `replace`."""
    flags = CREATE | (REPLACE if replace else EXCL)
    match obj:
        case Addr():
            return Request(NEWADDR, flags, _addr(obj, index))
        case Neigh():
            body = _neigh(obj, index) + attribute(_NDA_LLADDR, _mac(obj.mac))
            return Request(NEWNEIGH, flags, body)
        case Fdb():
            return Request(NEWNEIGH, flags, _fdb(obj, index))
        case Route():
            return Request(NEWROUTE, flags, _route(obj, index))
        case Shaper():
            return tc.put(obj, index, replace=replace)
        case Rule():
            # The kernel knows no replacing of rules, and the key is the whole rule.
            return Request(NEWRULE, CREATE | EXCL, _rule(obj))
        case _:
            raise AssertionError(f"{type(obj).__name__} is no rtnetlink object")


def drop(obj: Object, index: Index) -> Request:
    """The message that takes `obj` away."""
    match obj:
        case Addr():
            return Request(DELADDR, 0, _addr(obj, index))
        case Neigh():
            return Request(DELNEIGH, 0, _neigh(obj, index))
        case Fdb():
            return Request(DELNEIGH, 0, _fdb(obj, index))
        case Route():
            scope = _SCOPE_NOWHERE  # any, in IPv4; IPv6 has no scopes
            kind = _UNICAST if obj.dev else _UNREACHABLE
            body = _route_header(obj, scope, kind, 0) + _route_slot(obj)
            if obj.dev:
                body += number(_RTA_OIF, index(obj.dev))
            return Request(DELROUTE, 0, body)
        case Shaper():
            return tc.drop(obj, index)
        case Rule():
            return Request(DELRULE, 0, _rule(obj))
        case _:
            raise AssertionError(f"{type(obj).__name__} is no rtnetlink object")


def ask_neigh(obj: Neigh, index: Index) -> Request:
    """Ask for one neighbour, whoever made it."""
    body = _NEIGH.pack(_FAMILY[obj.address.version], index(obj.dev), 0, 0, 0)
    return Request(GETNEIGH, 0, body + attribute(_NDA_DST, obj.address.packed))


def all_addresses() -> bytes:
    """The body of a dump of every address."""
    return _ADDR.pack(0, 0, 0, 0, 0)


def all_neighbours() -> bytes:
    """The body of a dump of every neighbour of both IP versions."""
    return _NEIGH.pack(0, 0, 0, 0, 0)


def fdb_of(index: int) -> bytes:
    """The body of a dump of one device's FDB."""
    return _NEIGH.pack(BRIDGE, index, 0, 0, 0)


def routes_of(version: int, protocol: int = PROTOCOL) -> bytes:
    """The body of a dump of one protocol's routes; the kernel filters (0: no filter)."""
    return _ROUTE.pack(_FAMILY[version], 0, 0, 0, 0, protocol, 0, 0, 0)


def all_rules() -> bytes:
    """The body of a dump of every rule of both IP versions."""
    return _RULE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)


def read_addr(ns: str | None, body: bytes, names: Names, *, lasting: bool = True) -> Addr | None:
    """The address in an RTM_NEWADDR message, if it is one that people or programs gave.

    Not the kernel's own loopback and IPv6 link-local ones, which no plan has;
    and unless `lasting` is false, none with a lifetime (DHCP, router
    advertisements), of which even then temporary, deprecated and refused ones
    do not count.
    """
    family, length, flags, _scope, index = _ADDR.unpack_from(body)
    found = attributes(body[_ADDR.size :])
    raw = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    if family not in _VERSION or raw is None or index not in names:
        return None
    if _IFA_FLAGS in found:
        flags = struct.unpack("=I", found[_IFA_FLAGS])[0]
    address = ip_address(raw)
    if address.is_loopback or (address.version == 6 and address.is_link_local):
        return None
    if not flags & _PERMANENT_ADDRESS and (lasting or flags & _UNFIT[address.version]):
        return None
    return Addr(ns=ns, dev=names[index], address=ip_interface((raw, length)))


def read_neigh(ns: str | None, body: bytes, names: Names) -> Neigh | None:
    """The neighbour in an RTM_NEWNEIGH message, if it is permanent."""
    family, index, state, _flags, _type = _NEIGH.unpack_from(body)
    found = attributes(body[_NEIGH.size :])
    if family not in _VERSION or index not in names or not state & _PERMANENT:
        return None
    address, mac = ip_address(found[_NDA_DST]), found.get(_NDA_LLADDR, b"")
    return Neigh(ns=ns, dev=names[index], address=address, mac=mac.hex(":"))


def read_fdb(ns: str | None, body: bytes, names: Names) -> Fdb | None:
    """The FDB entry in an RTM_NEWNEIGH message, if it has an outer destination."""
    family, index, _state, _flags, _type = _NEIGH.unpack_from(body)
    found = attributes(body[_NEIGH.size :])
    if family != BRIDGE or index not in names or _NDA_DST not in found:
        return None
    mac, dst = found[_NDA_LLADDR].hex(":"), ip_address(found[_NDA_DST])
    return Fdb(ns=ns, dev=names[index], mac=mac, dst=dst)


def read_route(ns: str | None, body: bytes, names: Names, protocol: int = PROTOCOL) -> Route | None:
    """The route in an RTM_NEWROUTE message, if it is of that protocol (0: any)."""
    family, length, _src, _tos, table, owner, _scope, kind, flags = _ROUTE.unpack_from(body)
    if family not in _VERSION or flags & _CLONED or (protocol and owner != protocol):
        return None
    found = attributes(body[_ROUTE.size :])
    if _RTA_TABLE in found:
        table = struct.unpack("=I", found[_RTA_TABLE])[0]
    dev = None
    if kind != _UNREACHABLE:
        # Several next hops, or a blackhole: not one of a plan's routes, and equal to none.
        dev = "?" if kind != _UNICAST or _RTA_MULTIPATH in found else _device(found, names)
    return Route(
        ns=ns,
        dst=_prefix(family, found.get(_RTA_DST), length),
        via=_address(found.get(_RTA_GATEWAY)),
        dev=dev,
        onlink=bool(flags & _ONLINK),
        src=_address(found.get(_RTA_PREFSRC)),
        table=table,
    )


def read_rule(ns: str | None, body: bytes) -> Rule | None:
    """The rule in an RTM_NEWRULE message, if it is ours."""
    family, _dst, length, _tos, table, _, _, _action, _flags = _RULE.unpack_from(body)
    found = attributes(body[_RULE.size :])
    if family not in _VERSION or found.get(_FRA_PROTOCOL) != bytes([PROTOCOL]):
        return None
    if _FRA_TABLE in found:
        table = struct.unpack("=I", found[_FRA_TABLE])[0]
    priority = struct.unpack("=I", found.get(_FRA_PRIORITY, bytes(4)))[0]
    unless = struct.unpack("=I", found.get(_FRA_FWMASK, bytes(4)))[0]
    src = _prefix(family, found.get(_FRA_SRC), length)
    return Rule(ns=ns, src=src, table=table, priority=priority, unless=unless)


def _addr(obj: Addr, index: Index) -> bytes:
    address = obj.address
    flags = _NODAD if address.version == 6 else 0
    scope = _SCOPE_HOST if address.is_loopback else _SCOPE_UNIVERSE
    length = address.network.prefixlen
    head = _ADDR.pack(_FAMILY[address.version], length, flags, scope, index(obj.dev))
    raw = address.packed
    return head + attribute(_IFA_LOCAL, raw) + attribute(_IFA_ADDRESS, raw)


def _neigh(obj: Neigh, index: Index) -> bytes:
    head = _NEIGH.pack(_FAMILY[obj.address.version], index(obj.dev), _PERMANENT, 0, 0)
    return head + attribute(_NDA_DST, obj.address.packed)


def _fdb(obj: Fdb, index: Index) -> bytes:
    head = _NEIGH.pack(BRIDGE, index(obj.dev), _PERMANENT, _SELF, 0)
    return head + attribute(_NDA_LLADDR, _mac(obj.mac)) + attribute(_NDA_DST, obj.dst.packed)


def _route(obj: Route, index: Index) -> bytes:
    on_link = obj.dev is not None and obj.via is None
    scope = _SCOPE_LINK if on_link and obj.dst.version == 4 else _SCOPE_UNIVERSE
    kind = _UNICAST if obj.dev else _UNREACHABLE
    body = _route_header(obj, scope, kind, _ONLINK if obj.onlink else 0) + _route_slot(obj)
    if obj.via is not None:
        body += attribute(_RTA_GATEWAY, obj.via.packed)
    if obj.dev is not None:
        body += number(_RTA_OIF, index(obj.dev))
    if obj.src is not None:
        body += attribute(_RTA_PREFSRC, obj.src.packed)
    return body


def _route_header(obj: Route, scope: int, kind: int, flags: int) -> bytes:
    family, length = _FAMILY[obj.dst.version], obj.dst.prefixlen
    # The table is 32 bits wide in RTA_TABLE; 0 here (RT_TABLE_UNSPEC) defers to it.
    return _ROUTE.pack(family, length, 0, 0, 0, PROTOCOL, scope, kind, flags)


def _route_slot(obj: Route) -> bytes:
    dst = attribute(_RTA_DST, obj.dst.network_address.packed) if obj.dst.prefixlen else b""
    return dst + number(_RTA_TABLE, obj.table)


def _rule(obj: Rule) -> bytes:
    family, length = _FAMILY[obj.src.version], obj.src.prefixlen
    body = _RULE.pack(family, 0, length, 0, 0, 0, 0, _TO_TABLE, 0)
    if length:
        body += attribute(_FRA_SRC, obj.src.network_address.packed)
    body += number(_FRA_TABLE, obj.table) + number(_FRA_PRIORITY, obj.priority)
    if obj.unless:
        body += number(_FRA_FWMASK, obj.unless)  # without a mark, which is one of 0
    return body + attribute(_FRA_PROTOCOL, bytes([PROTOCOL]))


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _prefix(family: int, raw: bytes | None, length: int) -> Prefix:
    return ip_network((raw or bytes(4 if family == _FAMILY[4] else 16), length))


def _address(raw: bytes | None) -> Address | None:
    return ip_address(raw) if raw else None


def _device(found: Attributes, names: Names) -> str:
    index = struct.unpack("=I", found.get(_RTA_OIF, bytes(4)))[0]
    return names.get(index, "?")
