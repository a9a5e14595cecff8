"""What flanneld left in a kernel: ours without a gap, or left alone."""

from __future__ import annotations

import subprocess
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from grounds import UPLINK
from muslin.kernel import netns
from muslin.kernel.linux import LinuxKernel
from muslin.kernel.takeover import take_over
from muslin.plan.diff import diff
from muslin.plan.objects import Addr, Fdb, Link, Neigh, Plan, Route, Vxlan
from namespaces import Spaces, run

pytestmark = pytest.mark.root

MAC, PEER = "0e:2a:00:00:00:01", "0e:2a:00:00:00:02"
LEFT = rf"""
ip link add flannel.1 mtu 1450 address {MAC} type vxlan \
    id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning
ip addr add 10.244.1.0/32 dev flannel.1
ip link set flannel.1 up
ip neigh add 10.244.2.0 lladdr {PEER} dev flannel.1 nud permanent
bridge fdb add {PEER} dev flannel.1 dst 192.0.2.2 self permanent
ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink
ip route add 10.244.9.0/24 via 10.244.9.0 dev flannel.1 onlink
ip route add 10.245.2.0/24 via 192.0.2.9
ip link add cni0 type bridge
ip addr add 10.244.1.1/24 dev cni0
ip link set cni0 up
"""
PLAN: Plan = frozenset(
    {
        Link(
            name="flannel.1",
            kind=Vxlan(vni=1, port=8472, local=ip_address("192.0.2.1")),
            mtu=1450,
            mac=MAC,
        ),
        Addr(dev="flannel.1", address=ip_interface("10.244.1.0/32")),
        Neigh(dev="flannel.1", address=ip_address("10.244.2.0"), mac=PEER),
        Fdb(dev="flannel.1", mac=PEER, dst=ip_address("192.0.2.2")),
        Route(
            dst=ip_network("10.244.2.0/24"),
            via=ip_address("10.244.2.0"),
            dev="flannel.1",
            onlink=True,
        ),
        Route(dst=ip_network("10.244.0.0/16")),
    }
)


def shown(ns: str, command: str) -> str:
    argv = ["nsenter", f"--net={ns}", "sh", "-c", command]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_what_is_as_planned_becomes_ours_as_it_is(spaces: Spaces) -> None:
    ns = spaces.new("node")
    run(ns, UPLINK + LEFT)
    before = shown(ns, "ip -o link show flannel.1 | cut -d: -f1")
    with netns.inside(ns):
        kernel = LinuxKernel()
        assert take_over(PLAN) == [
            "device flannel.1",
            "route 10.244.2.0/24 via 10.244.2.0",
            "route 10.244.9.0/24 via 10.244.9.0",
            "cni0: proxy_arp",
        ]
        assert take_over(PLAN) == []
        changes = {(c.verb, str(getattr(c.obj, "dst", ""))) for c in diff(PLAN, kernel.observe())}
        kernel.apply(list(diff(PLAN, kernel.observe())))
        assert list(diff(PLAN, kernel.observe())) == []
    # Of all that flanneld left only what nobody wants any more is touched.
    assert changes == {("add", "10.244.0.0/16"), ("remove", "10.244.9.0/24")}
    assert shown(ns, "ip -o link show flannel.1 | cut -d: -f1") == before, "not made anew"
    routes = shown(ns, "ip route")
    assert "10.244.1.0/24 dev cni0 proto kernel" in routes
    assert "10.245.2.0/24 via 192.0.2.9 dev eth0 \n" in routes, "a stranger's"
    assert shown(ns, "sysctl -n net.ipv4.conf.cni0.proxy_arp") == "1\n"


def test_another_device_of_that_name_is_left_alone(spaces: Spaces) -> None:
    ns = spaces.new("node")
    run(ns, UPLINK + LEFT.replace("id 1 ", "id 2 "))
    with netns.inside(ns):
        assert "device flannel.1" not in take_over(PLAN)
        assert not [o for o in LinuxKernel().observe() if isinstance(o, Link)]


def test_a_machine_that_was_never_flannels_is_not_touched(spaces: Spaces) -> None:
    ns = spaces.new("node")
    run(ns, UPLINK)
    with netns.inside(ns):
        assert take_over(PLAN) == []
        assert LinuxKernel().observe() == frozenset()
