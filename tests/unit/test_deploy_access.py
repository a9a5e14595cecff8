"""What an agent's token may do: deploy/base's RBAC and admission policies, asked as a server asks.

The matrix of docs/rbac.md: node n1's agent, and whoever has stolen its token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from muslin.config import Controller
from muslin.controller import manifests
from muslin.controller.main import Replica
from muslin.controller.rollout import Rollout
from muslin.errors import ConfigError, Conflict
from muslin.kube import Access, Api, Kind
from muslin.kube import kinds as known
from muslin.kube.values import KINDS, to_object
from muslin.model import Block, Network, Node, Pool
from muslin.store.kubernetes import KubernetesStore
from muslin.store.url import KubernetesAt
from servers import Serve, Server

HOME = "muslin-system"
NODES, BLOCKS = KINDS[Node], KINDS[Block]
PROMISE = "muslin-0123456789abcdef"


def record(name: str) -> dict[str, Any]:
    spec = {"addresses": ["192.0.2.1/24"], "mtu": 1500}
    return {"metadata": {"name": name}, "spec": spec}


def block(node: str, nth: int = 0) -> dict[str, Any]:
    spec = {"pool": "a", "cidr": f"10.0.{nth}.0/26", "node": node}
    return {"metadata": {"name": f"a.10.0.{nth}.0-26"}, "spec": spec}


def lease(name: str, node: str = "", uid: str = "") -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if node:
        metadata["ownerReferences"] = [owner(node, uid)]
    return {"metadata": metadata, "spec": {"leaseDurationSeconds": 60}}


def owner(node: str, uid: str = "") -> dict[str, str]:
    return {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid or f"uid-of-{node}"}


def pod(name: str, node: str) -> dict[str, Any]:
    spec = {"nodeName": node, "containers": [{"name": "c", "image": "i"}]}
    return {"metadata": {"name": name, "labels": {"app": "x"}}, "spec": spec}


class Cluster:
    """A server with Muslin's manifests, two nodes, and what others keep in it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.admin = Api(server.access())
        self.uids: dict[str, str] = {}
        self._opened = [self.admin]
        self._tokens: dict[str, str] = {}

    async def fill(self) -> None:
        async for _ in Rollout(self.admin).apply(manifests.targets("vxlan")):
            pass
        for node in ("n1", "n2"):
            made = await self.admin.create(known.NODES, {"metadata": {"name": node}})
            self.uids[node] = made["metadata"]["uid"]
            await self.admin.create(NODES, record(node))
            await self.admin.create(known.PODS, pod(f"on-{node}", node), namespace="default")
        await self.admin.create(BLOCKS, block("n2", 2))
        promise = lease(PROMISE, "n2", self.uids["n2"])
        await self.admin.create(known.LEASES, promise, namespace=HOME)
        await self.admin.create(known.LEASES, lease("muslin-controller"), namespace=HOME)
        for node in ("n1", ""):
            self._tokens[node] = await self.server.account(HOME, "muslin-agent", node=node)
        await self._guarded()

    async def _guarded(self) -> None:
        """Wait until the policies are asked: a server learns of them by a watch of its own."""
        forged = {"metadata": {"annotations": {"muslin.io/status": "forged"}}}
        agent = Api(self.server.access(self._tokens["n1"]), dry_run=True)
        admin = Api(self.server.access(), dry_run=True)
        self._opened += [agent, admin]
        async with asyncio.timeout(30):
            for write in (
                lambda: agent.create(BLOCKS, block("n2", 9)),
                lambda: admin.patch(known.PODS, "on-n1", forged, namespace="default"),
            ):
                while not await _refused(write):  # noqa: ASYNC110 - of a server
                    await asyncio.sleep(0.05)

    def agent(self, node: str = "n1") -> Api:
        """As its kubelet's token, bound to a pod, says; "" is a token made by hand."""
        return self.opened(self.server.access(self._tokens[node]))

    def opened(self, access: Access) -> Api:
        made = Api(access)
        self._opened.append(made)
        return made

    async def close(self) -> None:
        for api in self._opened:
            await api.close()


async def _refused(write: Callable[[], Awaitable[object]]) -> bool:
    try:
        await write()
    except ConfigError as e:
        return "ValidatingAdmissionPolicy" in str(e)
    return False


@pytest.fixture
async def cluster(serve: Serve) -> AsyncIterator[Cluster]:
    async with serve(rbac=True) as server:
        made = Cluster(server)
        try:
            await made.fill()
            yield made
        finally:
            await made.close()


async def test_an_agent_does_its_work(cluster: Cluster) -> None:
    """The store itself, with the node as owner of what it promises, as the agent opens it."""
    agent = cluster.agent()
    store = KubernetesStore(agent, namespace=HOME, owner=owner("n1", cluster.uids["n1"]))
    promise = await store.lease(60)
    mine = await store.get("nodes/n1")
    assert mine is not None
    await store.put("nodes/n1", mine.value, if_revision=mine.revision, lease=promise)
    value = b'{"pool":"a","cidr":"10.0.1.0/26","node":"n1"}'
    made = await store.create("blocks/a/10.0.1.0-26", value, lease=promise)
    await promise.keep()
    await store.put("blocks/a/10.0.1.0-26", value, if_revision=made.revision, lease=promise)
    assert await store.delete("blocks/a/10.0.1.0-26")
    condition = {
        "type": "Ready",
        "status": "True",
        "reason": "Applied",
        "message": "",
        "lastTransitionTime": "2026-01-31T12:00:00Z",
    }
    await agent.patch(NODES, "n1", {"status": {"conditions": [condition]}}, subresource="status")
    told = {"metadata": {"annotations": {"muslin.io/status": "{}"}}}
    await agent.patch(known.PODS, "on-n1", told, namespace="default")
    event = {
        "metadata": {"name": "on-n1.17f3a"},
        "eventTime": "2026-01-31T12:00:00.000000Z",
        "action": "Attach",
        "reason": "PoolExhausted",
        "type": "Warning",
        "reportingController": "muslin.io/agent",
        "reportingInstance": "n1",
    }
    await agent.create(known.EVENTS, event, namespace="default")
    await promise.revoke()
    assert await store.get("nodes/n1") is None, "it went with its lease"


@pytest.mark.parametrize(
    ("kind", "body", "why"),
    [
        (NODES, record("n3"), "its own nodes.muslin.io object: this is the agent of n1"),
        (BLOCKS, block("n2", 3), "blocks of its own node: this is the agent of n1"),
        (known.LEASES, lease("muslin-00000000000000aa", "n2"), "leases that its Node owns"),
        (known.LEASES, lease("muslin-00000000000000aa"), "leases that its Node owns"),
        (known.LEASES, lease("muslin-other", "n1"), "the leases of blocks, not the controller's"),
        (known.PODS, pod("new", "n1"), "cannot create"),
        (known.CONFIG_MAPS, {"metadata": {"name": "x"}}, "cannot create"),
    ],
)
async def test_a_stolen_token_makes_nothing_in_another_nodes_name(
    cluster: Cluster, kind: Kind, body: dict[str, Any], why: str
) -> None:
    namespace = HOME if kind.namespaced else ""
    with pytest.raises(ConfigError, match=why):
        await cluster.agent().create(kind, body, namespace=namespace)


@pytest.mark.parametrize(
    ("kind", "name", "patch", "why"),
    [
        (NODES, "n2", {"spec": {"mtu": 1400}}, "its own nodes.muslin.io object"),
        (BLOCKS, "a.10.0.2.0-26", {"spec": {"node": "n1"}}, "blocks of its own node"),
        (known.LEASES, PROMISE, {"spec": {"leaseDurationSeconds": 1}}, "leases that its Node owns"),
        (known.LEASES, "muslin-controller", {"spec": {"holderIdentity": "x"}}, "not the contr"),
        (known.NODES, "n1", {"metadata": {"labels": {"a": "b"}}}, "cannot patch"),
        (KINDS[Block], "a.10.0.2.0-26", {"metadata": {"labels": {"a": "b"}}}, "its own node"),
    ],
)
async def test_a_stolen_token_changes_nothing_of_another_node(
    cluster: Cluster, kind: Kind, name: str, patch: dict[str, Any], why: str
) -> None:
    namespace = HOME if kind.namespaced else ""
    with pytest.raises(ConfigError, match=why):
        await cluster.agent().patch(kind, name, patch, namespace=namespace)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (NODES, "n2"),
        (BLOCKS, "a.10.0.2.0-26"),
        (known.LEASES, PROMISE),
        (known.LEASES, "muslin-controller"),
        (known.PODS, "on-n1"),
        (known.NODES, "n1"),
    ],
)
async def test_a_stolen_token_deletes_nothing_of_another(
    cluster: Cluster, kind: Kind, name: str
) -> None:
    namespace = {known.PODS: "default", known.LEASES: HOME}.get(kind, "")
    with pytest.raises(ConfigError):
        await cluster.agent().delete(kind, name, namespace=namespace)


async def test_a_block_is_not_given_to_another_node(cluster: Cluster) -> None:
    agent = cluster.agent()
    await agent.create(BLOCKS, block("n1", 1))
    with pytest.raises(ConfigError, match="blocks of its own node"):
        await agent.patch(BLOCKS, "a.10.0.1.0-26", {"spec": {"node": "n2"}})


@pytest.mark.parametrize(
    ("name", "metadata", "why"),
    [
        ("on-n2", {"annotations": {"muslin.io/status": "x"}}, "pods of its own node"),
        ("on-n1", {"annotations": {"muslin.io/network": "x"}}, "no annotation but"),
        ("on-n1", {"labels": {"app": "y"}}, "a pod's labels"),
        ("on-n1", {"labels": {"app": None}}, "a pod's labels"),
        ("on-n1", {"finalizers": ["muslin.io/x"]}, "a pod's finalizers"),
        ("on-n1", {"ownerReferences": [owner("n1")]}, "a pod's owners"),
    ],
)
async def test_of_a_pod_only_the_annotation_is_written(
    cluster: Cluster, name: str, metadata: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        await cluster.agent().patch(known.PODS, name, {"metadata": metadata}, namespace="default")


async def test_a_pods_image_is_not_replaced(cluster: Cluster) -> None:
    image = [{"op": "replace", "path": "/spec/containers/0/image", "value": "evil"}]
    with pytest.raises(ConfigError, match="what a pod is"):
        await cluster.agent().patch(known.PODS, "on-n1", image, namespace="default", how="json")


async def test_an_annotation_of_others_is_not_removed(cluster: Cluster) -> None:
    theirs = {"metadata": {"annotations": {"a/b": "c"}}}
    await cluster.admin.patch(known.PODS, "on-n1", theirs, namespace="default")
    agent = cluster.agent()
    told = {"metadata": {"annotations": {"muslin.io/status": "old"}}}
    await agent.patch(known.PODS, "on-n1", told, namespace="default")
    with pytest.raises(ConfigError, match="no annotation but"):
        gone = {"metadata": {"annotations": {"a/b": None}}}
        await agent.patch(known.PODS, "on-n1", gone, namespace="default")
    ours = {"metadata": {"annotations": {"muslin.io/status": None}}}
    await agent.patch(known.PODS, "on-n1", ours, namespace="default")


async def test_nobody_else_says_where_a_pod_is(cluster: Cluster) -> None:
    """Services would lead there; whoever may patch pods may still patch everything else of them."""
    told = {"metadata": {"annotations": {"muslin.io/status": "{}"}}}
    for value in ("forged", "{}"):
        forged = {"metadata": {"annotations": {"muslin.io/status": value}}}
        with pytest.raises(ConfigError, match="written by the agent of the pod's node alone"):
            await cluster.admin.patch(known.PODS, "on-n1", forged, namespace="default")
    await cluster.agent().patch(known.PODS, "on-n1", told, namespace="default")
    other = {"metadata": {"annotations": {"muslin.io/status": "forged"}}}
    with pytest.raises(ConfigError, match="written by the agent of the pod's node alone"):
        await cluster.admin.patch(known.PODS, "on-n1", other, namespace="default")
    theirs = {"metadata": {"labels": {"x": "y"}, "annotations": {"a/b": "c"}}}
    await cluster.admin.patch(known.PODS, "on-n1", theirs, namespace="default")


async def test_a_token_without_a_node_writes_nothing(cluster: Cluster) -> None:
    agent = cluster.agent(node="")
    with pytest.raises(ConfigError, match="does not say on which node"):
        await agent.create(BLOCKS, block("n1", 1))
    with pytest.raises(ConfigError, match="does not say on which node"):
        await agent.create(BLOCKS, block("", 1) | {"spec": block("n1", 1)["spec"]})
    told = {"metadata": {"annotations": {"muslin.io/status": "{}"}}}
    with pytest.raises(ConfigError, match="pods of its own node"):
        await agent.patch(known.PODS, "on-n1", told, namespace="default")


async def test_others_are_not_asked(cluster: Cluster) -> None:
    """The policies are about agents: controllers and people go by RBAC alone."""
    await cluster.admin.create(BLOCKS, block("n1", 7))
    await cluster.admin.patch(
        known.PODS, "on-n1", {"metadata": {"labels": {"app": "z"}}}, namespace="default"
    )
    with pytest.raises(Conflict):
        await cluster.admin.create(BLOCKS, block("n1", 7))


async def test_the_reads_of_an_agent_are_what_it_needs(cluster: Cluster) -> None:
    agent = cluster.agent()
    for kind in (NODES, BLOCKS, known.NODES, known.PODS):
        await agent.list(kind, type=dict)
    for kind in (known.LEASES, known.SERVICES, known.CONFIG_MAPS):
        with pytest.raises(ConfigError, match="cannot list"):
            await agent.list(kind, type=dict)
    secrets = Kind("", "v1", "secrets", "Secret", True)
    with pytest.raises(ConfigError, match="cannot list"):
        await agent.list(secrets, namespace=HOME, type=dict)


def test_a_record_is_what_the_agent_writes() -> None:
    value = Node(name="n1", addresses=(), mtu=1500)
    assert set(record("n1")["spec"]) <= set(to_object(value)["spec"])


async def test_the_controller_does_its_work(cluster: Cluster) -> None:
    """A real one, for as long as it takes to write what it writes; RBAC refuses none of it."""
    access = cluster.server.access(
        await cluster.server.account(HOME, "muslin-controller", node="n1")
    )
    ready = {"type": "Ready", "status": "True", "reason": "Applied", "message": ""}
    said = {"status": {"conditions": [{**ready, "lastTransitionTime": "2026-01-31T12:00:00Z"}]}}
    await cluster.admin.patch(NODES, "n2", said, subresource="status")
    taint = {"spec": {"taints": [{"key": "muslin.io/agent-not-ready", "effect": "NoSchedule"}]}}
    await cluster.admin.patch(known.NODES, "n2", taint)
    lost = {"metadata": {"labels": {"muslin.io/lease": "muslin-00000000000000ff"}}}
    await cluster.admin.patch(BLOCKS, "a.10.0.2.0-26", lost)
    given = Controller(identity="c", listen="127.0.0.1:0", grace=0.1, sweep=0.1)
    replica = Replica(given, KubernetesAt(), access)
    running = asyncio.create_task(replica.run())
    try:
        for _ in range(400):
            if await _worked(cluster.admin):
                break
            await asyncio.sleep(0.05)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert await _worked(cluster.admin)
    held = await cluster.admin.get(known.LEASES, "muslin-controller", namespace=HOME)
    assert held is not None
    assert not held["spec"].get("holderIdentity"), "let go at the end"
    with pytest.raises(ConfigError, match="cannot list"):
        await cluster.opened(access).list(known.CONFIG_MAPS, type=dict)


async def _worked(admin: Api) -> bool:
    """Every kind of write: statuses, a condition, a taint, an end."""
    node = await admin.get(known.NODES, "n2") or {}
    conditions = {c["type"] for c in node.get("status", {}).get("conditions") or ()}
    statuses = [
        (await admin.get(KINDS[kind], name) or {}).get("status", {}).get("conditions")
        for kind, name in ((Network, "default"), (Pool, "pods4"))
    ]
    return (
        "NetworkUnavailable" in conditions
        and not [t for t in node["spec"].get("taints") or () if "muslin" in t["key"]]
        and all(statuses)
        and await admin.get(BLOCKS, "a.10.0.2.0-26") is None
    )
