"""Packets between pods of three nodes, over every backend that needs no more than a kernel."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from estate import OUTSIDE, Estate, build
from talk import Mailbox, connected, post, seen_by

from muslin.kernel import facts, netns
from muslin.kernel.linux import LinuxKernel
from muslin.model import Address
from muslin.plan.diff import diff
from muslin.plan.render import render_changes
from namespaces import Spaces, run

pytestmark = pytest.mark.root

HEADERS = {4: 28, 6: 48}  # IP and UDP
GROUNDS = [("hostgw", 1, "new"), ("vxlan", 1, "new"), ("vxlan", 2, "new"), ("vxlan", 2, "old")]


@pytest.fixture(scope="module", params=GROUNDS, ids=lambda g: f"{g[0]}, {g[1]} racks, {g[2]}")
def estate(request: pytest.FixtureRequest) -> Iterator[Estate]:
    spaces = Spaces()
    try:
        backend, racks, kernel = request.param
        yield build(spaces, backend, racks=racks, old_kernel=kernel == "old")
    finally:
        spaces.close()


both_versions = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


@both_versions
def test_every_pod_reaches_every_pod_and_is_seen_as_itself(estate: Estate, version: int) -> None:
    pairs = [(a, b) for a in estate.pods.values() for b in estate.pods.values()]
    wrong = {}
    for a, b in pairs:
        seen = seen_by(b.nic.netns, b.address(version), a.nic.netns)
        if seen != a.address(version):
            wrong[a.on, b.on] = seen
    assert wrong == {}
    assert len(pairs) == 9


@both_versions
def test_nodes_and_pods_reach_each_other(estate: Estate, version: int) -> None:
    for pod in estate.pods.values():
        for machine in estate.machines.values():
            seen = seen_by(pod.nic.netns, pod.address(version), machine.ns)
            hop = machine.blocks and next(b[0] for b in machine.blocks if b.version == version)
            own = {a.ip for a in machine.node.addresses} | ({hop} if hop else set())
            assert seen in own, (machine.node.name, pod.on)
            underlay = machine.node.address(version)
            assert underlay is not None
            seen = seen_by(machine.ns, underlay.ip, pod.nic.netns)
            assert seen == pod.address(version), (pod.on, machine.node.name)


@both_versions
def test_a_packet_of_the_pods_mtu_passes_whole(estate: Estate, version: int) -> None:
    for a in estate.pods.values():
        for b in estate.pods.values():
            with Mailbox(b.nic.netns, b.address(version)) as box:
                data = bytes(a.nic.mtu - HEADERS[version])
                post(a.nic.netns, None, box, data)
                assert box.take() == data


def spoofed_sources(estate: Estate, version: int) -> list[Address]:
    """What p1 may not send from: another node's pod, nobody's, a node's, an outsider's."""
    nobody = ip_address("10.244.0.77" if version == 4 else "fd00:244::77")
    node = estate.machines["n2"].node.address(version)
    assert node is not None
    return [estate.pods["p2"].address(version), nobody, node.ip, OUTSIDE[version]]


@both_versions
def test_a_pod_cannot_send_from_an_address_it_does_not_own(estate: Estate, version: int) -> None:
    pod, other = estate.pods["p1"], estate.pods["p3"]
    with Mailbox(other.nic.netns, other.address(version)) as box:
        for source in spoofed_sources(estate, version):
            nodad = "nodad" if version == 6 else ""
            run(pod.nic.netns, f"ip addr add {source} dev lo {nodad}")
            post(pod.nic.netns, source, box, b"spoofed")
            run(pod.nic.netns, f"ip addr del {source} dev lo")
        post(pod.nic.netns, pod.address(version), box, b"genuine")
        # One path keeps its order: had a spoofed one passed, it would be first.
        assert box.take() == b"genuine"


@both_versions
def test_beyond_the_estate_a_pod_is_its_node(estate: Estate, version: int) -> None:
    for pod in estate.pods.values():
        node = estate.machines[pod.on].node.address(version)
        assert node is not None
        assert seen_by(estate.router, OUTSIDE[version], pod.nic.netns) == node.ip


@both_versions
def test_an_unused_address_answers_unreachable(estate: Estate, version: int) -> None:
    pod = estate.pods["p1"]
    for name in ("n1", "n3"):
        block = next(b for b in estate.machines[name].blocks if b.version == version)
        # IPv6 takes a second: the answer to a first SYN is a soft error, the second's counts.
        with pytest.raises(OSError) as caught, connected(pod.nic.netns, block[40], 80):
            pass
        assert caught.value.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH}


def test_everything_was_put_and_nothing_but_that(estate: Estate) -> None:
    for name, machine in estate.machines.items():
        with netns.inside(machine.ns):
            plan = estate.plan(name)
            changes = list(diff(plan, LinuxKernel().observe(plan)))
        assert render_changes(changes) == ""


def test_no_switch_for_the_whole_node_was_needed(estate: Estate) -> None:
    """Per-device forwarding is enough; before Linux 6.17 not for IPv6."""
    fine = facts.has_force_forwarding() and not estate.old_kernel
    switches = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding"
    for machine in estate.machines.values():
        run(machine.ns, f'test "$({switches} | tr -d "\\n")" = 0{0 if fine else 1}')


def test_devices_of_ours_have_no_link_local_address(estate: Estate) -> None:
    """With one there would be a route fe80::/64, and the guard would pass any such source."""
    for machine in estate.machines.values():
        run(machine.ns, "for d in $(ls /sys/class/net | grep ^mu); do "
            "test -z \"$(ip -6 addr show dev $d scope link)\"; done")  # fmt: skip


def test_a_pod_cannot_send_from_a_link_local_address(estate: Estate) -> None:
    pod = estate.pods["p1"]
    node = estate.machines["n1"].node.address(6)
    assert node is not None
    with Mailbox(estate.machines["n1"].ns, node.ip) as box:
        run(pod.nic.netns, "ip addr add fe80::77/64 dev eth0 nodad")
        post(pod.nic.netns, ip_address("fe80::77%eth0"), box, b"spoofed")
        run(pod.nic.netns, "ip addr del fe80::77/64 dev eth0")
        post(pod.nic.netns, pod.address(6), box, b"genuine")
        assert box.take() == b"genuine"
