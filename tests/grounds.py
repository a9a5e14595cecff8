"""A fake and a real kernel on the same ground, for the suite that holds one to the other.

node    eth0 192.0.2.1/24, 2001:db8:a::1/64 (somebody else's), and the agent
pod     an empty network namespace
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_interface, ip_network

from muslin.kernel import Kernel, netns
from muslin.kernel.fake import FakeKernel
from muslin.kernel.linux import LinuxKernel
from muslin.plan.objects import Addr, Link, Plan, Present, Route, Veth
from namespaces import Spaces, run

UPLINK = (
    "ip link set dev lo up\n"
    "ip link add eth0 type veth peer name wire\n"
    "ip link set dev wire up\n"
    "ip link set dev eth0 up\n"
    "ip addr add 192.0.2.1/24 dev eth0\n"
    "ip addr add 2001:db8:a::1/64 dev eth0 nodad\n"
)


@dataclass
class Ground:
    """A kernel under test, and what others do to it."""

    kernel: Kernel
    pod: str  # path of another namespace

    def stranger_adds(self, obj: Route | Addr | Link) -> None:
        raise NotImplementedError

    def stranger_has(self, obj: Route | Addr | Link) -> bool:
        raise NotImplementedError

    def stranger_takes_down(self, dev: str) -> None:
        raise NotImplementedError


@dataclass
class FakeGround(Ground):
    kernel: FakeKernel = field(kw_only=True)

    def stranger_adds(self, obj: Route | Addr | Link) -> None:
        self.kernel.strangers[obj.key] = obj

    def stranger_has(self, obj: Route | Addr | Link) -> bool:
        return self.kernel.strangers.get(obj.key) == obj

    def stranger_takes_down(self, dev: str) -> None:
        self.kernel.take_down(None, dev)


@dataclass
class RealGround(Ground):
    """What strangers do is done with iproute2, as they do it."""

    node: str = field(kw_only=True)

    def stranger_adds(self, obj: Route | Addr | Link) -> None:
        match obj:
            case Route():
                run(self.node, f"ip route add {obj.dst} via {obj.via} dev {obj.dev} proto static")
            case Addr():
                run(self.node, f"ip addr add {obj.address} dev {obj.dev}")
            case Link():
                run(self.node, f"ip link add {obj.name} type veth peer name {obj.name}x")

    def stranger_has(self, obj: Route | Addr | Link) -> bool:
        match obj:
            case Route():
                shown = f"ip -{obj.dst.version} route show exact {obj.dst} proto static"
                question = f"{shown} | grep -q 'via {obj.via} '"
            case Addr():
                question = f"ip addr show dev {obj.dev} to {obj.address.ip} | grep -q ."
            case Link():
                # no alias, not brought up: as it was made
                question = f"ip link show dev {obj.name} | grep -q 'state DOWN'"
                question += f" && ! ip link show dev {obj.name} | grep -q muslin"
        asked = ["nsenter", f"--net={self.node}", "sh", "-c", question]
        return subprocess.run(asked, check=False).returncode == 0

    def stranger_takes_down(self, dev: str) -> None:
        run(self.node, f"ip link set dev {dev} down")


@contextlib.contextmanager
def fake_ground() -> Iterator[Ground]:
    uplink = Link(name="eth0", kind=Veth(), mtu=1500, mac="02:00:00:00:00:01")
    on_it: Plan = frozenset(
        Addr(dev="eth0", address=ip_interface(a)) for a in ("192.0.2.1/24", "2001:db8:a::1/64")
    )
    yield FakeGround(pod="/run/netns/pod", kernel=FakeKernel(frozenset({uplink}) | on_it))


@contextlib.contextmanager
def real_ground() -> Iterator[Ground]:
    """The calling thread is in the node's namespace meanwhile."""
    spaces = Spaces()
    try:
        node, pod = spaces.new("node"), spaces.new("pod")
        run(node, UPLINK)
        with netns.inside(node):
            yield RealGround(kernel=LinuxKernel(), pod=pod, node=node)
    finally:
        spaces.close()


# ── small plans the suite is about ──────────────────────────────────────────────────────────────


def to(block: str, via: str) -> Route:
    """A plain route over the uplink."""
    hop = ip_interface(via).ip
    return Route(dst=ip_network(block), via=hop, dev="eth0")


def own_link(name: str = "mu.a", **fields: object) -> Link:
    """A pair of ours within the node."""
    pair = Link(name=name, kind=Veth(peer=f"{name}-x"), mtu=1400, mac="02:00:00:00:00:0a")
    return replace(pair, **fields)  # type: ignore[arg-type]


def lo(ns: str) -> Link:
    return Link(ns=ns, name="lo", kind=Present())
