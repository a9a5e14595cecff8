"""ADD, DEL, CHECK, GC, crashes and restarts in any order, against a naive model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from muslin.agent import ground
from muslin.agent.attach import Attachments
from muslin.agent.ground import Ground
from muslin.agent.wishes import Wishes
from muslin.cni.protocol import Request
from muslin.errors import CheckFailed, Exhausted, KernelError, MuslinError
from muslin.kernel.fake import FakeKernel
from muslin.model import Host, Network, Pool, device_name
from muslin.plan.diff import Change
from muslin.plan.objects import Link, Present, Rule
from muslin.store.ledger import Ledger

NETWORKS = {"default": "10.0.0.0/28", "storage": "10.1.0.0/28", "blue": "10.2.0.0/28"}
POOLS = {
    name: Pool(name=name, cidr=ip_network(cidr).supernet(new_prefix=24), block=28, cooldown=10)
    for name, cidr in NETWORKS.items()
}
# What pods list beside their first NIC.
LISTS = [(), (), ("storage",), ("storage", "blue"), ("blue",), ("blue", "storage")]
PODS = [f"c{i}" for i in range(6)]


class Died(BaseException):
    """The process ended here; nothing that would run in a `finally` of a dead process counts."""


class Mortal(FakeKernel):
    """A kernel whose caller dies at the n-th change from now."""

    fuse = -1

    def apply(self, changes: Iterable[Change]) -> None:
        for change in list(changes):
            if self.fuse == 0:
                raise Died
            self.fuse -= 1
            super().apply([change])


class Asked:
    """What the next ADD's pod lists."""

    nics: tuple[str, ...] = ()

    def wishes(self, request: Request) -> Wishes:
        listed = enumerate(self.nics, 1)
        return Wishes(nics=tuple(Wishes(network=n, ifname=f"net{i}") for i, n in listed))

    def failed(self, request: Request, error: MuslinError) -> None:
        pass


class Node(RuleBasedStateMachine):
    """One node; `there` is the model: which pods have what."""

    @initialize()
    def begin(self) -> None:
        self.home = Path(tempfile.mkdtemp())
        self.now = 1_000_000.0
        self.kernel = Mortal()
        self.there: dict[str, dict[str, str]] = {}  # pod → interface → address
        self.freed: dict[str, float] = {}
        self.lists: dict[str, tuple[str, ...]] = {}
        self.start()
        grounds = []
        for name, cidr in NETWORKS.items():
            self.ledger.hold(ip_network(cidr), POOLS[name])
            network = Network(name=name, backend="hostgw", pools=(name,))
            host = Host(uplink="eth0")
            grounds.append(Ground(network=network, pools=(POOLS[name],), mtu=1500, host=host))
        ground.publish(self.ledger, grounds)

    def start(self) -> None:
        self.ledger = Ledger(self.home / "node.db", lambda: self.now)
        self.asked = Asked()
        self.node = Attachments(
            self.ledger,
            self.kernel,
            clock=lambda: self.now,
            inhabited=lambda _: False,
            pods=self.asked,  # type: ignore[arg-type]
        )
        self.kernel.fuse = -1
        self.node.recover("boot")

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            shutil.rmtree(self.home)

    def request(self, verb: str, pod: str, **more: object) -> Request:
        netns = self.home / pod
        netns.touch()
        lo = Link(ns=str(netns), name="lo", kind=Present())
        self.kernel.strangers[lo.key] = lo
        known: dict[str, object] = {"ifname": "eth0", "netns": str(netns), "name": "m"}
        return Request(verb=verb, container=pod, **(known | more))  # type: ignore[arg-type]

    def gone(self, pod: str) -> None:
        self.freed |= dict.fromkeys(self.there.pop(pod, {}).values(), self.now)

    def lacks_room(self, network: str) -> bool:
        """Whether all of a network's addresses are in use or rest."""
        cidr = ip_network(NETWORKS[network])
        used = [a for nics in self.there.values() for a in nics.values()]
        resting = [a for a, at in self.freed.items() if self.now - at < 10 and a not in used]
        return sum(ip_address(a) in cidr for a in (*used, *resting)) >= 13

    @rule(pod=st.sampled_from(PODS), nics=st.sampled_from(LISTS))
    def add(self, pod: str, nics: tuple[str, ...]) -> None:
        self.now += 0.5
        self.asked.nics = nics
        before = self.there.get(pod, {})
        try:
            made = self.node.add(self.request("ADD", pod))
        except Exhausted:
            self.gone(pod)
            assert any(self.lacks_room(n) for n in ("default", *nics))
            return
        given = {n.ifname: str(n.addresses[0]) for n in (one.nic for one in (made, *made.further))}
        assert list(given) == ["eth0", *(f"net{i}" for i, _ in enumerate(nics, 1))]
        old = {a for a in before.values() if a not in given.values()}
        self.freed |= dict.fromkeys(old, self.now)
        used = {a for p, others in self.there.items() if p != pod for a in others.values()}
        for address in set(given.values()) - set(before.values()):
            assert address not in used, "given twice"
            assert self.now - self.freed.get(address, 0) >= 10, "given before its rest"
        if before and self.lists[pod] == nics:
            assert given == before, "the same again changes nothing"
        self.there[pod], self.lists[pod] = given, nics

    @rule(pod=st.sampled_from(PODS), sync=st.booleans())
    def delete(self, pod: str, *, sync: bool) -> None:
        self.now += 0.5
        self.node.delete(self.request("DEL", pod, sync_delete=sync))
        self.gone(pod)

    @rule()
    def reap(self) -> None:
        self.node.reap()

    @rule(pod=st.sampled_from(PODS))
    def check(self, pod: str) -> None:
        if pod in self.there:
            self.node.check(self.request("CHECK", pod))
        else:
            with pytest.raises(CheckFailed):
                self.node.check(self.request("CHECK", pod))

    @rule(valid=st.sets(st.sampled_from(PODS)))
    def collect(self, valid: set[str]) -> None:
        self.now += 0.5
        listed = tuple((p, "eth0") for p in valid)
        self.node.gc(self.request("GC", "c0", valid_attachments=listed))
        for pod in set(self.there) - valid:
            self.gone(pod)

    @rule(
        pod=st.sampled_from(PODS),
        fuse=st.integers(0, 40),
        verb=st.sampled_from(["ADD", "DEL"]),
        nics=st.sampled_from(LISTS),
    )
    def die(self, pod: str, fuse: int, verb: str, nics: tuple[str, ...]) -> None:
        """Killed after `fuse` changes: the next start mends it, and the runtime sends DEL."""
        self.kernel.fuse, self.asked.nics = fuse, nics
        try:
            if verb == "ADD":
                self.node.add(self.request("ADD", pod))
            else:
                self.node.delete(self.request("DEL", pod, sync_delete=True))
        except (Died, Exhausted, KernelError):
            pass
        self.ledger.close()
        self.start()
        self.node.delete(self.request("DEL", pod))
        self.node.reap()
        self.gone(pod)

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.start()

    @rule()
    def rest(self) -> None:
        self.now += 11

    @invariant()
    def node_and_model_agree(self) -> None:
        if not hasattr(self, "node"):
            return
        found = self.ledger.attachments()
        ready: dict[str, dict[str, str]] = {}
        for one in (a for a in found if a.state == "ready"):
            ready.setdefault(one.container, {})[one.ifname] = str(one.addresses[0])
        assert ready == self.there
        going = [a for a in found if a.state == "deleting"]
        devices = {o.name for o in self.kernel.observe() if isinstance(o, Link)}
        assert devices - {a.dev for a in going} == {
            device_name(pod, ifname) for pod, nics in self.there.items() for ifname in nics
        }
        ruled = {str(o.src.network_address) for o in self.kernel._ours.values() if type(o) is Rule}
        assert ruled - {str(a.addresses[0]) for a in going} == {
            a for nics in self.there.values() if len(nics) > 1 for a in nics.values()
        }


Node.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestNode = Node.TestCase
