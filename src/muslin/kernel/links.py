"""Links ↔ RTM_NEWLINK, and the mark on them.

A new link must never be without a mark of ours, however we end.  The kernel
ignores IFLA_IFALIAS in the message that creates a device (seen on 6.18;
net/core/rtnetlink.c: rtnl_create_link() does not look at it) and takes it in a
second one only.  Naming the device in that second message of one batch will
not do: had the first been refused because a stranger has the name, the second
would mark the stranger's device.  IFLA_GROUP, however, is honoured at
creation, so a device is ours if

    its alias is `muslin` or begins with `muslin `     (what people read), or
    its group is 109                                   (what creation sets)

IFLA_AF_SPEC is refused at creation (EAFNOSUPPORT), so IPv6 address generation
is switched off in a message of its own, before the one that brings the link
up.  Without it a link-local address would come up on every host end, and with
it a route fe80::/64, through which the guard in plan/node.py would let a pod
send from any link-local address.  Neither forwarding nor the pod's gateway
fe80::1 (a permanent neighbour) needs an address on the host end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from muslin.kernel.netlink import (
    CREATE,
    EXCL,
    Request,
    attribute,
    attributes,
    nested,
    number,
    text,
)
from muslin.model import Address
from muslin.plan.objects import ALIAS, PROTOCOL, Link, LinkKind, Present, Sysctl, Veth, Vxlan

NEWLINK, DELLINK, GETLINK, SETLINK = 16, 17, 18, 19  # linux/rtnetlink.h
GROUP = PROTOCOL  # of every link we make
_DOOMED = 0x6D75736C  # "musl": the group in which links of ours wait for their end

# linux/if_link.h
_ADDRESS, _IFNAME, _MTU, _LINKINFO, _IFALIAS, _AF_SPEC = 1, 3, 4, 18, 20, 26
_GROUP, _NET_NS_FD, _EXT_MASK = 27, 28, 29
_INFO_KIND, _INFO_DATA = 1, 2
_VETH_PEER = 1
_VXLAN_ID, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_LOCAL6 = 1, 4, 7, 15, 17
_NUM_TX_QUEUES, _NUM_RX_QUEUES = 31, 32
_INET, _INET_CONF = 2, 1
_IPV4_CONF = {"forwarding": 1, "rp_filter": 8, "route_localnet": 26}  # linux/ip.h
_INET6, _ADDR_GEN_MODE, _GEN_NONE = 10, 8, 1
_SKIP_STATS = 8  # RTEXT_FILTER_SKIP_STATS
_IFF_UP = 1

_HEADER = struct.Struct("=BxHiII")  # family, type, index, flags, change
# Without these a veth end has a queue of each kind for every possible CPU, each with its
# directories in sysfs: a third of what making a pair takes, with two CPUs.  Sending takes no
# lock (NETIF_F_LLTX), and receiving by queues exists only with XDP or GRO switched on.
_ONE_QUEUE = number(_NUM_TX_QUEUES, 1) + number(_NUM_RX_QUEUES, 1)


@dataclass(frozen=True, slots=True)
class Device:
    """A network device as the kernel describes it."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: str
    alias: str
    group: int
    kind: LinkKind  # Present if it is of a kind that no plan makes

    @property
    def is_ours(self) -> bool:
        return self.alias.split(" ", 1)[0] == ALIAS or self.group in {GROUP, _DOOMED}

    def link(self, ns: str | None, *, present: bool = False) -> Link:
        """The device as an object; `present` for one that somebody else made."""
        return Link(
            ns=ns,
            name=self.name,
            kind=Present() if present else self.kind,
            mtu=self.mtu,
            mac=self.mac,
            up=self.up,
            purpose="" if present else self.alias.removeprefix(ALIAS).strip(),
        )


def create(link: Link, peer_ns: int | None) -> Request:
    """Make the link, down.  A taken name is refused.

    `peer_ns` is an open descriptor of the namespace in which a veth's other
    end is made, None for the same one.  The other end cannot be up from the
    start: veth_open() then finds no peer and fails with ENOTCONN.
    """
    body = _header() + text(_IFNAME, link.name) + number(_GROUP, GROUP) + _settings(link)
    if isinstance(link.kind, Veth):
        body += _ONE_QUEUE
    return Request(NEWLINK, CREATE | EXCL, body + _info(link.kind, peer_ns))


def finish(link: Link, index: int) -> list[Request]:
    """Bring a device of ours up, quiet on IPv6, and write the alias people read.

    EAFNOSUPPORT from the first means a kernel without IPv6: fine.
    """
    generation = attribute(_ADDR_GEN_MODE, bytes([_GEN_NONE]))
    quiet = nested(_AF_SPEC, nested(_INET6, generation))
    return [
        Request(SETLINK, 0, _header(index) + quiet),
        Request(SETLINK, 0, _header(index, _IFF_UP) + text(_IFALIAS, _alias(link))),
    ]


def conf(value: Sysctl, index: int) -> Request | None:
    """Set one of a new device's IPv4 switches; None if netlink does not have it.

    An eighth of what the file below /proc/sys takes, and less than that does:
    the route cache is not flushed, so this is for a device that nothing has
    passed yet (net/ipv4/devinet.c: inet_set_link_af(), devinet_sysctl_forward()).
    """
    prefix = f"net/ipv4/conf/{value.dev}/"
    known = _IPV4_CONF.get(value.name.removeprefix(prefix))
    if known is None:
        return None
    setting = nested(_INET, nested(_INET_CONF, number(known, int(value.value))))
    return Request(SETLINK, 0, _header(index) + nested(_AF_SPEC, setting))


def adjust(link: Link) -> Request:
    """Bring a device up that somebody else has made and nobody looked at, with all settings."""
    return Request(SETLINK, 0, _header(0, _IFF_UP) + text(_IFNAME, link.name) + _settings(link))


def configure(link: Link, device: Device) -> list[Request]:
    """Bring the device up with the link's settings; on one of ours, write the alias too.

    Only what differs is set: setting a MAC, also to what it is already, drops
    the device's neighbours, permanent ones too.
    """
    settings = _settings(link, device)
    if isinstance(link.kind, Present):
        return [Request(SETLINK, 0, _header(device.index, _IFF_UP) + settings)]
    before = [Request(SETLINK, 0, _header(device.index) + settings)] if settings else []
    return [*before, *finish(link, device.index)]


def remove(index: int) -> Request:
    """Delete the device, whatever it is by now."""
    return Request(DELLINK, 0, _header(index))


def doom(index: int) -> Request:
    """Put one device of ours among those that `remove_doomed` deletes."""
    return Request(SETLINK, 0, _header(index) + number(_GROUP, _DOOMED))


def remove_doomed() -> Request:
    """Delete all that were doomed, by whomever."""
    return Request(DELLINK, 0, _header() + number(_GROUP, _DOOMED))


def get(name: str) -> Request:
    """Ask for one device by name."""
    return Request(GETLINK, 0, _header() + text(_IFNAME, name) + number(_EXT_MASK, _SKIP_STATS))


def everything() -> bytes:
    """The body of a dump of all devices."""
    return _header() + number(_EXT_MASK, _SKIP_STATS)


def read(body: bytes) -> Device:
    """The device in an RTM_NEWLINK message."""
    _family, _type, index, flags, _change = _HEADER.unpack_from(body)
    found = attributes(body[_HEADER.size :])
    return Device(
        index=index,
        name=_string(found.get(_IFNAME, b"")),
        up=bool(flags & _IFF_UP),
        mtu=_u32(found.get(_MTU)),
        mac=found.get(_ADDRESS, b"").hex(":"),
        alias=_string(found.get(_IFALIAS, b"")),
        group=_u32(found.get(_GROUP)),
        kind=_kind(attributes(found.get(_LINKINFO, b""))),
    )


def _header(index: int = 0, flags: int = 0) -> bytes:
    return _HEADER.pack(0, 0, index, flags, flags)


def _alias(link: Link) -> str:
    return f"{ALIAS} {link.purpose}".strip()[:255]  # IFALIASZ is 256


def _settings(link: Link, device: Device | None = None) -> bytes:
    body = b""
    if link.mtu is not None and (device is None or link.mtu != device.mtu):
        body += number(_MTU, link.mtu)
    if link.mac is not None and (device is None or link.mac != device.mac):
        body += attribute(_ADDRESS, bytes.fromhex(link.mac.replace(":", "")))
    return body


def _info(kind: LinkKind, peer_ns: int | None) -> bytes:
    match kind:
        case Veth():
            assert kind.peer is not None  # a pair is made whole
            peer = _header() + text(_IFNAME, kind.peer) + _ONE_QUEUE
            if peer_ns is not None:
                peer += number(_NET_NS_FD, peer_ns)
            name, data = "veth", attribute(_VETH_PEER, peer)
        case Vxlan():
            local = _VXLAN_LOCAL if kind.local.version == 4 else _VXLAN_LOCAL6
            name = "vxlan"
            data = (
                number(_VXLAN_ID, kind.vni)
                + attribute(local, kind.local.packed)
                + attribute(_VXLAN_LEARNING, b"\0")
                + attribute(_VXLAN_PORT, struct.pack("!H", kind.port))
            )
        case Present():
            raise AssertionError("a link that is there is not created")
    return nested(_LINKINFO, text(_INFO_KIND, name), nested(_INFO_DATA, data))


def _kind(info: dict[int, bytes]) -> LinkKind:
    data = attributes(info.get(_INFO_DATA, b""))
    match _string(info.get(_INFO_KIND, b"")):
        case "veth":
            return Veth()
        case "vxlan":
            port = struct.unpack("!H", data.get(_VXLAN_PORT, b"\0\0"))[0]
            return Vxlan(vni=_u32(data.get(_VXLAN_ID)), port=port, local=_local(data))
        case _:
            return Present()


def _local(data: dict[int, bytes]) -> Address:
    if _VXLAN_LOCAL6 in data:
        return IPv6Address(data[_VXLAN_LOCAL6])
    return IPv4Address(data.get(_VXLAN_LOCAL, b"\0\0\0\0"))


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _u32(value: bytes | None) -> int:
    return int(struct.unpack("=I", value)[0]) if value else 0
