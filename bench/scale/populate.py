"""The cluster put into an API server: every node with what its kubelet and its agent say of it.

What is missing are the records of the node with the real agent, which makes its own.
"""

from __future__ import annotations

from tests.apiserver.kubelet import Kubelet, Sender
from tests.apiserver.kubelet import node as core_node
from tests.apiserver.kubelet import pod as pod_object

from bench.scale import estate
from bench.scale.estate import APPS, SYSTEM, Size
from muslin.kube import crd
from muslin.kube.kinds import CRDS, LEASES, NODES
from muslin.kube.values import KINDS, to_object
from muslin.model import Block, Network, Node, Pool

MERGE = "application/merge-patch+json"


async def populate(send: Sender, size: Size, backend: str) -> None:
    """Write it all."""
    for definition in crd.definitions():
        await send("POST", CRDS.path(), definition)
    for name in (SYSTEM, APPS):
        await send("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    await send("POST", KINDS[Pool].path(), to_object(estate.POOL))
    await send("POST", KINDS[Network].path(), to_object(estate.network(backend)))
    for number in range(size.nodes):
        await _machine(send, number)
        if number != estate.OURS:
            await _records(send, number)
    for number in range(size.nodes):
        ours = number == estate.OURS
        for i in range(size.own if ours else size.pods):
            await _pod(send, number, i, wishes=ours and i < size.wishing)
    for service in estate.services(size.services):
        await send("POST", f"/api/v1/namespaces/{APPS}/services", service)


async def _machine(send: Sender, number: int) -> None:
    """A core Node, as large as a kubelet makes it."""
    core = core_node(estate.name(number), str(estate.underlay(number).ip))
    core["status"]["images"] = estate.images()
    off = {"type": "NetworkUnavailable", "status": "False", "reason": "MuslinReady"}
    off["message"] = "the node has its pod networks"
    core["status"]["conditions"].append(off)
    await send("POST", NODES.path(), core)


async def _records(send: Sender, number: int) -> None:
    """What an agent keeps in the store: its lease, its node, its block."""
    labels = estate.labels(number)
    await send("POST", LEASES.path(SYSTEM), estate.lease_object(number))
    node = estate.node(number)
    await send("POST", KINDS[Node].path(), to_object(node, labels=labels))
    path = KINDS[Node].path("", node.name, "status")
    await send("PATCH", path, estate.ready(), content_type=MERGE)
    held = estate.block(number, number)
    await send("POST", KINDS[Block].path(), to_object(held, labels=labels))


async def _pod(send: Sender, node: int, i: int, *, wishes: bool) -> None:
    name = f"p-{node}-{i}"
    notes = {"muslin.io/mac": f"02:00:00:00:{i >> 8:02x}:{i & 255:02x}"} if wishes else None
    labels, host = {"app": f"a{i}"}, estate.name(node)
    body = pod_object(name, namespace=APPS, labels=labels, annotations=notes, nodeName=host)
    await Kubelet(send).create(body)
    status = {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}
    path = f"/api/v1/namespaces/{APPS}/pods/{name}/status"
    await send("PATCH", path, {"status": status}, content_type=MERGE)
