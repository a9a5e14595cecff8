"""A topology into namespaces, bridges and veths.

    mulab-<lab>-<switch>    a bridge, and one port per plug, named after what is plugged in
    mulab-<lab>-<host>      eth0, its addresses and static routes
    mulab-<lab>-<router>    one leg per switch, named after it; forwards
    mulab-<lab>-mgmt        a switch of its own for the store, when that is a server

A switch has a namespace to itself so that nothing but a bridge is in the way
of a packet, and so that nothing at all is made in the machine's own namespace.

Hosts keep the kernel's default sysctls: an agent has to cope with a machine as
it is found.  Only routers forward, by their own global switches.

Two `ip -batch` per namespace: about 2 ms each.  netlink would be faster still
and much longer to read.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable

import msgspec

from muslin.errors import KernelError
from muslin.kernel import netns, sysctl
from muslin.lab import state
from muslin.lab.topology import UPLINK, Leg, Router, Switch, Topology, Way, host_ways, router_ways

PREFIX = "mulab-"
BRIDGE = "br0"
MGMT = "mgmt"  # the namespace and switch of the lab's own traffic
MGMT_DEV = "mgmt0"
# Shared address space (RFC 6598): no pool and no underlay of a lab is there.
MGMT_NET = "100.64.0"
FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


def namespace(lab: str, thing: str) -> str:
    """The name of a thing's namespace."""
    return f"{PREFIX}{lab}-{thing}"


def pod_namespace(lab: str, pod: str) -> str:
    """The name of a pod's namespace."""
    return namespace(lab, f"pod-{pod}")


def namespaces(topology: Topology, lab: str, *, mgmt: bool) -> tuple[str, ...]:
    """Every namespace `build` makes, known before it makes the first."""
    things = (*topology.things, *((MGMT,) if mgmt else ()))
    return tuple(namespace(lab, t) for t in things)


def build(topology: Topology, lab: str, *, mgmt: bool) -> None:
    """Make it all; KernelError names what was refused.  Undo with `demolish`."""
    for name in namespaces(topology, lab, mgmt=mgmt):
        create(name)
    for switch in topology.switches:
        ip(namespace(lab, switch.name), _switch(topology, lab, switch))
    for host in topology.hosts:
        ways = host_ways(topology, host)
        ip(namespace(lab, host.name), [*_plugged(UPLINK, host.leg), *map(_way, ways)])
    for router in topology.routers:
        _build_router(topology, lab, router)
    if mgmt:
        _build_mgmt(topology, lab)


def create(name: str) -> None:
    """Make one namespace, and have it say whose it is."""
    netns.create(name)
    ip(name, [f'link set dev lo alias "{state.root()}" up'])


def owner(name: str) -> str:
    """The lab directory a namespace was made for; "" if it does not say (`create` was killed)."""
    done = subprocess.run(
        ["ip", "-j", "-n", name, "link", "show", "dev", "lo"],
        capture_output=True, check=False,
    )  # fmt: skip
    links = msgspec.json.decode(done.stdout) if done.returncode == 0 else []
    return str(links[0].get("ifalias", "")) if links else ""


def demolish(names: Iterable[str]) -> None:
    """Remove namespaces, in any state, and with them all they hold; absent is success."""
    for name in names:
        netns.delete(name)


def ip(name: str, lines: Iterable[str]) -> None:
    """Run lines of iproute2 in a namespace; KernelError names the first that failed."""
    text = list(lines)
    done = subprocess.run(
        ["ip", "-n", name, "-batch", "-"],
        input="\n".join(text) + "\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        found = re.search(r"Command failed -:(\d+)", done.stderr)
        line = text[int(found[1]) - 1] if found else "-batch"
        raise KernelError("ip", f"-n {name} {line}", 0, done.stderr.splitlines()[0])


def _switch(topology: Topology, lab: str, switch: Switch) -> list[str]:
    lines = _bridge()
    plugs = [(h.name, UPLINK) for h in topology.hosts if h.leg.switch == switch.name]
    plugs += [
        (r.name, switch.name)
        for r in topology.routers
        if any(leg.switch == switch.name for leg in r.legs)
    ]
    for thing, dev in plugs:
        lines += _port(thing, dev, namespace(lab, thing), switch.mtu)
    return lines


def _build_router(topology: Topology, lab: str, router: Router) -> None:
    name = namespace(lab, router.name)
    # Before the addresses: turning IPv6 forwarding on drops what autoconfiguration has learnt.
    with netns.inside(netns.path_of(name)):
        for setting in FORWARDING:
            sysctl.write(setting, "1")
    lines = [line for leg in router.legs for line in _plugged(leg.switch, leg)]
    ip(name, [*lines, *map(_way, router_ways(topology, router))])


def _build_mgmt(topology: Topology, lab: str) -> None:
    """A network for the store's server, beside the underlay and never its way out.

    Agents live in namespaces of their own, so they reach neither loopback nor
    each other's; the underlay would serve, but then a fault in what is tested
    would take the store away with it.
    """
    lines = [*_bridge(), f"addr add {mgmt_address()}/24 dev {BRIDGE}"]
    for host in topology.agents:
        lines += _port(host.name, MGMT_DEV, namespace(lab, host.name), 1500)
    ip(namespace(lab, MGMT), lines)
    for number, host in enumerate(topology.agents, 11):
        own = [f"addr add {MGMT_NET}.{number}/24 dev {MGMT_DEV}", f"link set dev {MGMT_DEV} up"]
        ip(namespace(lab, host.name), own)


def mgmt_address() -> str:
    """Where the store's server listens."""
    return f"{MGMT_NET}.1"


def _bridge() -> list[str]:
    # No snooping and no spanning tree: frames pass from the first instant.
    return [
        f"link add {BRIDGE} type bridge mcast_snooping 0 stp_state 0 forward_delay 0",
        f"link set dev {BRIDGE} addrgenmode none up",
    ]


def _port(port: str, dev: str, netns_name: str, mtu: int) -> list[str]:
    return [
        f"link add {port} mtu {mtu} type veth peer name {dev} mtu {mtu} netns {netns_name}",
        f"link set dev {port} addrgenmode none master {BRIDGE} up",
    ]


def _plugged(dev: str, leg: Leg) -> list[str]:
    lines = [f"link set dev {dev} up"]
    # nodad: usable at once; the lab gave every address out itself, so none is double.
    nodad = {4: "", 6: " nodad"}
    return lines + [f"addr add {a} dev {dev}{nodad[a.version]}" for a in leg.addresses]


def _way(way: Way) -> str:
    return f"route add {way.dst} via {way.via}"
