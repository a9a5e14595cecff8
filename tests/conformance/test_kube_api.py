"""Requests to an API server with real semantics: whose field, which version, whose right."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from apiserver import Certificate
from muslin.errors import ConfigError, Conflict
from muslin.kube import Api, kubeconfig, micro_time, parse_time
from muslin.kube.kinds import CONFIG_MAPS, LEASES, NAMESPACES, NODES, PODS, muslin
from muslin.kube.slim import ConfigMap, Lease, Node
from servers import Serve, Server

NS = "muslin-test-api"


@pytest.fixture
async def server(serve: Serve) -> AsyncIterator[Server]:
    async with serve() as made:
        await made.send("POST", NAMESPACES.path(), {"metadata": {"name": NS}})
        yield made


@pytest.fixture
async def api(server: Server) -> AsyncIterator[Api]:
    async with Api(server.access()) as made:
        yield made


def config(**data: str) -> dict[str, Any]:
    return {"metadata": {"name": "a"}, "data": data}


async def test_an_object_is_made_once_and_removed_once(api: Api) -> None:
    await api.create(CONFIG_MAPS, config(x="1"), namespace=NS)
    with pytest.raises(Conflict, match="already exists"):
        await api.create(CONFIG_MAPS, config(), namespace=NS)
    assert await api.delete(CONFIG_MAPS, "a", namespace=NS)
    assert not await api.delete(CONFIG_MAPS, "a", namespace=NS)
    assert await api.get(CONFIG_MAPS, "a", namespace=NS) is None


async def test_a_name_may_be_made_by_the_server(api: Api) -> None:
    made = await api.create(
        CONFIG_MAPS, {"metadata": {"generateName": "a-"}, "data": {}}, namespace=NS
    )
    assert made["metadata"]["name"].startswith("a-")


async def test_a_patch_with_an_old_version_is_a_conflict(api: Api) -> None:
    made = await api.create(CONFIG_MAPS, config(x="1"), namespace=NS)
    old = made["metadata"]["resourceVersion"]
    await api.patch(CONFIG_MAPS, "a", {"data": {"y": "2"}}, namespace=NS)
    with pytest.raises(Conflict):
        change = {"metadata": {"resourceVersion": old}, "data": {"x": None}}
        await api.patch(CONFIG_MAPS, "a", change, namespace=NS)
    test = {"op": "test", "path": "/metadata/resourceVersion", "value": old}
    with pytest.raises(Conflict):
        await api.patch(CONFIG_MAPS, "a", [test], namespace=NS, how="json")
    found = await api.get(CONFIG_MAPS, "a", namespace=NS, type=ConfigMap)
    assert found is not None
    assert found.data == {"x": "1", "y": "2"}


async def test_a_merge_patch_removes_by_none(api: Api) -> None:
    await api.create(CONFIG_MAPS, config(x="1", y="2"), namespace=NS)
    changed = await api.patch(CONFIG_MAPS, "a", {"data": {"x": None}}, namespace=NS)
    assert changed["data"] == {"y": "2"}


async def test_apply_holds_its_fields_against_another_manager(server: Server, api: Api) -> None:
    async with Api(server.access(), manager="muslin-other") as other:
        await api.apply(CONFIG_MAPS, "a", {"data": {"x": "1", "y": "1"}}, namespace=NS)
        with pytest.raises(Conflict, match=r'\.data\.x: conflict with "muslin"'):
            await other.apply(CONFIG_MAPS, "a", {"data": {"x": "2"}}, namespace=NS)
        await other.apply(CONFIG_MAPS, "a", {"data": {"x": "2"}}, namespace=NS, force=True)
        after = await api.apply(CONFIG_MAPS, "a", {"data": {}}, namespace=NS)
        assert after["data"] == {"x": "2"}  # ours no longer, so it stays; y was and is gone


async def test_delete_keeps_its_conditions(api: Api) -> None:
    made = await api.create(CONFIG_MAPS, config(), namespace=NS)
    meta = made["metadata"]
    await api.patch(CONFIG_MAPS, "a", {"data": {"x": "1"}}, namespace=NS)
    with pytest.raises(Conflict):
        await api.delete(CONFIG_MAPS, "a", namespace=NS, uid="another")
    with pytest.raises(Conflict):
        await api.delete(CONFIG_MAPS, "a", namespace=NS, version=meta["resourceVersion"])
    assert await api.delete(CONFIG_MAPS, "a", namespace=NS, uid=meta["uid"])


async def test_of_many_who_change_one_version_one_wins(api: Api) -> None:
    made = await api.create(CONFIG_MAPS, config(), namespace=NS)
    version = made["metadata"]["resourceVersion"]

    async def change(n: int) -> dict[str, Any]:
        body = {"metadata": {"resourceVersion": version}, "data": {"x": str(n)}}
        return await api.patch(CONFIG_MAPS, "a", body, namespace=NS)

    done = await asyncio.gather(*map(change, range(20)), return_exceptions=True)
    assert sum(isinstance(d, dict) for d in done) == 1
    assert sum(isinstance(d, Conflict) for d in done) == 19


async def test_a_node_condition_is_merged_by_its_type(api: Api) -> None:
    await api.create(NODES, {"metadata": {"name": "n1"}})
    for kind in ("Ready", "NetworkUnavailable"):
        condition = {"type": kind, "status": "False", "reason": "r", "message": "m"}
        body = {"status": {"conditions": [condition]}}
        await api.patch(NODES, "n1", body, how="strategic", subresource="status")
    node = await api.get(NODES, "n1", type=Node)
    assert node is not None
    assert {c.type for c in node.status.conditions or ()} == {"Ready", "NetworkUnavailable"}


async def test_a_lease_is_kept_by_micro_times(api: Api) -> None:
    """Also at a whole second, where a fraction that is left out is refused."""
    times = {"leaseDurationSeconds": 15, "acquireTime": micro_time(1e9)}
    await api.create(LEASES, {"metadata": {"name": "l"}, "spec": times}, namespace=NS)
    now = time.time()
    for moment in (float(int(now)), now):
        change = {"spec": {"renewTime": micro_time(moment)}}
        await api.patch(LEASES, "l", change, namespace=NS)
        lease = await api.get(LEASES, "l", namespace=NS, type=Lease)
        assert lease is not None
        assert lease.spec.renew_time is not None
        assert abs(parse_time(lease.spec.renew_time) - moment) < 2e-6


async def test_a_kind_that_nobody_installed_is_named(api: Api) -> None:
    with pytest.raises(ConfigError, match="the CRDs are not installed"):
        await api.get(muslin("things", "Thing"), "a")
    with pytest.raises(ConfigError, match="the CRDs are not installed"):
        await api.list(muslin("things", "Thing"), type=ConfigMap)


async def test_an_object_that_is_refused_names_the_field(api: Api) -> None:
    with pytest.raises(ConfigError, match=r"metadata\.name: "):
        await api.create(CONFIG_MAPS, {"metadata": {"name": "Bad_Name"}}, namespace=NS)


async def test_a_namespace_that_is_missing_is_named(api: Api) -> None:
    with pytest.raises(ConfigError, match='namespaces "nowhere" not found'):
        await api.create(CONFIG_MAPS, config(), namespace="nowhere")


async def test_a_right_that_is_missing_is_named_with_the_role_that_grants_it(
    serve: Serve, tmp_path: Path
) -> None:
    async with serve(rbac=True, tls=Certificate.make(tmp_path)) as server:
        namespace = {"metadata": {"name": NS}}
        await server.send("POST", NAMESPACES.path(), namespace, token="admin")
        token = await server.account(NS, "nobody")
        at = kubeconfig(server.kubeconfig(tmp_path / "kubeconfig", token=token))
        async with Api(at) as api:
            cannot = f'User "system:serviceaccount:{NS}:nobody" cannot list'
            with pytest.raises(ConfigError, match=cannot) as raised:
                await api.list(PODS, type=ConfigMap)
            assert "grant the verb list on pools" not in raised.value.hint
            assert raised.value.hint.startswith('grant the verb list on pods (API group "")')


async def test_the_version_is_told(api: Api) -> None:
    assert (await api.version()).startswith("v1.")
