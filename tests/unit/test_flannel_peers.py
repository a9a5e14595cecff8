"""flannel's nodes among ours: who is a peer, once, and by whose words."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

from muslin.agent.flannel import merge
from muslin.agent.world import World, sites
from muslin.backend.vxlan import vtep_mac
from muslin.kube.slim import FlannelNode
from muslin.model import Block, Host, Network, Node, Peer, Prefix, convert
from muslin.store.flannel import parse

A = "flannel.alpha.coreos.com/"
CONF = parse('{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}')


def core(number: int, *, mac: str = "", address: str = "", **more: str) -> FlannelNode:
    """A core Node as flanneld leaves it."""
    mac = mac or f"0e:2a:00:00:00:{number:02x}"
    told = {
        "kube-subnet-manager": "true",
        "backend-type": "vxlan",
        "backend-data": f'{{"VNI":1,"VtepMAC":"{mac}"}}',
        "public-ip": address or f"192.0.2.{number}",
    }
    given = {A + k: v for k, v in (told | more).items()}
    found = {
        "metadata": {"name": f"n{number}", "annotations": given},
        "spec": {"podCIDRs": [f"10.244.{number}.0/24"]},
    }
    return convert(FlannelNode, found)


def bare(number: int) -> FlannelNode:
    """A core Node without a word of flannel's."""
    found = {"metadata": {"name": f"n{number}"}, "spec": {"podCIDRs": [f"10.244.{number}.0/24"]}}
    return convert(FlannelNode, found)


def ours(number: int, *, mac: str = "") -> Node:
    """A record of ours."""
    data = {"default": {"mac": mac or f"0e:2a:00:00:00:{number:02x}"}}
    address = ip_interface(f"192.0.2.{number}/24")
    return Node(name=f"n{number}", addresses=(address,), mtu=1500, data=data)


def cidr(number: int) -> Prefix:
    return ip_network(f"10.244.{number}.0/24")


def block(number: int, node: int) -> Block:
    return Block(pool="flannel4", cidr=cidr(number), node=f"n{node}")


def peers(world: World) -> dict[str, Peer]:
    me = world.nodes.get("n1", ours(1))
    [site] = sites(world, me, Host(uplink="eth0"))
    return {p.node.name: p for p in site.peers}


def test_a_flannel_node_is_a_peer_with_its_podcidr() -> None:
    found = merge(World(), CONF, {"n1": bare(1), "n2": core(2)}, "n1")
    assert found.faults == ()
    network = found.world.networks["default"]
    assert (network.backend, network.options["vni"]) == ("flannel", 1)
    [peer] = peers(found.world).values()
    assert peer.blocks == (cidr(2),)
    assert str(peer.node.addresses[0].ip) == "192.0.2.2"
    assert peer.node.data == {"default": {"mac": "0e:2a:00:00:00:02"}}


def test_a_node_with_both_is_one_peer() -> None:
    world = World(nodes={"n2": ours(2)}, blocks=(block(2, 2),))
    found = merge(world, CONF, {"n2": core(2)}, "n1").world
    assert peers(found) == {"n2": Peer(node=ours(2), blocks=(cidr(2),))}


def test_one_whose_block_is_not_claimed_yet_is_reached_all_the_same() -> None:
    found = merge(World(nodes={"n2": ours(2)}), CONF, {"n2": core(2)}, "n1").world
    assert peers(found)["n2"].blocks == (cidr(2),)


def test_where_they_differ_the_annotations_decide() -> None:
    """A node that went back to flanneld keeps a record of ours for as long as its lease."""
    stale = World(nodes={"n2": ours(2, mac="0e:00:00:00:00:99")}, blocks=(block(2, 2),))
    moved = core(2, address="198.51.100.2")
    node = peers(merge(stale, CONF, {"n2": moved}, "n1").world)["n2"].node
    assert node.data["default"]["mac"] == "0e:2a:00:00:00:02"
    address = node.address(4)
    assert address is not None
    assert str(address.ip) == "198.51.100.2"


def test_our_own_mac_is_what_flanneld_left_and_our_address_is_our_own() -> None:
    overwritten = core(1, mac="0e:2a:00:00:00:77", address="203.0.113.7")
    node = merge(World(nodes={"n1": ours(1)}), CONF, {"n1": overwritten}, "n1").world.nodes["n1"]
    assert node.data["default"]["mac"] == "0e:2a:00:00:00:77"
    assert node.addresses == ours(1).addresses


def test_our_own_block_is_not_taken_from_the_annotations() -> None:
    """Whether it is held, the store says: an echo of our own would keep it from being claimed."""
    assert merge(World(), CONF, {"n1": core(1)}, "n1").world.blocks == ()


def test_a_range_given_to_another_node_is_no_longer_the_formers() -> None:
    world = World(nodes={"n3": ours(3)}, blocks=(block(2, 3), block(3, 3)))
    found = merge(world, CONF, {"n2": core(2)}, "n1").world
    assert peers(found)["n2"].blocks == (cidr(2),)
    assert peers(found)["n3"].blocks == (cidr(3),)


def reached(world: World) -> set[str]:
    """Who has a MAC to be reached by."""
    return {name for name, peer in peers(world).items() if "default" in peer.node.data}


def test_who_borrows_a_mac_loses_it_and_its_owner_does_not() -> None:
    mac = "0e:2a:00:00:00:02"
    world = World(nodes={"n2": ours(2)})
    found = merge(world, CONF, {"n2": core(2), "n3": core(3, mac=mac)}, "n1")
    assert reached(found.world) == {"n2"}
    assert found.faults == (f"network default: node n3: another node announces {mac} too",)
    nobodys = merge(World(), CONF, {"n2": core(2), "n3": core(3, mac=mac)}, "n1")
    assert reached(nobodys.world) == set()
    assert len(nobodys.faults) == 2


def test_a_mac_made_from_a_nodes_name_is_that_nodes_whatever_records_say() -> None:
    mac = vtep_mac("default", "n2")
    world = World(nodes={"n2": ours(2, mac=mac), "n3": ours(3, mac=mac)})
    for nodes in ({"n2": core(2, mac=mac), "n3": core(3, mac=mac)}, {"n2": core(2, mac=mac)}):
        assert reached(merge(world, CONF, nodes, "n1").world) == {"n2"}
    twice = World(nodes={"n2": ours(2), "n3": ours(3, mac="0e:2a:00:00:00:02")})
    assert reached(merge(twice, CONF, {"n2": core(2)}, "n1").world) == set()


def test_nobody_takes_our_own_mac() -> None:
    world = World(nodes={"n1": ours(1), "n2": ours(2, mac="0e:2a:00:00:00:01")})
    found = merge(world, CONF, {"n1": core(1)}, "n1")
    assert reached(found.world) == set()
    assert found.world.nodes["n1"].data["default"] == {"mac": "0e:2a:00:00:00:01"}


def test_one_that_cannot_be_a_peer_is_named_and_the_others_are_there() -> None:
    odd = core(3, **{"backend-type": "host-gw"})
    found = merge(World(), CONF, {"n2": core(2), "n3": odd, "n4": bare(4)}, "n1")
    assert set(peers(found.world)) == {"n2"}
    assert found.faults == ("network default: node n3: flannel there is host-gw, here vxlan",)


def test_other_networks_of_the_store_go_on() -> None:
    blue = Network(name="blue", backend="hostgw", pools=())
    found = merge(World(networks={"blue": blue}), CONF, {}, "n1")
    assert set(found.world.networks) == {"blue", "default"}
    assert found.faults == ()


def test_a_network_of_flannels_name_in_the_store_is_a_fault() -> None:
    there = Network(name="default", backend="vxlan", pools=())
    found = merge(World(networks={"default": there}), CONF, {}, "n1")
    assert found.world.networks["default"].backend == "flannel"
    assert found.faults == (
        "network default is in the store too: flannel's ConfigMap is what counts",
    )
