"""Our slices on an API server, with the rights that docs/services.md names and no others.

A service with hundreds of pods that come, turn and go; the API server and the
controller ended in between; what others have in the same namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from apiserver import ApiError
from apiserver.kubelet import Kubelet, node, pod
from muslin.controller.election import Term
from muslin.controller.metrics import Metrics
from muslin.controller.slices import Slices
from muslin.controller.writes import Fenced
from muslin.kube import Access
from servers import Serve, Server, alive

NS = "muslin-test-slices"
SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{NS}/endpointslices"
SERVICES, PODS = f"/api/v1/namespaces/{NS}/services", f"/api/v1/namespaces/{NS}/pods"
WORKLOADS = f"/apis/muslin.io/v1alpha1/namespaces/{NS}/workloads"
EVENTS = f"/apis/events.k8s.io/v1/namespaces/{NS}/events"
MERGE = "application/merge-patch+json"
RULES = [
    {"apiGroups": [""], "resources": ["services", "pods", "nodes"], "verbs": ["list", "watch"]},
    {"apiGroups": ["muslin.io"], "resources": ["workloads"], "verbs": ["list", "watch"]},
    {
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["list", "watch", "create", "patch", "delete"],
    },
    {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
]
BLUE = {"muslin.io/network": "blue", "muslin.io/selector": "app=db"}
Json = dict[str, Any]


class Controller:
    """One leader's slices; `end` is as when it is killed."""

    def __init__(self, access: Access) -> None:
        self.metrics = Metrics()
        now = asyncio.get_running_loop().time
        term = Term(now)
        term.extend(now() + 1e6)
        self._api = Fenced(access, term, self.metrics)
        self.slices = Slices(self._api, "c1", self.metrics, now)
        self._tasks = [
            asyncio.create_task(self._again(run)) for run in (self.slices.follow, self.slices.run)
        ]

    async def _again(self, run: Callable[[], Awaitable[None]]) -> None:
        while True:
            with contextlib.suppress(Exception):
                await run()
            await asyncio.sleep(0.1)

    def writes(self, resource: str = "endpointslices", result: str = "ok") -> int:
        lines = self.metrics.text().decode().splitlines()
        found = (line for line in lines if line.startswith("muslin_controller_requests_total"))
        mine = (one for one in found if f'resource="{resource}' in one and f'"{result}"' in one)
        return round(sum(float(line.rpartition(" ")[2]) for line in mine))

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._api.close()


class Cluster:
    def __init__(self, server: Server) -> None:
        self.server = server
        self.send = partial(server.send, token="admin")
        self._token = ""
        self.kubelet = Kubelet(self.send)
        self.controllers: list[Controller] = []

    async def fill(self) -> None:
        await self.server.define()
        for name in (NS, "muslin-system"):
            await self.send("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        n1 = node("n1", "192.0.2.1")
        n1["metadata"]["labels"]["topology.kubernetes.io/zone"] = "z1"
        await self.send("POST", "/api/v1/nodes", n1)
        rbac = "/apis/rbac.authorization.k8s.io/v1"
        role = {"metadata": {"name": "c"}, "rules": RULES}
        await self.send("POST", f"{rbac}/clusterroles", role)
        ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "c"}
        who = {"kind": "ServiceAccount", "namespace": "muslin-system", "name": "muslin-controller"}
        binding = {"metadata": {"name": "c"}, "roleRef": ref, "subjects": [who]}
        await self.send("POST", f"{rbac}/clusterrolebindings", binding)
        self._token = await self.server.account("muslin-system", "muslin-controller")
        if self.server.real:  # there, a pod cannot be before its namespace has one
            await until(lambda: self.items(f"/api/v1/namespaces/{NS}/serviceaccounts"))

    def lead(self) -> Controller:
        self.controllers.append(Controller(self.server.access(self._token)))
        return self.controllers[-1]

    async def service(self, name: str = "db", annotations: Json | None = None, **spec: Any) -> None:
        meta = {"name": name, "annotations": BLUE if annotations is None else annotations}
        spec = {"clusterIP": "None", "ports": [{"name": "pg", "port": 5432}], **spec}
        await self.send("POST", SERVICES, {"metadata": meta, "spec": spec})

    async def up(self, number: int, *, address: str = "") -> None:
        """A pod and what its agent says of it; ready at the end."""
        name = f"db-{number}"
        made = pod(name, namespace=NS, labels={"app": "db"}, hostname=name, subdomain="db")
        await self.kubelet.create(made)
        await self.kubelet.schedule(NS, name, "n1")
        await self.kubelet.starting(NS, name, "192.0.2.1")
        address = address or f"10.9.{number >> 8}.{number & 255}"
        nic = {"network": "blue", "interface": "eth0", "addresses": [address], "mac": ""}
        told = {"muslin.io/status": msgspec.json.encode(nic).decode()}
        body = {"metadata": {"annotations": told}}
        await self.send("PATCH", f"{PODS}/{name}", body, content_type=MERGE)
        await self.kubelet.sandboxed(NS, name)
        await self.kubelet.running(NS, name, [f"10.1.{number >> 8}.{number & 255}"])
        await self.kubelet.ready(NS, name)

    async def unready(self, number: int) -> None:
        url = f"{PODS}/db-{number}"
        found = (await self.send("GET", url)).json["status"]["conditions"]
        for condition in found:
            condition["status"] = "False" if condition["type"] == "Ready" else condition["status"]
        body = {"status": {"conditions": found}}
        await self.send("PATCH", f"{url}/status", body, content_type=MERGE)

    async def workload(self, name: str, **spec: Any) -> None:
        body = {"apiVersion": "muslin.io/v1alpha1", "kind": "Workload", "spec": spec}
        await self.send(
            "POST", WORKLOADS, body | {"metadata": {"name": name, "labels": {"app": "db"}}}
        )

    async def items(self, url: str) -> list[Json]:
        return list((await self.send("GET", url)).json["items"])

    async def ours(self) -> list[Json]:
        label = "endpointslice.kubernetes.io/managed-by"
        found = await self.items(SLICES)
        return [s for s in found if s["metadata"]["labels"].get(label) == "muslin.io"]

    async def told(self) -> list[Json]:
        """Our events; schedulers have theirs."""
        found = await self.items(EVENTS)
        return [e for e in found if e.get("reportingController", "").startswith("muslin.io/")]

    async def versions(self) -> set[str]:
        """Of all that a controller of ours may write."""
        found = [one for url in (SLICES, SERVICES, WORKLOADS) for one in await self.items(url)]
        found += await self.told()
        return {f"{o['metadata']['uid']} {o['metadata']['resourceVersion']}" for o in found}

    async def said(self) -> list[tuple[str, bool, bool]]:
        """Address, ready, terminating, of all endpoints of all our slices."""
        return sorted(
            (e["addresses"][0], e["conditions"]["ready"], e["conditions"]["terminating"])
            for s in await self.ours()
            for e in s["endpoints"] or ()
        )

    async def truth(self) -> list[tuple[str, bool, bool]]:
        """The same, from the pods."""
        found = []
        for one in await self.items(PODS):
            told = one["metadata"].get("annotations", {}).get("muslin.io/status")
            ended = one["status"]["phase"] in ("Succeeded", "Failed")
            if told and one["status"].get("podIP") and not ended:
                gone = "deletionTimestamp" in one["metadata"]
                ready = [c["status"] for c in one["status"]["conditions"] if c["type"] == "Ready"]
                address = msgspec.json.decode(told)["addresses"][0]
                found.append((address, ready == ["True"] and not gone, gone))
        return sorted(found)

    async def settled(self, *, seconds: float = 20.0) -> list[tuple[str, bool, bool]]:
        """Wait until the slices say what is."""
        end = time.monotonic() + seconds
        while (said := await self.said()) != (truth := await self.truth()):
            assert time.monotonic() < end, set(said) ^ set(truth)
            await asyncio.sleep(0.1)
        return said


async def until(what: Callable[[], Awaitable[Any]], *, seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := await what()):
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.05)
    return found


@pytest.fixture
async def cluster(serve: Serve) -> AsyncIterator[Cluster]:
    async with serve(rbac=True) as server:
        made = Cluster(server)
        await made.fill()
        try:
            async with alive(server, "n1"):
                yield made
        finally:
            for controller in made.controllers:
                await controller.end()


async def test_250_pods_come_turn_and_go_for_a_few_writes(cluster: Cluster) -> None:
    await cluster.service()
    controller = cluster.lead()
    began = time.monotonic()
    for number in range(250):
        await cluster.up(number)
        await asyncio.sleep(0.01)  # the others' turn, in a server that is in this process
    assert len(await cluster.settled()) == 250
    slices, seconds = await cluster.ours(), time.monotonic() - began
    assert len(slices) <= 5
    print(f"250 pods in {seconds:.1f} s:", controller.writes(), "writes")
    # 1,500 changes of pods.  At most two slices are written a second: one that fills, and the next.
    assert controller.writes() <= 2 * (seconds + 2)

    before = controller.writes()
    for number in range(0, 100):
        await cluster.unready(number)
        await asyncio.sleep(0.005)
    assert sum(not ready for _, ready, _ in await cluster.settled()) == 100
    print("100 pods unready:", controller.writes() - before, "writes")
    assert controller.writes() - before <= 12

    await asyncio.sleep(1.2)
    before = controller.writes()
    await cluster.kubelet.ready(NS, "db-7")
    await cluster.settled()
    assert controller.writes() - before == 1

    before = controller.writes()
    for number in range(50, 250):
        await cluster.kubelet.delete(NS, f"db-{number}")
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.5)
    for number in range(50, 250):
        await cluster.kubelet.gone(NS, f"db-{number}")
        await asyncio.sleep(0.005)
    assert len(await cluster.settled()) == 50
    print("200 pods deleted:", controller.writes() - before, "writes")
    assert controller.writes() - before <= 15
    (one,) = (
        s for s in await cluster.ours() if any(e["hostname"] == "db-3" for e in s["endpoints"])
    )
    (e,) = (e for e in one["endpoints"] if e["hostname"] == "db-3")
    assert (e["nodeName"], e["zone"], e["targetRef"]["name"]) == ("n1", "z1", "db-3")
    assert controller.writes(result="conflict") == 0


@pytest.mark.steers
async def test_the_server_dies_and_comes_back_and_so_do_we(cluster: Cluster) -> None:
    await cluster.service()
    first = cluster.lead()
    for number in range(120):
        await cluster.up(number)
    await cluster.server.stop(abort=True)
    for number in range(60, 120):  # etcd and kubelets go on, in this test
        await cluster.kubelet.take_down(NS, f"db-{number}")
    for number in range(120, 200):
        await cluster.up(number, address=f"10.9.0.{number - 60}")  # addresses are used again
    cluster.server.faults.compact()
    await cluster.server.start()
    await cluster.settled()
    await first.end()
    await cluster.kubelet.take_down(NS, "db-0")
    second = cluster.lead()
    await cluster.settled()
    await asyncio.sleep(1.5)
    assert second.writes() == 1


async def test_a_controller_that_starts_writes_nothing(cluster: Cluster) -> None:
    dual = {"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"}
    asks = BLUE | {"muslin.io/selector": "app=db,!old"}
    await cluster.service(annotations=asks, ports=[], **dual)
    await cluster.service("both", {"muslin.io/workloads": "true"}, selector={"app": "db"}, **dual)
    await cluster.service("wrong", BLUE, selector={"app": "db"})
    await cluster.workload("vm-1", addresses=["192.0.2.7", "fd02::7"], node="nowhere")
    for number in range(3):
        await cluster.up(number)
    first = cluster.lead()

    async def quiet() -> bool:
        slices = await cluster.ours()
        told = await cluster.told()
        return len(slices) == 4 and len(told) == 1

    await until(quiet)
    await asyncio.sleep(1.5)
    await first.end()
    before = await cluster.versions()
    second = cluster.lead()
    await asyncio.sleep(2.0)
    assert second.writes() == 0
    assert await cluster.versions() == before
    assert second.writes("events", "conflict") == 1  # the Event is there already


async def test_what_is_not_ours_stays_as_it_is(cluster: Cluster) -> None:
    """Kubernetes' own slices, a plain Service and its Endpoints, a slice with our own next name."""
    await cluster.service()
    await cluster.service("plain", {}, selector={"app": "db"})
    controller = cluster.lead()
    await cluster.up(1)
    await cluster.settled()
    (mine,) = await cluster.ours()
    theirs = {"kubernetes.io/service-name": "db"}
    managed = "endpointslice.kubernetes.io/managed-by"
    for name, labels in (
        ("a", theirs),
        ("b", {**theirs, managed: "endpointslice-controller.k8s.io"}),
        ("c", {"kubernetes.io/service-name": "plain", managed: "other"}),
    ):
        body = {"metadata": {"name": name, "labels": labels}, "addressType": "IPv4"}
        await cluster.send("POST", SLICES, body | {"endpoints": [], "ports": []})
    # Somebody makes ours his own: it is not touched any more, and another is made.
    name = mine["metadata"]["name"]
    body = {"metadata": {"labels": {managed: "other"}}}
    await cluster.send("PATCH", f"{SLICES}/{name}", body, content_type=MERGE)

    def others(slices: list[Json]) -> Json:
        found = {s["metadata"]["name"]: s["metadata"] for s in slices}
        return {n: (found[n]["resourceVersion"], found[n]["labels"]) for n in ("a", "b", "c", name)}

    before = others(await cluster.items(SLICES))
    await cluster.up(2)
    await cluster.settled()
    assert name not in [s["metadata"]["name"] for s in await cluster.ours()]
    assert others(await cluster.items(SLICES)) == before
    await cluster.send("DELETE", f"{SERVICES}/db")
    await until(lambda: _none(cluster))
    found = {s["metadata"]["name"]: s["metadata"] for s in await cluster.items(SLICES)}
    # The one that was ours still names the Service as its owner, so it may go with that.
    for kept in ("a", "b", "c"):
        assert found[kept]["resourceVersion"] == before[kept][0]
    assert controller.writes("services") == 0


async def _none(cluster: Cluster) -> bool:
    return await cluster.ours() == []


async def test_slices_go_with_the_annotation_and_with_the_service(cluster: Cluster) -> None:
    await cluster.service()
    cluster.lead()
    await cluster.up(1)
    await cluster.settled()
    for value in (None, "blue"):
        body = {"metadata": {"annotations": {"muslin.io/network": value}}}
        await cluster.send("PATCH", f"{SERVICES}/db", body, content_type=MERGE)
        if value is None:
            await until(lambda: _none(cluster))
    await cluster.settled()
    uid = (await cluster.send("GET", f"{SERVICES}/db")).json["metadata"]["uid"]
    assert {o["uid"] for s in await cluster.ours() for o in s["metadata"]["ownerReferences"]} == {
        uid
    }
    await cluster.send("DELETE", f"{SERVICES}/db")
    await cluster.service()  # at once, of the same name
    uid = (await cluster.send("GET", f"{SERVICES}/db")).json["metadata"]["uid"]

    async def anew() -> bool:
        slices = await cluster.ours()
        return [s["metadata"]["ownerReferences"][0]["uid"] for s in slices] == [uid]

    await until(anew)
    await cluster.settled()


async def test_a_machine_turns_and_goes(cluster: Cluster) -> None:
    await cluster.service("both", {"muslin.io/workloads": "true"}, selector={"app": "db"})
    controller = cluster.lead()
    await cluster.up(1)  # Kubernetes' own business
    await cluster.workload("vm-1", addresses=["192.0.2.7"])

    async def says(*wanted: tuple[str, bool, bool]) -> bool:
        return await cluster.said() == list(wanted)

    await until(lambda: says(("192.0.2.7", True, False)))
    body = {"spec": {"ready": False}}
    await cluster.send("PATCH", f"{WORKLOADS}/vm-1", body, content_type=MERGE)
    await until(lambda: says(("192.0.2.7", False, False)))
    await cluster.send("DELETE", f"{WORKLOADS}/vm-1")
    await until(lambda: _none(cluster))
    assert controller.writes() == 3


async def test_a_service_that_cannot_have_it_is_told_once(cluster: Cluster) -> None:
    await cluster.service(selector={"app": "db"})
    cluster.lead()
    await cluster.up(1)
    (event,) = await until(cluster.told)
    assert (event["type"], event["reason"]) == ("Warning", "NoEndpoints")
    assert event["regarding"]["kind"] == "Service"
    assert event["regarding"]["namespace"] == NS
    assert 'annotation muslin.io/selector: "app=db"' in event["note"]
    assert await cluster.ours() == []
    await cluster.up(2)
    await asyncio.sleep(1.0)
    assert len(await cluster.told()) == 1


async def test_without_rights_nothing_breaks_and_they_may_come_later(cluster: Cluster) -> None:
    role = "/apis/rbac.authorization.k8s.io/v1/clusterroles/c"
    some = [r for r in RULES if r["apiGroups"] != ["discovery.k8s.io"]]
    readers = [{**RULES[2], "verbs": ["list", "watch"]}]
    body = {"rules": some + readers}
    await cluster.send("PATCH", role, body, content_type=MERGE)
    await cluster.service()
    await cluster.up(1)
    controller = cluster.lead()

    async def refused() -> bool:
        return controller.writes(result="refused") > 0

    await until(refused)
    await cluster.send("PATCH", role, {"rules": RULES}, content_type=MERGE)
    assert await cluster.settled() == [("10.9.0.1", True, False)]
    with pytest.raises(ApiError):
        await cluster.server.send("GET", f"{SERVICES}/db", token="nobody's")
