"""A small estate of namespaces: three nodes, a machine without pods, a router, the outside.

      n1 .1   n2 .2                   n3 .3   vm1 .9
       └── a ──┘      router .254      └── b ──┘
     192.0.2.0/24 ─────────┴───────── 198.51.100.0/24       (n3 on a too, if `racks` is 1)
     2001:db8:a::/64       │          2001:db8:b::/64
                203.0.113.1, 2001:db8:f::1  (outside)

The router knows both segments and no pod.  Everything of Muslin's in here is
put by LinuxKernel from the plans that the agent would make.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network

from muslin.backend import load
from muslin.kernel import facts, netns, settle
from muslin.kernel.linux import LinuxKernel
from muslin.model import Address, Host, Network, Nic, Node, Peer, Pool, Prefix, Site
from muslin.plan import node as every_node
from muslin.plan.objects import Plan
from namespaces import Spaces, run

OUTSIDE = {4: ip_address("203.0.113.1"), 6: ip_address("2001:db8:f::1")}
POOLS = (
    Pool(name="p4", cidr=ip_network("10.244.0.0/16")),
    Pool(name="p6", cidr=ip_network("fd00:244::/112")),
)

# Without accept_dad=0 the machines' link-local addresses are tentative for a second or two,
# during which they resolve no neighbour for packets they forward.
ROUTER = """
sysctl -q -w net.ipv6.conf.default.accept_dad=0
ip link set dev lo up
ip addr add 203.0.113.1/32 dev lo
ip addr add 2001:db8:f::1/128 dev lo nodad
sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
for rack in rack-a rack-b; do
    ip link add $rack type bridge
    ip link set dev $rack up
done
ip addr add 192.0.2.254/24 dev rack-a
ip addr add 198.51.100.254/24 dev rack-b
ip addr add 2001:db8:a::ff/64 dev rack-a nodad
ip addr add 2001:db8:b::ff/64 dev rack-b nodad
"""
RACK = {"a": ("192.0.2.", "2001:db8:a::"), "b": ("198.51.100.", "2001:db8:b::")}


@dataclass(frozen=True)
class Machine:
    """A node or a member, and the namespace that plays it."""

    ns: str
    node: Node
    blocks: tuple[Prefix, ...]


@dataclass(frozen=True)
class Pod:
    """An attached pod."""

    nic: Nic
    on: str  # the node's name

    def address(self, version: int) -> Address:
        return next(a for a in self.nic.addresses if a.version == version)


@dataclass
class Estate:
    """The whole, attached and settled."""

    router: str
    network: Network
    machines: dict[str, Machine]
    pods: dict[str, Pod]
    old_kernel: bool = False  # as before Linux 6.17: IPv6 is forwarded everywhere or nowhere

    def site(self, name: str) -> Site:
        machine = self.machines[name]
        with netns.inside(machine.ns):
            fine = facts.has_force_forwarding() and not self.old_kernel
            host = Host(uplink="eth0", force_forwarding=fine, global_forwarding=True)
        others = (m for n, m in self.machines.items() if n != name)
        return Site(
            me=machine.node,
            host=host,
            network=self.network,
            pools=POOLS,
            blocks=machine.blocks,
            peers=tuple(Peer(node=m.node, blocks=m.blocks) for m in others),
        )

    def plan(self, name: str) -> Plan:
        """All that the kernel of one machine shall hold."""
        site, backend = self.site(name), load(self.network)
        plan = backend.node(site).union(*(backend.peer(site, p) for p in site.peers))
        plan |= every_node.base([site])
        for pod in self.pods.values():
            if pod.on == name:
                plan |= backend.nic(pod.nic)
        return plan

    def settle(self) -> None:
        for name, machine in self.machines.items():
            with netns.inside(machine.ns):
                settle(LinuxKernel(), self.plan(name))


def build(spaces: Spaces, backend: str, *, racks: int, old_kernel: bool = False) -> Estate:
    """Make the namespaces, join them, and bring every machine to its plan."""
    router = spaces.new("router")
    run(router, ROUTER)
    network = Network(name="pods", backend=backend, pools=("p4", "p6"))
    estate = Estate(router, network, machines={}, pods={}, old_kernel=old_kernel)
    places = [("n1", "a", 1), ("n2", "a", 2), ("n3", "b" if racks == 2 else "a", 3)]
    if racks == 2:
        places.append(("vm1", "b", 9))
    for at, place in enumerate(places):
        estate.machines[place[0]] = _machine(spaces, estate, place, at)
    for at, name in enumerate(("n1", "n2", "n3")):
        machine, site = estate.machines[name], estate.site(name)
        nic = Nic(
            container=f"pod on {name}",
            ifname="eth0",
            netns=spaces.new(f"pod-{name}"),
            addresses=tuple(block[5] for block in machine.blocks),
            mtu=machine.node.mtu - load(network).overhead(site),
            host=site.host,
        )
        estate.pods[f"p{at + 1}"] = Pod(nic=nic, on=name)
    estate.settle()
    return estate


def _machine(spaces: Spaces, estate: Estate, place: tuple[str, str, int], at: int) -> Machine:
    name, rack, number = place
    ns = spaces.new(name)
    four, six = RACK[rack]
    run(
        ns,
        f"""
        sysctl -q -w net.ipv6.conf.default.accept_dad=0
        ip link set dev lo up
        ip link add eth0 type veth peer name {name} netns {estate.router}
        ip addr add {four}{number}/24 dev eth0
        ip addr add {six}{number}/64 dev eth0 nodad
        ip link set dev eth0 up
        nsenter --net={estate.router} ip link set dev {name} master rack-{rack} up
        ip route add default via {four}254
        ip -6 route add default via {six}ff
        """,
    )
    blocks = tuple(
        list(p.cidr.subnets(new_prefix=p.block_length))[at] for p in POOLS if name != "vm1"
    )
    node = Node(
        name=name,
        addresses=(ip_interface(f"{four}{number}/24"), ip_interface(f"{six}{number}/64")),
        mtu=1500,
        pods=name != "vm1",
    )
    machine = Machine(ns=ns, node=node, blocks=blocks)
    estate.machines[name] = machine
    told = load(estate.network).announce(estate.site(name), {})
    return replace(machine, node=_with_data(node, {estate.network.name: told}))


def _with_data(node: Node, data: dict[str, dict[str, str]]) -> Node:
    return Node(name=node.name, addresses=node.addresses, mtu=node.mtu, pods=node.pods, data=data)
