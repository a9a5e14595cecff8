"""ADDs of a Kubernetes node's pods: their wishes on the main path, and what that costs others."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from muslin.agent import ground
from muslin.agent.attach import Attachments
from muslin.agent.ground import Ground
from muslin.agent.known import Known, Watch
from muslin.agent.wishes import Wishes
from muslin.cni.protocol import Request
from muslin.errors import MuslinError, RequestError
from muslin.kernel.fake import FakeKernel
from muslin.model import Host, Network, Pool, Wants, encode
from muslin.plan.objects import Link, Present
from muslin.store.ledger import Ledger
from muslin.store.pods import WATCH, PodKey, PodRow

FOUR = Pool(name="four", cidr=ip_network("10.0.0.0/24"), block=29)
MORE = Pool(name="more", cidr=ip_network("10.1.0.0/24"), block=29)
BLUE = Pool(name="blue", cidr=ip_network("10.9.0.0/24"), block=29)
POOLS = {"10.0.0.8/29": FOUR, "10.1.0.8/29": MORE, "10.9.0.8/29": BLUE}
UID = "0f3c0a3e-7d07-4d7a-9b5e-0d1f0a3c5e11"


class Node:
    def __init__(self, directory: Path) -> None:
        self.directory, self.kernel = directory, FakeKernel()
        self.ledger = Ledger(directory / "node.db", lambda: 1000.0)
        for block, pool in POOLS.items():
            self.ledger.hold(ip_network(block), pool)
        host = Host(uplink="eth0")
        default = Network(name="default", backend="hostgw", pools=("four", "more"))
        blue = Network(name="blue", backend="hostgw", pools=("blue",))
        ground.publish(
            self.ledger,
            [
                Ground(network=default, pools=(FOUR, MORE), mtu=1500, host=host),
                Ground(network=blue, pools=(BLUE,), mtu=1500, host=host),
            ],
        )
        self.known = Known(self.ledger, clock=lambda: 1000.0, boot_id="b1", patience=0.05)
        self.attachments = Attachments(self.ledger, self.kernel, pods=self.known)
        said = encode(Watch(state="here", since=900.0, at=1000.0, boot="b1"))
        self.ledger.set_fact(WATCH, said.decode())

    def pod(self, name: str, wishes: Wishes | None = None) -> None:
        text = encode(wishes).decode() if wishes else ""
        self.ledger.learn({PodKey("shop", name): PodRow(UID, text)})

    def request(self, pod: str) -> Request:
        netns = self.directory / f"ns-{pod}"
        netns.touch()
        lo = Link(ns=str(netns), name="lo", kind=Present())
        self.kernel.strangers[lo.key] = lo
        args = {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": pod, "K8S_POD_UID": UID}
        return Request(
            verb="ADD", container=f"c-{pod}", ifname="eth0", netns=str(netns), name="muslin",
            args=args, wants=Wants(pod=f"shop/{pod}"),
        )  # fmt: skip

    def add(self, pod: str) -> str:
        return str(self.attachments.add(self.request(pod)).nic.addresses[0])


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.ledger.close()


def test_a_pod_is_attached_as_its_annotations_ask(node: Node) -> None:
    node.pod("plain")
    node.pod("more", Wishes(pools=("more",)))
    node.pod("blue", Wishes(network="blue", mac="02:00:00:00:00:01"))
    assert node.add("plain").startswith("10.0.0.")
    assert node.add("more").startswith("10.1.0.")
    assert node.add("blue").startswith("10.9.0.")
    found = {a.wants.pod: a for a in node.ledger.attachments()}
    assert found["shop/blue"].network == "blue"
    assert found["shop/blue"].wants.mac == "02:00:00:00:00:01"


def test_an_add_that_is_repeated_with_another_network_is_made_anew(node: Node) -> None:
    node.pod("a")
    node.add("a")
    changes = len(node.kernel.log)
    assert node.add("a").startswith("10.0.0.")
    assert len(node.kernel.log) == changes
    node.pod("a", Wishes(network="blue"))
    assert node.add("a").startswith("10.9.0.")
    assert len(node.ledger.attachments()) == 1


def test_what_cannot_be_is_refused_with_nothing_done_and_noted(node: Node) -> None:
    node.pod("bad", Wishes(fault="annotation muslin.io/mac 'x': not one"))
    node.pod("strange", Wishes(pools=("nowhere",)))
    for pod in ("bad", "strange"):
        with pytest.raises(RequestError) as caught:
            node.add(pod)
        assert caught.value.cni_code == 7
    with pytest.raises(MuslinError, match="shop/unknown"):
        node.add("unknown")
    assert node.ledger.attachments() == []
    assert {f.pod.name for f in node.ledger.failures()} == {"bad", "strange"}


def test_a_pod_without_wishes_costs_one_read_more(node: Node) -> None:
    """And none where the store is not Kubernetes."""
    without = Attachments(node.ledger, node.kernel)
    spoken: list[str] = []
    node.pod("a")
    node.pod("b")
    requests = [node.request("a"), node.request("b")]
    node.ledger._db.set_trace_callback(spoken.append)
    node.attachments.add(requests[0])
    with_pods = len(spoken)
    spoken.clear()
    without.add(requests[1])
    assert with_pods - len(spoken) == 1
