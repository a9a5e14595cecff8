"""flannel's part of a node's agent, beside an API server: what it reads, and when it writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from apiserver import ApiServer
from muslin.agent import flannel as module
from muslin.agent.cluster import Cluster, Own
from muslin.agent.flannel import Flannel
from muslin.agent.world import World
from muslin.kernel import boot
from muslin.kube import Access, Api
from muslin.kube import kinds as known
from muslin.model import Block, Node
from muslin.store.ledger import Ledger

A = "flannel.alpha.coreos.com/"
TEXT = '{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}'
MAC = "0e:2a:00:00:00:01"
ME = Node(
    name="n1",
    addresses=(ip_interface("192.0.2.1/24"),),
    mtu=1500,
    data={"default": {"mac": MAC}},
)
MINE = Block(pool="flannel4", cidr=ip_network("10.244.1.0/24"), node="n1")


class Here:
    """A node n1, its agent's part of Kubernetes, and an administrator."""

    def __init__(self, admin: Api, cluster: Cluster, ledger: Ledger) -> None:
        self.admin, self.ledger = admin, ledger
        assert cluster.flannel is not None
        self.flannel: Flannel = cluster.flannel

    async def config(self, text: str) -> None:
        body = {"metadata": {"name": "cfg"}, "data": {"net-conf.json": text}}
        await self.admin.create(known.CONFIG_MAPS, body, namespace="kube-flannel")

    async def annotations(self) -> dict[str, str]:
        found = await self.admin.get(known.NODES, "n1")
        assert found is not None
        told = found["metadata"].get("annotations", {})
        return {k.removeprefix(A): v for k, v in told.items() if k.startswith(A)}

    async def told(self, wanted: dict[str, str]) -> None:
        """Wait until the annotations are these."""
        async with asyncio.timeout(10):
            while await self.annotations() != wanted:  # noqa: ASYNC110 - the server's doing
                await asyncio.sleep(0.05)

    async def pod(self, name: str, ip: str, phase: str, **spec: Any) -> None:
        spec = {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}], **spec}
        body = {"metadata": {"name": name}, "spec": spec}
        await self.admin.create(known.PODS, body, namespace="default")
        status = {"status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}]}}
        await self.admin.patch(known.PODS, name, status, namespace="default", subresource="status")


@pytest.fixture
async def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Here]:
    monkeypatch.setattr(module, "AGAIN", 0.05)
    ledger = Ledger(tmp_path / "node.db", boot.clock)
    async with ApiServer() as server:
        access = Access(server=server.url)
        async with Api(access) as admin, Api(access) as api:
            await admin.create(known.NAMESPACES, {"metadata": {"name": "kube-flannel"}})
            node = {"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.244.1.0/24"]}}
            await admin.create(known.NODES, node)
            cluster = Cluster(api, ledger, Own("n1"), flannel="kube-flannel/cfg")
            task = asyncio.create_task(cluster.run(lambda: None, lambda: None))
            try:
                yield Here(admin, cluster, ledger)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    ledger.close()


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not what():  # noqa: ASYNC110 - of another task, which tells nobody
            await asyncio.sleep(0.02)


async def test_without_the_configmap_nothing_is_known_and_it_says_so(here: Here) -> None:
    await until(lambda: "ConfigMap kube-flannel/cfg: is not there" in str(here.flannel.faults))
    assert here.flannel.extend(World()) is None
    await here.config(TEXT)
    await until(lambda: here.flannel.extend(World()))
    assert here.flannel.faults == ()


async def test_one_that_muslin_cannot_do_is_refused_by_name(here: Here) -> None:
    await here.config('{"Network": "10.244.0.0/16", "Backend": {"Type": "ipip"}}')
    await until(lambda: "cfg, net-conf.json: Backend.Type 'ipip'" in str(here.flannel.faults))
    assert here.flannel.extend(World()) is None


async def test_what_flannels_pods_have_is_given_to_nobody(here: Here) -> None:
    """Not an ended pod's, which its status keeps, nor the node's own."""
    await here.pod("old", "10.244.1.7", "Running")
    await here.pod("done", "10.244.1.8", "Succeeded")
    await here.pod("host", "10.244.1.9", "Running", hostNetwork=True)
    await here.config(TEXT)

    def excluded() -> set[str]:
        world = here.flannel.extend(World())
        return {str(p) for p in world.pools["flannel4"].exclude} if world else set()

    await until(lambda: excluded() == {"10.244.1.1/32", "10.244.1.7/32"})
    world = here.flannel.extend(World())
    assert world is not None
    here.ledger.hold(MINE.cidr, world.pools["flannel4"])
    await here.admin.delete(known.PODS, "old", namespace="default", grace=0)
    await until(lambda: excluded() == {"10.244.1.1/32"})
    given = here.ledger.claim(
        "c", "eth0", netns="/x", conf="", network="default", mtu=1450,
        pools=[world.pools["flannel4"]],
    )  # fmt: skip
    assert str(given.addresses[0]) not in {"10.244.1.0", "10.244.1.1"}


async def test_it_announces_itself_when_the_kernel_is_ready_and_not_before(here: Here) -> None:
    await here.config(TEXT)
    await until(lambda: here.flannel.extend(World()))
    here.flannel.settled(ME, [MINE], ["refused"])
    here.flannel.settled(ME, [], [])
    await asyncio.sleep(0.2)
    assert await here.annotations() == {}
    here.flannel.settled(ME, [MINE], [])
    wanted = {
        "kube-subnet-manager": "true",
        "backend-type": "vxlan",
        "backend-data": f'{{"VNI":1,"VtepMAC":"{MAC}"}}',
        "public-ip": "192.0.2.1",
    }
    await here.told(wanted)
    found = await here.admin.get(known.NODES, "n1")
    here.flannel.settled(ME, [MINE], [])
    await here.flannel.tell()
    again = await here.admin.get(known.NODES, "n1")
    assert found is not None
    assert again is not None
    assert again["metadata"]["resourceVersion"] == found["metadata"]["resourceVersion"]
    await here.admin.patch(
        known.NODES, "n1", {"metadata": {"annotations": {f"{A}public-ip": None}}}
    )
    await here.told(wanted)
