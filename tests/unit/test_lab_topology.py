"""Topology files to values: addresses, routes, and every fault at once."""

from pathlib import Path

import pytest

from muslin.errors import ConfigError
from muslin.lab.topology import Topology, host_ways, parse, router_ways

LABS = Path(__file__).parents[2] / "labs"
NETWORK = """
[network]
name = "pods"
backend = "hostgw"
pools = ["v4"]
[[pools]]
name = "v4"
cidr = "10.244.0.0/16"
"""
SMALL = '[switches.lan]\nprefixes = ["192.0.2.0/24", "2001:db8::/64"]\n' + NETWORK


def lab(text: str) -> Topology:
    return parse(text, stem="test")


def faults(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        lab(text)
    return refused.value.faults


def addresses(topology: Topology, name: str) -> list[str]:
    host = topology.host(name)
    assert host
    return [str(a) for a in host.leg.addresses]


def ways(topology: Topology, name: str) -> list[str]:
    host = topology.host(name)
    assert host
    return [f"{w.dst} via {w.via}" for w in host_ways(topology, host)]


@pytest.mark.parametrize("path", sorted(LABS.glob("*.toml")), ids=lambda p: p.stem)
def test_every_lab_that_is_shipped_is_read_and_says_what_it_is(path: Path) -> None:
    topology = parse(path.read_text(), stem=path.stem)
    assert topology.name == path.stem
    assert topology.summary


def test_addresses_are_given_in_the_files_order_with_the_same_digits_in_both_families() -> None:
    topology = lab(SMALL + '[nodes.b]\nswitch = "lan"\n[nodes.a]\nswitch = "lan"\n')
    assert addresses(topology, "b") == ["192.0.2.11/24", "2001:db8::11/64"]
    assert addresses(topology, "a") == ["192.0.2.12/24", "2001:db8::12/64"]


def test_a_given_address_is_given_to_nobody_else() -> None:
    topology = lab(
        SMALL
        + '[nodes.n1]\nswitch = "lan"\n'
        + '[nodes.n2]\nswitch = "lan"\naddresses = ["192.0.2.11"]\n'
    )
    assert addresses(topology, "n1") == ["192.0.2.12/24", "2001:db8::11/64"]
    assert addresses(topology, "n2") == ["192.0.2.11/24"]


def test_a_router_is_dot_one_on_every_switch_and_the_gateway_of_its_hosts() -> None:
    topology = parse((LABS / "two-racks.toml").read_text(), stem="x")
    assert ways(topology, "n3") == ["0.0.0.0/0 via 198.51.100.1", "::/0 via 2001:db8:b::1"]
    assert router_ways(topology, topology.routers[0]) == ()


def test_hosts_on_a_switch_without_a_router_get_no_default() -> None:
    topology = parse((LABS / "three-nodes.toml").read_text(), stem="x")
    assert ways(topology, "n1") == []


def test_a_static_machine_reaches_the_pools_through_its_node() -> None:
    topology = parse((LABS / "mixed.toml").read_text(), stem="x")
    assert ways(topology, "pm1") == [
        "10.244.0.0/16 via 192.0.2.11",
        "fd00:10:244::/56 via 2001:db8:a::11",
    ]
    assert [h.name for h in topology.agents] == ["n1", "n2", "n3", "vm1"]


def test_routers_know_the_way_to_switches_behind_each_other() -> None:
    topology = lab(
        """
[switches.a]
prefixes = ["192.0.2.0/25"]
[switches.b]
prefixes = ["192.0.2.128/25"]
[switches.c]
prefixes = ["198.51.100.0/24"]
[switches.d]
prefixes = ["203.0.113.0/24"]
[routers.r1]
legs = ["a", "b"]
[routers.r2]
legs = ["b", "c"]
[routers.r3]
legs = ["c", "d"]
[nodes.n1]
switch = "a"
"""
        + NETWORK
    )
    known = {
        r.name: [f"{w.dst} via {w.via}" for w in router_ways(topology, r)] for r in topology.routers
    }
    assert known == {
        "r1": ["198.51.100.0/24 via 192.0.2.130", "203.0.113.0/24 via 192.0.2.130"],
        "r2": ["192.0.2.0/25 via 192.0.2.129", "203.0.113.0/24 via 198.51.100.2"],
        "r3": ["192.0.2.0/25 via 198.51.100.1", "192.0.2.128/25 via 198.51.100.1"],
    }


def test_all_faults_of_a_file_are_reported_at_once_by_name() -> None:
    found = faults(
        """
nonsense = 1
[lab]
name = "Has Capitals"
[switches.lan]
prefixes = ["192.0.2.0/24"]
mtu = 100
[switches.twin]
prefixes = ["192.0.2.128/25"]
[routers.r1]
legs = ["lan"]
[nodes.n1]
switch = "nowhere"
[nodes.a-name-of-more-than-fifteen]
switch = "lan"
[nodes.pod-1]
switch = "lan"
adresses = ["192.0.2.9"]
[machines.vm1]
switch = "lan"
[machines.pm1]
switch = "lan"
static = true
via = "vm1"
addresses = ["198.51.100.1", "not an address"]
[network]
name = "pods"
backend = "pigeons"
pools = ["v4", "v6"]
[[pools]]
name = "v4"
cidr = "192.0.0.0/16"
[[pools]]
name = "v5"
"""
    )
    text = "\n".join(found)
    for expected in (
        "unknown key 'nonsense'",
        "lab name 'Has Capitals'",
        "switches.lan.mtu: 100; must be a number from 1280 to 65535",
        "switches.lan 192.0.2.0/24 overlaps switches.twin 192.0.2.128/25",
        "switches.lan 192.0.2.0/24 overlaps pool v4 192.0.0.0/16",
        "routers.r1.legs: two or more different switches",
        "nodes.n1: no switch 'nowhere' (there are: lan, twin)",
        "name 'a-name-of-more-than-fifteen'",
        "name 'pod-1'",
        "nodes.pod-1: unknown key 'adresses'",
        "machines.vm1: say either member = true or static = true",
        "machines.pm1: via 'vm1' is not a node",
        "machines.pm1: 198.51.100.1 is in no prefix of lan",
        "machines.pm1.addresses: 'not an address'",
        "backend 'pigeons' is not one of",
        "pools, number 2: Object missing required field `cidr`",
        "network.pools: no pool 'v6'",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[switches.lan", "not TOML"),
        (SMALL, "nodes: a lab needs at least one"),
        (SMALL + '[nodes.lan]\nswitch = "lan"', "name 'lan' is used twice"),
        (SMALL + '[nodes.mgmt]\nswitch = "lan"', "the lab's own"),
        ("nodes = 3\n" + SMALL, "nodes: 3; must be a table"),
        (SMALL + "[nodes.n1]", "nodes.n1.switch: missing; must be a string"),
        (SMALL + '[nodes.n1]\nswitch = "lan"\naddresses = ["192.0.2.9"]\n'
         '[nodes.n2]\nswitch = "lan"\naddresses = ["192.0.2.9"]',
         "nodes.n2: 192.0.2.9 belongs to nodes.n1"),
        (SMALL.replace("/24", "/29") + '[nodes.n1]\nswitch = "lan"', "has no address left for it"),
    ],
)  # fmt: skip
def test_a_file_is_refused_in_words_that_name_the_thing(text: str, fault: str) -> None:
    assert any(fault in f for f in faults(text))
