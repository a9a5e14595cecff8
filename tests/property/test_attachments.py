"""ADD, DEL, CHECK, GC, crashes and restarts in any order, against a naive model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from muslin.agent import ground
from muslin.agent.attach import Attachments
from muslin.agent.ground import Ground
from muslin.cni.protocol import Request
from muslin.errors import CheckFailed, Exhausted, KernelError
from muslin.kernel.fake import FakeKernel
from muslin.model import Host, Network, Pool, device_name
from muslin.plan.diff import Change
from muslin.plan.objects import Link, Present
from muslin.store.ledger import Ledger

POOL = Pool(name="four", cidr=ip_network("10.0.0.0/24"), block=28, cooldown=10)
NETWORK = Network(name="default", backend="hostgw", pools=("four",))
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


class Node(RuleBasedStateMachine):
    """One node; `there` is the model: which pods have what."""

    @initialize()
    def begin(self) -> None:
        self.home = Path(tempfile.mkdtemp())
        self.now = 1_000_000.0
        self.kernel = Mortal()
        self.there: dict[str, str] = {}
        self.freed: dict[str, float] = {}
        self.start()
        self.ledger.hold(ip_network("10.0.0.0/28"), POOL)
        known = Ground(network=NETWORK, pools=(POOL,), mtu=1500, host=Host(uplink="eth0"))
        ground.publish(self.ledger, [known])

    def start(self) -> None:
        self.ledger = Ledger(self.home / "node.db", lambda: self.now)
        self.node = Attachments(
            self.ledger, self.kernel, clock=lambda: self.now, inhabited=lambda _: False
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
        if pod in self.there:
            self.freed[self.there.pop(pod)] = self.now

    @rule(pod=st.sampled_from(PODS))
    def add(self, pod: str) -> None:
        self.now += 0.5
        try:
            made = self.node.add(self.request("ADD", pod))
        except Exhausted:
            assert len(self.there) + sum(self.now - t < 10 for t in self.freed.values()) >= 13
            self.gone(pod)
            return
        address = str(made.nic.addresses[0])
        if self.there.get(pod) != address:
            assert address not in self.there.values(), "given twice"
            assert self.now - self.freed.get(address, 0) >= 10, "given before its rest"
        self.there[pod] = address

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

    @rule(pod=st.sampled_from(PODS), fuse=st.integers(0, 12), verb=st.sampled_from(["ADD", "DEL"]))
    def die(self, pod: str, fuse: int, verb: str) -> None:
        """Killed after `fuse` changes: the next start mends it, and the runtime sends DEL."""
        self.kernel.fuse = fuse
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
        for used in [a for p, a in self.there.items() if p == pod]:
            self.freed[used] = self.now
        self.there.pop(pod, None)

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
        ready = {
            a.container: str(a.addresses[0])
            for a in self.ledger.attachments()
            if a.state == "ready"
        }
        assert ready == self.there
        devices = {o.name for o in self.kernel.observe() if isinstance(o, Link)}
        going = {a.dev for a in self.ledger.attachments() if a.state == "deleting"}
        assert devices - going == {device_name(p, "eth0") for p in self.there}


Node.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestNode = Node.TestCase
