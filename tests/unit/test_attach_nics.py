"""Pods with further NICs: one ADD makes them all or none, one DEL takes them all away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from errno import EIO
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from msgspec import convert

from muslin.agent import ground, wishes
from muslin.agent.attach import GRACE, Attachments
from muslin.agent.ground import Ground
from muslin.agent.known import Known, Watch
from muslin.agent.pods import Seen
from muslin.agent.report import PodReport
from muslin.cni.protocol import Attached, Request
from muslin.controller.slices.wire import Meta, RawPod, pod_of
from muslin.errors import CheckFailed, Exhausted, KernelError, RequestError
from muslin.kernel.fake import FakeKernel
from muslin.model import Host, Network, Pool, Wants, device_name, encode
from muslin.plan.diff import Change
from muslin.plan.objects import Link, Object, Present, Route, Rule, Shaper, Veth
from muslin.store.ledger import Ledger
from muslin.store.pods import WATCH, PodKey, PodRow

NETWORKS = {"default": ("four",), "storage": ("store", "tail", "six"), "blue": ("blue",)}
POOLS = {
    "10.0.0.8/29": Pool(name="four", cidr=ip_network("10.0.0.0/24"), block=29),
    "10.1.0.8/29": Pool(name="store", cidr=ip_network("10.1.0.0/24"), block=29),
    "10.2.0.8/29": Pool(name="tail", cidr=ip_network("10.2.0.0/24"), block=29),
    "fd01::10/124": Pool(name="six", cidr=ip_network("fd01::/64"), block=124),
    "10.9.0.8/29": Pool(name="blue", cidr=ip_network("10.9.0.0/24"), block=29),
}
UID = "0f3c0a3e-7d07-4d7a-9b5e-0d1f0a3c5e11"


class Failing(FakeKernel):
    """Refuses to put one object."""

    refuses: Object | None = None

    def apply(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if change.verb == "add" and change.obj == self.refuses:
                raise KernelError("add", "it", EIO)
            super().apply([change])


class Node:
    def __init__(self, directory: Path) -> None:
        self.directory, self.kernel, self.now = directory, Failing(), 1000.0
        self.ledger = Ledger(directory / "node.db", lambda: self.now)
        for block, pool in POOLS.items():
            self.ledger.hold(ip_network(block), pool)
        by_name = {p.name: p for p in POOLS.values()}
        ground.publish(
            self.ledger,
            [
                Ground(
                    network=Network(name=name, backend="hostgw", pools=pools),
                    pools=tuple(by_name[p] for p in pools),
                    mtu=1450 if name == "storage" else 1500,
                    host=Host(uplink="eth0"),
                )
                for name, pools in NETWORKS.items()
            ],
        )
        said = encode(Watch(state="here", since=900.0, at=1000.0, boot="b1"))
        self.ledger.set_fact(WATCH, said.decode())
        self.attachments = self.restarted()

    def restarted(self) -> Attachments:
        known = Known(self.ledger, clock=lambda: 1000.0, boot_id="b1", patience=0.05)
        return Attachments(
            self.ledger,
            self.kernel,
            clock=lambda: self.now,
            pods=known,
            inhabited=lambda _: False,
        )

    def asks(self, nics: str, **annotations: str) -> None:
        """What the pod's annotations say from now on."""
        given = {f"muslin.io/{k}": v for k, v in ({"nics": nics} | annotations).items() if v}
        found = wishes.read(given, pod="web-0", stateful=False)
        assert found.fault == ""
        text = encode(found).decode() if found != wishes.NONE else ""
        self.ledger.learn({PodKey("shop", "web-0"): PodRow(UID, text)})

    def request(self, verb: str = "ADD", **more: object) -> Request:
        netns = self.directory / "ns"
        netns.touch()
        lo = Link(ns=str(netns), name="lo", kind=Present())
        self.kernel.strangers[lo.key] = lo
        args = {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "web-0", "K8S_POD_UID": UID}
        made = Request(
            verb=verb, container="c1", ifname="eth0", netns=str(netns), name="muslin",
            args=args, wants=Wants(pod="shop/web-0"),
        )  # fmt: skip
        return replace(made, **more)  # type: ignore[arg-type]

    def add(self, **more: object) -> Attached:
        return self.attachments.add(self.request(**more))

    def nics(self) -> dict[str, str]:
        """What the ledger has: interface → network, of what is ready."""
        found = self.ledger.attachments()
        return {a.ifname: a.network for a in found if a.state == "ready"}

    def in_pod(self, kind: type[Object]) -> set[Object]:
        ns = str(self.directory / "ns")
        return {o for o in self.kernel._ours.values() if isinstance(o, kind) and o.ns == ns}

    def is_clean(self) -> bool:
        return not self.ledger.attachments() and not [
            o for o in self.kernel._ours.values() if not isinstance(o, Link) or o.name != "lo"
        ]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.ledger.close()


def test_one_add_makes_all_that_the_pod_lists(node: Node) -> None:
    node.asks('[{"network": "storage", "ingress": "20M"}, {"network": "blue", "name": "blue0"}]')
    made = node.add()
    assert [str(a) for a in made.nic.addresses] == ["10.0.0.9"]
    further = [one.nic for one in made.further]
    assert [(n.ifname, [str(a) for a in n.addresses], n.mtu) for n in further] == [
        ("net1", ["10.1.0.9", "fd01::11"], 1450),
        ("blue0", ["10.9.0.9"], 1500),
    ]
    assert node.nics() == {"eth0": "default", "net1": "storage", "blue0": "blue"}
    assert [o.dev for o in node.kernel.observe() if isinstance(o, Shaper)] == [
        device_name("c1", "net1")
    ]


def test_a_further_nic_leads_to_its_network_and_answers_by_itself(node: Node) -> None:
    node.asks("storage")
    node.add()
    assert {
        (str(r.dst), r.dev, str(r.src), r.table) for r in node.in_pod(Route) if isinstance(r, Route)
    } == {
        ("0.0.0.0/0", "eth0", "None", 254),
        ("10.1.0.0/24", "net1", "10.1.0.9", 254),
        ("10.2.0.0/24", "net1", "10.1.0.9", 254),  # another pool of the same network
        ("fd01::/64", "net1", "fd01::11", 254),
        ("10.1.0.0/24", "eth0", "None", 10900),  # answers to whoever asked for eth0's address
        ("10.2.0.0/24", "eth0", "None", 10900),
        ("0.0.0.0/0", "net1", "None", 10901),
        ("::/0", "net1", "None", 10901),
    }
    assert {
        (str(r.src), r.table, r.priority) for r in node.in_pod(Rule) if isinstance(r, Rule)
    } == {
        ("10.0.0.9/32", 10900, 10900),
        ("10.1.0.9/32", 10901, 10901),
        ("fd01::11/128", 10901, 10901),
    }


def test_without_a_list_a_pod_costs_what_it_did(node: Node) -> None:
    """Statement for statement: an ADD's time is made of them and of netlink's."""
    spoken: list[str] = []
    node.asks("")
    node.ledger._db.set_trace_callback(spoken.append)
    node.add()
    claim = "BEGIN INSERT SELECT SELECT UPDATE INSERT COMMIT"
    looks = "SELECT SELECT SELECT SELECT"  # the pod's row, the networks, a fault, the container
    verbs = " ".join(text.split()[0] for text in spoken)
    assert verbs == f"{looks} {claim} BEGIN UPDATE COMMIT"
    assert not node.in_pod(Rule)
    spoken.clear()
    node.attachments.delete(node.request("DEL"))
    assert [text.split()[0] for text in spoken] == ["SELECT", "BEGIN", "UPDATE", "COMMIT"]


@pytest.mark.parametrize("sync", [True, False], ids=["at once", "by the reaper"])
def test_one_del_takes_all_away_and_the_rules_too(node: Node, *, sync: bool) -> None:
    node.asks("storage,blue")
    node.add()
    assert node.in_pod(Rule)
    node.attachments.delete(node.request("DEL", sync_delete=sync))
    assert node.nics() == {}
    node.attachments.reap()
    assert node.is_clean()
    node.attachments.delete(node.request("DEL", sync_delete=sync))


def test_a_namespace_that_a_former_pod_still_has_a_nic_in_is_waited_for(node: Node) -> None:
    """Also where one of the new NICs was made before the former's was met."""
    node.asks("")
    node.add(container="former")
    node.attachments.delete(node.request("DEL", container="former"))  # nobody has reaped it yet
    node.asks("storage")
    names = (f"c{i}" for i in range(100))
    other = next(c for c in names if device_name(c, "net1") < device_name(c, "eth0"))
    node.add(container=other)
    assert {a.container for a in node.ledger.attachments()} == {other}
    node.attachments.check(node.request("CHECK", container=other))


def test_a_namespace_that_went_first_is_no_obstacle(node: Node) -> None:
    node.asks("storage")
    node.add()
    (node.directory / "ns").unlink()
    node.attachments.delete(replace(node.request("DEL", netns=""), sync_delete=True))
    assert node.ledger.attachments() == []


def test_what_fails_on_the_third_leaves_nothing_of_the_first_two(node: Node) -> None:
    node.asks("storage,blue")
    node.kernel.refuses = Route(
        ns=str(node.directory / "ns"),
        dst=ip_network("10.9.0.0/24"),
        via=ip_address("169.254.1.1"),
        dev="net2",
        onlink=True,
        src=ip_address("10.9.0.9"),
    )
    with pytest.raises(KernelError):
        node.add()
    assert node.is_clean()
    node.kernel.refuses = None
    for i in range(5):  # and the sixth rests: the ADD above had it
        node.ledger.claim(
            f"other{i}", "eth0", netns="/n", conf="m", network="blue", mtu=1500,
            pools=[POOLS["10.9.0.8/29"]],
        )  # fmt: skip
    ground.set_full(node.ledger, "blue", "pool blue: all blocks are held")
    log = len(node.kernel.log)
    with pytest.raises(Exhausted, match=r"pool blue: .*all blocks are held"):
        node.add()
    assert node.nics() == {}
    assert node.ledger.of("c1") == {}
    assert len(node.kernel.log) == log  # nothing was visible before all was durable


def test_a_network_that_is_full_says_so_by_its_own_pools(node: Node) -> None:
    """Another network's full pool, in which there is room on this node, is not the reason."""
    node.asks("blue")
    ground.set_full(node.ledger, "four", "pool four: all blocks are held")
    node.add()
    assert node.nics() == {"eth0": "default", "net1": "blue"}


def test_the_same_list_again_changes_nothing_and_another_the_difference(node: Node) -> None:
    """The first NIC is made anew: its own answers go by what the others' networks are."""
    node.asks("storage,blue")
    first = node.add()
    changes = len(node.kernel.log)
    assert node.add() == first
    assert len(node.kernel.log) == changes
    node.asks("storage")
    second = node.add()
    assert second.further == first.further[:1]
    assert node.nics() == {"eth0": "default", "net1": "storage"}
    node.asks("storage,blue")
    third = node.add()
    assert third.further[0] == first.further[0]
    assert str(third.further[1].nic.addresses[0]) == "10.9.0.10"  # .9 rests
    touched = {getattr(c.obj, "dev", "") for c in node.kernel.log[changes:]}
    assert not touched & {"net1", device_name("c1", "net1")}
    assert {r.table for r in node.in_pod(Rule) if isinstance(r, Rule)} == {10900, 10901, 10902}
    node.asks("")
    assert node.add().further == ()
    assert node.nics() == {"eth0": "default"}
    assert not node.in_pod(Rule)


def test_a_repeated_add_mends_the_nic_that_somebody_broke(node: Node) -> None:
    node.asks("storage")
    first = node.add()
    (rule,) = (r for r in node.in_pod(Rule) if isinstance(r, Rule) and str(r.src) == "10.1.0.9/32")
    node.kernel.apply([Change("remove", rule)])
    again = node.add()
    assert again.nic == first.nic
    assert again.further != first.further  # made anew, with another address
    assert rule not in node.in_pod(Rule)
    assert len(node.in_pod(Rule)) == 3


def test_a_repeated_add_that_fails_leaves_nothing(node: Node) -> None:
    node.asks("")
    node.add()
    node.asks('[{"network": "blue", "addresses": ["10.9.0.77"]}]')
    with pytest.raises(RequestError, match=r"10\.9\.0\.77 is in no block of this node"):
        node.add()
    assert node.is_clean()


def test_check_looks_at_all_and_says_what_is_missing(node: Node) -> None:
    node.asks("storage")
    node.add()
    node.attachments.check(node.request("CHECK"))
    node.kernel.apply([Change("remove", r) for r in node.in_pod(Rule)])
    with pytest.raises(CheckFailed, match=r"ip rule from 10\.1\.0\.9/32 lookup 10901"):
        node.attachments.check(node.request("CHECK"))


def test_a_runtime_that_knows_eth0_keeps_the_further_ones(node: Node) -> None:
    node.asks("storage,blue")
    node.add()
    node.now += 1
    node.attachments.gc(node.request("GC", valid_attachments=(("c1", "eth0"),)))
    assert len(node.nics()) == 3
    node.attachments.gc(node.request("GC", valid_attachments=(("c1", "net1"),)))
    assert node.is_clean()


def test_a_restart_undoes_what_was_interrupted_and_nothing_else(node: Node) -> None:
    node.asks("storage,blue")
    node.add()
    node.restarted().recover("boot")
    assert len(node.nics()) == 3
    node.ledger._set_state("c1", ("eth0", "net1", "net2"), "adding")
    node.restarted().recover("boot")
    assert node.is_clean()


def test_a_pod_that_vanished_is_swept_whole(node: Node) -> None:
    node.asks("storage")
    node.add()
    for ifname in ("eth0", "net1"):
        node.kernel.apply([Change("remove", _pair(ifname))])
    (node.directory / "ns").unlink()
    node.now += GRACE + 1
    node.attachments.sweep()
    assert node.ledger.attachments() == []


def test_of_a_pod_whose_record_was_lost_no_address_stays_held(node: Node) -> None:
    """DEL names eth0 only: what else was adopted goes when its device is seen to be gone."""
    node.asks("storage")
    node.add()
    node.ledger.release_all([device_name("c1", i) for i in ("eth0", "net1")])
    restarted = node.restarted()
    restarted.adopt()
    assert len(node.ledger.devices()) == 2
    restarted.delete(node.request("DEL"))
    restarted.sweep()
    assert node.ledger.devices() == {device_name("c1", "net1")}
    node.kernel.apply([Change("remove", _pair("net1"))])
    restarted.sweep()
    assert node.ledger.devices() == set()


@pytest.mark.parametrize(
    ("nics", "words"),
    [
        ("green", r"network green is not known on this node \(known: blue, default, storage\)"),
        ("blue,default", "net2 and eth0 are both on network default; a pod has one NIC on each"),
        (
            '[{"network": "blue", "pools": ["store"]}]',
            "annotation muslin.io/nics: network blue has no pool store; it has blue",
        ),
        ('[{"network": "blue", "addresses": ["fd01::17"]}]', "network blue has no IPv6 pool"),
    ],
)
def test_what_cannot_be_is_refused_by_name_with_nothing_done(
    node: Node, nics: str, words: str
) -> None:
    node.asks(nics)
    with pytest.raises(RequestError, match=words) as caught:
        node.add()
    assert caught.value.cni_code == 7
    assert node.is_clean()
    (failure,) = node.ledger.failures()
    assert failure.reason == "NetworkRequestRefused"


def test_a_nic_that_a_runtime_made_by_another_call_is_nobodys_to_list(node: Node) -> None:
    node.asks("blue")
    by_hand = {"ifname": "net1", "network": "storage", "args": {}, "wants": Wants()}
    node.add(**by_hand)
    with pytest.raises(RequestError, match="interface net1 was made by the ADD of net1"):
        node.add()
    assert node.nics() == {"net1": "storage"}
    node.attachments.delete(node.request("DEL"))
    assert node.nics() == {"net1": "storage"}


def test_a_nic_of_a_list_is_nobodys_to_make_or_take_by_itself(node: Node) -> None:
    """A runtime deletes what it failed to add: that must not take the pod's."""
    node.asks("blue")
    node.add()
    by_hand = {"ifname": "net1", "network": "storage", "args": {}, "wants": Wants()}
    with pytest.raises(RequestError, match="interface net1 was made by the ADD of eth0"):
        node.add(**by_hand)
    node.attachments.delete(node.request("DEL", sync_delete=True, **by_hand))
    assert node.nics() == {"eth0": "default", "net1": "blue"}
    node.attachments.check(node.request("CHECK"))


def test_the_nodes_side_of_every_nic_is_mended(node: Node) -> None:
    node.asks("storage")
    node.add()
    homes = {o.dev for o in node.attachments.host_plan() if isinstance(o, Route)}
    assert homes == {device_name("c1", "eth0"), device_name("c1", "net1")}


async def test_services_find_a_pod_on_every_network_it_is_on(node: Node) -> None:
    """What the agent writes on the pod is what the controller makes EndpointSlices of."""
    node.asks("storage")
    node.add()
    key, told = PodKey("shop", "web-0"), []

    class Api:
        async def patch(self, kind: object, name: str, body: Any, *, namespace: str) -> None:
            told.append((namespace, name, body["metadata"]["annotations"][wishes.STATUS]))

    api: Any = Api()
    await PodReport(api, node.ledger).tell({key: Seen(UID, PodRow(UID, "{}"), "")})
    ((namespace, name, text),) = told
    meta = Meta(name=name, namespace=namespace, annotations={wishes.STATUS: text})
    raw = RawPod(metadata=meta, status=convert({"podIP": "10.0.0.9"}, type(RawPod().status)))
    member = pod_of(raw)
    assert member is not None
    assert [(network, str(a)) for network, a in member.addresses] == [
        ("default", "10.0.0.9"), ("storage", "10.1.0.9"), ("storage", "fd01::11"),
    ]  # fmt: skip


def _pair(ifname: str) -> Link:
    return Link(name=device_name("c1", ifname), kind=Veth())
