"""Pods on two networks, of two nodes, attached by ADD: who reaches whom, as whom, by which NIC.

      n1 ─── rack a ─── router ─── rack b ─── n2      (both on a where the backend needs it)

On each node a pod on both networks (eth0 default, net1 storage) and one on
each alone.  The router stands for a client outside of both.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest
from estate import RACK, ROUTER
from talk import Mailbox, post, seen_by

from muslin.agent import ground, known, world
from muslin.agent.attach import Attachments
from muslin.agent.ground import Ground
from muslin.agent.known import Known
from muslin.agent.world import World
from muslin.backend import load
from muslin.cni.protocol import Attached, Request
from muslin.kernel import boot, facts, netlink, netns, settle
from muslin.kernel.linux import LinuxKernel
from muslin.model import Address, Block, Host, Network, Node, Pool, Wants
from muslin.plan.pod import GATEWAY
from muslin.store.ledger import Ledger
from muslin.store.pods import PodKey, PodRow
from namespaces import Spaces, run

pytestmark = pytest.mark.root

POOLS = {
    name: Pool(name=name, cidr=ip_network(cidr))
    for name, cidr in {
        "p4": "10.244.0.0/16", "p6": "fd00:244::/112",
        "s4": "10.9.0.0/16", "s6": "fd00:9::/112",
    }.items()
}  # fmt: skip
OF = {"default": ("p4", "p6"), "storage": ("s4", "s6")}
BOTH = '{"nics": [{"network": "storage", "ifname": "net1"}]}'
ASKS = {"both": BOTH, "store": '{"network": "storage"}', "plain": ""}


@dataclass
class Machine:
    ns: str
    node: Node
    ledger: Ledger
    pods: dict[str, Attached] = field(default_factory=dict)


@dataclass
class Two:
    """The two nodes, their pods and the router between them."""

    router: str
    machines: list[Machine]

    def pods(self) -> dict[tuple[str, str], Attached]:
        return {(m.node.name, n): p for m in self.machines for n, p in m.pods.items()}


def addresses(pod: Attached, version: int) -> dict[str, Address]:
    """By interface."""
    nics = [one.nic for one in (pod, *pod.further)]
    return {n.ifname: a for n in nics for a in n.addresses if a.version == version}


def build(spaces: Spaces, home: Path, backend: str) -> Two:
    router = spaces.new("router")
    run(router, ROUTER)
    options = [{"vni": 7}, {"vni": 8}] if backend == "vxlan" else [{}, {}]
    networks = {
        name: Network(name=name, backend=backend, pools=OF[name], options=given)
        for name, given in zip(OF, options, strict=True)
    }
    blocks: list[Block] = []
    machines = []
    for at, rack in enumerate("ab" if backend == "vxlan" else "aa"):
        name = f"n{at + 1}"
        mine = [
            Block(pool=p.name, node=name, cidr=list(p.cidr.subnets(new_prefix=p.block_length))[at])
            for p in POOLS.values()
        ]
        blocks += mine
        machines.append(_machine(spaces, home, router, rack, mine))
    _settle(machines, networks, blocks)
    for machine in machines:
        _attach(spaces, machine)
    for block in blocks:
        family = "-6 " if block.cidr.version == 6 else ""
        node = next(m.node for m in machines if m.node.name == block.node)
        hop = node.address(block.cidr.version)
        assert hop is not None
        run(router, f"ip {family}route add {block.cidr} via {hop.ip}")
    return Two(router, machines)


def _machine(spaces: Spaces, home: Path, router: str, rack: str, blocks: list[Block]) -> Machine:
    name = blocks[0].node
    ns, (four, six), number = spaces.new(name), RACK[rack], int(name[1:])
    run(
        ns,
        f"""
        sysctl -q -w net.ipv6.conf.default.accept_dad=0
        ip link set dev lo up
        ip link add eth0 type veth peer name {name} netns {router}
        ip addr add {four}{number}/24 dev eth0
        ip addr add {six}{number}/64 dev eth0 nodad
        ip link set dev eth0 up
        nsenter --net={router} ip link set dev {name} master rack-{rack} up
        ip route add default via {four}254
        ip -6 route add default via {six}ff
        """,
    )
    at = (ip_interface(f"{four}{number}/24"), ip_interface(f"{six}{number}/64"))
    data = {n: {"mac": f"02:00:00:00:0{i}:0{number}"} for i, n in enumerate(OF)}
    node = Node(name=name, addresses=at, mtu=1500, data=data)
    ledger = Ledger(home / name / "node.db", boot.clock)
    for block in blocks:
        ledger.hold(block.cidr, POOLS[block.pool])
    return Machine(ns, node, ledger)


def _settle(machines: list[Machine], networks: dict[str, Network], blocks: list[Block]) -> None:
    nodes = {m.node.name: m.node for m in machines}
    whole = World(networks=networks, pools=POOLS, nodes=nodes, blocks=tuple(blocks))
    for machine in machines:
        with netns.inside(machine.ns):
            fine = facts.has_force_forwarding()
            host = Host(uplink="eth0", force_forwarding=fine, global_forwarding=True)
            sites = world.sites(whole, machine.node, host)
            wanted = world.desired(sites)
            assert wanted.faults == ()
            settle(LinuxKernel(), wanted.plan)
        grounds = [
            Ground(
                network=s.network,
                pools=s.pools,
                mtu=1500 - load(s.network).overhead(s),
                host=host,
            )
            for s in sites
        ]
        ground.publish(machine.ledger, grounds)


def attachments(machine: Machine) -> Attachments:
    known.say(machine.ledger, "here", boot.clock())
    return Attachments(machine.ledger, LinuxKernel(), pods=Known(machine.ledger))


def request(verb: str, pod: str, ns: str) -> Request:
    args = {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": pod, "K8S_POD_UID": ""}
    return Request(
        verb=verb, container=pod, ifname="eth0", netns=ns, name="m", args=args,
        wants=Wants(pod=f"shop/{pod}"),
    )  # fmt: skip


def _attach(spaces: Spaces, machine: Machine) -> None:
    for name, asks in ASKS.items():
        machine.ledger.learn({PodKey("shop", name): PodRow("", asks)})
        pod = spaces.new(f"{machine.node.name}-{name}")
        # As many distributions have it: a pod's kernel must not drop what we mean it to have.
        run(pod, "sysctl -q -w net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1")
        with netns.inside(machine.ns):
            machine.pods[name] = attachments(machine).add(request("ADD", name, pod))


@pytest.fixture(scope="module", params=["hostgw", "vxlan"])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    spaces = Spaces()
    made = None
    try:
        made = build(spaces, tmp_path_factory.mktemp("two"), request.param)
        yield made
    finally:
        spaces.close()
        for machine in made.machines if made else ():
            machine.ledger.close()


both_versions = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


ROUTERS = [
    ip_address(a) for a in ("192.0.2.254", "198.51.100.254", "2001:db8:a::ff", "2001:db8:b::ff")
]


def network_of(address: Address) -> str:
    return next(n for n, pools in OF.items() if any(address in POOLS[p].cidr for p in pools))


@both_versions
def test_every_pod_reaches_every_address_and_is_seen_by_the_one_on_that_network(
    two: Two, version: int
) -> None:
    """Who has no NIC on it comes as its eth0, and has an answer from the address it asked."""
    wrong, count = {}, 0
    for c, client in two.pods().items():
        own = addresses(client, version)
        on = {network_of(a): a for a in own.values()}
        for s, server in two.pods().items():
            for dev, at in addresses(server, version).items():
                if c == s:
                    continue
                seen = seen_by(server.nic.netns, at, client.nic.netns)
                count += 1
                if seen != on.get(network_of(at), own["eth0"]):
                    wrong[c, s, dev] = seen
    assert wrong == {}
    assert count == 6 * 8 - 8  # all addresses by all pods, but their own


@both_versions
def test_an_answer_to_somebody_beyond_both_networks_leaves_by_the_nic_it_was_asked_at(
    two: Two, version: int
) -> None:
    for machine in two.machines:
        pod = machine.pods["both"]
        for at in addresses(pod, version).values():
            assert seen_by(pod.nic.netns, at, two.router) in ROUTERS


@both_versions
def test_without_its_rule_that_answer_would_be_lost(two: Two, version: int) -> None:
    pod = two.machines[0].pods["both"]
    at = addresses(pod, version)["net1"]
    ip = f"ip -{version} rule"
    run(pod.nic.netns, f"{ip} del from {at} lookup 10901 priority 10901")
    try:
        with pytest.raises(TimeoutError):
            seen_by(pod.nic.netns, at, two.router)
    finally:
        run(pod.nic.netns, f"{ip} add from {at} lookup 10901 priority 10901 protocol 109")


@both_versions
def test_beyond_both_networks_a_pod_goes_by_eth0(two: Two, version: int) -> None:
    shown = run_out(two.machines[0].pods["both"].nic.netns, f"ip -{version} route show default")
    assert shown.count("default") == 1
    assert "dev eth0" in shown


@both_versions
def test_one_nics_address_is_not_accepted_out_of_another(two: Two, version: int) -> None:
    pod, other = two.machines[0].pods["both"], two.machines[1].pods["plain"]
    ns, own, ip = pod.nic.netns, addresses(pod, version), f"ip -{version}"
    with Mailbox(other.nic.netns, addresses(other, version)["eth0"]) as box:
        for dev, source in (("eth0", own["net1"]), ("net1", own["eth0"])):
            run(ns, f"{ip} route add default via {GATEWAY[version]} dev {dev} onlink table 77")
            run(ns, f"{ip} rule add from {source} lookup 77 priority 7")
            before = sent_by(ns, dev)
            post(ns, source, box, b"spoofed")
            assert sent_by(ns, dev) == before + 1
            run(ns, f"{ip} rule del priority 7; {ip} route del default table 77")
        post(ns, own["net1"], box, b"genuine")
        # One path keeps its order: had a spoofed one passed, it would be first.
        assert box.take() == b"genuine"


def sent_by(ns: str, dev: str) -> int:
    """How many packets a device has sent."""
    (line,) = (x for x in run_out(ns, "cat /proc/net/dev").splitlines() if f"{dev}:" in x)
    return int(line.split()[10])


def test_a_pod_with_one_nic_takes_three_batches_and_one_with_two_takes_four(
    two: Two, spaces: Spaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, sent, send = two.machines[0], [], netlink.Socket.send

    def counted(self: netlink.Socket, requests: object) -> object:
        sent.append(requests)
        return send(self, requests)  # type: ignore[arg-type]

    monkeypatch.setattr(netlink.Socket, "send", counted)
    for container, asks, most in (("one", "", 3), ("several", BOTH, 4)):
        machine.ledger.learn({PodKey("shop", container): PodRow("", asks)})
        asked = request("ADD", container, spaces.new(container))
        sent.clear()
        with netns.inside(machine.ns):
            attachments(machine).add(asked)
            assert len(sent) == most
            attachments(machine).delete(replace(asked, sync_delete=True))


def test_del_leaves_nothing_on_the_node_nor_in_a_pod_that_stays(two: Two, spaces: Spaces) -> None:
    machine, ns = two.machines[0], spaces.new("stays")
    machine.ledger.learn({PodKey("shop", "stays"): PodRow("", BOTH)})
    with netns.inside(machine.ns):
        before = LinuxKernel().observe()
        node = attachments(machine)
        node.add(request("ADD", "stays", ns))
        node.check(request("CHECK", "stays", ns))
        assert len(LinuxKernel().observe()) > len(before)
        node.delete(request("DEL", "stays", ns))
        node.reap()
        assert LinuxKernel().observe() == before
    assert run_out(ns, "ip -o link").count("\n") == 1
    assert "109" not in run_out(ns, "ip rule; ip -6 rule")
    with netns.inside(machine.ns):  # and a namespace used again is as good as new
        node.add(request("ADD", "stays", ns))
        node.delete(replace(request("DEL", "stays", ns), sync_delete=True))


def run_out(ns: str, script: str) -> str:
    argv = ["nsenter", f"--net={ns}", "sh", "-ec", script]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
