"""flannel's JSON and annotations, as flannel 0.28 writes and reads them (facts from its source)."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network

import pytest

from muslin import backend
from muslin.errors import ConfigError
from muslin.kube.slim import FlannelAnnotations
from muslin.model import convert
from muslin.store import flannel
from muslin.store.flannel import Lease, NetConf, parse, read, written

A = "flannel.alpha.coreos.com/"
# As Documentation/kube-flannel.yml has it.
DEFAULT = '{"Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": {"Type": "vxlan"}}'
MAC, MAC6 = "12:c6:65:89:b4:e3", "12:c6:65:89:b4:e6"
V4 = parse(DEFAULT)


def conf(backend: object = None, **more: object) -> str:
    found = {"Network": "10.244.0.0/16", "Backend": backend or {"Type": "vxlan"}, **more}
    return json.dumps(found)


DUAL = parse(conf(EnableIPv6=True, IPv6Network="2001:cafe:42::/56"))
HOSTGW = parse(conf({"Type": "host-gw"}))


def said(**values: str) -> dict[str, str]:
    """Annotations of a vxlan node, with some others."""
    found = {
        "kube_subnet_manager": "true",
        "backend_type": "vxlan",
        "public_ip": "192.0.2.2",
        "backend_data": f'{{"VNI":1,"VtepMAC":"{MAC}"}}',
    }
    return {A + k.replace("_", "-"): v for k, v in (found | values).items()}


# ── net-conf.json ───────────────────────────────────────────────────────────────────────────────


def test_the_default_manifests_network_is_understood() -> None:
    found = parse(DEFAULT)
    assert found == NetConf(cidrs=(ip_network("10.244.0.0/16"),), type="vxlan", vni=1, port=8472)


def test_all_that_a_vxlan_may_say_is_taken() -> None:
    options = {"Type": "vxlan", "VNI": 4096, "Port": 4789, "DirectRouting": True, "MTU": 1400}
    options |= {"GBP": False, "Learning": True, "MacPrefix": "0E-2A"}
    found = parse(conf(options, EnableIPv6=True, IPv6Network="2001:cafe:42::/56", SubnetLen=24))
    assert (found.vni, found.port, found.mtu, found.direct) == (4096, 4789, 1400, True)
    assert found.versions == (4, 6)


def test_names_are_read_in_any_case_as_go_does_and_null_is_nothing() -> None:
    text = '{"network": "10.5.3.1/16", "ENABLEIPV6": null, "backend": {"TYPE": "vxlan", "vni": 7}}'
    assert parse(text) == NetConf(cidrs=(ip_network("10.5.0.0/16"),), type="vxlan", vni=7)


def test_a_port_of_zero_is_the_kernels_own() -> None:
    assert parse(conf({"Type": "vxlan", "Port": 0})).port == 8472


def test_ipv6_alone() -> None:
    found = parse(conf(EnableIPv4=False, EnableIPv6=True, IPv6Network="2001:cafe::/56"))
    assert found.versions == (6,)


@pytest.mark.parametrize("kind", ["udp", "wireguard", "ipip", "extension", "alloc", "ipsec", None])
def test_backends_that_muslin_has_not_are_refused_by_name(kind: str | None) -> None:
    with pytest.raises(ConfigError, match=f"Backend.Type {kind!r}: Muslin has vxlan, host-gw"):
        parse(conf({"Type": kind}))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "Network None: the IPv4 range"),
        ('{"Network": "10.0.0.0/16"}', "flannel takes udp then"),
        (conf(Network="fd00::/64"), "Network 'fd00::/64': the IPv4 range"),
        (conf(Network="10.0.0.0/40"), "Network '10.0.0.0/40'"),
        (conf(EnableIPv6=True), "IPv6Network None: the IPv6 range"),
        (conf(EnableIPv4="yes"), "EnableIPv4 'yes': true or false"),
        (conf(EnableIPv4=False), "both false"),
        (conf({"Type": "vxlan", "GBP": True}), "Backend.GBP"),
        (conf({"Type": "vxlan", "VNI": "1"}), "Backend.VNI '1'"),
        (conf({"Type": "vxlan", "VNI": 0}), "Backend.VNI 0"),
        (conf({"Type": "vxlan", "VNI": 1 << 24}), "a number below 16777216"),
        (conf({"Type": "vxlan", "Port": 65536}), "a number below 65536"),
        (conf({"Type": "vxlan", "MTU": True}), "Backend.MTU True"),
    ],
)
def test_what_cannot_be_is_named(text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse(text)
    assert fault in str(told.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as told:
        parse(json.dumps({"Network": "x", "Backend": {"Type": "udp", "GBP": True}}))
    assert len(told.value.faults) == 3


def test_the_network_is_one_that_a_backend_takes() -> None:
    """Pools are cut as the node's own podCIDRs are, without the bridge's address."""
    told = parse(
        conf(
            {"Type": "vxlan", "VNI": 5, "MTU": 1450, "DirectRouting": True},
            EnableIPv6=True,
            IPv6Network="fd00::/48",
        )
    )
    network, pools = flannel.network(told, "default", ["10.244.3.0/25", "fd00:0:0:3::/64"])
    backend.load(network)
    assert network.options == {"vni": 5, "port": 8472, "direct": True, "mtu": 1450}
    assert [(p.name, p.block, p.exclude) for p in pools] == [
        ("flannel4", 25, (ip_network("10.244.3.1/32"),)),
        ("flannel6", 64, (ip_network("fd00:0:0:3::1/128"),)),
    ]
    plain, _ = flannel.network(HOSTGW, "default")
    assert (plain.backend, plain.options) == ("hostgw", {})


# ── annotations ─────────────────────────────────────────────────────────────────────────────────


def test_a_flannel_node_is_read() -> None:
    assert read(said(), ["10.244.2.0/24"], V4) == Lease(
        addresses=(ip_address("192.0.2.2"),),
        subnets=(ip_network("10.244.2.0/24"),),
        macs={4: MAC},
    )


def test_a_dual_stack_node_has_two_of_everything() -> None:
    more = {
        "public_ipv6": "2001:db8::2",
        "backend_v6_data": f'{{"VNI":1,"VtepMAC":"{MAC6}"}}',
    }
    found = read(said(**more), ["10.244.2.0/24", "2001:cafe:42:2::/64"], DUAL)
    assert isinstance(found, Lease)
    assert found.macs == {4: MAC, 6: MAC6}
    assert [str(a) for a in found.addresses] == ["192.0.2.2", "2001:db8::2"]


def test_a_node_that_is_not_flannels_is_none() -> None:
    assert read({}, ["10.244.2.0/24"], V4) is None
    assert read(said(kube_subnet_manager="false"), ["10.244.2.0/24"], V4) is None


@pytest.mark.parametrize(
    ("values", "cidrs", "fault"),
    [
        ({"backend_type": "host-gw"}, ["10.244.2.0/24"], "flannel there is host-gw, here vxlan"),
        ({"public_ip": ""}, ["10.244.2.0/24"], "public-ip is no address: ''"),
        ({"public_ip": "fd00::1"}, ["10.244.2.0/24"], "no IPv4 address"),
        ({}, [], "no IPv4 podCIDR"),
        ({}, ["fd00::/64"], "no IPv4 podCIDR"),
        ({"backend_data": "null"}, ["10.244.2.0/24"], "not a JSON object"),
        ({"backend_data": '{"VNI":1}'}, ["10.244.2.0/24"], "VtepMAC None"),
        (
            {"backend_data": '{"VNI":4096,"VtepMAC":"00-15-5d-01-02-03"}'},
            ["10.244.2.0/24"],
            "VtepMAC '00-15",
        ),
        (
            {"backend_data": f'{{"VNI":4096,"VtepMAC":"{MAC}"}}'},
            ["10.244.2.0/24"],
            "its VNI is 4096, here 1",
        ),
        (
            {"backend_data": '{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}'},
            ["10.244.2.0/24"],
            "not of one device",
        ),
    ],
)
def test_a_node_that_cannot_be_a_peer_says_why(
    values: dict[str, str], cidrs: list[str], fault: str
) -> None:
    found = read(said(**values), cidrs, V4)
    assert isinstance(found, str)
    assert fault in found


def test_what_we_write_flanneld_reads_its_mac_back_from() -> None:
    """It cuts the text at `:"`, which is to be there exactly once."""
    text = flannel.write_data(1, MAC)
    assert text == f'{{"VNI":1,"VtepMAC":"{MAC}"}}'
    head, cut = text.strip('"}').split(':"')
    assert cut == MAC
    assert head == '{"VNI":1,"VtepMAC"'


def test_host_gw_has_no_data_and_says_so() -> None:
    mine = Lease(addresses=(ip_address("192.0.2.1"),), subnets=(), macs={})
    assert written(mine, HOSTGW, {}) == {
        f"{A}kube-subnet-manager": "true",
        f"{A}backend-type": "host-gw",
        f"{A}backend-data": "null",
        f"{A}public-ip": "192.0.2.1",
    }


def test_a_person_may_overwrite_the_public_address() -> None:
    mine = Lease(addresses=(ip_address("192.0.2.1"),), subnets=(), macs={4: MAC})
    told = written(mine, V4, {f"{A}public-ip-overwrite": "203.0.113.7"})
    assert told[f"{A}public-ip"] == "203.0.113.7"
    assert f"{A}public-ip-overwrite" not in told


def test_of_a_nodes_annotations_only_flannels_are_kept() -> None:
    told = convert(FlannelAnnotations, {**said(), "volumes.kubernetes.io/x": "true"})
    assert told.given() == said()
    assert set(flannel.WRITTEN) | set(flannel.OVERWRITE.values()) == set(
        FlannelAnnotations.__struct_encode_fields__
    )
