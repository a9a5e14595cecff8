"""Lists of the fake API server: pages, versions, selectors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest

from apiserver import ApiError, ApiServer
from apiserver.encode import Json
from apiserver.kubelet import Kubelet, pod

MAPS = "/api/v1/namespaces/default/configmaps"


@pytest.fixture
async def api() -> AsyncIterator[ApiServer]:
    async with ApiServer() as api:
        for number in range(5):
            labels = {"n": str(number), "even": str(number % 2 == 0)}
            meta = {"name": f"m{number}", "labels": labels}
            await api.send("POST", MAPS, {"metadata": meta, "data": {}})
        yield api


async def names(api: ApiServer, path: str) -> list[str]:
    return [item["metadata"]["name"] for item in (await listed(api, path))["items"]]


async def listed(api: ApiServer, path: str) -> Json:
    found: Json = (await api.send("GET", path)).json
    return found


async def test_pages_show_one_revision_whatever_happens_between(api: ApiServer) -> None:
    first = await listed(api, f"{MAPS}?limit=2")
    await api.send("DELETE", f"{MAPS}/m3")
    await api.send("POST", MAPS, {"metadata": {"name": "m2a"}})
    token = first["metadata"]["continue"]
    rest = await listed(api, f"{MAPS}?limit=10&continue={token}")
    assert [item["metadata"]["name"] for item in rest["items"]] == ["m2", "m3", "m4"]
    assert rest["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert first["metadata"]["remainingItemCount"] == 3
    assert "continue" not in rest["metadata"]


async def test_a_page_of_a_compacted_revision_is_expired_but_can_go_on(api: ApiServer) -> None:
    token = (await listed(api, f"{MAPS}?limit=2"))["metadata"]["continue"]
    await api.send("DELETE", f"{MAPS}/m3")
    api.faults.compact()
    with pytest.raises(ApiError) as refused:
        await listed(api, f"{MAPS}?limit=2&continue={token}")
    assert (refused.value.code, refused.value.body["reason"]) == (410, "Expired")
    inconsistent = refused.value.body["metadata"]["continue"]
    assert await names(api, f"{MAPS}?continue={inconsistent}") == ["m2", "m4"]


async def test_an_exact_version_is_listed_as_it_was(api: ApiServer) -> None:
    then = api.storage.revision
    await api.send("DELETE", f"{MAPS}/m0")
    exact = f"{MAPS}?resourceVersion={then}&resourceVersionMatch=Exact"
    assert len(await names(api, exact)) == 5
    assert len(await names(api, f"{MAPS}?resourceVersion={then}")) == 4
    assert len(await names(api, f"{MAPS}?resourceVersion=0")) == 4


async def test_a_version_of_the_future_is_too_large(api: ApiServer) -> None:
    with pytest.raises(ApiError, match="Too large resource version: 999") as refused:
        await listed(api, f"{MAPS}?resourceVersion=999")
    assert refused.value.code == 504


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ("even=True", ["m0", "m2", "m4"]),
        ("even==True,n!=2", ["m0", "m4"]),
        ("n in (1, 3)", ["m1", "m3"]),
        ("n notin (1,3),even", ["m0", "m2", "m4"]),
        ("!even", []),
        ("missing!=x,n=0", ["m0"]),
        ("n>2", ["m3", "m4"]),
    ],
)
async def test_label_selectors(api: ApiServer, selector: str, wanted: list[str]) -> None:
    assert await names(api, f"{MAPS}?labelSelector={quote(selector)}") == wanted


async def test_field_selectors_know_the_fields_of_their_kind(api: ApiServer) -> None:
    kubelet = Kubelet(api.send)
    await kubelet.create(pod("waits"))
    await kubelet.bring_up(pod("runs"), "n1", ["10.0.0.1"])
    pods = "/api/v1/pods?fieldSelector="
    assert await names(api, f"{pods}spec.nodeName%3D") == ["waits"]
    assert await names(api, f"{pods}status.phase!%3DPending,spec.nodeName%3Dn1") == ["runs"]
    assert await names(api, f"{MAPS}?fieldSelector=metadata.name%3Dm1") == ["m1"]
    with pytest.raises(ApiError, match=r"field label not supported: spec\.color") as refused:
        await listed(api, f"{pods}spec.color%3Dred")
    assert refused.value.code == 400


async def test_a_list_can_be_of_metadata_only(api: ApiServer) -> None:
    from apiserver.router import Request

    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    answer = await api.router.handle(Request.to("GET", MAPS, accept=accept))
    assert answer.json["items"][0].keys() == {"kind", "apiVersion", "metadata"}
