"""Host ports: from everywhere, to the right pod, seen as whom."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from estate import Estate, Pod, build
from talk import FAMILY, PATIENCE, Mailbox, post, seen_by

from muslin.kernel import netns
from muslin.kernel.linux import LinuxKernel
from muslin.model import Address, PortMapping, Wants
from muslin.plan import ports
from muslin.plan.diff import Change, diff
from namespaces import Spaces, run

pytestmark = pytest.mark.root

EVERYWHERE, AT_ONE, LOCAL = 8080, 8081, 8082  # ports of the node
TARGET = 80
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "sctp": socket.SOCK_STREAM}
NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}


@pytest.fixture(scope="module")
def estate() -> Iterator[Estate]:
    """p1 on n1 has ports; p1b is on n1 too and has none."""
    spaces = Spaces()
    try:
        made = build(spaces, "vxlan", racks=2)
        first, node = made.pods["p1"], made.machines["n1"].node
        other = replace(
            first.nic,
            container="p1b",
            netns=spaces.new("pod-n1b"),
            addresses=tuple(block[6] for block in made.machines["n1"].blocks),
        )
        made.pods["p1b"] = Pod(nic=other, on="n1")
        wanted = Wants(ports=tuple(_mappings(*(a.ip for a in node.addresses))))
        made.pods["p1"] = Pod(nic=replace(first.nic, wants=wanted), on="n1")
        made.settle()
        yield made
    finally:
        spaces.close()


def _mappings(*own: Address) -> Iterator[PortMapping]:
    for protocol in ("tcp", "udp", "sctp"):
        yield PortMapping(host=EVERYWHERE, pod=TARGET, protocol=protocol)
        loopback = ip_address("127.0.0.1")
        yield PortMapping(host=LOCAL, pod=TARGET, protocol=protocol, ip=loopback)
        for address in own:
            yield PortMapping(host=AT_ONE, pod=TARGET, protocol=protocol, ip=address)


@pytest.fixture(params=["tcp", "udp", "sctp"])
def protocol(request: pytest.FixtureRequest) -> str:
    try:
        open_socket(4, request.param).close()
    except OSError as e:
        pytest.skip(f"this kernel has no {request.param} sockets: {e.strerror}")
    return str(request.param)


def open_socket(version: int, protocol: str) -> socket.socket:
    return socket.socket(FAMILY[version], KINDS[protocol], NUMBERS[protocol])


def seen_at(pod: Pod, protocol: str, client: str, to: Address, port: int) -> Address:
    """Speak from `client` to a port of the node, hear the answer: the source the pod saw."""
    version = to.version
    with contextlib.ExitStack() as stack:
        with netns.inside(pod.nic.netns):
            server = stack.enter_context(open_socket(version, protocol))
        with netns.inside(client):
            talker = stack.enter_context(open_socket(version, protocol))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.settimeout(PATIENCE)
        talker.settimeout(PATIENCE)
        server.bind((str(pod.address(version)), TARGET))
        if protocol == "udp":
            talker.connect((str(to), port))
            talker.send(b"ask")
            _, source = server.recvfrom(9)
            server.sendto(b"answer", source)
        else:
            server.listen()
            talker.connect((str(to), port))
            accepted, source = server.accept()
            with accepted:
                accepted.send(b"answer")
        assert talker.recv(9) == b"answer"
        return ip_address(source[0])


def own_addresses(estate: Estate, name: str, version: int) -> set[Address]:
    machine = estate.machines[name]
    hops = {b[0] for b in machine.blocks if b.version == version}
    return hops | {a.ip for a in machine.node.addresses if a.version == version}


both_versions = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
both_kinds = pytest.mark.parametrize("port", [EVERYWHERE, AT_ONE], ids=["any address", "one"])


@both_versions
@both_kinds
def test_a_host_port_leads_to_its_pod_from_everywhere(
    estate: Estate, version: int, port: int, protocol: str
) -> None:
    """Who can be answered is seen as itself; the pod itself is seen as its node."""
    pod, node = estate.pods["p1"], estate.machines["n1"].node.address(version)
    assert node is not None
    router = "192.0.2.254" if version == 4 else "2001:db8:a::ff"
    clients: dict[str, tuple[str, set[Address]]] = {
        "outside": (estate.router, {ip_address(router)}),
        "n1": (estate.machines["n1"].ns, own_addresses(estate, "n1", version)),
        "n2": (estate.machines["n2"].ns, own_addresses(estate, "n2", version)),
        "n3": (estate.machines["n3"].ns, own_addresses(estate, "n3", version)),
        "vm1": (estate.machines["vm1"].ns, own_addresses(estate, "vm1", version)),
        "p1": (pod.nic.netns, own_addresses(estate, "n1", version)),
    }
    for name in ("p1b", "p2", "p3"):
        other = estate.pods[name]
        clients[name] = (other.nic.netns, {other.address(version)})
    wrong = {}
    for name, (ns, expected) in clients.items():
        try:
            seen: object = seen_at(pod, protocol, ns, node.ip, port)
        except OSError as e:
            seen = e
        if seen not in expected:
            wrong[name] = seen
    assert wrong == {}


@both_versions
@pytest.mark.parametrize("strict", [0, 1])
def test_a_member_behind_a_router_is_answered_by_the_way_it_asked(
    estate: Estate, version: int, strict: int
) -> None:
    """Plain, though what the pod sends to the member as itself goes through the tunnel."""
    pod, node, vm = estate.pods["p1"], estate.machines["n1"], estate.machines["vm1"]
    at, own = node.node.address(version), vm.node.address(version)
    assert at is not None
    assert own is not None
    try:
        for ns in (node.ns, vm.ns):
            run(ns, f"sysctl -qw net.ipv4.conf.all.rp_filter={strict}")
        assert seen_by(vm.ns, own.ip, pod.nic.netns) == pod.address(version)
        run(vm.ns, "ip link set mu.vx1 down")
        assert seen_at(pod, "tcp", vm.ns, at.ip, EVERYWHERE) == own.ip
        with pytest.raises(TimeoutError):
            seen_by(vm.ns, own.ip, pod.nic.netns)
    finally:
        for ns in (node.ns, vm.ns):
            run(ns, "sysctl -qw net.ipv4.conf.all.rp_filter=0")
        estate.settle()


@pytest.mark.parametrize("port", [EVERYWHERE, LOCAL], ids=["any address", "127.0.0.1"])
def test_the_nodes_localhost_leads_to_the_pod(estate: Estate, protocol: str, port: int) -> None:
    pod, node = estate.pods["p1"], estate.machines["n1"]
    seen = seen_at(pod, protocol, node.ns, ip_address("127.0.0.1"), port)
    assert seen in own_addresses(estate, "n1", 4)


def test_ipv6s_localhost_is_refused_at_once(estate: Estate) -> None:
    """The kernel has no route_localnet of IPv6; a client of `localhost` then tries 127.0.0.1."""
    node = estate.machines["n1"].ns
    refused = pytest.raises(ConnectionRefusedError)
    with netns.inside(node), open_socket(6, "tcp") as talker, refused:
        talker.connect(("::1", EVERYWHERE))


ONTO_THE_WIRE = """
ip addr del 127.0.0.1/8 dev lo
ip route add 127.0.0.1 via 169.254.1.1 dev eth0 onlink
sysctl -qw net.ipv4.conf.eth0.route_localnet=1
"""


def test_127_from_a_wire_does_not_reach_what_listens_there(estate: Estate) -> None:
    """route_localnet on the pod's host end would let it in; the guard does not."""
    pod, node = estate.pods["p1"], estate.machines["n1"]
    run(pod.nic.netns, ONTO_THE_WIRE)
    with Mailbox(node.ns, ip_address("127.0.0.1")) as secret:
        post(pod.nic.netns, pod.address(4), secret, b"guarded")
        run(node.ns, "nft flush chain inet muslin guard")
        post(pod.nic.netns, pod.address(4), secret, b"unguarded")
        assert secret.take() == b"unguarded"
    run(pod.nic.netns, "ip link set lo down; ip link set lo up; ip route del 127.0.0.1")
    estate.settle()


@both_versions
def test_a_client_that_keeps_sending_from_one_port_follows_the_mapping(
    estate: Estate, version: int
) -> None:
    """The node's own server, p1, p1b, the node again: each from the next packet on."""
    node, at = estate.machines["n1"].ns, estate.machines["n1"].node.address(version)
    assert at is not None
    with contextlib.ExitStack() as stack:

        def listener(ns: str, address: Address) -> socket.socket:
            with netns.inside(ns):
                made = stack.enter_context(open_socket(version, "udp"))
            made.bind((str(address), 9001))
            made.settimeout(PATIENCE)
            return made

        servers = {
            "node": listener(node, at.ip),
            **{
                n: listener(estate.pods[n].nic.netns, estate.pods[n].address(version))
                for n in ("p1", "p1b")
            },
        }
        with netns.inside(estate.router):
            client = stack.enter_context(open_socket(version, "udp"))
        client.connect((str(at.ip), 9001))

        def reaches(name: str) -> None:
            client.send(name.encode())
            assert servers[name].recv(9) == name.encode()

        kernel, mapping = LinuxKernel(), [PortMapping(host=9001, pod=9001, protocol="udp")]
        to = {n: ports.elements(mapping, [estate.pods[n].address(version)]) for n in ("p1", "p1b")}
        with netns.inside(node):
            reaches("node")
            kernel.apply([Change("add", e) for e in to["p1"]])
            reaches("p1")
            kernel.apply(diff(to["p1b"], to["p1"]))
            reaches("p1b")
            kernel.apply([Change("remove", e) for e in to["p1b"]])
            reaches("node")
    estate.settle()  # p1's hairpin went along


def test_a_thousand_mappings_are_put_and_taken_in_one_go(estate: Estate) -> None:
    pod = estate.pods["p1b"]
    mappings = [PortMapping(host=20_000 + n, pod=TARGET) for n in range(1000)]
    plan = ports.elements(mappings, pod.nic.addresses)
    with netns.inside(estate.machines["n1"].ns):
        LinuxKernel().apply(diff(plan, frozenset()))
    for port in (20_000, 20_999):
        address = estate.machines["n1"].node.address(4)
        assert address is not None
        seen = seen_at(pod, "tcp", estate.router, address.ip, port)
        assert seen == ip_address("192.0.2.254")
    with netns.inside(estate.machines["n1"].ns):
        assert plan <= LinuxKernel().observe()
        LinuxKernel().apply([Change("remove", e) for e in plan])
        LinuxKernel().apply([Change("remove", e) for e in plan])  # absent is success
        assert not plan & LinuxKernel().observe()
