"""ADD, DEL, CHECK, GC and STATUS against a kernel in a dict."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from errno import EEXIST, EIO
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from muslin.agent import attach, ground
from muslin.agent.attach import Attachments
from muslin.agent.ground import Ground
from muslin.cni.protocol import Request
from muslin.errors import (
    CheckFailed,
    Exhausted,
    KernelError,
    Limited,
    NotReady,
    RequestError,
    Unavailable,
)
from muslin.kernel.fake import FakeKernel
from muslin.model import Host, Network, Pool, device_name
from muslin.plan.diff import Change
from muslin.plan.node import RULES
from muslin.plan.objects import Addr, Link, Neigh, Plan, Present, Route, Ruleset, Veth
from muslin.store.ledger import Ledger

FOUR = Pool(name="four", cidr=ip_network("10.0.0.0/24"), block=29)
SIX = Pool(name="six", cidr=ip_network("fd00::/64"), block=124)
NETWORK = Network(name="default", backend="hostgw", pools=("four", "six"))
PODS = 6  # addresses for pods in a /29


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Failing(FakeKernel):
    """Refuses every change of one kind while told to."""

    refuse: type | None = None
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()  # a real kernel has its own

    def observe(self, about: Plan = frozenset()) -> Plan:
        with self._lock:
            return super().observe(about)

    def apply(self, changes: Iterable[Change]) -> None:
        with self._lock:
            self.calls += 1
            for change in changes:
                if change.verb == "add" and self.refuse and isinstance(change.obj, self.refuse):
                    raise KernelError("add", str(change.obj), EIO)
                super().apply([change])


class Devices:
    """A kernel that knows links and nothing else: fast enough for a thousand pods."""

    def __init__(self) -> None:
        self._links: dict[str, Link] = {}

    def observe(self, about: Plan = frozenset()) -> Plan:
        return frozenset(self._links.copy().values())

    def apply(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if isinstance(change.obj, Link) and change.obj.ns is None:
                if change.verb == "remove":
                    self._links.pop(change.obj.name, None)
                else:
                    self._links[change.obj.name] = change.obj


class Node:
    """One node's main path with everything around it replaced."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.clock, self.kernel = directory, Clock(), Failing()
        self.inhabited: set[str] = set()
        self.ledger = Ledger(directory / "node.db", self.clock)
        self.ledger.hold(ip_network("10.0.0.8/29"), FOUR)
        self.ledger.hold(ip_network("fd00::20/124"), SIX)
        ground.publish(self.ledger, [self.ground()])
        self.attachments = self.restarted()

    def ground(self) -> Ground:
        return Ground(network=NETWORK, pools=(FOUR, SIX), mtu=1450, host=Host(uplink="eth0"))

    def restarted(self) -> Attachments:
        return Attachments(
            self.ledger, self.kernel, clock=self.clock, inhabited=lambda ns: ns in self.inhabited
        )

    def request(self, verb: str = "ADD", container: str = "c1", **more: object) -> Request:
        netns = self.directory / f"ns-{container}"
        netns.touch()  # stands for a namespace: the fake kernel asks for no more than a name
        known: dict[str, object] = {"ifname": "eth0", "netns": str(netns), "name": "muslin"}
        for name in ("lo", "eth0"):
            link = Link(ns=str(netns), name=name, kind=Present())
            if name == "lo":
                self.kernel.strangers[link.key] = link
        return Request(verb=verb, container=container, **(known | more))  # type: ignore[arg-type]

    def add(self, container: str = "c1") -> list[str]:
        return [
            str(a) for a in self.attachments.add(self.request(container=container)).nic.addresses
        ]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.ledger.close()


def test_add_gives_an_address_of_each_family_and_a_nic(node: Node) -> None:
    made = node.attachments.add(node.request())
    assert [str(a) for a in made.nic.addresses] == ["10.0.0.9", "fd00::21"]
    assert [str(g) for g in made.gateways] == ["169.254.1.1", "fe80::1"]
    dev = device_name("c1", "eth0")
    held = node.kernel.observe()
    assert Route(dst=ip_network("10.0.0.9"), dev=dev) in held
    assert Neigh(dev=dev, address=ip_address("fd00::21"), mac=made.nic.mac) in held
    assert node.ledger.attachments()[0].state == "ready"


def test_add_again_answers_the_same_and_changes_nothing(node: Node) -> None:
    first = node.attachments.add(node.request())
    changes = len(node.kernel.log)
    assert node.attachments.add(node.request()) == first
    assert len(node.kernel.log) == changes


def test_add_into_a_new_namespace_replaces_what_an_old_one_had(node: Node) -> None:
    node.attachments.add(node.request())
    other = node.request(container="other").netns
    made = node.attachments.add(node.request(netns=other))
    assert str(made.nic.addresses[0]) == "10.0.0.10"  # .9 rests
    assert [a.netns for a in node.ledger.attachments()] == [other]


@pytest.mark.parametrize("refused", [Link, Addr, Route, Neigh])
def test_a_refused_step_leaves_nothing_behind(node: Node, refused: type) -> None:
    node.kernel.refuse = refused
    with pytest.raises(KernelError):
        node.add()
    assert node.kernel.observe() == frozenset()
    assert node.ledger.attachments() == []
    assert [u.used for u in node.ledger.usage()] == [0, 0]


def test_delete_gives_everything_back_and_repeats(node: Node) -> None:
    node.add()
    for _ in range(2):
        node.attachments.delete(node.request("DEL"))
    node.attachments.delete(node.request("DEL", container="never-added"))
    node.attachments.delete(node.request("DEL", netns=""))
    assert node.attachments.reap() == 1
    assert node.kernel.observe() == frozenset()
    assert [u.used for u in node.ledger.usage()] == [0, 0]


def test_a_delete_is_durable_at_once_and_its_address_free_only_after_the_reaper(node: Node) -> None:
    node.add()
    node.attachments.delete(node.request("DEL"))
    assert [a.state for a in node.ledger.attachments()] == ["deleting"]
    assert [u.used for u in node.ledger.usage()] == [1, 1]
    assert node.attachments.reap() == 1
    assert [u.used for u in node.ledger.usage()] == [0, 0]
    assert node.attachments.reap() == 0


def test_a_runtime_may_ask_that_the_device_is_gone_when_delete_returns(node: Node) -> None:
    node.add()
    node.attachments.delete(node.request("DEL", sync_delete=True))
    assert node.kernel.observe() == frozenset()
    assert node.ledger.attachments() == []


def test_add_after_delete_does_not_wait_for_the_reaper(node: Node) -> None:
    node.add()
    node.attachments.delete(node.request("DEL"))
    assert node.add() == ["10.0.0.10", "fd00::22"]  # the first ones rest
    assert node.attachments.reap() == 0


def test_an_add_that_meets_a_former_pods_nic_waits_for_the_reaper_at_work(node: Node) -> None:
    """The reaper has taken the row already, and is not through with the device."""
    apply, first = node.kernel.apply, [True]

    def taken_once(changes: Iterable[Change]) -> None:
        listed = list(changes)
        if first and any(c.verb == "add" for c in listed):
            first.clear()
            raise KernelError("add", "ip link", EEXIST)
        apply(listed)

    node.kernel.apply = taken_once  # type: ignore[method-assign]
    assert node.add() == ["10.0.0.9", "fd00::21"]


def test_the_reaper_removes_many_in_one_batch(node: Node) -> None:
    for i in range(PODS):
        node.add(f"c{i}")
        node.attachments.delete(node.request("DEL", container=f"c{i}"))
    before = node.kernel.calls
    assert node.attachments.reap() == PODS
    assert node.kernel.calls == before + 1


def test_one_device_that_the_kernel_keeps_does_not_keep_the_others_addresses(node: Node) -> None:
    for container in ("a", "b"):
        node.add(container)
        node.attachments.delete(node.request("DEL", container=container))
    apply, bad = node.kernel.apply, device_name("a", "eth0")

    def refuse(changes: Iterable[Change]) -> None:
        listed = list(changes)
        if any(c.obj.dev == bad for c in listed):
            raise KernelError("remove", bad, EIO)
        apply(listed)

    node.kernel.apply = refuse  # type: ignore[method-assign]
    assert node.attachments.reap() == 1
    assert [a.container for a in node.ledger.attachments()] == ["a"]
    node.kernel.apply = apply  # type: ignore[method-assign]
    assert node.attachments.reap() == 1


def test_the_reaper_works_by_itself_until_it_is_stopped(node: Node) -> None:
    stop = threading.Event()
    reaper = threading.Thread(target=node.attachments.reap_until, args=(stop,))
    reaper.start()
    node.add()
    node.attachments.delete(node.request("DEL"))
    for _ in range(500):
        if not node.ledger.attachments():
            break
        stop.wait(0.01)
    stop.set()
    node.attachments.wake_reaper()
    reaper.join(5)
    assert not reaper.is_alive()
    assert node.ledger.attachments() == []


def test_an_address_is_free_only_after_its_device_is_gone(node: Node) -> None:
    node.add()
    order: list[str] = []
    node.kernel.apply = lambda changes: order.append("kernel")  # type: ignore[assignment]
    release = node.ledger.release_all
    node.ledger.release_all = lambda *a: (order.append("release"), release(*a))  # type: ignore[assignment,func-returns-value]
    node.attachments.delete(node.request("DEL", sync_delete=True))
    assert order == ["kernel", "release"]


def test_the_nodes_own_namespace_is_refused(node: Node) -> None:
    with pytest.raises(RequestError, match="node's own network namespace"):
        node.attachments.add(node.request(netns="/proc/self/ns/net"))
    assert node.ledger.attachments() == []


def test_a_namespace_that_is_not_there_is_refused_by_name(node: Node) -> None:
    with pytest.raises(RequestError, match="/nowhere: No such file"):
        node.attachments.add(node.request(netns="/nowhere"))


def test_an_unknown_network_is_not_ready_and_names_the_known_ones(node: Node) -> None:
    with pytest.raises(NotReady, match=r"network other .*known: default"):
        node.attachments.add(node.request(network="other"))


def test_check_passes_after_add_and_names_what_is_missing_afterwards(node: Node) -> None:
    node.add()
    node.attachments.check(node.request("CHECK"))
    dev = device_name("c1", "eth0")
    node.kernel.apply([Change("remove", Route(dst=ip_network("10.0.0.9"), dev=dev))])
    with pytest.raises(CheckFailed, match=r"c1/eth0: missing .*ip route 10\.0\.0\.9/32 dev mu"):
        node.attachments.check(node.request("CHECK"))


def test_check_of_an_unknown_attachment_and_of_a_strange_address_fail(node: Node) -> None:
    with pytest.raises(CheckFailed, match="no such attachment"):
        node.attachments.check(node.request("CHECK"))
    node.add()
    wrong = {"ips": [{"address": "10.0.0.77/32"}]}
    with pytest.raises(CheckFailed, match=r"address 10\.0\.0\.77 of prevResult"):
        node.attachments.check(node.request("CHECK", prev_result=wrong))


def test_gc_removes_what_the_runtime_does_not_know_and_nothing_else(node: Node) -> None:
    for container in ("keep", "drop"):
        node.add(container)
    node.attachments.add(node.request(container="others", name="another-conf"))
    node.clock.now += 1
    node.attachments.gc(node.request("GC", valid_attachments=(("keep", "eth0"),)))
    assert {a.container for a in node.ledger.attachments()} == {"keep", "others"}


def test_gc_spares_a_pod_in_which_a_process_lives_whatever_the_list_says(node: Node) -> None:
    node.add()
    node.inhabited.add(node.request().netns)
    node.clock.now += 1
    node.attachments.gc(node.request("GC", valid_attachments=()))
    assert len(node.ledger.attachments()) == 1
    node.inhabited.clear()
    node.attachments.gc(node.request("GC", valid_attachments=()))
    assert node.ledger.attachments() == []


def test_the_sweep_never_takes_a_live_pod_while_a_thousand_are_added(node: Node) -> None:
    node.attachments = Attachments(node.ledger, Devices(), clock=node.clock)
    wide = Pool(name="four", cidr=ip_network("10.0.0.0/16"), block=20, cooldown=0)
    node.ledger.hold(ip_network("10.0.16.0/20"), wide)
    only4 = Ground(
        network=Network(name="default", backend="hostgw", pools=("four",)),
        pools=(wide,),
        mtu=1450,
        host=Host(uplink="eth0"),
    )
    ground.publish(node.ledger, [only4])
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            node.clock.now += 1
            node.attachments.sweep()

    sweeping = threading.Thread(target=sweep)
    # SQLite's every step lets the other thread run, which by default keeps the interpreter for
    # 5 ms: that was most of 30 s.  Shorter turns are also more ways to meet.
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)
    sweeping.start()
    try:
        for i in range(1000):
            node.add(f"r{i}")
    finally:
        sys.setswitchinterval(before)
        done.set()
        sweeping.join()
    assert len(node.ledger.attachments()) == 1000
    assert sum(u.used for u in node.ledger.usage()) == 1000


def test_gc_without_a_list_concludes_nothing(node: Node) -> None:
    node.add()
    node.clock.now += 1
    node.attachments.gc(node.request("GC", valid_attachments=None))
    assert len(node.ledger.attachments()) == 1


def test_gc_spares_what_was_added_after_it_began(node: Node) -> None:
    node.add()  # the clock stands: as young as the call
    node.attachments.gc(node.request("GC", valid_attachments=()))
    assert len(node.ledger.attachments()) == 1


def test_gc_goes_on_past_a_failure_and_reports_it(node: Node) -> None:
    for container in ("a", "b"):
        node.add(container)
    node.clock.now += 1
    apply, bad = node.kernel.apply, device_name("a", "eth0")

    def fail_once(changes: Iterable[Change]) -> None:
        listed = list(changes)
        if any(c.obj.dev == bad for c in listed):
            raise KernelError("remove", bad, EIO)
        apply(listed)

    node.kernel.apply = fail_once  # type: ignore[method-assign]
    with pytest.raises(ExceptionGroup):
        node.attachments.gc(node.request("GC", valid_attachments=()))
    assert [a.container for a in node.ledger.attachments()] == ["a"]


def test_status_says_why_an_add_would_fail(node: Node) -> None:
    node.kernel.apply([Change("add", Ruleset(body=RULES))])
    node.attachments.status(node.request("STATUS"))
    for i in range(PODS):
        node.add(f"c{i}")
    ground.set_full(node.ledger, "four", "pool four (10.0.0.0/24): all 32 blocks of /29 are held")
    with pytest.raises(Unavailable, match=r"no free IPv4 address; pool four \(10\.0\.0\.0/24\)"):
        node.attachments.status(node.request("STATUS"))
    with pytest.raises(Exhausted, match=r"pool four: .*6 of 6 in use.*all 32 blocks"):
        node.add("one-more")


def test_without_an_uplink_status_is_51_and_add_says_why(node: Node) -> None:
    ground.set_fault(node.ledger, "uplink eth9 does not exist")
    with pytest.raises(Limited, match="uplink eth9 does not exist") as caught:
        node.attachments.status(node.request("STATUS"))
    assert caught.value.cni_code == 51
    with pytest.raises(NotReady, match="uplink eth9 does not exist"):
        node.add()
    ground.set_fault(node.ledger, None)
    node.add()


def test_a_pod_whose_network_was_removed_does_not_stop_the_others_mending(node: Node) -> None:
    node.add()
    before = node.attachments.host_plan()
    ground.publish(node.ledger, [])
    assert before
    assert node.attachments.host_plan() == frozenset()


def test_status_without_a_network_is_unavailable(node: Node) -> None:
    ground.publish(node.ledger, [])
    with pytest.raises(Unavailable, match="network default is not known"):
        node.attachments.status(node.request("STATUS"))


def test_an_add_waits_for_another_block(node: Node) -> None:
    for i in range(PODS):
        node.add(f"c{i}")
    asked = threading.Event()
    waiting = Attachments(node.ledger, node.kernel, clock=node.clock, refill=asked.set)
    request, made = node.request(container="late"), []
    adding = threading.Thread(target=lambda: made.append(waiting.add(request)))
    adding.start()
    assert asked.wait(5)
    node.ledger.hold(ip_network("10.0.0.16/29"), FOUR)
    adding.join(5)
    assert str(made[0].nic.addresses[0]) == "10.0.0.17"


def test_an_add_gives_up_when_no_block_comes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "PATIENCE", 0.0)
    for i in range(PODS):
        node.add(f"c{i}")
    with pytest.raises(Exhausted, match="pool four"):
        node.add("late")


def test_calls_for_one_attachment_wait_for_each_other(node: Node) -> None:
    request, answers = node.request(), []
    threads = [
        threading.Thread(target=lambda: answers.append(node.attachments.add(request)))
        for _ in range(8)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(answers) == 8
    assert len({a.nic.addresses for a in answers}) == 1


def test_recovery_undoes_what_was_interrupted_and_keeps_what_was_done(node: Node) -> None:
    node.add("done")
    for container, state in (("adding", "adding"), ("deleting", "deleting")):
        node.add(container)
        node.ledger._set_state(container, ("eth0",), state)  # type: ignore[arg-type]
    node.restarted().recover("boot")
    assert [a.container for a in node.ledger.attachments()] == ["done"]
    links = {o.name for o in node.kernel.observe() if isinstance(o, Link)}
    assert links == {device_name("done", "eth0")}


def test_recovery_keeps_the_address_of_a_pod_that_no_record_knows(node: Node) -> None:
    node.add("c1")
    for file in node.directory.glob("node.db*"):
        file.unlink()
    fresh = Ledger(node.directory / "node.db", node.clock)
    attachments = Attachments(fresh, node.kernel, clock=node.clock)
    attachments.recover("boot")  # before the blocks are claimed again
    fresh.hold(ip_network("10.0.0.8/29"), FOUR)
    fresh.hold(ip_network("fd00::20/124"), SIX)
    ground.publish(fresh, [node.ground()])
    made = attachments.add(node.request(container="c2"))
    assert [str(a) for a in made.nic.addresses] == ["10.0.0.10", "fd00::22"]
    attachments.delete(node.request("DEL", container="c1"))  # its DEL still finds everything
    attachments.reap()
    assert [u.used for u in fresh.usage()] == [1, 1]
    fresh.close()


def test_a_reboot_releases_everything(node: Node) -> None:
    node.restarted().recover("boot-1")
    node.add()
    node.kernel = Failing()  # nothing outlives its kernel
    node.restarted().recover("boot-2")
    assert node.ledger.attachments() == []
    assert [u.used for u in node.ledger.usage()] == [0, 0]


def test_the_sweep_tells_a_namespace_from_another_at_the_same_path(node: Node) -> None:
    """As when the process in /proc/<pid>/ns/net has ended, and another has its number."""
    node.add()
    node.kernel.apply([Change("remove", Link(name=device_name("c1", "eth0"), kind=Veth()))])
    node.clock.now += attach.GRACE + 1
    another_namespace(node)
    node.attachments.sweep()
    assert node.ledger.attachments() == []


def test_gc_tells_a_namespace_from_another_at_the_same_path(node: Node) -> None:
    node.add()
    node.inhabited.add(another_namespace(node))
    node.clock.now += 1
    node.attachments.gc(node.request("GC", valid_attachments=()))
    assert node.ledger.attachments() == []


def another_namespace(node: Node) -> str:
    """Put one where c1's was."""
    path = Path(node.request().netns)
    other = path.with_name("another")
    other.touch()  # while the first is there: a file system may give its number out again
    return str(other.replace(path))


def test_the_sweep_waits_for_two_signs_and_the_grace(node: Node) -> None:
    netns = Path(node.request().netns)
    node.add()
    dev = Link(name=device_name("c1", "eth0"), kind=Veth())
    node.clock.now += attach.GRACE + 1
    node.attachments.sweep()
    assert len(node.ledger.attachments()) == 1  # all is there
    node.kernel.apply([Change("remove", dev)])
    node.attachments.sweep()
    assert len(node.ledger.attachments()) == 1  # the namespace still is
    netns.unlink()
    node.attachments.sweep()
    assert node.ledger.attachments() == []
