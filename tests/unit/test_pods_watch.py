"""A node's agent beside an API server: what it follows, what it leaves in node.db, what it writes.

The server is the one in `tests/apiserver`, which answers as a recorded 1.36 does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from apiserver import ApiServer
from apiserver.kubelet import Kubelet
from apiserver.kubelet import node as node_object
from apiserver.kubelet import pod as pod_object
from muslin.agent.cluster import Cluster, Own
from muslin.agent.sync import Standing
from muslin.errors import NotReady
from muslin.kernel import boot
from muslin.kube import Access, Api, crd
from muslin.kube.kinds import CRDS, EVENTS, NODES, PODS
from muslin.kube.values import KINDS, to_object
from muslin.log import log
from muslin.model import Apart, Node, Pool, Wants
from muslin.store.ledger import Ledger
from muslin.store.pods import MISSED, PodKey

POD = PodKey("default", "a")
READY = Standing(ready=True, faults=(), mtu=1450)
SPACE = "/api/v1/namespaces/default"


class Counting(ApiServer):
    """Counts what clients other than the test write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    async def _answer(self, http: Any) -> Any:
        if http.method != "GET":
            self.writes.append(f"{http.method} {http.path}")
        return await super()._answer(http)


class Here:
    """One node's part of Kubernetes, running."""

    def __init__(self, server: Counting, ledger: Ledger) -> None:
        self.server, self.ledger, self.kubelet = server, ledger, Kubelet(server.send)
        self.own = Own("n1")
        self.changes: list[str] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Cluster]:
        api = Api(Access(server=self.server.url), uniform=lambda low, high: high / 50)
        async with api:
            cluster = Cluster(api, self.ledger, self.own, uniform=lambda low, high: high / 50)
            task = asyncio.create_task(
                cluster.run(lambda: self.changes.append("c"), lambda: self.changes.append("r"))
            )
            try:
                yield cluster
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def bound(self, name: str, node: str = "n1", **more: Any) -> dict[str, Any]:
        """A pod that the scheduler has put on a node."""
        made = await self.kubelet.create(pod_object(name, **more))
        await self.kubelet.schedule("default", name, node)
        return made

    async def get(self, path: str) -> dict[str, Any]:
        return dict((await self.server.send("GET", path)).json)

    def watch(self) -> str:
        said = self.ledger.pod(POD)[1]
        return json.loads(said)["state"] if said else ""

    async def until(self, what: Callable[[], object], seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not what():  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@pytest.fixture
async def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Here]:
    monkeypatch.setattr(log, "sink", lambda *_: None)
    monkeypatch.setattr("muslin.agent.cluster.PACE", 0.01)
    ledger = Ledger(tmp_path / "node.db", boot.clock)
    async with Counting() as server:
        for definition in crd.definitions():
            await server.send("POST", CRDS.path(), definition)
        await server.send("POST", NODES.path(), node_object("n1", "192.0.2.1"))
        yield Here(server, ledger)
    ledger.close()


async def test_only_pods_of_this_node_with_a_network_of_their_own_are_kept(here: Here) -> None:
    made = await here.bound("a")
    await here.bound("b", node="n2")
    await here.bound("c", hostNetwork=True)
    async with here.running():
        await here.until(lambda: here.watch() == "here")
        assert {k: r.uid for k, r in here.ledger.pods().items()} == {POD: made["metadata"]["uid"]}
        await here.bound("d", annotations={"muslin.io/network": "blue"})
        key = PodKey("default", "d")
        await here.until(lambda: key in here.ledger.pods())
        assert json.loads(here.ledger.pods()[key].wishes) == {"network": "blue"}
        await here.kubelet.delete("default", "a", grace=0)
        await here.until(lambda: POD not in here.ledger.pods())


async def test_rows_outlive_the_process_and_what_went_meanwhile_goes(here: Here) -> None:
    await here.bound("a")
    await here.bound("b")
    async with here.running():
        await here.until(lambda: len(here.ledger.pods()) == 2)
    await here.kubelet.delete("default", "b", grace=0)
    assert len(here.ledger.pods()) == 2
    async with here.running():
        await here.until(lambda: set(here.ledger.pods()) == {POD})


async def test_a_pods_life_writes_one_row_and_asks_the_api_server_for_nothing(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From nothing to ready and away again: twelve changes, two of them are ours to know."""
    learned: list[object] = []
    learn = here.ledger.learn
    monkeypatch.setattr(here.ledger, "learn", lambda news: (learned.append(news), learn(news)))
    async with here.running() as cluster:
        await here.until(lambda: here.watch() == "here")
        cluster.tell(READY)
        await here.kubelet.bring_up(pod_object("a"), "n1", ["10.0.0.9"])
        await here.until(lambda: POD in here.ledger.pods())
        await here.kubelet.take_down("default", "a")
        await here.until(lambda: POD not in here.ledger.pods())
        assert len(learned) == 2
        assert here.server.writes == []


async def test_a_pod_made_anew_under_its_name_has_its_own_uid(here: Here) -> None:
    async with here.running():
        first = await here.bound("a")
        await here.until(lambda: POD in here.ledger.pods())
        await here.kubelet.delete("default", "a", grace=0)
        second = await here.bound("a", annotations={"muslin.io/mac": "02:00:00:00:00:01"})
        uid = second["metadata"]["uid"]
        assert uid != first["metadata"]["uid"]
        await here.until(lambda: here.ledger.pods().get(POD, ("",))[0] == uid)


async def test_a_mirror_is_known_by_the_uid_of_its_file(here: Here) -> None:
    digest = "4f1b5a0d9c8e7f6a5b4c3d2e1f0a9b8c"
    annotations = {"kubernetes.io/config.mirror": digest, "kubernetes.io/config.hash": digest}
    await here.bound("a", annotations=annotations)
    async with here.running():
        await here.until(lambda: POD in here.ledger.pods())
        assert here.ledger.pods()[POD].uid == digest


async def test_it_is_known_when_the_api_server_goes_and_comes(here: Here) -> None:
    async with here.running():
        await here.until(lambda: here.watch() == "here")
        await here.server.stop(abort=True)
        await here.until(lambda: here.watch() == "away")
        await here.server.start()
        await here.until(lambda: here.watch() == "here", 20)


async def test_an_api_server_that_was_never_reached_is_away_at_once(here: Here) -> None:
    await here.server.stop()
    async with here.running():
        await here.until(lambda: here.watch() == "away", 3)
        with pytest.raises(NotReady, match="not heard from Kubernetes yet"):
            here.own.owner()
    await here.server.start()


async def test_the_owner_is_the_core_node_of_now(here: Here) -> None:
    async with here.running():
        await here.until(lambda: here.own.uid)
        first = here.own.owner()
        assert first == {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": here.own.uid}
        assert here.changes == ["r", "c"]
        await here.server.send("DELETE", NODES.path(name="n1"))
        await here.until(lambda: not here.own.uid)
        with pytest.raises(NotReady, match="Kubernetes has no node n1"):
            here.own.owner()
        made = node_object("n1", "192.0.2.1", cidrs=["10.244.3.0/24"])
        await here.server.send("POST", NODES.path(), made)
        await here.until(lambda: here.own.uid)
        assert here.own.owner() != first
        assert here.own.podcidrs == ("10.244.3.0/24",)
        assert here.changes == ["r", "c", "c", "r", "c"]


async def test_a_machine_that_is_no_node_owns_nothing(here: Here) -> None:
    assert Own("vm1", required=False).owner() is None


# ── what is told ────────────────────────────────────────────────────────────────────────────────

NODE = Node(name="n1", addresses=(ip_interface("192.0.2.1/24"),), mtu=1500)
OURS = KINDS[Node].path(name="n1")


async def test_a_nodes_status_is_written_when_it_changes_and_not_otherwise(here: Here) -> None:
    await here.server.send("POST", KINDS[Node].path(), to_object(NODE))
    writes = here.server.writes
    async with here.running() as cluster:
        cluster.tell(Standing(ready=False, faults=("starting",), mtu=0))
        await here.until(lambda: len(writes) == 1)
        for _ in range(20):
            cluster.tell(READY)
            await asyncio.sleep(0.01)
        await here.until(lambda: len(writes) == 2)
    status = (await here.get(OURS))["status"]
    (ready,) = status["conditions"]
    assert (status["mtu"], bool(status["agent"])) == (1450, True)
    assert (ready["type"], ready["status"], ready["reason"]) == ("Ready", "True", "Serving")
    async with here.running() as cluster:  # an agent that starts again has nothing to say
        cluster.tell(READY)
        await asyncio.sleep(0.2)
        assert len(writes) == 2
        cluster.tell(Standing(ready=True, faults=("pool four: full",), mtu=1450))
        await here.until(lambda: len(writes) == 3)
    (after,) = (await here.get(OURS))["status"]["conditions"]
    assert (after["status"], after["reason"]) == ("True", "ServingWithFaults")
    assert after["message"] == "pool four: full"
    assert after["lastTransitionTime"] == ready["lastTransitionTime"]
    assert set(writes) == {f"PATCH {OURS}/status"}


async def test_what_others_wrote_while_we_were_away_is_mended_when_we_are_back(here: Here) -> None:
    await here.server.send("POST", KINDS[Node].path(), to_object(NODE))
    async with here.running() as cluster:
        cluster.tell(READY)
        await here.until(lambda: len(here.server.writes) == 1)
        await here.server.stop(abort=True)
        await here.until(lambda: here.watch() == "away")
        when = "2026-11-23T00:00:00Z"
        away = {"type": "Ready", "status": "Unknown", "reason": "Silent", "message": "no word"}
        other = {"type": "Other", "status": "True", "reason": "Fine", "message": ""}
        status = {"conditions": [c | {"lastTransitionTime": when} for c in (away, other)]}
        merge = "application/merge-patch+json"
        url = f"{OURS}/status"
        await here.server.send("PATCH", url, {"status": status}, content_type=merge)
        await here.server.start()

        async def mended() -> bool:
            found = (await here.get(OURS))["status"]["conditions"]
            return {c["type"]: c["status"] for c in found} == {"Ready": "True", "Other": "True"}

        async with asyncio.timeout(20):
            while not await mended():  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_a_node_that_has_no_object_yet_is_told_of_later(here: Here) -> None:
    async with here.running() as cluster:
        cluster.tell(READY)
        await asyncio.sleep(0.1)
        assert here.server.writes == []
        await here.server.send("POST", KINDS[Node].path(), to_object(NODE))
        cluster.tell(READY)
        await here.until(lambda: len(here.server.writes) == 1)


FOUR = Pool(name="four", cidr=ip_network("10.0.0.0/24"), block=29)


def attached(ledger: Ledger, pod: str, container: str = "c1", *, network: str = "blue") -> None:
    ledger.hold(ip_network("10.0.0.8/29"), FOUR)
    ledger.claim(
        container, "eth0", netns="/n", conf="m", network=network, mtu=1450, pools=[FOUR],
        wants=Wants(pod=pod),
    )  # fmt: skip
    ledger.ready(container, "eth0")


async def test_a_pod_that_asked_for_something_is_told_once_what_it_got(here: Here) -> None:
    await here.bound("a", annotations={"muslin.io/network": "blue"})
    await here.bound("plain")
    writes = here.server.writes
    async with here.running() as cluster:
        await here.until(lambda: here.watch() == "here")
        cluster.tell(READY)
        await asyncio.sleep(0.1)
        assert writes == []  # not attached yet
        attached(here.ledger, "default/a")
        attached(here.ledger, "default/plain", "c2")
        for _ in range(20):
            cluster.tell(READY)
            await asyncio.sleep(0.01)
        assert writes == [f"PATCH {SPACE}/pods/a"]
    found = (await here.get(f"{SPACE}/pods/a"))["metadata"]["annotations"]
    assert json.loads(found["muslin.io/status"]) == {
        "network": "blue",
        "interface": "eth0",
        "addresses": ["10.0.0.9"],
        "mac": "0a:58:0a:00:00:09",
    }
    assert found["muslin.io/network"] == "blue"
    async with here.running() as cluster:
        cluster.tell(READY)
        await asyncio.sleep(0.2)
        assert len(writes) == 1
    plain = (await here.get(f"{SPACE}/pods/plain"))["metadata"]
    assert "annotations" not in plain


async def test_a_pod_with_several_nics_is_told_of_all_of_its_last_container(here: Here) -> None:
    await here.bound("a", annotations={"muslin.io/nics": "storage"})
    attached(here.ledger, "default/a", "former", network="default")
    attached(here.ledger, "default/a", "c1", network="default")
    apart = Apart(of="eth0", table=10901, routes=())
    here.ledger.claim(
        "c1", "a-net", netns="/n", conf="m", network="storage", mtu=1450, pools=[FOUR],
        wants=Wants(pod="default/a", apart=apart),
    )  # fmt: skip
    here.ledger.ready("c1", "a-net")
    async with here.running() as cluster:
        await here.until(lambda: here.watch() == "here")
        cluster.tell(READY)
        await here.until(lambda: len(here.server.writes) == 1)
    found = (await here.get(f"{SPACE}/pods/a"))["metadata"]["annotations"]
    assert [
        (nic["interface"], nic["network"], nic["addresses"])
        for nic in json.loads(found["muslin.io/status"])
    ] == [("eth0", "default", ["10.0.0.10"]), ("a-net", "storage", ["10.0.0.11"])]


async def test_another_pod_of_that_name_is_not_told_what_the_former_got(here: Here) -> None:
    await here.bound("a", annotations={"muslin.io/network": "blue"})
    async with here.running() as cluster:
        await here.until(lambda: here.watch() == "here")
        api = cluster._api
        attached(here.ledger, "default/a")
        patch, first = api.patch, [True]

        async def late(*args: Any, **more: Any) -> Any:
            if first:
                first.clear()
                await here.kubelet.delete("default", "a", grace=0)
                await here.bound("a")
            return await patch(*args, **more)

        api.patch = late  # type: ignore[method-assign]
        cluster.tell(READY)
        await here.until(lambda: len(here.server.writes) == 1)
        await asyncio.sleep(0.1)
    assert "annotations" not in (await here.get(f"{SPACE}/pods/a"))["metadata"]


async def test_a_pod_that_fails_again_and_again_gets_one_event(here: Here) -> None:
    made = await here.bound("a")
    uid = made["metadata"]["uid"]

    def fail() -> None:
        here.ledger.failed(POD, uid, reason="PoolExhausted", message="pool four: 6 of 6 held")

    events = f"POST {EVENTS.path('default')}"
    for _ in range(2):  # a restarted agent finds the event of its former life
        async with here.running() as cluster:
            await here.until(lambda: here.watch() == "here")
            for _ in range(10):
                fail()
                cluster.tell(READY)
                await asyncio.sleep(0.02)
            assert here.server.writes.count(events) in (1, 2)
    (event,) = (await here.get(EVENTS.path("default")))["items"]
    assert (event["reason"], event["type"]) == ("PoolExhausted", "Warning")
    assert event["note"] == "pool four: 6 of 6 held"
    assert event["regarding"]["uid"] == uid
    assert event["reportingInstance"] == "muslin-agent-n1"
    assert PODS.kind == event["regarding"]["kind"]


async def test_a_pod_that_was_attached_unknown_is_told_what_it_lacks(here: Here) -> None:
    """Once, also after a restart and long after the ADD; `a` has what it asks for, `b` has not."""
    asked = {"muslin.io/network": "blue"}
    uids = {name: (await here.bound(name, annotations=asked))["metadata"]["uid"] for name in "ab"}
    await here.bound("plain")
    for name in ("a", "b", "plain"):
        key = PodKey("default", name)
        here.ledger.failed(key, uids.get(name, ""), reason=MISSED, message="it was away")
    attached(here.ledger, "default/a")
    attached(here.ledger, "default/b", "c2", network="default")
    attached(here.ledger, "default/plain", "c3", network="default")
    events = f"POST {EVENTS.path('default')}"
    for _ in range(2):
        async with here.running() as cluster:
            cluster._events._clock = lambda: boot.clock() + 7200
            for _ in range(10):
                cluster.tell(READY)
                await asyncio.sleep(0.02)
            await here.until(lambda: events in here.server.writes)
    (event,) = (await here.get(EVENTS.path("default")))["items"]
    assert (event["reason"], event["type"]) == ("NetworkRequestMissed", "Warning")
    assert event["regarding"]["name"] == "b"
    assert event["regarding"]["uid"] == uids["b"]
    assert event["note"] == (
        "attached with the defaults (it was away), without what it asks for:"
        " annotation muslin.io/network blue; delete the pod: a new one gets it"
    )


async def test_a_pod_made_anew_is_not_told_what_the_former_missed(here: Here) -> None:
    await here.bound("a", annotations={"muslin.io/network": "blue"})
    here.ledger.failed(POD, "another", reason=MISSED, message="it was away")
    attached(here.ledger, "default/a", network="default")  # the former's, not deleted yet
    async with here.running() as cluster:
        await here.until(lambda: here.watch() == "here")
        for _ in range(10):
            cluster.tell(READY)
            await asyncio.sleep(0.02)
    assert not [w for w in here.server.writes if "events" in w]


async def test_one_failure_is_nobodys_business_yet(here: Here) -> None:
    here.ledger.failed(POD, "u", reason="AddressTaken", message="rests for 20 s")
    async with here.running() as cluster:
        cluster.tell(READY)
        await asyncio.sleep(0.2)
    assert here.server.writes == []
