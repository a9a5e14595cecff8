"""Labs drawn as text, compared character by character."""

from ipaddress import ip_address
from pathlib import Path

from muslin.lab.picture import draw
from muslin.lab.state import Pod
from muslin.lab.topology import Topology, parse

LABS = Path(__file__).parents[2] / "labs"


def lab(name: str) -> Topology:
    return parse((LABS / f"{name}.toml").read_text(), stem=name)


def pod(name: str, node: str, *addresses: str) -> Pod:
    return Pod(name=name, node=node, container=name, addresses=tuple(map(ip_address, addresses)))


def test_three_nodes_stand_beside_each_other_below_their_switch() -> None:
    assert (
        draw(lab("three-nodes"), [pod("web", "n2", "10.244.0.5", "fd00:10:244::5")])
        == """\
three-nodes: network pods, hostgw, pods 10.244.0.0/16  fd00:10:244::/56

═ lan ══════════════════════════════════════ 192.0.2.0/24  2001:db8:a::/64
    ┌┴ n1 ───────────┐ ┌┴ n2 ─────────────────┐ ┌┴ n3 ───────────┐
    │ 192.0.2.11     │ │ 192.0.2.12           │ │ 192.0.2.13     │
    │ 2001:db8:a::11 │ │ 2001:db8:a::12       │ │ 2001:db8:a::13 │
    └────────────────┘ │ ● web 10.244.0.5     │ └────────────────┘
                       │       fd00:10:244::5 │
                       └──────────────────────┘
"""
    )


def test_a_router_is_a_column_that_joins_its_switches() -> None:
    assert (
        draw(lab("two-racks"), [pod("a", "n1"), pod("bb", "n1", "10.244.0.2")])
        == """\
two-racks: network pods, vxlan (direct=auto), pods 10.244.0.0/16  fd00:10:244::/56

r1  (router, knows no pods)
├─────═ rack-a ═══════════════════════════════════ 192.0.2.0/24  2001:db8:a::/64
│         ┌┴ n1 ────────────────┐ ┌┴ n2 ───────────┐
│         │ 192.0.2.11          │ │ 192.0.2.12     │
│         │ 2001:db8:a::11      │ │ 2001:db8:a::12 │
│         │ ● a  no address yet │ └────────────────┘
│         │ ● bb 10.244.0.2     │
│         └─────────────────────┘
│
├─────═ rack-b ═══════════════════════════════════ 198.51.100.0/24  2001:db8:b::/64
│         ┌┴ n3 ───────────┐ ┌┴ n4 ───────────┐
│         │ 198.51.100.11  │ │ 198.51.100.12  │
│         │ 2001:db8:b::11 │ │ 2001:db8:b::12 │
│         └────────────────┘ └────────────────┘
│
└─────═ wan ══════════════════════════════════════ 203.0.113.0/24  2001:db8:f::/64
          ┌┴ world (outside) ─┐
          │ 203.0.113.11      │
          │ 2001:db8:f::11    │
          └───────────────────┘
"""
    )


def test_boxes_that_do_not_fit_go_below_and_machines_say_what_they_are() -> None:
    assert (
        draw(lab("mixed"), width=70)
        == """\
mixed: network pods, hostgw, pods 10.244.0.0/16  fd00:10:244::/56

═ lan ══════════════════════════════════ 192.0.2.0/24  2001:db8:a::/64
    ┌┴ n1 ───────────┐ ┌┴ n2 ───────────┐ ┌┴ n3 ───────────┐
    │ 192.0.2.11     │ │ 192.0.2.12     │ │ 192.0.2.13     │
    │ 2001:db8:a::11 │ │ 2001:db8:a::12 │ │ 2001:db8:a::13 │
    └────────────────┘ └────────────────┘ └────────────────┘
    ┌┴ vm1 (member) ─┐ ┌┴ pm1 (static, via n1) ─┐
    │ 192.0.2.14     │ │ 192.0.2.50             │
    │ 2001:db8:a::14 │ │ 2001:db8:a::50         │
    └────────────────┘ └────────────────────────┘
"""
    )


def test_two_routers_have_a_column_each_and_their_legs_cross() -> None:
    topology = parse(
        """
[switches.a]
prefixes = ["192.0.2.0/25"]
[switches.b]
prefixes = ["192.0.2.128/25"]
[switches.c]
prefixes = ["198.51.100.0/24"]
mtu = 9000
[routers.r1]
legs = ["a", "b"]
[routers.r2]
legs = ["b", "c"]
[nodes.n1]
switch = "a"
[network]
name = "pods"
backend = "hostgw"
pools = ["v4"]
[[pools]]
name = "v4"
cidr = "10.244.0.0/16"
""",
        stem="x",
    )
    assert (
        draw(topology)
        == """\
x: network pods, hostgw, pods 10.244.0.0/16

r1  (router, knows no pods)
│     r2  (router, knows no pods)
├─────│─────═ a ════════════════════════════════════════ 192.0.2.0/25
│     │         ┌┴ n1 ───────┐
│     │         │ 192.0.2.11 │
│     │         └────────────┘
│     │
└─────┼─────═ b ════════════════════════════════════════ 192.0.2.128/25
      │
      └─────═ c ════════════════════════════════════════ 198.51.100.0/24  mtu 9000
"""
    )


def test_no_line_is_wider_than_asked_where_the_boxes_themselves_fit() -> None:
    for name in ("three-nodes", "two-racks", "mixed"):
        for width in (70, 80, 100, 140):
            body = draw(lab(name), width=width).splitlines()[2:]
            assert max(map(len, body)) <= width
