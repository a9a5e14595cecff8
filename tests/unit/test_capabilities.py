"""What a runtime may ask for one pod, and how it is refused what it may not."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest

from muslin.cni.capabilities import dns
from muslin.cni.protocol import Dns, Request, parse
from muslin.errors import RequestError
from muslin.model import NOTHING, PortMapping, Rate, Wants, decode, encode

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/pod",
    "CNI_IFNAME": "eth0",
}
CONFIG = {"cniVersion": "1.0.0", "name": "muslin", "type": "muslin-cni"}


def asked(
    runtime: dict[str, Any] | None = None, *, args: str = "", verb: str = "ADD", **config: Any
) -> Request:
    env = ENV | {"CNI_ARGS": args, "CNI_COMMAND": verb}
    return parse(env, json.dumps(CONFIG | {"runtimeConfig": runtime or {}} | config).encode())


def wanted(runtime: dict[str, Any] | None = None, **more: Any) -> Wants:
    return asked(runtime, **more).wants


def refused(runtime: dict[str, Any] | None = None, **more: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        asked(runtime, **more)
    return caught.value


def ports(*mappings: dict[str, Any]) -> dict[str, Any]:
    return {"portMappings": list(mappings)}


HTTP = {"hostPort": 8080, "containerPort": 80}


def test_nothing_asked_is_nothing_remembered() -> None:
    assert wanted() == NOTHING
    assert encode(NOTHING) == b"{}"


def test_all_that_was_asked_survives_the_ledger() -> None:
    asked_for = wanted(
        ports(HTTP | {"protocol": "UDP", "hostIP": "fd00::1"})
        | {
            "bandwidth": {
                "ingressRate": 8_000_000,
                "ingressBurst": 800_000,
                "egressRate": 8_000,
                "egressBurst": 8,
            },
            "ips": ["10.0.0.5/24", "fd00::5"],
            "mac": "02-00-00-00-00-0A",
        },
        args="K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0",
    )
    assert asked_for == Wants(
        ports=(PortMapping(host=8080, pod=80, protocol="udp", ip=ip_address("fd00::1")),),
        ingress=Rate(rate=1_000_000, burst=100_000),
        egress=Rate(rate=1_000, burst=1),
        ips=(ip_address("10.0.0.5"), ip_address("fd00::5")),
        mac="02:00:00:00:00:0a",
        pod="shop/cart-0",
    )
    assert decode(Wants, encode(asked_for)) == asked_for


def test_a_mapping_without_a_protocol_is_tcp_and_without_a_host_port_none() -> None:
    assert wanted(ports(HTTP, HTTP, {"containerPort": 9090})).ports == (
        PortMapping(host=8080, pod=80, protocol="tcp"),
    )


@pytest.mark.parametrize(
    ("mapping", "why"),
    [
        ({"hostPort": 65536}, "a port is 1 to 65535"),
        ({"containerPort": 0}, "a port is 1 to 65535"),
        ({"hostPort": -1}, "a port is 1 to 65535"),
        ({"protocol": "icmp"}, "'icmp' is not one of tcp, udp, sctp"),
        ({"hostIP": "example.org"}, "hostIP: 'example.org'"),
        ({"hostIP": "::1"}, "no port of ::1 can be mapped"),
        ({"hostIP": "224.0.0.1"}, r"no port of 224\.0\.0\.1"),
        ({"hostPort": "80"}, r"Expected `int`.*portMappings"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused_by_name(mapping: dict[str, Any], why: str) -> None:
    error = refused(ports(HTTP | mapping))
    assert error.cni_code == 7
    error_matches(error, why)


def error_matches(error: RequestError, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        raise error


def test_containerds_spelling_means_the_same() -> None:
    """Recorded from containerd 1.6 under a kubelet: go-cni's structs have no JSON tags."""
    mapping = {"HostPort": 18080, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": ""}
    limits = {"IngressRate": 0, "IngressBurst": 0, "EgressRate": 8_000_000, "EgressBurst": 2**31}
    names = {"Servers": ["10.96.0.10"], "Searches": ["svc.cluster.local"], "Options": ["ndots:5"]}
    found = asked({"portMappings": [mapping], "bandwidth": limits, "dns": names})
    assert [(p.host, p.pod) for p in found.wants.ports] == [(18080, 8080)]
    assert (found.wants.ingress, found.wants.egress.rate) == (None, 1_000_000)
    assert dns({"runtimeConfig": {"dns": names}}) == Dns(
        nameservers=("10.96.0.10",), search=("svc.cluster.local",), options=("ndots:5",)
    )


def test_one_host_port_leads_to_one_port_of_the_pod() -> None:
    error = refused(ports(HTTP, HTTP | {"containerPort": 81}))
    error_matches(error, "tcp 8080 → 81 leads to two ports")


@pytest.mark.parametrize(
    ("bandwidth", "why"),
    [
        ({"ingressRate": 1_000_000}, "a rate and a burst"),
        ({"egressBurst": 1_000_000}, "a rate and a burst"),
        ({"ingressRate": -1, "ingressBurst": 1}, "a rate and a burst"),
        ({"egressRate": 7999, "egressBurst": 8}, "at least 8000 bits"),
    ],
)
def test_a_limit_without_sense_is_refused(bandwidth: dict[str, int], why: str) -> None:
    error_matches(refused({"bandwidth": bandwidth}), why)


@pytest.mark.parametrize("burst", [2**31 - 1, 2**32 - 1])
def test_a_burst_that_nobody_named_is_a_tenth_of_a_second(burst: int) -> None:
    """containerd and CRI-O say the largest number they have."""
    limit = {"ingressRate": 80_000_000, "ingressBurst": burst}
    assert wanted({"bandwidth": limit}).ingress == Rate(rate=10_000_000, burst=1_000_000)


def test_addresses_and_mac_come_from_the_nearest_of_three_places() -> None:
    env, args = "IP=10.0.0.3;MAC=02:00:00:00:00:03", {"cni": {"ips": ["10.0.0.2"]}}
    assert wanted(args=env).ips == (ip_address("10.0.0.3"),)
    assert wanted(args=env).mac == "02:00:00:00:00:03"
    config = CONFIG | {"args": args, "runtimeConfig": {}}
    environment = ENV | {"CNI_ARGS": env}
    assert parse(environment, json.dumps(config).encode()).wants.ips == (ip_address("10.0.0.2"),)
    config["runtimeConfig"] = {"ips": ["10.0.0.1"]}
    assert parse(environment, json.dumps(config).encode()).wants.ips == (ip_address("10.0.0.1"),)


def test_a_pod_has_one_address_of_a_version() -> None:
    error_matches(refused({"ips": ["10.0.0.1", "10.0.0.2"]}), r"a pod has one IPv4")
    error_matches(refused({"ips": ["10.0.0.256"]}), r"ips: '10\.0\.0\.256'")


@pytest.mark.parametrize(
    "mac", ["01:00:00:00:00:01", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "02:00:00:00:00", "x"]
)
def test_a_mac_that_is_no_nics_is_refused(mac: str) -> None:
    error_matches(refused({"mac": mac}), f"mac '{mac}'")


def test_the_pods_own_dns_wins_over_the_configurations() -> None:
    own = {"servers": ["10.0.0.10"], "searches": ["shop.svc"], "options": ["ndots:5"]}
    general = {"nameservers": ["192.0.2.53"]}
    assert asked({"dns": own}, dns=general).dns == Dns(
        nameservers=("10.0.0.10",), search=("shop.svc",), options=("ndots:5",)
    )
    assert asked({"dns": {}}, dns=general).dns == Dns(nameservers=("192.0.2.53",))


def test_what_has_no_effect_is_accepted() -> None:
    runtime = {"aliases": ["web"], "cgroupPath": "/kubepods", "ipRanges": [], "deviceID": ""}
    assert wanted(runtime) == NOTHING


@pytest.mark.parametrize(
    ("runtime", "why"),
    [
        ({"ipRanges": [[{"subnet": "10.0.0.0/24"}]]}, "come from the pools"),
        ({"deviceID": "0000:00:1f.6"}, "'deviceID': not supported"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(runtime: dict[str, Any], why: str) -> None:
    error = refused(runtime)
    assert error.cni_code == 2
    error_matches(error, why)


def test_a_del_is_not_judged_by_what_an_add_asked() -> None:
    assert wanted({"mac": "nonsense"}, verb="DEL") == NOTHING


def test_a_name_that_is_no_name_is_left_out() -> None:
    assert wanted(args="K8S_POD_NAME=a b").pod == ""
