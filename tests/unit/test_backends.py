"""What a backend refuses, keeps and defaults to; whole plans are in tests/golden."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from muslin import backend
from muslin.errors import ConfigError, Unreachable
from muslin.model import Host, Network, Node, Peer, Pool, Site
from muslin.plan.objects import Link, Route, Rule

POOLS = (
    Pool(name="four", cidr=ip_network("10.244.0.0/16")),
    Pool(name="six", cidr=ip_network("fd00:10:244::/56")),
)


def node(name: str, *addresses: str, **more: Any) -> Node:
    return Node(
        name=name, addresses=tuple(ip_interface(a) for a in addresses), mtu=1500, **more
    )  # fmt: skip


def peer(name: str, *addresses: str, block: str = "10.244.9.0/26", **more: Any) -> Peer:
    data = {"net": {"mac": "0e:00:00:00:00:09"}}
    blocks = (ip_network(block),) if block else ()
    return Peer(node=node(name, *addresses, **({"data": data} | more)), blocks=blocks)


def network(kind: str, **options: Any) -> Network:
    return Network(name="net", backend=kind, pools=("four", "six"), options=options)


def site(kind: str, *addresses: str, **more: Any) -> Site:
    known: dict[str, Any] = {
        "me": node("n1", *(addresses or ("192.0.2.1/24",))),
        "host": Host(uplink="eth0"),
        "network": network(kind),
        "pools": POOLS,
    }
    return Site(**(known | more))


def test_every_backend_is_found_by_its_file() -> None:
    assert backend.names() == ("flannel", "hostgw", "vxlan")
    for name in backend.names():
        assert backend.load(network(name)).overhead(site(name)) >= 0


def test_an_unknown_backend_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'teleport' is not one of: flannel, hostgw, vxlan"):
        backend.load(network("teleport"))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"vin": 1}, "unknown option 'vin' (this backend has: vni, port, mtu, direct)"),
        ({"vni": 0}, "Expected `int` >= 1"),
        ({"vni": "1"}, "Expected `int`, got `str`"),
        ({"direct": "always"}, "Invalid enum value 'always'"),
        ({"mtu": 1000}, "1280"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        backend.load(network("vxlan", **options))
    assert fault in str(caught.value)
    assert "network net, backend vxlan" in str(caught.value)


def test_hostgw_has_no_options() -> None:
    with pytest.raises(ConfigError, match="this backend has: none"):
        backend.load(network("hostgw", vni=1))


def test_hostgw_refuses_a_peer_off_the_link_by_name() -> None:
    with pytest.raises(Unreachable, match=r"peer n2: 198\.51\.100\.2 is not on the link of 192"):
        backend.load(network("hostgw")).peer(site("hostgw"), peer("n2", "198.51.100.2/24"))


def test_hostgw_refuses_a_block_of_a_family_without_underlay() -> None:
    six = peer("n2", "192.0.2.2/24", block="fd00:10:244::/122")
    with pytest.raises(Unreachable, match="n1 has no IPv6 underlay address to reach fd00"):
        backend.load(network("hostgw")).peer(site("hostgw"), six)


def test_the_vtep_mac_is_the_nodes_and_what_the_store_has_is_kept() -> None:
    vxlan = backend.load(network("vxlan"))
    here = site("vxlan")
    mac = vxlan.announce(here, {})["mac"]
    assert mac == vxlan.announce(here, {})["mac"]  # a reinstalled node derives it again
    assert int(mac[:2], 16) & 0b11 == 0b10  # locally administered, unicast
    assert vxlan.announce(here, {"mac": "0e:aa:aa:aa:aa:aa"}) == {"mac": "0e:aa:aa:aa:aa:aa"}
    other = site("vxlan", me=node("n2", "192.0.2.2/24"))
    assert vxlan.announce(other, {})["mac"] != mac


def test_nobody_takes_the_vtep_mac_of_another_node() -> None:
    """An entry of the FDB is a MAC's: two peers with one would send all its packets to either."""
    vxlan = backend.load(network("vxlan"))
    honest = {
        name: vxlan.announce(site("vxlan", me=node(name, "198.51.100.9/24")), {})
        for name in ("n1", "n2", "n3")
    }
    n2 = peer("n2", "198.51.100.2/24", data={"net": honest["n2"]})
    kept = peer("n3", "198.51.100.3/24", block="10.244.9.64/26")  # from before it had its name
    for victim in ("n1", "n2"):
        thief = peer("n0", "198.51.100.6/24", data={"net": honest[victim]})
        here = site("vxlan", peers=(thief, n2, kept))
        with pytest.raises(Unreachable, match=f"peer n0: it announces the VTEP MAC of {victim}"):
            vxlan.peer(here, thief)
        assert vxlan.peer(here, n2)
        assert vxlan.peer(here, kept)


def test_a_peer_that_has_not_announced_its_mac_is_left_out_by_name() -> None:
    silent = peer("n2", "198.51.100.2/24", data={})
    with pytest.raises(Unreachable, match="peer n2: it has not announced a VTEP MAC yet"):
        backend.load(network("vxlan")).peer(site("vxlan"), silent)


def test_a_tunnel_over_ipv4_cannot_reach_an_ipv6_only_peer() -> None:
    with pytest.raises(Unreachable, match="no IPv4 underlay address"):
        backend.load(network("vxlan")).peer(site("vxlan"), peer("n2", "2001:db8::2/64"))


@pytest.mark.parametrize(
    ("addresses", "options", "overhead"),
    [
        (("192.0.2.1/24",), {}, 50),
        (("2001:db8::1/64",), {}, 70),
        (("192.0.2.1/24", "2001:db8::1/64"), {}, 50),
        (("192.0.2.1/24",), {"mtu": 1400}, 100),
    ],
)
def test_the_pods_mtu_follows_the_path(
    addresses: tuple[str, ...], options: dict[str, Any], overhead: int
) -> None:
    made = network("vxlan", **options)
    here = site("vxlan", *addresses, network=made)
    vxlan = backend.load(made)
    assert vxlan.overhead(here) == overhead
    link = next(o for o in vxlan.node(here) if isinstance(o, Link))
    assert link.mtu == 1500 - overhead


def test_direct_never_tunnels_to_a_peer_on_the_same_link() -> None:
    near = peer("n2", "192.0.2.2/24")
    for direct, dev in (("auto", "eth0"), ("never", "mu.vx1")):
        made = network("vxlan", direct=direct)
        plan = backend.load(made).peer(site("vxlan", network=made), near)
        assert [o.dev for o in plan if isinstance(o, Route)] == [dev]


def test_a_member_on_the_link_needs_nothing_and_one_behind_a_router_gets_a_rule() -> None:
    vxlan, here = backend.load(network("vxlan")), site("vxlan")
    near = peer("pm1", "192.0.2.50/24", block="", pods=False)
    assert vxlan.peer(here, near) == frozenset()
    far = peer("pm1", "198.51.100.50/24", block="", pods=False)
    rules = [o for o in vxlan.peer(here, far) if isinstance(o, Rule)]
    assert [(str(r.src), r.table) for r in rules] == [("10.244.0.0/16", 109)]


def test_equal_facts_give_equal_plans() -> None:
    for name in backend.names():
        carrier, here = backend.load(network(name)), site(name)
        near = peer("n2", "192.0.2.2/24")
        assert carrier.peer(here, near) == carrier.peer(here, near)
        assert carrier.node(here) == carrier.node(here)
