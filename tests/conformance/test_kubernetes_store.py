"""What the Kubernetes store promises beyond the contract: objects that others may touch too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from ipaddress import ip_interface, ip_network

import pytest

from muslin.errors import ConfigError, Conflict
from muslin.kube import Api
from muslin.kube.kinds import CRDS, LEASES, NODES
from muslin.kube.values import KINDS
from muslin.model import Block, Network, Node, Pool, encode
from muslin.store.kubernetes import SERVED, KubernetesStore
from muslin.store.objects import Objects
from muslin.store.promises import Expiry
from servers import Serve, Server

POOL = Pool(name="a", cidr=ip_network("10.1.0.0/16"), exclude=(ip_network("10.1.0.0/28"),))
NETWORK = Network(name="blue", backend="vxlan", pools=("a",), options={"vni": 7, "port": 4789})
BLOCKS = [
    Block(pool="a", cidr=ip_network("10.1.0.64/26"), node="n1"),
    Block(pool="six", cidr=ip_network("fd00::40/122"), node="n1.rack-1.example"),
]
NODE = Node(
    name="n1.rack-1.example",
    addresses=(ip_interface("192.0.2.1/24"), ip_interface("2001:db8::1/64")),
    mtu=1500,
    data={"blue": {"mac": "0a:58:00:00:00:01"}},
)
EVERYTHING = (POOL, NETWORK, NODE, *BLOCKS)


@pytest.fixture
async def server(serve: Serve) -> AsyncIterator[Server]:
    async with serve() as made:
        await made.define()
        yield made


@pytest.fixture
async def api(server: Server) -> AsyncIterator[Api]:
    async with Api(server.access()) as made:
        yield made


@pytest.fixture
async def store(server: Server) -> AsyncIterator[KubernetesStore]:
    api = Api(server.access())
    async with KubernetesStore(api, namespace="default") as made:
        yield made


async def test_every_kind_of_value_comes_back_as_it_was(store: KubernetesStore) -> None:
    objects = Objects(store)
    for value in EVERYTHING:
        await objects.create(value)
    for kind in SERVED:
        found = await objects.list(kind)
        assert not found.faults
        wanted = [v for v in EVERYTHING if isinstance(v, kind)]
        assert [f.value for f in found.found] == wanted
    assert [r.key for r in await store.list("blocks/six/")] == ["blocks/six/fd00::40-122"]


async def test_a_put_replaces_the_spec_and_leaves_what_is_others(
    store: KubernetesStore, api: Api
) -> None:
    objects = Objects(store)
    made = await objects.create(NETWORK)
    theirs = {"metadata": {"labels": {"team": "x"}, "annotations": {"note": "y"}}}
    await api.patch(KINDS[Network], "blue", theirs)
    status = {"status": {"nodes": 3}}
    await api.patch(KINDS[Network], "blue", status, subresource="status")
    with pytest.raises(Conflict):
        await objects.put(NETWORK, if_revision=made.revision)
    before = await objects.get(Network, "blue")
    assert before is not None
    smaller = Network(name="blue", backend="vxlan", pools=("a",), options={"vni": 8})
    await objects.put(smaller, if_revision=before.revision)
    found = await api.get(KINDS[Network], "blue")
    assert found is not None
    assert found["spec"]["options"] == {"vni": 8}
    assert found["metadata"]["labels"] == {"team": "x"}
    assert found["metadata"]["annotations"] == {"note": "y"}
    assert found["status"]["nodes"] == 3


async def test_a_watch_of_everything_brings_every_kind(store: KubernetesStore) -> None:
    objects = Objects(store)
    await objects.create(POOL)
    async with asyncio.timeout(10), aclosing(store.watch("")) as batches:
        assert [e.key for e in await anext(batches)] == ["pools/a"]
        keys: set[str] = set()
        for value in (NETWORK, NODE, *BLOCKS):
            await objects.create(value)
        while len(keys) < 4:
            keys |= {e.key for e in await anext(batches)}
        await objects.delete(Pool, "a")
        assert [(e.key, e.record) for e in await anext(batches)] == [("pools/a", None)]
    wanted = {"networks/blue", f"nodes/{NODE.name}", "blocks/a/10.1.0.64-26"}
    assert keys == wanted | {"blocks/six/fd00::40-122"}


async def test_an_object_of_a_newer_version_is_a_fault_and_hides_nothing(
    store: KubernetesStore, api: Api, server: Server
) -> None:
    """Its field is in their CRD and not in our structs."""
    objects = Objects(store)
    await objects.create(NETWORK)
    newer = {"backend": "vxlan", "pools": ["a"], "estate": ["not-a-prefix"]}
    path = KINDS[Network].path()
    kind = {"apiVersion": "muslin.io/v1alpha1", "kind": "Network"}
    # As an older CRD, without our rules, would have let it in.
    loose = await api.get(CRDS, "networks.muslin.io")
    assert loose is not None
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    loose["spec"]["versions"][0]["schema"] = {"openAPIV3Schema": schema}
    await server.send("PUT", CRDS.path("", "networks.muslin.io"), loose)
    await server.send("POST", path, {**kind, "metadata": {"name": "odd"}, "spec": newer})
    listing = await objects.list(Network)
    assert [f.value.name for f in listing.found] == ["blue"]
    assert ["networks/odd" in str(f) for f in listing.faults] == [True]


async def test_keys_that_are_no_objects_are_refused_by_name(store: KubernetesStore) -> None:
    for key in ("key", "networks", "networks/", "leases/x", "blocks/a/nothing", "a/b"):
        with pytest.raises(ConfigError):
            await store.get(key)
        with pytest.raises(ConfigError):
            await store.create(key, b"{}")


async def test_a_value_under_another_ones_key_is_refused(store: KubernetesStore) -> None:
    with pytest.raises(ConfigError, match="belongs under another key"):
        await store.create("networks/green", encode(NETWORK))
    with pytest.raises(ConfigError):
        await store.create("networks/blue", b"\x00 not JSON")


async def test_a_node_that_was_deleted_by_mistake_keeps_its_blocks_if_it_promises_in_time(
    server: Server, api: Api
) -> None:
    """The garbage collector takes the Lease; the grace is what the node has to come again."""
    now = [0.0]
    kinds = [KINDS[k] for k in SERVED]
    expiry = Expiry(api, "default", kinds, clock=lambda: now[0], grace=60)
    node = await api.create(NODES, {"metadata": {"name": "muslin-test-n1"}})
    meta = node["metadata"]
    core = {"apiVersion": "v1", "kind": "Node", "name": meta["name"], "uid": meta["uid"]}
    store = KubernetesStore(Api(server.access()), namespace="default", owner=core)
    async with store:
        lease = await store.lease(86400)
        kept, lost = BLOCKS
        made = await Objects(store).create(kept, lease=lease)
        await Objects(store).create(lost, lease=lease)
        listed = await api.list(LEASES, namespace="default", type=dict)
        (held,) = (o for o in listed.items if o["metadata"]["name"] == lease.name)
        assert held["metadata"]["ownerReferences"] == [core]
        await api.delete(LEASES, held["metadata"]["name"], namespace="default")
        assert await expiry.look() == []
        with pytest.raises(Conflict):
            await lease.keep()
        again = await store.lease(86400)
        await Objects(store).put(kept, if_revision=made.revision, lease=again)
        now[0] = 59.0
        assert await expiry.look() == []
        now[0] = 61.0
        assert len(await expiry.look()) == 1
        assert [f.value for f in (await Objects(store).list(Block)).found] == [kept]
