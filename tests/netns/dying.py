"""One ADD or DEL in a process that kills itself at its n-th step: run by test_crash.

The pod has ports of the node and a limit each way, and as many further NICs
as networks are named.

Steps are every commit to node.db, every netlink send and every sysctl write,
each counted once before and once after.  Prints the number of steps when it
lived to the end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from muslin.agent import ground, wishes
from muslin.agent.attach import Attachments
from muslin.agent.ground import Ground
from muslin.cni.protocol import Request
from muslin.errors import MuslinError
from muslin.kernel import boot, netlink, sysctl
from muslin.kernel.linux import LinuxKernel
from muslin.model import Host, Network, Pool, PortMapping, Rate, Wants
from muslin.store.ledger import Ledger

POOLS = (
    Pool(name="four", cidr=ip_network("10.0.0.0/24"), block=26),
    Pool(name="six", cidr=ip_network("fd00::/64"), block=122),
)
MORE = tuple(
    Pool(name=name, cidr=ip_network(cidr), block=26)
    for name, cidr in (("storage", "10.1.0.0/24"), ("blue", "10.2.0.0/24"))
)


def opened(path: Path) -> Ledger:
    """A node.db whose node holds one block of each family."""
    ledger = Ledger(path, boot.clock)
    ledger.hold(ip_network("10.0.0.0/26"), POOLS[0])
    ledger.hold(ip_network("fd00::40/122"), POOLS[1])
    host, grounds = Host(uplink="eth0"), []
    for name, pools in (("default", POOLS), *((p.name, (p,)) for p in MORE)):
        network = Network(name=name, backend="hostgw", pools=tuple(p.name for p in pools))
        grounds.append(Ground(network=network, pools=pools, mtu=1450, host=host))
    for pool in MORE:
        ledger.hold(next(pool.cidr.subnets(new_prefix=26)), pool)
    ground.publish(ledger, grounds)
    return ledger


class Listing:
    """A pod whose annotation lists these networks."""

    def __init__(self, nics: str) -> None:
        self._wishes = wishes.read({wishes.NICS: nics} if nics else {}, pod="", stateful=False)

    def wishes(self, request: Request) -> wishes.Wishes:
        return self._wishes

    def failed(self, request: Request, error: MuslinError) -> None:
        raise error


WANTS = Wants(
    ports=(
        PortMapping(host=8080, pod=80),
        PortMapping(host=53, pod=53, protocol="udp", ip=ip_address("192.0.2.1")),
    ),
    ingress=Rate(rate=2_500_000, burst=131_072),
    egress=Rate(rate=2_500_000, burst=131_072),
)


def request(verb: str, netns: str) -> Request:
    return Request(
        verb=verb, container="c1", ifname="eth0", netns=netns, name="muslin", wants=WANTS
    )


class Steps:
    """Counts, and at one of them ends everything."""

    def __init__(self, last: int) -> None:
        self.count, self._last = 0, last

    def __call__(self) -> None:
        if self.count == self._last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def around(self, owner: Any, name: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def outer(*args: Any, **more: Any) -> Any:
            self()
            try:
                return inner(*args, **more)
            finally:
                self()

        setattr(owner, name, outer)


def main(path: str, verb: str, netns: str, last: str, nics: str = "") -> None:
    ledger = opened(Path(path))
    steps = Steps(int(last))
    steps.around(netlink.Socket, "send")
    steps.around(netlink.Socket, "transact")
    steps.around(sysctl, "write")
    for transaction in ("claim", "ready", "deleting", "release_all"):
        steps.around(Ledger, transaction)
    attachments = Attachments(ledger, LinuxKernel(), pods=Listing(nics))  # type: ignore[arg-type]
    if verb == "ADD":
        attachments.add(request(verb, netns))
    else:
        attachments.delete(request(verb, netns))
        attachments.reap()
    print(steps.count)


if __name__ == "__main__":
    main(*sys.argv[1:])
