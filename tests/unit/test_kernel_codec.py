"""Objects ↔ messages: our own way back, and pyroute2's reading of what we write."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from muslin.kernel import codec, links
from muslin.kernel.netlink import EXCL, REPLACE, Request
from muslin.plan.objects import (
    PROTOCOL,
    Addr,
    Fdb,
    Link,
    Neigh,
    Object,
    Present,
    Route,
    Rule,
    Veth,
    Vxlan,
)

INDICES = {"eth0": 2, "mu.vx1": 7}
NAMES = {i: n for n, i in INDICES.items()}
MAC = "0e:00:00:00:00:02"
VIA4, VIA6 = ip_address("192.0.2.2"), ip_address("2001:db8::2")

ROUTES = [
    Route(dst=ip_network("10.244.1.0/24"), via=VIA4, dev="eth0"),
    Route(dst=ip_network("10.244.1.0/24"), via=VIA4, dev="mu.vx1", onlink=True),
    Route(dst=ip_network("10.244.1.5/32"), dev="mu.vx1", table=109),
    Route(dst=ip_network("10.244.1.5/32"), dev="mu.vx1", table=100_000),
    Route(dst=ip_network("10.244.1.0/24")),
    Route(dst=ip_network("0.0.0.0/0"), via=VIA4, dev="eth0", src=ip_address("192.0.2.1")),
    Route(dst=ip_network("fd00::/64"), via=VIA6, dev="eth0"),
    Route(dst=ip_network("fd00::/64")),
    Route(dst=ip_network("::/0"), via=ip_address("fe80::1"), dev="eth0", onlink=True),
]
NEIGHBOURS = [Neigh(dev="eth0", address=a, mac=MAC) for a in (VIA4, VIA6)]
ENTRIES = [Fdb(dev="mu.vx1", mac=MAC, dst=a) for a in (VIA4, VIA6)]
RULES = [
    Rule(src=ip_network(p), table=109, priority=1090, unless=unless)
    for p in ("10.0.0.0/8", "fd00::/32", "0.0.0.0/0")
    for unless in (0, 1 << 24)
]
ADDRESSES = [
    Addr(dev="eth0", address=ip_interface(a)) for a in ("10.0.0.1/32", "10.0.0.1/24", "fd00::1/128")
]


def put(obj: Object, *, over: bool = False) -> Request:
    return codec.put(obj, INDICES.__getitem__, replace=over)


def oracle(kind: Any, request: Request) -> Any:
    """The message as pyroute2 reads it."""
    header = struct.pack("=IHHII", 16 + len(request.body), request.type, request.flags, 1, 0)
    message = kind(data=header + request.body)
    message.decode()
    return message


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_a_route_survives_the_way_there_and_back(route: Route) -> None:
    assert codec.read_route(None, put(route).body, NAMES) == route


@pytest.mark.parametrize("neighbour", NEIGHBOURS, ids=str)
def test_a_neighbour_survives_the_way_there_and_back(neighbour: Neigh) -> None:
    assert codec.read_neigh(None, put(neighbour).body, NAMES) == neighbour


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_fdb_entry_survives_the_way_there_and_back(entry: Fdb) -> None:
    assert codec.read_fdb(None, put(entry).body, NAMES) == entry
    assert codec.read_neigh(None, put(entry).body, NAMES) is None


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_survives_the_way_there_and_back(rule: Rule) -> None:
    assert codec.read_rule(None, put(rule).body) == rule


@pytest.mark.parametrize("address", ADDRESSES, ids=str)
def test_an_address_survives_the_way_there_and_back(address: Addr) -> None:
    told = bytearray(put(address).body)
    told[2] |= 0x80  # IFA_F_PERMANENT, which the kernel adds to what has no lifetime
    assert codec.read_addr(None, bytes(told), NAMES) == address


@pytest.mark.parametrize("address", ["fe80::1/64", "127.0.0.1/8", "::1/128"])
def test_an_address_the_kernel_makes_is_nobodys(address: str) -> None:
    told = bytearray(put(Addr(dev="eth0", address=ip_interface(address))).body)
    told[2] |= 0x80
    assert codec.read_addr(None, bytes(told), NAMES) is None


def test_only_a_replacement_may_overwrite() -> None:
    for obj in (*ROUTES, *NEIGHBOURS, *ENTRIES, *ADDRESSES):
        assert put(obj).flags & EXCL
        assert not put(obj).flags & REPLACE
        assert put(obj, over=True).flags & REPLACE


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_pyroute2_reads_a_route_as_we_meant_it(route: Route) -> None:
    message = oracle(rtmsg, put(route))
    assert message["proto"] == PROTOCOL
    assert message["type"] == (1 if route.dev else 7)  # RTN_UNICAST, RTN_UNREACHABLE
    assert message["dst_len"] == route.dst.prefixlen
    assert message.get_attr("RTA_TABLE") == route.table
    assert message.get_attr("RTA_GATEWAY") == (str(route.via) if route.via else None)
    assert message.get_attr("RTA_OIF") == (INDICES[route.dev] if route.dev else None)
    assert message.get_attr("RTA_PREFSRC") == (str(route.src) if route.src else None)
    assert bool(message["flags"] & 4) == route.onlink
    on_link4 = route.dst.version == 4 and route.dev and not route.via
    assert message["scope"] == (253 if on_link4 else 0)


def test_pyroute2_reads_the_others_as_we_meant_them() -> None:
    address = oracle(ifaddrmsg, put(ADDRESSES[-1]))
    assert (address.get_attr("IFA_ADDRESS"), address["prefixlen"]) == ("fd00::1", 128)
    assert address["flags"] & 0x02  # IFA_F_NODAD
    neighbour = oracle(ndmsg, put(NEIGHBOURS[0]))
    assert neighbour["state"] == 0x80  # NUD_PERMANENT
    assert neighbour.get_attr("NDA_DST") == str(VIA4)
    assert neighbour.get_attr("NDA_LLADDR") == MAC
    entry = oracle(ndmsg, put(ENTRIES[0]))
    assert (entry["family"], entry["flags"]) == (7, 2)  # AF_BRIDGE, NTF_SELF
    rule = oracle(fibmsg, put(RULES[0]))
    assert rule.get_attr("FRA_PROTOCOL") == PROTOCOL
    assert rule.get_attr("FRA_TABLE") == 109


LINKS = [
    Link(name="mu.a", kind=Veth(peer="eth0"), mtu=1400, mac=MAC, purpose="pod c1"),
    Link(name="mu.vx1", kind=Vxlan(vni=5, port=4789, local=VIA4), mtu=1450, mac=MAC),
    Link(name="mu.vx1", kind=Vxlan(vni=5, port=4789, local=VIA6), mtu=1430, mac=MAC),
]


@pytest.mark.parametrize("link", LINKS, ids=str)
def test_a_link_is_ours_from_its_creation(link: Link) -> None:
    device = links.read(links.create(link, None).body)
    assert device.is_ours
    assert not device.up
    assert replace(device.link(None), up=True, purpose=link.purpose) == link


def test_the_alias_says_what_the_link_is_for() -> None:
    device = links.read(links.create(LINKS[0], None).body)
    *_, last = links.configure(LINKS[0], device)
    assert links.read(last.body).alias == "muslin pod c1"
    assert links.read(last.body).up


def test_what_a_device_has_already_is_not_set_again() -> None:
    """Setting a MAC, also the same, drops the device's neighbours."""
    device = links.read(links.create(LINKS[0], None).body)
    for request in links.configure(LINKS[0], device):
        assert links.read(request.body).mac == ""


def test_somebody_elses_device_is_not_marked() -> None:
    end = Link(name="eth0", kind=Present(), mtu=1400, mac=MAC)
    device = replace(links.read(links.create(LINKS[0], None).body), mtu=1500, mac="")
    (request,) = links.configure(end, device)
    told = links.read(request.body)
    assert (told.alias, told.group, told.up, told.mtu, told.mac) == ("", 0, True, 1400, MAC)


def test_pyroute2_reads_a_pair_and_a_tunnel_as_we_meant_them() -> None:
    pair = oracle(ifinfmsg, links.create(LINKS[0], 11))
    info = pair.get_attr("IFLA_LINKINFO")
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    assert (peer.get_attr("IFLA_IFNAME"), peer.get_attr("IFLA_NET_NS_FD")) == ("eth0", 11)
    tunnel = oracle(ifinfmsg, links.create(LINKS[1], None)).get_attr("IFLA_LINKINFO")
    data = tunnel.get_attr("IFLA_INFO_DATA")
    assert data.get_attr("IFLA_VXLAN_ID") == 5
    assert data.get_attr("IFLA_VXLAN_PORT") == 4789
    assert data.get_attr("IFLA_VXLAN_LOCAL") == str(VIA4)
    assert data.get_attr("IFLA_VXLAN_LEARNING") == 0


@pytest.mark.parametrize(
    ("alias", "ours"), [("muslin", True), ("muslin x", True), ("muslinx", False), ("", False)]
)
def test_the_mark_is_a_whole_word(alias: str, ours: bool) -> None:
    device = links.read(links.create(LINKS[0], None).body)
    assert replace(device, group=0, alias=alias).is_ours is ours
