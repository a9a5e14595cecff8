"""Namespaces, sysctls, facts and events on the real kernel."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from muslin.errors import KernelError
from muslin.kernel import facts, netns, sysctl
from muslin.kernel.events import Events, News
from muslin.plan.objects import Route
from namespaces import PREFIX, Spaces, run

pytestmark = pytest.mark.root

UPLINK = """
ip link set dev lo up
ip link add eth0 mtu 1400 type veth peer name wire
ip link set dev wire up
ip link set dev eth0 up
ip addr add 192.0.2.1/24 dev eth0
ip addr add 192.0.2.3/24 dev eth0 valid_lft 1000 preferred_lft 1000
ip addr add 2001:db8::1/64 dev eth0 nodad valid_lft 1000 preferred_lft 1000
ip addr add 2001:db8::2/64 dev eth0 nodad
ip addr add 2001:db8::3/64 dev eth0 nodad valid_lft 1000 preferred_lft 0
"""


def test_inside_is_there_and_afterwards_is_back(spaces: Spaces) -> None:
    path, home = spaces.new(), netns.identity()
    with netns.inside(path):
        assert netns.identity() == netns.identity(path) != home
    assert netns.identity() == home


def test_an_error_inside_comes_home_too(spaces: Spaces) -> None:
    home = netns.identity()
    with pytest.raises(ZeroDivisionError), netns.inside(spaces.new()):
        raise ZeroDivisionError
    assert netns.identity() == home


def test_only_the_calling_thread_moves(spaces: Spaces) -> None:
    seen: list[tuple[int, int]] = []
    home = netns.identity()
    with netns.inside(spaces.new()):
        other = threading.Thread(target=lambda: seen.append(netns.identity()))
        with netns.inside(None):
            pass
    other.start()
    other.join()
    assert seen == [home]


def test_nesting_returns_step_by_step(spaces: Spaces) -> None:
    one, two = spaces.new(), spaces.new()
    with netns.inside(one):
        with netns.inside(two):
            assert netns.identity() == netns.identity(two)
        assert netns.identity() == netns.identity(one)


def test_a_path_that_is_no_network_namespace_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (str(file), str(tmp_path / "gone"), "/proc/self/ns/uts"):
        assert not netns.exists(path)
        with pytest.raises(KernelError, match=path), netns.inside(path):
            pass


def test_a_thread_that_cannot_return_ends_the_process(spaces: Spaces) -> None:
    program = (
        "from muslin.kernel import netns\n"
        f"with netns.inside({spaces.new()!r}):\n"
        "    netns._libc.setns = lambda *_: -1\n"
        "print('went on')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 70
    assert "cannot return" in done.stderr
    assert "went on" not in done.stdout


def test_names_come_and_go_as_those_of_ip_netns(spaces: Spaces) -> None:
    name = Path(spaces.new("named")).name
    assert name in netns.names()
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert name in listed.stdout
    with pytest.raises(KernelError, match=name):
        netns.create(name)
    netns.delete(name)
    assert name not in netns.names()
    netns.delete(name)


def test_what_an_interrupted_create_left_is_deleted() -> None:
    left = Path(netns.path_of(f"{PREFIX}half"))
    left.touch()
    netns.delete(left.name)
    assert not left.exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".", "-x", "a b"])
def test_a_name_cannot_lead_elsewhere(name: str) -> None:
    with pytest.raises(KernelError, match="network namespace"):
        netns.path_of(name)


def test_a_sysctl_is_the_namespaces_own(spaces: Spaces) -> None:
    name = "net/ipv4/conf/all/forwarding"
    before = sysctl.read(name)
    with netns.inside(spaces.new()):
        sysctl.write(name, "1")
        assert sysctl.read(name) == "1"
    assert sysctl.read(name) == before


def test_a_sysctl_that_is_absent_reads_as_none_and_is_not_written() -> None:
    name = "net/ipv4/conf/no-such-device/forwarding"
    assert sysctl.read(name) is None
    with pytest.raises(KernelError, match="no-such-device"):
        sysctl.write(name, "1")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "net/../../etc/passwd", "net//x", "net/."])
def test_a_sysctls_name_stays_below_proc_sys(name: str) -> None:
    with pytest.raises(KernelError, match="not a name below /proc/sys"):
        sysctl.read(name)


def test_facts_of_an_uplink(spaces: Spaces) -> None:
    node = spaces.new()
    run(node, UPLINK)
    with netns.inside(node):
        assert facts.uplink() is None
        run(node, "ip -6 route add default via 2001:db8::9 dev eth0")
        assert facts.uplink() == "eth0"
        # IPv4 decides if it has a default route, and the lower metric there
        run(node, "ip link add lan1 type veth peer name lan2; ip link set dev lan1 up")
        run(node, "ip route add default dev lan1 metric 200")
        assert facts.uplink() == "lan1"
        run(node, "ip route add default via 192.0.2.9 metric 100")
        assert facts.uplink() == "eth0"
        addresses = ["192.0.2.1/24", "192.0.2.3/24", "2001:db8::2/64", "2001:db8::1/64"]
        assert [str(a) for a in facts.addresses_of("eth0")] == addresses
        assert facts.mtu_of("eth0") == 1400
        assert facts.mtu_of("gone") is None


def calm(spaces: Spaces, uplink: str = UPLINK) -> str:
    """A node whose uplink has nothing more to say by itself: no duplicate address detection, and
    the kernel's deferred word on the carrier (net/core/link_watch.c) is out."""
    node = spaces.new()
    run(node, uplink.replace("dev eth0 up", "dev eth0 addrgenmode none up"))
    run(node, "until ip link show dev eth0 | grep -q 'state UP'; do sleep 0.01; done")
    return node


def heard(events: Events) -> bool:
    ready, _, _ = select.select([events], [], [], 5)
    return bool(ready and events.drain())


@pytest.mark.parametrize(
    "what",
    [
        "ip link set dev eth0 mtu 1300",
        "ip link set dev eth0 down",
        "ip addr del 192.0.2.1/24 dev eth0",
        "ip addr add 2001:db8::5/64 dev eth0",
        "ip route add unreachable 10.0.0.0/8 proto 109",
        "ip -6 route add unreachable fd00::/64 proto 109",
        "ip route add default via 192.0.2.9",
    ],
)
def test_a_change_from_outside_is_heard(spaces: Spaces, what: str) -> None:
    node = calm(spaces, UPLINK.replace("eth0 mtu 1400 type", "eth0 group 109 type"))
    with netns.inside(node), Events() as events:
        assert not events.drain()
        run(node, what)
        assert heard(events)


def test_other_peoples_containers_are_not_heard(spaces: Spaces) -> None:
    node = calm(spaces)
    with netns.inside(node), Events() as events:
        run(node, "ip link add docker0 type veth peer name x; ip route add 10.0.0.0/8 dev eth0")
        assert select.select([events], [], [], 5)[0]
        assert not events.drain()


def test_a_route_that_carries_our_mark_is_told_as_it_is(spaces: Spaces) -> None:
    node = calm(spaces)
    route = Route(dst=ip_network("10.0.0.0/24"), via=ip_address("192.0.2.9"), dev="eth0")
    with netns.inside(node), Events() as events:
        for verb, there in (("add", True), ("del", False)):
            run(node, f"ip route {verb} 10.0.0.0/24 via 192.0.2.9 dev eth0 proto 109")
            select.select([events], [], [], 5)
            assert events.drain() == News(routes={route.key: (route, there)})


def test_losing_events_is_a_reason_to_look(spaces: Spaces) -> None:
    node = spaces.new()
    run(node, UPLINK)
    with netns.inside(node), Events() as events:
        events._socket._socket.setsockopt(1, 8, 2048)  # SO_RCVBUF, tiny
        commands = "".join(f"link set dev eth0 txqueuelen {n}\n" for n in range(100, 400))
        run(node, f"ip -batch - << 'END'\n{commands}END")
        assert events.drain()


def test_the_descriptor_is_closed_with_the_subscription() -> None:
    with Events() as events:
        descriptor = events.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
